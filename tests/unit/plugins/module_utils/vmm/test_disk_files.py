# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _block, _disk_files

SRV = ("/srv", "xfs", "/dev/mapper/vg-srv")


@pytest.fixture(name="image")
def disk_of_a_guest(tmp_path):
    """A raw image: an old copy of it has the same size."""
    path = tmp_path / "web1.raw"
    path.write_bytes(b"now ")
    return path


def changed(monkeypatch, **calls):
    """Let the code, and nobody else, have other system calls."""
    monkeypatch.setattr(_disk_files, "os", SimpleNamespace(**{**vars(os), **calls}))


def another(image, content=b"old "):
    """Another file comes to its path; the first one stays."""
    os.link(image, f"{image}.own")
    copy = image.with_suffix(".copy")
    copy.write_bytes(content)
    copy.rename(image)


def own(image):
    """The guest's own file comes back to its path, as with the mount."""
    os.rename(f"{image}.own", image)


def known(image, mount=SRV, **how):
    return {str(image): _disk_files.identity(str(image), mount, **how)}


def test_an_old_copy_under_the_path_is_not_the_guests_disk(image):
    files = known(image)
    assert _disk_files.amiss(files) == []
    first = os.stat(image).st_ino
    another(image)
    assert _disk_files.amiss(files) == [
        f"another file at {image} (inode {os.stat(image).st_ino}, not {first}; the guest's own is on /dev/mapper/vg-srv, mounted at /srv)"
    ]
    own(image)
    assert _disk_files.amiss(files) == []
    image.unlink()
    assert _disk_files.amiss(files) == [f"no {image}"]  # libvirt would make firmware variables anew
    image.mkdir()
    assert "not a regular file" in _disk_files.amiss(files)[0]


def test_a_write_and_new_times_make_no_other_file(image):
    """NFS delegations may change the times of a file that nobody writes to."""
    files = known(image)
    image.write_bytes(b"then")
    os.utime(image, (1, 1))
    image.chmod(0o400)
    assert _disk_files.amiss(files) == []


def test_the_size_counts(image):
    """Each new file system gives its first file the same number."""
    files = known(image)
    image.write_bytes(b"another")
    assert "7 bytes, not 4" in _disk_files.amiss(files)[0]
    assert _disk_files.amiss(files, tried=True) == []  # a QEMU that did not resume the guest may have written the bitmaps of a qcow2
    another(image)
    assert _disk_files.amiss(files, tried=True)


@pytest.mark.parametrize("kind", [*_disk_files._RENUMBERED, "fuse", "fuse.sshfs", "fuseblk"])
def test_a_number_that_a_mount_may_change_does_not_count(image, kind):
    files = known(image, ("/srv", kind, "there"))
    another(image)
    assert _disk_files.amiss(files) == []
    image.write_bytes(b"another")
    assert _disk_files.amiss(files)
    image.write_bytes(b"4444")
    files[str(image)]["on_device"] = not files[str(image)]["on_device"]  # what is below the mount point of a network file system
    assert "another kind of file system" in _disk_files.amiss(files)[0]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "nfs", "nfs4", "ceph", "zfs", "gfs2"])
def test_a_number_that_stays_counts(image, kind):
    files = known(image, ("/srv", kind, "there"))
    another(image)
    assert _disk_files.amiss(files)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (["dm/uuid LVM-a"], ["dm/uuid LVM-a"], True),
        (["dm/uuid LVM-a"], ["dm/uuid LVM-b"], False),
        (["wwid eui.1", "device/serial S 1"], ["wwid nvme.x", "device/serial S 1"], True),  # another kernel may tell less
        (["wwid eui.1 part 1"], ["wwid eui.1 part 2"], False),
        ([], ["wwid eui.1"], True),
        (["wwid eui.1"], [], True),
        (
            ["dm/uuid CRYPT-LUKS2-0123456789abcdef0123456789abcdef-root"],
            ["dm/uuid CRYPT-LUKS2-0123456789abcdef0123456789abcdef-luks-0123"],
            True,
        ),
        (
            ["dm/uuid CRYPT-LUKS2-0123456789abcdef0123456789abcdef-root"],
            ["dm/uuid CRYPT-LUKS2-1123456789abcdef0123456789abcdef-root"],
            False,
        ),
        (["device/wwid naa.6000c29a", "device/serial S"], ["dm/uuid mpath-36000c29a"], True),
        (["device/wwid naa.6000c29a part 2"], ["dm/uuid part2-mpath-36000c29a"], True),
        (["device/wwid naa.6000c29a part 2"], ["dm/uuid part3-mpath-36000c29a"], False),
    ],
)
def test_the_device_below_a_file_system_counts_if_it_is_known_both_times(monkeypatch, image, before, now, same):
    """With another disk that has the same file, say a clone: the number of its inode and its size are the same."""
    number = os.stat(image).st_dev
    monkeypatch.setattr(_disk_files, "_file_system", lambda _path: "")
    monkeypatch.setattr(_block, "of_number", {number: before}.__getitem__)
    files = known(image)
    monkeypatch.setattr(_block, "of_number", {number: now}.__getitem__)
    found = _disk_files.amiss(files)
    assert (found == []) is same
    assert same or "(device " in found[0]


def test_the_numbers_of_a_device_lead_to_what_identifies_it(monkeypatch, tmp_path):
    (tmp_path / "253:7" / "dm").mkdir(parents=True)
    (tmp_path / "253:7" / "dm" / "uuid").write_text("LVM-a\n")
    monkeypatch.setattr(_block, "_SYSFS", str(tmp_path))
    assert _block.of_number(os.makedev(253, 7)) == ["dm/uuid LVM-a"]
    assert _block.of_number(os.makedev(0, 7)) == []


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("uuid 1", "uuid 1", True),
        ("uuid 1", "uuid 2", False),
        ("uuid 1", "", True),
        ("", "uuid 1", True),
        ("btrfs 1 subvolume 256", "btrfs 1 subvolume 257", False),  # a snapshot: its inodes have the same numbers
    ],
)
def test_the_file_system_counts_if_it_is_known_both_times(monkeypatch, image, before, now, same):
    monkeypatch.setattr(_disk_files, "_file_system", lambda _path: before)
    files = known(image, ("/srv", "btrfs", "/dev/a"))
    monkeypatch.setattr(_disk_files, "_file_system", lambda _path: now)
    assert (_disk_files.amiss(files) == []) is same


def test_a_file_system_is_asked_for_its_uuid_and_a_btrfs_for_its_subvolume(monkeypatch, image):
    uuid, is_btrfs = bytes(range(16)), [True]

    def ioctl(file, request, buffer):
        assert os.path.samestat(os.fstat(file), os.stat(image))
        if request in (0xD0009412, 0x8400941F) and not is_btrfs[0]:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl")
        if request == 0xD0009412:  # treeid, objectid
            assert len(buffer) == 4096 and int.from_bytes(buffer[8:16], sys.byteorder) == 256
            buffer[:8] = (258).to_bytes(8, sys.byteorder)
        elif request == 0x8400941F:
            assert len(buffer) == 1024
            buffer[16:32] = uuid
        else:
            assert request == 0x80111500 and len(buffer) == 17
            buffer[:] = bytes([16]) + uuid

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert _disk_files._file_system(str(image)) == f"btrfs {uuid.hex()} subvolume 258"
    is_btrfs[0] = False
    assert _disk_files._file_system(str(image)) == f"uuid {uuid.hex()}"
    uuid = bytes(16)
    assert _disk_files._file_system(str(image)) == ""
    assert _disk_files._file_system("/proc/self") == _disk_files._file_system("/never/there") == ""


def raising(err):
    def act(*_words):
        raise err

    return act


def test_a_file_system_that_does_not_tell_is_unknown(image, monkeypatch):
    monkeypatch.setattr(fcntl, "ioctl", raising(OSError(errno.ENOTTY, "Inappropriate ioctl")))
    assert _disk_files._file_system(str(image)) == "" and _disk_files.amiss(known(image)) == []


def test_no_file_of_a_network_is_opened(monkeypatch, image):
    """That may never return, and root may not be allowed to."""
    seen = os.stat(image)
    monkeypatch.setattr(_disk_files, "_file_system", lambda _path: 1 // 0)
    plain = SimpleNamespace(st_mode=seen.st_mode, st_dev=os.makedev(0, 50), st_ino=7, st_size=8)
    changed(monkeypatch, stat=lambda _path: plain)
    files = {"/srv/a": _disk_files.identity("/srv/a", ("/srv", "nfs4", "server:/srv"))}
    assert files["/srv/a"]["inode"] == 7 and _disk_files.amiss(files) == []


def test_a_file_that_root_may_not_see_is_left_to_qemu(monkeypatch, image):
    files = known(image)
    changed(monkeypatch, stat=raising(PermissionError(errno.EACCES, "Permission denied")))
    assert _disk_files.amiss(files) == []


def test_what_was_a_block_device_is_one_again(monkeypatch, image):
    """A link on a mount that is missing may have a file below it. Which device it is, _block knows."""
    plain = os.stat(image)
    device = SimpleNamespace(st_mode=stat.S_IFBLK | 0o600)
    changed(monkeypatch, stat=lambda _path: device)
    files = known(image)
    assert files == {str(image): {"block": True}} and _disk_files.amiss(files) == []
    changed(monkeypatch, stat=lambda _path: plain)
    assert _disk_files.amiss(files) == [f"another file at {image} (not a block device)"]
    changed(monkeypatch)
    assert _disk_files.identity("/dev/null", SRV) == {}


def test_of_a_file_that_is_made_again_only_its_file_system_counts(monkeypatch, image):
    monkeypatch.setattr(_block, "of_number", lambda _number: ["wwid a"])
    files = known(image, remade=True)
    another(image, b"made again")
    assert _disk_files.amiss(files) == [] and _disk_files.sized(files) == files
    monkeypatch.setattr(_block, "of_number", lambda _number: ["wwid b"])
    assert "device wwid b, not wwid a" in _disk_files.amiss(files)[0]


def test_the_sizes_are_of_the_moment_after_the_pause(image):
    """Until then a qcow2 file may grow."""
    files = known(image)
    image.write_bytes(b"more than before")
    sized = _disk_files.sized(files)
    assert sized[str(image)]["size"] == 16 and files[str(image)]["size"] == 4
    assert _disk_files.amiss(sized) == [] and _disk_files.amiss(files)
    assert _disk_files.sized({}) == {}


def test_a_file_that_was_exchanged_since_the_gate_ends_the_save(image):
    files = known(image)
    another(image)
    with pytest.raises(LiveUpdateError, match=f"another file took the place of its disk {image}"):
        _disk_files.sized(files)
    image.unlink()
    with pytest.raises(FileNotFoundError):
        _disk_files.sized(files)


def test_the_sizes_are_of_the_files_that_qemu_sees(image):
    """Its relative paths begin in its folder."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=image.parent) as process:
        files = {image.name: _disk_files.identity(str(image), SRV), **known(image)}
        image.write_bytes(b"more")
        assert _disk_files.sized(files, process.pid) == files
        process.stdin.close()


def test_a_storage_that_is_silent_in_the_pause_ends_the_save(monkeypatch, image):
    """The guests would stay paused for ever."""
    files = known(image)
    monkeypatch.setattr(_disk_files, "LIMIT_S", 0.2)
    monkeypatch.setattr(_disk_files, "_sized", lambda *_words: time.sleep(5))
    begun = time.monotonic()
    with pytest.raises(LiveUpdateError, match=rf"its disk {image} does not answer within 0\.2 s"):
        _disk_files.sized(files)
    assert time.monotonic() - begun < 4


def test_the_pause_costs_one_stat_for_each_disk(monkeypatch, tmp_path):
    files = {}
    for number in range(10):
        (tmp_path / str(number)).touch()
        files |= known(tmp_path / str(number))
    asked = []
    never = dict.fromkeys(("open", "readlink", "listdir", "lstat", "statvfs"), lambda *_words: 1 // 0)
    changed(monkeypatch, stat=lambda path: asked.append(path) or os.stat(path), **never)
    for place, name in ((_disk_files, "_file_system"), (_block, "of_number")):
        monkeypatch.setattr(place, name, lambda _what: 1 // 0)
    _disk_files.sized(files)
    assert asked == list(files)


def test_libvirt_is_told_why_it_may_not_start_a_domain_yet(image):
    files = known(image)
    _disk_files.verify("app", files)
    another(image)
    says = rf"guest app: the host still has another file at {image} .*; mount what is missing\..* 'kvm-liveupdate discard app'"
    with pytest.raises(LiveUpdateError, match=says) as told:
        _disk_files.verify("app", files)
    assert told.value.details["again"] and "memory is kept" in str(told.value)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="mounts file systems")
def test_a_mount_that_is_missing_or_another_one_is_seen_by_the_kernels_own_numbers(tmp_path):
    """Two new file systems: the file has the same inode in both."""
    program = """
import json, os, sys
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _disk_files, _reopened
path, known = sys.argv[1:]
if os.path.exists(known):
    files = json.load(open(known))
    print(json.dumps([files[path]["inode"], os.stat(path).st_ino, _disk_files.amiss(files)]))
else:
    own = _disk_files.identity(path, _reopened.mount_of(path, _reopened.mounts(os.getpid())))
    json.dump({path: own}, open(known, "w"))
"""
    script = """
set -e
cd "$1"
mkdir srv
printf below > srv/disk
for name in a b; do
    truncate -s 8M $name
    mkfs.ext4 -q $name
    mount -o loop $name srv || exit 77
    printf $name.... > srv/disk
    umount srv
done
mount -o loop a srv
look() { "$2" -c "$3" "$1/srv/disk" "$1/known"; }
look "$@"
look "$@"
umount srv
look "$@"
mount -o loop b srv
look "$@"
umount srv
mount -o loop a srv
look "$@"
"""
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine mounts nothing: {done.stderr}")
    assert done.returncode == 0, done.stderr
    same, missing, other, again = done.stdout.splitlines()
    assert same.endswith("[]]") and again.endswith("[]]")
    assert "inode" in missing
    assert other.startswith("[12, 12, ") and "file system uuid" in other
