# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU has to open again after a jump: whether it is there then, and whether it is the same. PRIVATE to the collection.

Paths are those that QEMU sees, in its own mount namespace. Source: proc(5), QEMU's softmmu/datadir.c and the romfile of its devices.
"""

from __future__ import annotations

import os
import re
import stat

from .. import _processes
from .._errors import reason
from . import _argv, _options
from ._options import Option

__all__ = ("reasons", "replaced")

_VOLATILE = ("tmpfs", "ramfs")
_EMPTIED = "/tmp/"  # by a boot, wherever it lies (tmpfiles.d(5))
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/seavgabios", "/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu", "/usr/share/ipxe")
# The option ROMs that devices load, by how the devices' names begin.
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
_CARDS = {"virtio": "virtio-net"}  # what -nic and -net call by another name than -device
# Options that name a file which QEMU reads at its start, and the keys that do.
_READ = {
    "bios": ("",),
    "dtb": ("",),
    "fw_cfg": ("file",),
    "initrd": ("",),
    "kernel": ("",),
    "object": ("file", "dir"),
    "option-rom": ("romfile",),
    "smbios": ("file", "path"),
    "acpitable": ("file", "data"),
    "spice": ("x509-dir",),
    "vnc": ("tls-creds-dir",),
}


def reasons(pid: int, argv: list[str], ram: set[tuple[int, int]], made_again: bool) -> list[dict]:
    """What this QEMU has to open again and will not find as it is: reasons.

    ``ram`` are the device and inode of each of its RAM files. ``made_again`` is whether its unit runs something before it, which may make
    files that are only read.
    """
    options = _options.read(argv)[0]
    found = []
    mounts = _mounts(pid)
    opened = _open_files(pid, options, ram)
    for path, seen, writable in opened:
        there, gone = _stat(pid, path)
        if gone:
            message = f"{path} is open in QEMU, and is not there any more"
            found.append(reason("file-gone", message, "put it back, or eject it or remove it from the command line and restart the guest"))
        elif there and (there.st_dev, there.st_ino) != (seen.st_dev, seen.st_ino):
            message = f"{path} is another file than the one that QEMU has open under that name"
            found.append(reason("file-gone", message, "shut the guest down, see which of the two it needs, and start it"))
        elif _is_volatile(path, mounts) and (writable or not made_again):
            found.append(_volatile(path))
    identities = {(seen.st_dev, seen.st_ino) for _path, seen, _writable in opened}
    paths = {path for path, _seen, _writable in opened}
    for path in [path for path in _images(options) if path not in paths]:  # a file that was renamed is open under its new name
        there, _gone = _stat(pid, path)
        if there and stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) not in identities:
            message = f"{path} of its command line is not a file that QEMU has open"
            found.append(reason("file-gone", message, "shut the guest down, see which file it needs, and start it"))
    for path in _read_at_start(options, argv):
        if _stat(pid, path)[1]:
            message = f"{path} is not there any more, and QEMU reads it at its start"
            found.append(reason("file-gone", message, "put it back, or name another file on the command line and restart the guest"))
        elif _is_volatile(path, mounts) and not made_again:
            found.append(_volatile(path))
    return found + _peers(pid, options)


def _volatile(path: str) -> dict:
    message = f"{path} is in memory or a temporary folder, which a jump leaves empty"
    return reason("file-volatile", message, "move it to a disk, name that path on the command line, and restart the guest")


def _open_files(pid: int, options: list[Option], ram: set[tuple[int, int]]) -> list[tuple[str, os.stat_result, bool]]:
    """The ordinary files that QEMU has open, but for RAM, output and temporary ones: path, what is open, whether it may write there."""
    others = [option for option in options if option.name not in ("drive", "blockdev", *_READ)]
    written = {value for option in others for value in option.keys.values()}
    found: dict[str, tuple[str, os.stat_result, bool]] = {}
    for fd, link in sorted(_processes.fd_links(pid).items()):
        path = link[: -len(" (deleted)")] if link.endswith(" (deleted)") else link
        try:
            seen = os.stat(f"/proc/{pid}/fd/{fd}")
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
                flags = next((int(line.split()[1], 8) for line in info if line.startswith("flags:")), 0)
        except OSError:
            continue  # closed meanwhile
        if fd <= 2 or not path.startswith("/") or path.startswith("/memfd:") or not stat.S_ISREG(seen.st_mode):
            continue
        if (seen.st_dev, seen.st_ino) in ram or path in written or re.search(r"/vl\.\w{6}$", path):
            continue
        found[path] = (path, seen, bool(flags & os.O_ACCMODE) or (found[path][2] if path in found else False))
    return list(found.values())


def _images(options: list[Option]) -> list[str]:
    """The paths of the disks that the command line names."""
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    disks = [option for option in options if option.name in ("drive", "blockdev")]
    return [path for path in dict.fromkeys(_argv.local_file(disk, nodes) for disk in disks) if path.startswith("/")]


def _read_at_start(options: list[Option], argv: list[str]) -> list[str]:
    """The paths that QEMU reads at its start and closes again; names without a folder are looked for in QEMU's own folders."""
    named = [option.get(key) for option in options for key in _READ.get(option.name, ())]
    named += [option.get("romfile") for option in options if option.name == "device"]
    named += [word for name, word in _options.split(argv) if name == "readconfig"]
    return [path for path in dict.fromkeys(named) if path.startswith("/")]


def _stat(pid: int, path: str) -> tuple[os.stat_result | None, bool]:
    """What is at a path, and whether it is certain that nothing is: a network file system may not let root look."""
    try:
        return os.stat(f"/proc/{pid}/root{path}"), False
    except (FileNotFoundError, NotADirectoryError):
        return None, True
    except OSError:
        return None, False


def _mounts(pid: int) -> list[tuple[str, str, str, str]]:
    """The mounts that a process sees, the longest paths first: path, root in the file system, its type and options (proc(5), mountinfo)."""
    found = []
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
            for line in mountinfo:
                fields = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.rstrip("\n")).split(" ")
                dash = fields.index("-", 6)
                found.append((fields[4], fields[3], fields[dash + 1], fields[-1]))
    except (OSError, ValueError):
        return []
    found.reverse()  # of two on one path the later one covers the other
    return sorted(found, key=lambda mount: -len(mount[0]))


def _is_volatile(path: str, mounts: list[tuple[str, str, str, str]]) -> bool:
    """Whether a boot finds nothing of it: in memory, in a folder that boots empty, or a service's private one."""
    if path.startswith(_EMPTIED):
        return True
    for mount, root, kind, options in mounts:
        if mount == "/" or path == mount or path.startswith(f"{mount}/"):
            upper = re.search(r"(?:^|,)upperdir=([^,]+)", options) if kind == "overlay" else None
            return kind in _VOLATILE or "/systemd-private-" in root or bool(upper and upper[1] != path and _is_volatile(upper[1], mounts))
    return False


def _peers(pid: int, options: list[Option]) -> list[dict]:
    """The sockets that QEMU connects to at its start, of processes that nothing starts again: a swtpm from a shell, say."""
    names = {
        option.get("path")
        for option in options
        if option.name in _argv.CHARACTER_DEVICES
        and option.get("backend") == "socket"
        and option.get("path")
        and not option.is_on("server")
    }
    found = []
    for path, inode in _sockets(names).items():
        for served, _fd in _processes.holders(f"socket:[{inode}]"):
            unit = _processes.unit_of(served) or ""
            if not unit.endswith(".service") and unit != _processes.unit_of(pid):
                message = f"QEMU connects to {path} at its start, and process {served} that serves it is not of a service"
                remedy = "start that process by a service, or by ExecStartPre= of the guest's unit, and restart the guest"
                found.append(reason("peer-gone", message, remedy))
    return found


def _sockets(paths: set[str]) -> dict[str, str]:
    """The inodes of the Unix sockets that listen at these paths (proc(5), net/unix)."""
    if not paths:
        return {}
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        rows = [line.split(None, 7) for line in table]
    listens = "00010000"  # __SO_ACCEPTCON (include/uapi/linux/net.h)
    return {row[7].strip(): row[6] for row in rows if len(row) == 8 and row[3] == listens and row[7].strip() in paths}


def replaced(pid: int, argv: list[str]) -> list[dict]:
    """The firmware and option ROMs that were replaced since this QEMU started: reasons. Their sizes are part of its state."""
    started = _processes.started_at(pid)
    if not started:
        return []
    found = []
    for path in _roms(pid, argv):
        there, _gone = _stat(pid, path)
        # A package keeps the time when a file was made; when it was put there is the inode's.
        if there is not None and there.st_ctime > started + 1:
            message = f"{path} was replaced since QEMU started: a state with the old one may not load"
            found.append(reason("rom-replaced", message, "restart the guest, or migrate it away and back"))
    return found


def _roms(pid: int, argv: list[str]) -> list[str]:
    """The paths of the firmware and option ROMs that QEMU has loaded, each that is there."""
    options = _options.read(argv)[0]
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    names = [option.get("") for option in options if option.name == "bios"] or ["bios-256k.bin"]
    names += [option.get("romfile") for option in options if option.name == "option-rom"]
    names += ["linuxboot_dma.bin" for option in options if option.name == "kernel"]
    flash = [option for option in options if option.name == "drive" and option.get("if") == "pflash"]
    flash += [nodes[option.get(key)] for option in options for key in ("pflash0", "pflash1") if option.get(key) in nodes]
    names += [_argv.local_file(disk, nodes) for disk in flash if _argv.is_read_only(disk)]  # the other holds the guest's own variables
    devices = [option for option in options if option.name == "device"]
    cards = [option for option in options if option.name == "nic" or (option.name == "net" and option.get("type") == "nic")]
    drivers = [option.get("driver") for option in devices if "romfile" not in option.keys]
    drivers += [_CARDS.get(option.get("model"), option.get("model") or "e1000e") for option in cards if option.get("type") != "none"]
    drivers += [_VGA.get(option.get(""), "") for option in options if option.name == "vga"]
    given = {option.name for option in options}
    if not given & {"nodefaults", "vga"}:
        drivers.append("VGA")
    if not given & {"nodefaults", "nic", "net", "netdev"}:
        drivers += ["e1000e", "e1000"]  # one of them, as the machine will have it
    names += [option.get("romfile") for option in devices]
    names += [next((rom for starts, rom in _ROMS.items() if driver.startswith(starts)), "") for driver in drivers]
    folders = [option.get("") for option in options if option.name == "L"] + list(_DATA)
    places = ([name] if name.startswith("/") else [f"{folder}/{name}" for folder in folders] for name in dict.fromkeys(names) if name)
    return [path for path in (next((path for path in paths if _stat(pid, path)[0]), "") for paths in places) if path]
