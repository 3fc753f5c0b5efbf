# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Identify the block device behind a name, by facts that a boot does not change. On the boot path. PRIVATE to the collection.

The generic node of a SCSI device (/dev/sgN) counts as one.
Source: the kernel's Documentation/ABI/stable/sysfs-block, sysfs-block-dm, sysfs-nvme.
"""

from __future__ import annotations

import os
import re
import stat

from .._errors import LiveUpdateError, typed

__all__ = ("BY_HAND", "changed", "identity", "is_by_hand", "kernel_name", "of_number", "verify_devices")

_SYSFS = "/sys/dev/block"
_SYSFS_CHARACTER = "/sys/dev/char"
# Files in sysfs that identify a disk. The kernel after the jump may have only some of them, so all are stored.
_WORDS = (("dm/uuid",), ("md/uuid",), ("wwid",), ("device/wwid",), ("serial",), ("device/serial", "nsid"))

# Block devices that an operator sets up by hand, by the kernel's names.
BY_HAND = re.compile(r"(loop|nbd|ram|zram)\d")


def identity(path: str) -> list[str]:
    """The identity of the device at this path, or where a link there leads; empty if it is unknown or there is no device."""
    try:
        seen = os.stat(path)
        sysfs = _SYSFS if stat.S_ISBLK(seen.st_mode) else _SYSFS_CHARACTER
        folder = os.path.realpath(f"{sysfs}/{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}")
    except OSError:
        return []
    if not stat.S_ISBLK(seen.st_mode) and not (stat.S_ISCHR(seen.st_mode) and "/scsi_generic/" in folder):
        return []
    return _words(folder)


def of_number(number: int) -> list[str]:
    """The identity of the block device with this number; empty if it is unknown, or if the number is of no device (NFS, Btrfs)."""
    return _words(os.path.realpath(f"{_SYSFS}/{os.major(number)}:{os.minor(number)}"))


def _words(folder: str) -> list[str]:
    """What identifies the device whose folder in sysfs this is."""
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
    """What is at these paths instead of the block devices with these identities."""
    found = []
    for path, before in identities.items():
        now = identity(path)
        if before and now and not set(before) & set(now):
            found.append(f"another device at {path} ({now[0]}, not {before[0]})")
    return found


def verify_devices(name: str, devices: dict[str, list[str]]) -> None:
    """Raise if the name of a block device belongs to another device after the jump: names like /dev/sdb depend on the order of a boot.

    That may pass: a link in /dev/disk/by-id leads to one path of a disk until multipathd has made its map.
    """
    wrong = changed(devices)
    if wrong:
        raise LiveUpdateError(
            f"guest {name}: the host still has {', '.join(wrong)}. The guest is not started, and its memory is kept. Give the right"
            " device its old name again (udev). The start is repeated automatically. If the device never comes back, run"
            f" 'kvm-liveupdate discard {typed(name)}'. This discards the memory. Then start the guest: it starts from its disks",
            again=True,
        )


def is_by_hand(number: int) -> bool:
    """Whether this is the number of a block device that is set up by hand: loop, NBD, RAM."""
    return bool(BY_HAND.match(kernel_name(number)))


def kernel_name(number: int) -> str:
    """The kernel's name of a block device (sysfs); empty if it is unknown."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    except OSError:
        return ""
