# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes, _slow_paths, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _block, _disk_files, _options, _reopened

OPENER = """
import sys
files = [open(path, mode) for mode, path in zip(sys.argv[1::2], sys.argv[2::2])]
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="opened")
def process_with_files():
    """Starts a process that has files open: mode and path, by turns. It ends with its input."""
    processes = []

    def start(*words):
        command = [sys.executable, "-c", OPENER, *map(str, words)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        process.stdout.readline()
        return process.pid

    yield start
    for process in processes:
        process.communicate(timeout=10)


@pytest.fixture(name="disk")
def folder_that_lasts(monkeypatch, tmp_path):
    """The tests' own folder, taken for one on a disk."""
    monkeypatch.setattr(_reopened, "_EMPTIED", "/never/")
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [("/dev/shm", "/", "tmpfs", "rw", "t"), ("/", "/", "ext4", "rw", "/dev/a")])
    return tmp_path


def codes(pid, argv=(), ram=frozenset(), made_again=False):
    return [reason["code"] for reason in _reopened.reasons(pid, ["qemu", *map(str, argv)], set(ram), made_again)]


def test_files_that_are_as_they_were_are_no_reason(disk, opened):
    (disk / "image").write_text("image")
    assert codes(opened("r+", disk / "image"), ["-drive", f"file={disk}/image"]) == []


@pytest.mark.parametrize("change", ["removed", "replaced", "renamed", "moved"])
def test_an_image_that_is_another_one_by_now_would_be_opened_below_a_running_guest(disk, opened, change):
    (disk / "image").write_text("image")
    pid = opened("r+", disk / "image")
    if change in ("renamed", "moved"):
        (disk / "image").rename(disk / "old")
    if change in ("replaced", "renamed"):
        (disk / "new").write_text("another")
        (disk / "new").rename(disk / "image")
    if change == "removed":
        (disk / "image").unlink()
    (reason,) = _reopened.reasons(pid, ["qemu", "-drive", f"file={disk}/image"], set(), False)
    assert reason["code"] == "file-gone" and str(disk / "image") in reason["message"]


@pytest.fixture(name="device")
def block_device(monkeypatch, disk):
    """A path that is a block device, number 7:3, and a process that has one open: which, and what the kernel calls it, can be changed."""
    path, opened = disk / "device", SimpleNamespace(number=os.makedev(7, 3), name="dm-1", path=str(disk / "device"))
    path.touch()
    plain = os.stat

    def look(where, *words, **keys):
        seen = plain(where, *words, **keys)
        if not str(where).endswith(("/device", "/fd/3")):
            return seen
        number = opened.number if str(where).endswith("/fd/3") else os.makedev(7, 3)
        return SimpleNamespace(st_mode=stat.S_IFBLK | 0o600, st_rdev=number, st_dev=seen.st_dev, st_ino=seen.st_ino)

    monkeypatch.setattr(os, "stat", look)
    monkeypatch.setattr(_block, "kernel_name", lambda _number: opened.name)
    monkeypatch.setattr(_processes, "fd_links", lambda _pid: {3: "/dev/dm-1"})
    monkeypatch.setattr(_processes, "flags_of", lambda _pid, _fd: os.O_RDWR)
    return opened


def test_a_block_device_is_the_one_that_qemu_has_open(device, opened):
    pid = opened("r", device.path)
    argv = ["-drive", f"file={device.path},if=virtio"]
    assert codes(pid, argv) == []
    device.number = os.makedev(7, 4)  # its name is another volume's by now
    assert codes(pid, argv) == ["file-gone"]
    assert codes(pid, ["-drive", "file=/dev/never/there"]) == ["file-gone"]


@pytest.mark.parametrize("name", ["loop0", "loop12p1", "nbd0", "nbd3p2", "ram1", "zram0"])
def test_a_block_device_that_nobody_sets_up_again_is_a_reason(device, opened, name):
    argv = ["-drive", f"file={device.path}"]
    device.name = name
    pid = opened("r", device.path)
    assert codes(pid, argv) == ["file-volatile"]
    assert codes(pid, argv, made_again=True) == []  # its unit may set it up
    device.name = "rbd0"
    assert codes(pid, argv) == []


def test_the_kernels_name_of_a_block_device():
    assert _block.kernel_name(os.makedev(4095, 9)) == ""
    for name in os.listdir("/sys/block"):
        major, minor = (int(part) for part in (Path("/sys/block") / name / "dev").read_text(encoding="ascii").split(":"))
        assert _block.kernel_name(os.makedev(major, minor)) == name


def test_a_console_that_was_rotated_and_removed_is_no_reason(disk, opened):
    pid = opened("w", disk / "web.log", "a", disk / "other.log")
    for name in ("web.log", "other.log"):
        (disk / name).rename(disk / f"{name}.1")
        (disk / f"{name}.1").unlink()
    assert codes(pid, ["-serial", f"file:{disk}/web.log"]) == []


def test_a_path_that_does_not_answer_is_a_reason_for_this_guest(monkeypatch, disk, opened):
    (disk / "image").touch()
    pid, plain = opened("r+", disk / "image"), os.stat
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 2.0)
    monkeypatch.setattr(os, "stat", lambda path, *words, **keys: time.sleep(60) if "image" in str(path) else plain(path, *words, **keys))
    (reason,) = _reopened.reasons(pid, ["qemu", "-drive", f"file={disk}/image"], set(), False)
    assert reason["code"] == "file-silent" and f"{disk}/image does not answer within 2 s" in reason["message"]
    (reason,) = _reopened.replaced(pid, ["qemu", "-bios", f"{disk}/image", "-nodefaults"])
    assert reason["code"] == "file-silent" and f"{disk}/image" in reason["message"]


def test_ram_and_output_and_temporary_files_are_not_opened_again(disk, opened):
    for name in ("ram", "console", "log", "vl.AbC123"):
        (disk / name).touch()
    pid = opened("r+", disk / "ram", "w", disk / "console", "w", disk / "log", "r+", disk / "vl.AbC123")
    seen = os.stat(disk / "ram")
    for name in ("ram", "console", "log", "vl.AbC123"):
        (disk / name).unlink()
    argv = ["-serial", f"file:{disk}/console", "-D", disk / "log"]
    assert codes(pid, argv, {(seen.st_dev, seen.st_ino)}) == []
    assert codes(pid, argv) == ["file-gone"]


def test_a_disk_in_memory_is_gone_after_a_jump_whoever_made_it(monkeypatch, disk, opened):
    (disk / "image").touch()
    (disk / "seed.iso").touch()
    pid = opened("r+", disk / "image", "r", disk / "seed.iso")
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [(str(disk), "/", "tmpfs", "rw", "t"), ("/", "/", "ext4", "rw", "/dev/a")])
    assert codes(pid) == ["file-volatile", "file-volatile"]
    assert codes(pid, made_again=True) == ["file-volatile"]  # what is only read may be made again by its unit


def test_what_qemu_reads_at_its_start_is_still_there(disk, opened):
    (disk / "vmlinuz").touch()
    pid = opened()
    for argv in (["-kernel", disk / "vmlinuz"], ["-bios", "bios.bin"], ["-fw_cfg", f"name=opt/a,file={disk}/vmlinuz"]):
        assert codes(pid, argv) == []
    never = disk / "never"
    for argv in (
        ["-kernel", never],
        ["-initrd", never],
        ["-device", f"virtio-net-pci,romfile={never}"],
        ["-object", f"secret,id=s,file={never}"],
        ["-object", f"{{'qom-type':'tls-creds-x509','id':'t','dir':'{never}'}}"],
        ["-device", f"loader,file={never}"],
        ["-object", f"authz-list-file,id=z,filename={never}"],
        ["-netdev", f"tap,id=n,ifname=a,script={never},downscript=no"],
        ["-chardev", f"pipe,id=p,path={never}"],
    ):
        assert codes(pid, argv) == ["file-gone"]


@pytest.mark.parametrize(
    "words",
    [
        "-serial unix:{}/s,server=on,wait=off",
        "-vnc unix:{}/s",
        "-pidfile {}/s",
        "-D {}/s",
        "-chardev file,id=c,path={}/s",
        "-netdev stream,id=n,server=on,addr.type=unix,addr.path={}/s",
    ],
)
def test_a_folder_in_memory_in_which_qemu_creates_something_has_to_be_made_again(monkeypatch, disk, opened, words):
    """QEMU would not start, and the guest's unit would wait for the folder for ever."""
    services = []
    monkeypatch.setattr(_systemd, "runtime_directories", lambda _states: services.append(1) or [])
    pid, argv = opened(), ["qemu", *words.format(disk).split()]

    def found(made_again=False, makes=()):
        return _reopened.reasons(pid, argv, set(), made_again, (), makes)

    assert found() == [] and not services
    monkeypatch.setattr(
        _reopened, "mounts", lambda _pid: [(str(disk.parent), "/", "tmpfs", "rw", "tmpfs"), ("/", "/", "ext4", "rw", "/dev/vda")]
    )
    (reason,) = found()
    assert reason["code"] == "file-volatile" and str(disk) in reason["message"] and "RuntimeDirectory=" in reason["remedy"]
    assert found(makes=[str(disk)]) == found(makes=[f"{disk}/deeper"]) == found(makes=None) == []
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [(str(disk), "/", "tmpfs", "rw", "tmpfs"), ("/", "/", "ext4", "rw", "/dev/vda")])
    assert found() == []  # a mount, which a boot makes again
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [("/", "/", "ext4", "rw", "/dev/vda")])
    disk.rmdir()
    (reason,) = found()
    assert reason["code"] == "file-volatile" and found(makes=[str(disk)]) == []
    disk.mkdir()


def test_a_device_of_the_host_that_is_no_longer_there_is_missed(opened):
    assert codes(opened(), ["-object", "input-linux,id=k,evdev=/dev/null"]) == []
    assert codes(opened(), ["-object", "input-linux,id=k,evdev=/dev/input/never"]) == ["file-gone"]


def test_the_folder_of_a_fat_disk_is_looked_for(monkeypatch, disk, opened):
    assert codes(opened(), ["-drive", f"file=fat:{disk}/never"]) == ["file-gone"]
    assert codes(opened(), ["-drive", f"file=fat:rw:{disk}"]) == []
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [("/", "/", "tmpfs", "rw", "tmpfs")])
    assert codes(opened(), ["-drive", f"file=fat:rw:{disk}"]) == ["file-volatile"]


def test_a_pipe_is_one_or_two(disk, opened):
    pid = opened()
    argv = ["-chardev", f"pipe,id=p,path={disk}/p"]
    assert codes(pid, argv) == ["file-gone"]
    os.mkfifo(disk / "p.in")
    assert codes(pid, argv) == []


def test_credentials_are_there_at_each_start(monkeypatch, disk, opened):
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [("/", "/", "tmpfs", "rw", "t")])
    (disk / "key").touch()
    argv = ["-object", f"secret,id=s,file={disk}/key"]
    assert codes(opened(), argv) == ["file-volatile"]
    monkeypatch.setattr(_reopened, "_CREDENTIALS", f"{disk}/")
    assert codes(opened(), argv) == []


MOUNTS = [
    ("/run/user", "/", "ext4", "rw", "s"),
    ("/var/tmp", "/var/tmp/systemd-private-1f-web.service-x/tmp", "ext4", "rw", "s"),
    ("/live", "/", "overlay", "rw,lowerdir=/l,upperdir=/run/upper,workdir=/w", "s"),
    ("/kept", "/", "overlay", "rw,lowerdir=/l,upperdir=/srv/upper,workdir=/w", "s"),
    ("/run", "/", "tmpfs", "rw", "s"),
    ("/", "/", "ext4", "rw", "s"),
]


@pytest.mark.parametrize(
    ("path", "volatile"),
    [
        ("/srv/a", False),
        ("/run/a", True),
        ("/running/a", False),
        ("/run/user/a", False),
        ("/tmp/a", True),
        ("/var/tmp/a", True),
        ("/live/a", True),
        ("/kept/a", False),
    ],
)
def test_what_a_boot_finds_empty(path, volatile):
    assert _reopened.is_volatile(path, MOUNTS) is volatile


def test_the_mounts_of_a_process_are_read():
    mounts = _reopened.mounts(os.getpid())
    assert ("/proc", "proc") in [(mount[0], mount[2]) for mount in mounts]
    assert mounts[-1][0] == "/"
    assert _reopened.mount_of("/proc/self/mountinfo", mounts) == ("/proc", "proc", "proc")
    assert _reopened.mount_of("/processes", mounts)[0] == "/" and _reopened.mount_of("/", []) == ("", "", "")


@pytest.fixture(name="known")
def what_identifies_the_disks(disk, opened):
    """What is known of the disks of a process: what it has open (mode and name, by turns), its command line."""

    def look(files, *argv, made_again=False):
        for name in files[1::2]:
            (disk / name).touch()
        pid = opened(*(disk / word if index % 2 else word for index, word in enumerate(files)))
        return _reopened.disks(pid, ["qemu", *map(str, argv)], set(), made_again)

    return look


def test_a_disk_is_known_under_each_path_with_which_it_is_opened(known, disk):
    """What is on the command line may be a link, and what is below a disk is not on it."""
    (disk / "link").symlink_to(disk / "image")
    found = known(["r+", "image", "r", "base"], "-drive", f"file={disk}/link")
    assert set(found) == {f"{disk}/{name}" for name in ("image", "base", "link")}
    for path, own in found.items():
        seen = os.stat(path)
        assert (own["inode"], own["size"], own["mount"], own["source"]) == (seen.st_ino, 0, "/", "/dev/a")
    assert _disk_files.amiss(found) == []


def test_a_relative_path_is_looked_up_where_the_next_qemu_does(known, disk, monkeypatch):
    monkeypatch.setattr(_processes, "folder_of", lambda _pid: str(disk))
    found = known(["r+", "image"], "-drive", "file=image")
    assert set(found) == {f"{disk}/image", "image"} and found["image"] == found[f"{disk}/image"]


def test_firmware_that_is_only_read_is_no_disk_and_its_variables_are(known, disk):
    """A package may bring another one, and its content is a part of the saved state."""
    flash = ("-drive", f"if=pflash,file={disk}/CODE.fd,readonly=on", "-drive", f"if=pflash,file={disk}/VARS.fd")
    assert set(known(["r", "CODE.fd", "r+", "VARS.fd"], *flash)) == {f"{disk}/VARS.fd"}


def test_only_a_disk_that_is_read_and_named_or_in_memory_may_be_made_again_by_its_unit(known, disk, monkeypatch):
    argv = [word for name in ("image", "seed.iso") for word in ("-drive", f"file={disk}/{name}")]
    files = ["r+", "image", "r", "seed.iso", "r", "base"]
    again = known(files, *argv, made_again=True)
    assert {path: "inode" in own for path, own in again.items()} == {
        f"{disk}/image": True,
        f"{disk}/seed.iso": False,
        f"{disk}/base": True,
    }
    assert all("inode" in own for own in known(files, *argv).values())
    monkeypatch.setattr(_reopened, "mounts", lambda _pid: [(str(disk), "/", "tmpfs", "rw", "t"), ("/", "/", "ext4", "rw", "/dev/a")])
    assert "inode" not in known(files, *argv, made_again=True)[f"{disk}/base"]


def test_a_disk_whose_status_root_cannot_see_is_not_known(known, disk, monkeypatch):
    def refused(*_words):
        raise PermissionError(13, "no")

    monkeypatch.setattr(_disk_files, "identity", refused)
    assert known(["r+", "image"]) == {}


def test_disks_of_a_storage_that_does_not_answer_are_not_taken_for_none(disk, opened, monkeypatch):
    (disk / "image").touch()
    pid, plain = opened("r+", disk / "image"), os.stat
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 1.0)
    monkeypatch.setattr(os, "stat", lambda path, *words, **keys: time.sleep(60) if "image" in str(path) else plain(path, *words, **keys))
    with pytest.raises(_slow_paths.Silent, match="image does not answer"):
        _reopened.disks(pid, ["qemu", "-drive", f"file={disk}/image"], set(), False)


@pytest.mark.parametrize(
    ("unit", "state", "refused"),
    [
        ("swtpm.service", "enabled", False),
        ("swtpm@web.service", "static", False),
        ("tpm-web.service", "disabled", False),  # its unit requires it
        ("tpm-web.service", "transient", True),
        ("swtpm.service", "disabled", True),
        ("swtpm.service", "transient", True),
        ("user@1000.service", "static", True),
        ("session-3.scope", "", True),
        (None, "", True),
        ("web.service", "disabled", False),
    ],
)
@pytest.mark.parametrize(
    "words", ["-chardev socket,id=c,path={}", "-netdev stream,id=n,addr.type=unix,addr.path={}", "-drive file=nbd:unix:{}:exportname=a"]
)
def test_a_socket_that_nobody_serves_after_a_boot_keeps_qemu_from_its_start(monkeypatch, disk, opened, unit, state, refused, words):
    pid, path = opened(), f"{disk}/s"
    monkeypatch.setattr(_processes, "unit_of", {os.getpid(): unit}.get)
    monkeypatch.setattr(_systemd, "show_each", lambda units, key: {one: {key: state} for one in units})

    def peers(*argv):
        return [reason["code"] for reason in _reopened.reasons(pid, ["qemu", *argv], set(), False, {"web.service", "tpm-web.service"})]

    argv = words.format(path).split()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert peers(*argv) == (["peer-gone"] if refused else [])
        assert _reopened.servers(["qemu", *argv]) == ([unit] if unit and unit.endswith(".service") else [])
        assert peers("-chardev", f"socket,id=c,path={path},server=on,wait=off") == []
    assert peers(*argv) == ["peer-gone"]  # nobody listens any more
    assert _reopened.servers(["qemu", *argv]) == _reopened.servers(["qemu"]) == []
    assert peers("-chardev", f"socket,id=c,path={path},reconnect=1") == []
    assert peers("-drive", "file=nbd://127.0.0.1:1/a") == ["peer-gone"]
    assert peers("-drive", "file=nbd://192.0.2.9/a") == []


@pytest.fixture(name="roms")
def firmware(monkeypatch, tmp_path):
    for name in ("bios-256k.bin", "efi-virtio.rom", "vgabios-stdvga.bin", "efi-e1000.rom"):
        (tmp_path / name).touch()
    monkeypatch.setattr(_reopened, "_DATA", (str(tmp_path),))
    return tmp_path


def names(argv):
    return [os.path.basename(path) for path in _reopened._roms(os.getpid(), _options.read(["qemu", *argv.split()])[0])]


def test_the_roms_are_those_of_its_devices(roms):
    assert names("-nodefaults -device virtio-net-pci,netdev=n") == ["bios-256k.bin", "efi-virtio.rom"]
    assert names("-nodefaults -nic tap,model=virtio -vga std") == ["bios-256k.bin", "efi-virtio.rom", "vgabios-stdvga.bin"]
    assert names("-nodefaults -device virtio-net-pci,romfile=") == ["bios-256k.bin"]
    assert names("") == ["bios-256k.bin", "vgabios-stdvga.bin", "efi-e1000.rom"]
    assert names("-nodefaults -nic none") == ["bios-256k.bin"]
    for name in ("bios-microvm.bin", "qboot.rom", "own.bin"):
        (roms / name).touch()
    assert names(f"-nodefaults -machine pc-q35-10.0,firmware={roms}/own.bin") == ["own.bin"]
    assert names("-nodefaults -machine pc-q35-10.0 -bios own.bin") == ["own.bin"]
    assert names("-nodefaults -machine microvm") == ["bios-microvm.bin"]
    assert names("-nodefaults -M microvm,acpi=off") == ["qboot.rom"]
    assert names("-nodefaults -drive if=pflash,file=/never/vars,unit=0") == []
    other = roms / "other"
    other.mkdir()
    (other / "bios-256k.bin").touch()
    assert _reopened._roms(os.getpid(), _options.read(["qemu", "-nodefaults", "-L", str(other)])[0]) == [str(other / "bios-256k.bin")]


def test_firmware_that_is_only_read_counts_and_the_guests_own_variables_do_not(roms):
    for name in ("CODE.fd", "VARS.fd"):
        (roms / name).touch()
    drives = f"-drive if=pflash,format=raw,readonly=on,file={roms}/CODE.fd -drive if=pflash,format=raw,file={roms}/VARS.fd"
    assert names(f"-nodefaults {drives}") == ["CODE.fd"]
    nodes = f"-machine q35,pflash0=c -blockdev driver=raw,node-name=c,read-only=on,file.driver=file,file.filename={roms}/CODE.fd"
    assert names(f"-nodefaults {nodes}") == ["CODE.fd"]


def test_a_rom_that_a_package_brought_since_the_start_does_not_fit_the_state(monkeypatch, roms):
    argv = ["qemu", "-nodefaults", "-device", "virtio-net-pci"]
    monkeypatch.setattr(_processes, "started_at", lambda _pid: time.time() + 100)
    assert _reopened.replaced(os.getpid(), argv) == []
    monkeypatch.setattr(_processes, "started_at", lambda _pid: time.time() - 100)
    os.utime(roms / "efi-virtio.rom", (0, 0))  # the package's own time is old
    found = _reopened.replaced(os.getpid(), argv)
    assert [reason["code"] for reason in found] == ["rom-replaced", "rom-replaced"]
    assert "efi-virtio.rom was replaced" in found[1]["message"]
    monkeypatch.setattr(_processes, "started_at", lambda _pid: 0.0)
    assert _reopened.replaced(os.getpid(), argv) == []
