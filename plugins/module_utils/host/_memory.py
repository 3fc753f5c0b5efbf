# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures in /proc/meminfo. PRIVATE to the collection."""

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
    """How many bytes can be preserved without a shortage for others."""
    memory = meminfo(root)
    # Preserved memory cannot be in CMA areas, and the scratch areas of KHO are CMA areas.
    return max(memory["MemAvailable"] - memory.get("CmaFree", 0), 0)
