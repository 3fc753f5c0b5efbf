# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The records that a guest writes to its disk, and what they prove. Pure.

A record is "NUMBER BOOT SUM": its position in the file, the id of the boot that wrote it, and the FNV-1a hash of both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RECORD = re.compile(r"(?P<text>(?P<number>\d{25}) (?P<boot>[0-9a-f-]{36}) )(?P<sum>[0-9a-f]{16})\n")
SIZE = 80


@dataclass(frozen=True)
class Records:
    """The number of good records, the boots that wrote them, and the first fault, if any."""

    count: int
    boot_ids: tuple[str, ...]
    fault: str | None = None


def check(content: str) -> Records:
    """Check a file of records, up to its first fault."""
    boots: dict[str, None] = {}
    for number, start in enumerate(range(0, len(content), SIZE), start=1):
        piece = content[start : start + SIZE]
        record = RECORD.fullmatch(piece)
        fault = None
        if not record:
            fault = f"record {number} is damaged: {piece!r}"
        elif int(record["number"]) != number:
            fault = f"record {int(record['number'])} is in the place of record {number}"
        elif int(record["sum"], 16) != checksum(record["text"]):
            fault = f"the checksum of record {number} does not match its content"
        if fault or not record:
            return Records(number - 1, tuple(boots), fault)
        boots[record["boot"]] = None
    return Records(len(content) // SIZE, tuple(boots))


def checksum(text: str) -> int:
    """The 64 bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
