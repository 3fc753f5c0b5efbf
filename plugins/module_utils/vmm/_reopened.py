# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check whether what a QEMU opens again after a jump will exist, and be the same. PRIVATE to the collection.

Paths are as QEMU sees them, in its mount namespace. Source: proc(5), QEMU's softmmu/datadir.c and the romfile of its devices.
"""

from __future__ import annotations

import os
import re
import stat

from .._errors import reason
from ..host import _processes, _slow_paths
from . import _block, _disk_files, _opens, _options
from ._options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("disks", "is_volatile", "mount_of", "mounts", "reasons", "replaced", "servers", "silent")

_VOLATILE = ("tmpfs", "ramfs")
_EMPTIED = "/tmp/"  # by a boot, on any file system (tmpfiles.d(5))
_CREDENTIALS = "/run/credentials/"  # which systemd gives a unit at each start (systemd.exec(5))
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/seavgabios", "/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu", "/usr/share/ipxe")
# The option ROMs that devices load, by the beginning of the devices' names.
_ROMS = {
    "virtio-net": "efi-virtio.rom",
    "e1000e": "efi-e1000e.rom",
    "e1000": "efi-e1000.rom",
    "rtl8139": "efi-rtl8139.rom",
    "ne2k_pci": "efi-ne2k_pci.rom",
    "pcnet": "efi-pcnet.rom",
    "i825": "efi-eepro100.rom",
    "vmxnet3": "efi-vmxnet3.rom",
    "VGA": "vgabios-stdvga.bin",
    "cirrus-vga": "vgabios-cirrus.bin",
    "qxl-vga": "vgabios-qxl.bin",
    "vmware-svga": "vgabios-vmware.bin",
    "virtio-vga": "vgabios-virtio.bin",
    "bochs-display": "vgabios-bochs-display.bin",
    "ati-vga": "vgabios-ati.bin",
    "ramfb": "vgabios-ramfb.bin",
}
_VGA = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "qxl": "qxl-vga",
    "vmware": "vmware-svga",
    "virtio": "virtio-vga",
}
_CARDS = {"virtio": "virtio-net"}  # names in -nic and -net that differ from -device


def reasons(
    pid: int,
    argv: list[str],
    ram: set[tuple[int, int]],
    made_again: bool,
    brought: t.Collection[str] = (),
    makes: t.Collection[str] | None = (),
) -> list[dict]:
    """Reasons for what this QEMU must open again and will not find as it is now.

    ``ram`` has the device and inode of each of its RAM files. ``made_again`` is whether its unit runs a command before QEMU, which may
    create files that QEMU only reads. ``brought`` are the services that start with its unit, and the unit itself. ``makes`` are the folders
    that these create; None if they may create any.
    """
    found: list[dict] = []
    folders: list[list[str]] = []
    try:
        found, folders = _slow_paths.look(lambda say: _Look(pid, argv, ram, made_again, say).found())
    except _slow_paths.Silent as err:
        found = [silent(err)]
    return found + _folders(folders, makes) + _peers(_options.read(argv)[0], brought)


def disks(pid: int, argv: list[str], ram: set[tuple[int, int]], made_again: bool) -> dict[str, dict]:
    """What identifies the disks of this QEMU, by the paths under which it opens them (:mod:`_disk_files`). Arguments as of
    :func:`reasons`. A relative path stays relative: it is where the next QEMU looks. Raises :class:`_slow_paths.Silent`.
    """
    found: dict[str, dict] = _slow_paths.look(lambda say: _Look(pid, argv, ram, made_again, say).disks())
    return found


def silent(err: _slow_paths.Silent) -> dict:
    """The reason against a guest with a path that does not answer."""
    message = f"{err}, so QEMU may not be able to open it again"
    return reason("file-silent", message, "make sure that its storage (NFS?) answers, or shut the guest down")


class _Look:
    """One look at the files of a QEMU. It calls ``say`` with each path before it accesses that path."""

    def __init__(self, pid: int, argv: list[str], ram: set[tuple[int, int]], made_again: bool, say: t.Callable[[str], None]) -> None:
        self.pid, self.argv, self.ram, self.made_again, self.say = pid, argv, ram, made_again, say
        self.options = _options.read(argv)[0]
        self.mounts = mounts(pid)

    def found(self) -> tuple[list[dict], list[tuple[str, str]]]:
        """The reasons; and the folders in which QEMU creates something and that may not exist after a boot, each with that path."""
        return self._reasons(), [(os.path.dirname(path), path) for path in _opens.outputs(self.options) if self._may_lack_its_folder(path)]

    def _may_lack_its_folder(self, path: str) -> bool:
        folder = os.path.dirname(path)
        is_mounted = folder in (mount for mount, *_rest in self.mounts)
        return self.stat(folder)[1] or (is_volatile(folder, self.mounts) and not is_mounted)

    def _reasons(self) -> list[dict]:
        files, devices = self._opened()
        paths = {path for path, _seen, _writable in files}
        images = [path for path in _opens.images(self.options, _processes.folder_of(self.pid)) if path not in paths]
        found = [why for opened in files for why in self._of_file(*opened)]
        identities = {(seen.st_dev, seen.st_ino) for _path, seen, _writable in files}
        for path in images:  # a file that was renamed is open under its new name
            found += self._of_image(path, identities, devices)
        for path in _opens.read_at_start(self.options, self.argv):
            found += self._of_read(path)
        for path in _opens.ports(self.options):
            if self.stat(path)[1]:
                message = f"{path} does not exist any more, a device of the host that QEMU opens at its start"
                found.append(reason("file-gone", message, "connect it again, or remove it from the command line and restart the guest"))
        for path in _opens.pipes(self.options):
            if self.stat(path)[1] and self.stat(f"{path}.in")[1]:
                message = f"{path} does not exist any more, a pipe that QEMU opens at its start"
                found.append(
                    reason("file-gone", message, "create the pipe again (mkfifo), or remove it from the command line and restart the guest")
                )
        return found

    def disks(self) -> dict[str, dict]:
        """What identifies each disk, by its path. Firmware that is only read is none: its content is a part of the saved state.

        A command of the unit may make a disk again that QEMU only reads, such as a seed image, but no disk below another one, unless that
        is in memory.
        """
        files, _devices = self._opened()
        folder = _processes.folder_of(self.pid)
        opened = {(seen.st_dev, seen.st_ino): path for path, seen, _writable in files}
        written = {(seen.st_dev, seen.st_ino) for _path, seen, writable in files if writable}
        named = self._seen(folder, _opens.images(self.options, ""))
        firmware = set(self._seen(folder, _fixed_flash(self.options)).values())
        found = {}
        for path, number in {**{path: number for number, path in opened.items()}, **named}.items():
            if number in firmware:
                continue
            whole = os.path.join(folder, path)
            place = opened.get(number, whole)  # without links
            remade = self.made_again and number not in written and (number in named.values() or is_volatile(place, self.mounts))
            try:
                found[path] = _disk_files.identity(f"/proc/{self.pid}/root{whole}", mount_of(place, self.mounts), remade)
            except OSError:
                continue  # on storage that root cannot access (NFS)
        return {path: known for path, known in found.items() if known}

    def _seen(self, folder: str, paths: list[str]) -> dict[str, tuple[int, int]]:
        """The device and inode of what is at these paths, by path."""
        looked = {path: self.stat(os.path.join(folder, path))[0] for path in paths}
        return {path: (there.st_dev, there.st_ino) for path, there in looked.items() if there}

    def stat(self, path: str) -> tuple[os.stat_result | None, bool]:
        self.say(path)
        return _stat(self.pid, path)

    def _of_file(self, path: str, seen: os.stat_result, writable: bool) -> list[dict]:
        there, gone = self.stat(path)
        if gone:
            message = f"{path} is open in QEMU, but does not exist any more"
            return [
                reason(
                    "file-gone", message, "restore the file or eject the medium; or remove it from the command line and restart the guest"
                )
            ]
        if there and (there.st_dev, there.st_ino) != (seen.st_dev, seen.st_ino):
            message = f"{path} is not the file that QEMU has open under this name"
            return [reason("file-gone", message, "shut the guest down, find out which of the two files it needs, and start it")]
        return [_volatile(path)] if is_volatile(path, self.mounts) and (writable or not self.made_again) else []

    def _of_image(self, path: str, files: set[tuple[int, int]], devices: set[int]) -> list[dict]:
        """Check a path of the command line under which QEMU has nothing open: a link, a block device, or a missing file."""
        there, gone = self.stat(path)
        if gone:
            message = f"{path} of its command line does not exist any more, and QEMU opens it at its start"
            return [reason("file-gone", message, "restore it, or name another path on the command line and restart the guest")]
        if not there:
            return []
        if stat.S_ISBLK(there.st_mode):
            if there.st_rdev not in devices:
                message = f"{path} of its command line is not a block device that QEMU has open"
                return [reason("file-gone", message, "shut the guest down, find out which device it needs, and start it")]
            name = _block.kernel_name(there.st_rdev)
            if _block.BY_HAND.match(name) and not self.made_again:
                message = f"{path} is the block device {name}, which a boot does not set up"
                return [reason("file-volatile", message, "use the file itself or a permanent device, and restart the guest")]
        elif stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) not in files:
            message = f"{path} of its command line is not a file that QEMU has open"
            return [reason("file-gone", message, "shut the guest down, find out which file it needs, and start it")]
        return []

    def _of_read(self, path: str) -> list[dict]:
        if self.stat(path)[1]:
            message = f"{path} does not exist any more, and QEMU reads it at its start"
            return [reason("file-gone", message, "restore it, or name another file on the command line and restart the guest")]
        return [_volatile(path)] if is_volatile(path, self.mounts) and not self.made_again and not path.startswith(_CREDENTIALS) else []

    def _opened(self) -> tuple[list[tuple[str, os.stat_result, bool]], set[int]]:
        """What QEMU has open: regular files, each as path, status and whether QEMU can write to it; and the numbers of block devices.
        RAM, output and temporary files are left out."""
        written = {
            value for option in self.options if option.name not in ("drive", "blockdev", *_opens.READ) for value in option.keys.values()
        }
        found: dict[str, tuple[str, os.stat_result, bool]] = {}
        devices: set[int] = set()
        for fd, link in sorted(_processes.fd_links(self.pid).items()):
            path = link[: -len(" (deleted)")] if link.endswith(" (deleted)") else link
            flags = _processes.flags_of(self.pid, fd)
            if fd <= 2 or flags is None or not path.startswith("/") or path.startswith("/memfd:") or _opens.is_output(flags):
                continue
            self.say(path)
            try:
                seen = os.stat(f"/proc/{self.pid}/fd/{fd}")
            except OSError:
                continue  # closed meanwhile
            if stat.S_ISBLK(seen.st_mode):
                devices.add(seen.st_rdev)
            if not stat.S_ISREG(seen.st_mode):
                continue
            if (seen.st_dev, seen.st_ino) in self.ram or path in written or re.search(r"/vl\.\w{6}$", path):
                continue
            found[path] = (path, seen, bool(flags & os.O_ACCMODE) or (found[path][2] if path in found else False))
        return list(found.values()), devices


def _folders(folders: list[list[str]], makes: t.Collection[str] | None) -> list[dict]:
    """Reasons for folders in which QEMU creates a socket, log or other file, and which a boot does not create."""
    from . import _after_boot

    if not folders or makes is None:
        return []
    made = _after_boot.makes(list(dict.fromkeys(folder for folder, _path in folders)), makes)
    return [
        reason(
            "file-volatile",
            f"{folder} does not exist after a boot, and QEMU creates {path} there at its start",
            f"let its unit create the directory (RuntimeDirectory=, or ExecStartPre=/usr/bin/mkdir -p {folder}) and run"
            " 'systemctl daemon-reload', or name another path on the command line and restart the guest",
        )
        for folder, path in folders
        if folder not in made
    ]


def _volatile(path: str) -> dict:
    message = f"{path} is in memory or a temporary directory, so it does not exist after the jump"
    return reason("file-volatile", message, "move it to a disk, change the path on the command line, and restart the guest")


def _stat(pid: int, path: str) -> tuple[os.stat_result | None, bool]:
    """The status of a path, and whether it certainly does not exist: a network file system may forbid root to look."""
    try:
        return os.stat(f"/proc/{pid}/root{path}"), False
    except (FileNotFoundError, NotADirectoryError):
        return None, True
    except OSError:
        return None, False


def mounts(pid: int) -> list[tuple[str, str, str, str, str]]:
    """The mounts that a process sees, longest paths first: path, root in the file system, type, options and source (proc(5), mountinfo)."""
    found = []
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
            for line in mountinfo:
                fields = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.rstrip("\n")).split(" ")
                dash = fields.index("-", 6)
                found.append((fields[4], fields[3], fields[dash + 1], fields[-1], fields[dash + 2]))
    except (OSError, ValueError):
        return []
    found.reverse()  # of two mounts on one path the later one covers the other
    return sorted(found, key=lambda mount: -len(mount[0]))


def mount_of(path: str, among: list[tuple[str, str, str, str, str]]) -> tuple[str, str, str]:
    """The mount with a path: mount point, type and source. Empty if it is unknown. Pure."""
    for point, _root, kind, _how, source in among:
        if point == "/" or path == point or path.startswith(f"{point}/"):
            return point, kind, source
    return "", "", ""


def is_volatile(path: str, among: list[tuple[str, str, str, str, str]]) -> bool:
    """Whether the path does not exist after a boot: it is in memory, in a folder that a boot empties, or in a service's private one."""
    if path.startswith(_EMPTIED):
        return True
    for mount, root, kind, options, _source in among:
        if mount == "/" or path == mount or path.startswith(f"{mount}/"):
            upper = re.search(r"(?:^|,)upperdir=([^,]+)", options) if kind == "overlay" else None
            return kind in _VOLATILE or "/systemd-private-" in root or bool(upper and upper[1] != path and is_volatile(upper[1], among))
    return False


def _peers(options: list[Option], brought: t.Collection[str]) -> list[dict]:
    """Reasons for what QEMU connects to on this host if a boot does not start that process again, for example a swtpm from a shell."""
    from . import _after_boot

    wanted = _sockets(options)
    served = _after_boot.sockets(wanted, brought=brought)
    return [
        reason(
            "peer-gone",
            f"QEMU connects to {socket['path']} at its start, and no process that a boot starts listens there: {socket['what']}",
            "run the process in an enabled service, or in ExecStartPre= of the guest's unit, and restart the guest",
        )
        for socket in wanted
        if not served.get(socket["path"])
    ]


def servers(argv: list[str]) -> list[str]:
    """The services of this host to which QEMU connects (:func:`_after_boot.servers`)."""
    from . import _after_boot

    return _after_boot.servers(_sockets(_options.read(argv)[0]))


def _sockets(options: list[Option]) -> list[dict]:
    wanted = {**_opens.connections(options), **_opens.peers(options)}
    return [{"path": path, "what": text} for path, text in wanted.items()]


def replaced(pid: int, argv: list[str], opens: bool = True) -> list[dict]:
    """Reasons for firmware and option ROMs that were replaced since this QEMU started. Their sizes are part of its state.

    ``opens`` is whether this reads files of options on the command line: :func:`_options.read`.
    """
    started = _processes.started_at(pid)
    if not started:
        return []
    try:
        found: list[str] = _slow_paths.look(lambda say: _newer(pid, _options.read(argv, opens)[0], started, say))
    except _slow_paths.Silent as err:
        return [silent(err)]
    message = "{} was replaced since QEMU started: a state that was saved with the old file may not load"
    return [reason("rom-replaced", message.format(path), "restart the guest, or migrate it away and back") for path in found]


def _newer(pid: int, options: list[Option], started: float, say: t.Callable[[str], None]) -> list[str]:
    found = []
    for path in _roms(pid, options, say):
        there, _gone = _stat(pid, path)
        # A package sets the time when a file was built. The change time of the inode is when the file was installed.
        if there is not None and there.st_ctime > started + 1:
            found.append(path)
    return found


def _firmware(options: list[Option], has_flash: bool) -> list[str]:
    """The firmware outside flash. A PC with flash has no other (hw/i386/pc_sysfw.c). ``-bios`` is short for ``-machine firmware=``."""
    named = [option.get("") for option in options if option.name == "bios"]
    machine: dict[str, str] = {}
    for option in options:
        if option.name == "machine":
            machine.update(option.keys)
            named += [option.get("firmware")] if option.get("firmware") else []
    if named:
        return named[-1:]
    if machine.get("type", "").startswith("microvm"):  # hw/i386/microvm.c
        no_acpi = machine.get("acpi") == "off" or any(option.name == "no-acpi" for option in options)
        return ["qboot.rom" if no_acpi else "bios-microvm.bin"]
    return [] if has_flash else ["bios-256k.bin"]


def _flash(options: list[Option], nodes: dict[str, Option]) -> list[Option]:
    """The options with the content of flash: firmware and its variables."""
    flash = [option for option in options if option.name == "drive" and option.get("if") == "pflash"]
    return flash + [nodes[option.get(key)] for option in options for key in ("pflash0", "pflash1") if option.get(key) in nodes]


def _fixed_flash(options: list[Option]) -> list[str]:
    """The files of firmware that the guest cannot write. The other ones contain the guest's variables."""
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    return [path for path in (_opens.local_file(disk, nodes) for disk in _flash(options, nodes) if _opens.is_read_only(disk)) if path]


def _roms(pid: int, options: list[Option], say: t.Callable[[str], None] = lambda _path: None) -> list[str]:
    """The paths of the firmware and option ROMs that QEMU has loaded, if they exist."""
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    names = [option.get("romfile") for option in options if option.name == "option-rom"]
    names += ["linuxboot_dma.bin" for option in options if option.name == "kernel"]
    names += _firmware(options, bool(_flash(options, nodes)))
    names += _fixed_flash(options)
    devices = [option for option in options if option.name == "device"]
    cards = [option for option in options if option.name == "nic" or (option.name == "net" and option.get("type") == "nic")]
    drivers = [option.get("driver") for option in devices if "romfile" not in option.keys]
    drivers += [_CARDS.get(option.get("model"), option.get("model") or "e1000e") for option in cards if option.get("type") != "none"]
    drivers += [_VGA.get(option.get(""), "") for option in options if option.name == "vga"]
    given = {option.name for option in options}
    if not given & {"nodefaults", "vga"}:
        drivers.append("VGA")
    if not given & {"nodefaults", "nic", "net", "netdev"}:
        drivers += ["e1000e", "e1000"]  # one of them, depending on the machine
    names += [option.get("romfile") for option in devices]
    names += [next((rom for starts, rom in _ROMS.items() if driver.startswith(starts)), "") for driver in drivers]
    folders = [option.get("") for option in options if option.name == "L"] + list(_DATA)
    places = ([name] if name.startswith("/") else [f"{folder}/{name}" for folder in folders] for name in dict.fromkeys(names) if name)

    def is_there(path: str) -> bool:
        say(path)
        return _stat(pid, path)[0] is not None

    return [path for path in (next(filter(is_there, paths), "") for paths in places) if path]
