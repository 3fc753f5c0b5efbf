# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which block device is behind a name, in words that a boot does not change. On the boot path. PRIVATE to the collection.

The generic node of a SCSI device (/dev/sgN) counts as one.
Source: the kernel's Documentation/ABI/stable/sysfs-block, sysfs-block-dm, sysfs-nvme.
"""

from __future__ import annotations

import os
import stat

__all__ = ("changed", "identity")

_SYSFS = "/sys/dev/block"
_SYSFS_CHARACTER = "/sys/dev/char"
# Files below a disk that together say which one it is. The kernel after the jump may know another of them, so all are kept.
_WORDS = (("dm/uuid",), ("md/uuid",), ("wwid",), ("device/wwid",), ("serial",), ("device/serial", "nsid"))


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
