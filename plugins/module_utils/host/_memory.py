# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What /proc/meminfo tells. PRIVATE to the collection."""

from __future__ import annotations

import os

__all__ = ("available", "meminfo", "total")


def meminfo(root: str) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as file:
        return {line.partition(":")[0]: int(line.split()[1]) << 10 for line in file}


def total(root: str = "/") -> int:
    """The host's memory in bytes."""
    return meminfo(root)["MemTotal"]


def available(root: str = "/") -> int:
    """The bytes in which memory can be preserved without others missing it."""
    memory = meminfo(root)
    # What is preserved may not lie in CMA areas, and the scratch areas of KHO are such.
    return max(memory["MemAvailable"] - memory.get("CmaFree", 0), 0)
