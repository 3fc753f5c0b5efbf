# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a save of a domain with all of its RAM needs: disk space and time. PRIVATE to the collection."""

from __future__ import annotations

import os

from .. import _limits

__all__ = ("BESIDE_BYTES", "free", "limit_s", "shortage")

# The speed of a slow disk or network. A guest is paused while its RAM is written and read.
SLOWEST_MIB_S = 20
LEAST_LIMIT_S = _limits.LEAVE_LEAST
# More than what a saved state contains besides the RAM.
BESIDE_BYTES = 256 << 20


def limit_s(size: int) -> float:
    """How long it may take to write, read or send ``size`` bytes of RAM. Pure."""
    return LEAST_LIMIT_S + (size >> 20) / SLOWEST_MIB_S


def free(path: str) -> int:
    """Bytes that can still be written below ``path``; 0 if the folder does not exist."""
    try:
        seen = os.statvfs(path)
    except FileNotFoundError:
        return 0
    return seen.f_bavail * seen.f_frsize


def shortage(size: int, on_disk: int, path: str) -> list[str]:
    """Why a domain with ``size`` bytes of RAM cannot be saved below ``path``, where ``on_disk`` bytes are free; empty when it can. Pure."""
    needed = size + BESIDE_BYTES
    if on_disk >= needed:
        return []
    return [f"saving it needs {needed >> 20} MiB below {path}, where {on_disk >> 20} MiB are free - free space there"]
