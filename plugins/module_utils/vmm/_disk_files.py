# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Identify the files of a guest's disks, by facts that a boot does not change. On the boot path. PRIVATE to the collection.

Another file may be under the path of a disk after the jump: below the mount point while the mount is missing, or on another disk. The
guest would continue on it with what it knows of the first file, and nothing would tell.

While a guest is paused, the inode and the size of a file stay the same. An inode alone is not enough: the first file on a new XFS has
number 131, and each Btrfs subvolume begins with the same numbers. The numbers of devices depend on the boot (st_dev, and f_fsid of XFS),
and times may change without a write (NFS delegations). So these do not count.

At the end of a save QEMU still writes to a qcow2 (its bitmaps, qcow2_inactivate), so sizes are recorded after it.

Source: Linux fs/fat/inode.c, fs/exfat/inode.c, fs/smb/client/inode.c (iunique), fs/btrfs/ioctl.c, fs/ioctl.c (FS_IOC_GETFSUUID),
Documentation/filesystems/overlayfs.rst (Inode properties).
"""

from __future__ import annotations

import os
import re
import stat
import sys

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..host import _files
from . import _block

__all__ = ("amiss", "identity", "sized", "verify")

LIMIT_S = _limits.DISK_SIZES
# File systems that may give a file another inode number at each mount. FUSE does too, if the file system leaves the numbers to it.
_RENUMBERED = ("", "9p", "cifs", "exfat", "msdos", "overlay", "smb3", "vfat", "virtiofs")
_FS_IOC_GETFSUUID = 0x80111500
_BTRFS_IOC_INO_LOOKUP = 0xD0009412
_BTRFS_IOC_FS_INFO = 0x8400941F
_BTRFS_FIRST_FREE = 256  # with it, the lookup tells only the subvolume
# Two names of one device, as another boot may see it: the name of an encrypted device is its owner's, and a disk may get several paths.
_ALIKE = (
    (re.compile(r"dm/uuid (CRYPT-\w+-[0-9a-f]{32})-.*"), r"dm/uuid \1"),
    (re.compile(r"dm/uuid mpath-3([0-9a-f]+)"), r"device/wwid naa.\1"),
    (re.compile(r"dm/uuid part(\d+)-mpath-3([0-9a-f]+)"), r"device/wwid naa.\2 part \1"),
)


def identity(place: str, mount: tuple[str, str, str], remade: bool = False) -> dict:
    """What identifies the disk at ``place``: a file, or only that it is a block device (:mod:`_block` knows more). Empty for all else.

    ``mount`` is where the file is: mount point, type, source. Of a file that may be ``remade`` at each start of the guest, only its file
    system counts. The ``size`` counts from :func:`sized` on. Raises OSError if the place cannot be accessed.
    """
    seen = os.stat(place)
    if stat.S_ISBLK(seen.st_mode):
        return {"block": True}
    if not stat.S_ISREG(seen.st_mode):
        return {}
    point, kind, source = mount
    found: dict = {"mount": point, "source": source, "device": _below(seen.st_dev)}
    if os.major(seen.st_dev) or kind == "btrfs":
        found["file_system"] = _file_system(place)
    if not remade:
        found["size"] = seen.st_size
    if remade or kind in _RENUMBERED or kind.startswith("fuse"):
        found["on_device"] = bool(os.major(seen.st_dev))
    else:
        found["inode"] = seen.st_ino
    return found


def _below(number: int) -> list[str]:
    """The identity of the block device below a file system (st_dev); empty if it is unknown, or if there is none."""
    found = _block.of_number(number)
    for pattern, alike in _ALIKE:
        found = [pattern.sub(alike, word) for word in found]
    return found


def _file_system(place: str) -> str:
    """The file system of a file, by its UUID, and the subvolume of a Btrfs; empty if it is unknown."""
    import fcntl

    try:
        file = _files.open_ordinary(place)
    except (OSError, ValueError):
        return ""
    try:
        try:
            lookup, info = bytearray(4096), bytearray(1024)
            lookup[8:16] = _BTRFS_FIRST_FREE.to_bytes(8, sys.byteorder)
            fcntl.ioctl(file, _BTRFS_IOC_INO_LOOKUP, lookup)
            fcntl.ioctl(file, _BTRFS_IOC_FS_INFO, info)
            return f"btrfs {info[16:32].hex()} subvolume {int.from_bytes(lookup[:8], sys.byteorder)}"
        except OSError:
            uuid = bytearray(17)
            fcntl.ioctl(file, _FS_IOC_GETFSUUID, uuid)  # its length, then itself
            return f"uuid {uuid[1:].hex()}" if any(uuid[1:]) else ""
    except OSError:
        return ""
    finally:
        os.close(file)


def sized(files: dict[str, dict], pid: int = 0) -> dict[str, dict]:
    """The same with the sizes of the files, once the guest is paused. Raises if another file took the place of one.

    With ``pid``, the paths are as this process sees them. This is one stat of each file. A network file system without its server never
    answers it, and while guests are paused nobody must wait for that. So a thread does it, which ends with this process.
    """
    import threading  # not on the way back

    if not files:
        return {}
    found: dict[str, dict] = {}
    problems: list[Exception] = []

    def look() -> None:
        try:
            for path, own in files.items():
                found[path] = {}
                found[path] = _sized(path, own, pid)
        except Exception as err:  # pylint: disable=broad-except  # the caller gets every failure
            problems.append(err)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if thread.is_alive():
        raise LiveUpdateError(f"its disk {list(found)[-1]} does not answer within {LIMIT_S:g} s; make sure that its storage (NFS?) answers")
    if problems:
        raise problems[0]
    return found


def _sized(path: str, own: dict, pid: int) -> dict:
    if "size" not in own:
        return own
    folder = "" if not pid else f"/proc/{pid}/root" if path.startswith("/") else f"/proc/{pid}/cwd/"
    seen = os.stat(folder + path)
    if own.get("inode", seen.st_ino) != seen.st_ino:
        raise LiveUpdateError(f"another file took the place of its disk {path}; put the first one back")
    return {**own, "size": seen.st_size}


def amiss(files: dict[str, dict], tried: bool = False) -> list[str]:
    """What is under these paths instead of the guest's own files.

    ``tried``: a QEMU of this boot has had them open, for a restore that failed. It may have changed their sizes (bitmaps of a qcow2).
    """
    found = []
    for path, own in files.items():
        try:
            differs = _differs(path, {key: value for key, value in own.items() if not (tried and key == "size")})
        except (FileNotFoundError, NotADirectoryError):
            found.append(f"no {path}")
            continue
        except OSError:
            continue  # QEMU may have rights that root has not (NFS)
        if differs:
            where = f"; the guest's own is on {own['source']}, mounted at {own['mount']}" if own.get("mount") else ""
            found.append(f"another file at {path} ({', '.join(differs)}{where})")
    return found


def _differs(path: str, own: dict) -> list[str]:
    """In what the file at a path differs from the guest's own, as far as both are known."""
    seen = os.stat(path)
    if own.get("block"):
        return [] if stat.S_ISBLK(seen.st_mode) else ["not a block device"]
    if not stat.S_ISREG(seen.st_mode):
        return ["not a regular file"]
    found = []
    if own.get("inode", seen.st_ino) != seen.st_ino:
        found.append(f"inode {seen.st_ino}, not {own['inode']}")
    if own.get("size", seen.st_size) != seen.st_size:
        found.append(f"{seen.st_size} bytes, not {own['size']}")
    if own.get("on_device", bool(os.major(seen.st_dev))) != bool(os.major(seen.st_dev)):
        found.append("another kind of file system")
    device = _below(seen.st_dev) if own.get("device") and not found else []
    if device and not set(device) & set(own["device"]):
        found.append(f"device {device[0]}, not {own['device'][0]}")
    file_system = _file_system(path) if own.get("file_system") and not found else ""
    if file_system and file_system != own["file_system"]:
        found.append(f"file system {file_system}, not {own['file_system']}")
    return found


def verify(name: str, files: dict[str, dict], tried: bool = False) -> None:
    """Raise if another file, or none, is under a path of the guest's disks. That may pass: a mount may come later.

    Libvirt would make firmware variables anew that are missing. ``tried``: :func:`amiss`.
    """
    wrong = amiss(files, tried)
    if wrong:
        raise LiveUpdateError(
            f"guest {name}: the host still has {', '.join(wrong)}; mount what is missing. The start is repeated automatically, and the"
            f" guest's memory is kept. If what is missing never comes back, run 'kvm-liveupdate discard {typed(name)}'. This discards the"
            " guest's memory. Then start the guest: it starts from its disks",
            again=True,
        )
