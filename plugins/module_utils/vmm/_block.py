# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which block device is behind a name, in words that a boot does not change. On the boot path. PRIVATE to the collection.

The generic node of a SCSI device (/dev/sgN) counts as one.
Source: the kernel's Documentation/ABI/stable/sysfs-block, sysfs-block-dm, sysfs-nvme.
"""

from __future__ import annotations

import os
import re
import stat

from .._errors import LiveUpdateError

__all__ = ("BY_HAND", "changed", "identity", "is_by_hand", "kernel_name", "verify_devices")

_SYSFS = "/sys/dev/block"
_SYSFS_CHARACTER = "/sys/dev/char"
# Files below a disk that together say which one it is. The kernel after the jump may know another of them, so all are kept.
_WORDS = (("dm/uuid",), ("md/uuid",), ("wwid",), ("device/wwid",), ("serial",), ("device/serial", "nsid"))

# Block devices that somebody has set up by hand, by the kernel's names.
BY_HAND = re.compile(r"(loop|nbd|ram|zram)\d")


def identity(path: str) -> list[str]:
    """What says which device is at this path, or where a link there leads; empty when nothing does, or when there is none."""
    try:
        seen = os.stat(path)
        sysfs = _SYSFS if stat.S_ISBLK(seen.st_mode) else _SYSFS_CHARACTER
        folder = os.path.realpath(f"{sysfs}/{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}")
    except OSError:
        return []
    if not stat.S_ISBLK(seen.st_mode) and not (stat.S_ISCHR(seen.st_mode) and "/scsi_generic/" in folder):
        return []
    part = _read(f"{folder}/partition")
    if part:
        folder, part = os.path.dirname(folder), f" part {part}"
    found = []
    for files in _WORDS:
        words = [_read(f"{folder}/{file}") for file in files]
        if all(words):
            found.append(f"{files[0]} {' '.join(words)}{part}")
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def changed(identities: dict[str, list[str]]) -> list[str]:
    """Which of these paths lead to other block devices than those that had these identities, and to which."""
    found = []
    for path, before in identities.items():
        now = identity(path)
        if before and now and not set(before) & set(now):
            found.append(f"{path} is {now[0]}, not {before[0]}")
    return found


def verify_devices(name: str, devices: dict[str, list[str]]) -> None:
    """Raise when the name of a block device is another one's after the jump: names like /dev/sdb follow the order of a boot."""
    wrong = changed(devices)
    if wrong:
        raise LiveUpdateError(
            f"guest {name}: {'; '.join(wrong)}. Nothing is loaded, and its memory is kept: give the device its name back (udev), then"
            f" 'systemctl start' of its unit tries again; 'kvm-liveupdate discard {name}' gives the memory up"
        )


def is_by_hand(number: int) -> bool:
    """Whether this is the number of a block device that somebody has set up by hand: loop, NBD, RAM."""
    return bool(BY_HAND.match(kernel_name(number)))


def kernel_name(number: int) -> str:
    """What the kernel calls a block device (sysfs); empty when that is not known."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    except OSError:
        return ""
