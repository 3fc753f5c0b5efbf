# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check whether the scratch areas have room for the next kernel. PRIVATE to the collection.

Until it has taken over the preserved memory, a kernel can use only the scratch areas, which the first kernel reserved at its cold
boot. kexec_file_load puts the kernel and its initial RAM disk there, and the memory for a crash kernel is reserved there too.

Source: kernel/liveupdate/kexec_handover.c, kernel/crash_reserve.c, lib/cmdline.c.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("areas", "crashkernel", "misfits")

# The first one from Linux 7.4 on, the second one before.
_LENGTHS = ("sys/kernel/debug/kho/out/bootmem_len", "sys/kernel/debug/kho/out/scratch_len")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = r"(?:0[xX][0-9a-fA-F]+|[0-9]+)[KMGTkmgt]?"
_RANGE = re.compile(rf"({_SIZE})-({_SIZE})?:({_SIZE})")
_PLAIN = re.compile(rf"({_SIZE})(?:@{_SIZE})?")
_RANGES = re.compile(rf"({_RANGE.pattern}(?:,{_RANGE.pattern})*)(?:@{_SIZE})?")
# Memory with ,cma is reserved later, in another place.
_SUFFIXES = (",high", ",low", ",cma")
# What ,high also reserves below 4 GiB if there is no ,low (arch/x86/kernel/setup.c).
_LOW_BESIDE_HIGH = 256 << 20


def areas(root: str = "/") -> list[int] | None:
    """The sizes of the scratch areas in bytes, from debugfs; None if that is not mounted or not readable."""
    for lengths in _LENGTHS:
        try:
            with open(os.path.join(root, lengths), encoding="ascii") as file:
                return [size for size in (int(line, 16) for line in file) if size]
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return None
    return None


def misfits(sizes: Iterable[int], needs: dict[str, int]) -> list[str]:
    """The ``needs``, each a number of bytes in one piece, that do not fit into the areas. The largest is placed first. Pure."""
    free = sorted(sizes)
    found = []
    for name, need in sorted(needs.items(), key=lambda item: -item[1]):
        # Use the smallest area with enough room, to keep the larger ones free.
        index = next((index for index, area in enumerate(free) if area >= need), None)
        if index is None:
            found.append(name)
        else:
            free[index] -= need
            free.sort()
    return found


def crashkernel(cmdline: str, ram: int) -> dict[str, int]:
    """What the command line reserves for a crash kernel on a machine with ``ram`` bytes: name and bytes of each piece. Pure.

    As in the kernel, the last value of each kind counts, and a plain value overrides ``,high`` and ``,low``. The kernel searches this text
    everywhere, also in quotes and after ``--``.
    """
    values = re.findall(r"crashkernel=([^ ]*)", cmdline)
    plain = _last(values, "")
    size = _plain_size(plain, ram) if plain else 0
    if size:
        return {"crashkernel": size}
    high, low = (_last(values, suffix) for suffix in (",high", ",low"))
    if not high or not _bytes(high):
        return {}
    beside = _bytes(low) if low else _LOW_BESIDE_HIGH if ram > 4 << 30 else 0
    pieces = {"crashkernel,high": _bytes(high), "crashkernel,low": beside}
    return {name: size for name, size in pieces.items() if size}


def _last(values: list[str], suffix: str) -> str:
    """The last value of this kind, without its suffix; empty if there is none."""
    fitting = [value for value in values if (value.endswith(suffix) if suffix else not value.endswith(_SUFFIXES))]
    return fitting[-1][: len(fitting[-1]) - len(suffix)] if fitting else ""


def _plain_size(value: str, ram: int) -> int:
    found = _PLAIN.fullmatch(value)
    if found:
        return _bytes(found[1])
    ranges = _RANGES.fullmatch(value)
    for start, end, size in _RANGE.findall(ranges[1]) if ranges else ():
        if _bytes(start) <= ram and (not end or ram < _bytes(end)):
            return _bytes(size)
    return 0


def _bytes(text: str) -> int:
    """Read a size as the kernel does (memparse); 0 if it is not a size."""
    found = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTkmgt]?)", text)
    return int(found[1], 0 if found[1][:2] in ("0x", "0X") else 10) << _UNITS[found[2].upper()] if found else 0
