# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The functions that a 64 bit ELF program exports. Source: elf(5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import LabError

_MAGIC = b"\x7fELF\x02\x01"  # 64 bit, little-endian
_DYNAMIC_SYMBOLS = 11
_FUNCTION = 2


@dataclass(frozen=True)
class Function:
    """A function: its address in memory, its place in the file, its length."""

    address: int
    offset: int
    size: int


def functions(program: bytes) -> dict[str, Function]:
    """The exported functions of a program by their names. Pure."""
    if not program.startswith(_MAGIC):
        raise LabError("it is no 64 bit ELF program")
    try:
        return dict(_functions(program))
    except (struct.error, IndexError, ValueError) as error:
        raise LabError(f"its ELF tables cannot be read ({error})") from error


def _functions(program: bytes) -> list[tuple[str, Function]]:
    (table,) = struct.unpack_from("<Q", program, 40)
    size, count = struct.unpack_from("<HH", program, 58)
    # Of each section: its type, address, offset, length and link.
    sections = [struct.unpack_from("<4xI8xQQQI", program, table + number * size) for number in range(count)]
    found = []
    for kind, _address, offset, length, link in sections:
        if kind != _DYNAMIC_SYMBOLS:
            continue
        names = program[sections[link][2] :][: sections[link][3]]
        for name, info, section, value, size in struct.iter_unpack("<IBxHQQ", program[offset : offset + length]):
            if info & 15 == _FUNCTION and 0 < section < count:
                _kind, begin, place, _length, _link = sections[section]
                label = names[name : names.index(b"\0", name)].decode("ascii", "replace")
                found.append((label, Function(value, value - begin + place, size)))
    return found
