# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much memory it takes to hold guests, and the memory limits of their units. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import reason
from ..host import _memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("LIMITS", "fill", "limit_reasons", "limits", "parents", "shared_limit_reasons", "swapped")

_NOTE_SHIFT = 8  # 16 bytes for 4096
# The unit properties that limit its memory; the second counts while the host boots.
LIMITS = ("MemoryMax", "StartupMemoryMax")


def fill(record: dict, root: str = "/") -> int:
    """How many more bytes the host needs to hold this guest's RAM than it uses now."""
    holes = notes = in_swap = 0
    inodes = set()
    for ram in record["ram"]:
        try:
            seen = os.stat(os.path.join(root, f"proc/{record['pid']}/fd/{ram['fd']}"))
        except OSError:
            continue  # the guest has ended, or has a reason against it
        inodes.add(seen.st_ino)
        holes += max(ram["size"] - seen.st_blocks * 512, 0)
        notes += ram["size"] >> _NOTE_SHIFT
    memory = _memory.meminfo(root)
    # Reading smaps walks all of the guest's page tables.
    if inodes and memory["SwapTotal"] > memory["SwapFree"]:
        try:
            with open(os.path.join(root, f"proc/{record['pid']}/smaps"), encoding="utf-8", errors="replace") as smaps:
                in_swap = swapped(smaps, inodes)
        except OSError:
            in_swap = 0
    return holes + in_swap + notes


def swapped(smaps: t.Iterable[str], inodes: set[int]) -> int:
    """How many bytes of the mapped files with these inodes are in swap (proc(5), smaps). Pure."""
    found, counts = 0, False
    for line in smaps:
        fields = line.split(None, 5)
        if not fields[0].endswith(":"):
            counts = int(fields[4]) in inodes
        elif counts and fields[0] == "Swap:":
            found += int(fields[1]) << 10
    return found


def parents(unit_slice: str) -> list[str]:
    """A slice and all its parents, e.g. a-b.slice, a.slice and -.slice (systemd.slice(5)). Pure."""
    if unit_slice in ("", "-.slice"):
        return ["-.slice"]
    parts = unit_slice[: -len(".slice")].split("-")
    return ["-".join(parts[:count]) + ".slice" for count in range(len(parts), 0, -1)] + ["-.slice"]


def limits(properties: dict[str, dict[str, str]]) -> dict[str, int]:
    """The smallest limit in bytes in each unit's properties. Units without a limit are left out. Pure."""
    found = {}
    for unit, shown in properties.items():
        set_here = [int(shown[name]) for name in LIMITS if shown.get(name, "").isdigit()]
        # 2^64 - 1 means "no limit" where systemd does not print a word.
        if set_here and min(set_here) < 1 << 63:
            found[unit] = min(set_here)
    return found


def limit_reasons(ram: int, found: dict[str, int]) -> list[dict]:
    """Reasons why a guest could not get its RAM (in bytes) back: the limits of its unit and of that unit's slices. Pure."""
    return [_limit_reason(unit, limit, f"its {ram >> 20} MiB of RAM are") for unit, limit in found.items() if ram > limit]


def shared_limit_reasons(guests: dict[str, tuple[int, dict[str, int]]]) -> list[dict]:
    """Reasons about slices whose limit is enough for each of several guests, but not for all. ``guests``: RAM in bytes, limits. Pure."""
    reasons = []
    for unit in sorted({unit for _ram, found in guests.values() for unit in found}):
        inside = {name: ram for name, (ram, found) in guests.items() if unit in found}
        limit = next(found[unit] for _ram, found in guests.values() if unit in found)
        together = sum(inside.values())
        if together > limit and all(ram <= limit for ram in inside.values()):
            reasons.append(_limit_reason(unit, limit, f"the {together >> 20} MiB of RAM of {', '.join(sorted(inside))} are"))
    return reasons


def _limit_reason(unit: str, limit: int, what: str) -> dict:
    return reason(
        "memory-limit",
        f"{what} charged to {unit} at the restore, but its MemoryMax= or StartupMemoryMax= is {limit >> 20} MiB: the restore"
        " would fail, and could not be repeated",
        f"raise or remove the limit of {unit}",
    )
