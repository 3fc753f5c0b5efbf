# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is on the disk of a guest that writes all the time."""

from __future__ import annotations

import pytest
from kvmlab.watch.records import SIZE, Records, check, checksum

BOOT = "61f624b4-1e38-4c1c-9ef3-f73d4589b6bc"
OTHER_BOOT = "32dfe975-83ce-4668-85e6-ae4b90f4518a"


def record(number: int, boot: str = BOOT) -> str:
    """One record as the guest writes it."""
    text = f"{number:025d} {boot} "
    return f"{text}{checksum(text):016x}\n"


def test_the_checksum_is_fnv_1a() -> None:
    assert checksum("") == 0xCBF29CE484222325
    assert checksum("foobar") == 0x85944171F73967E8


def test_whole_records_are_counted_with_the_boots_that_wrote_them() -> None:
    content = record(1) + record(2) + record(3, OTHER_BOOT)
    assert len(content) == 3 * SIZE
    assert check(content) == Records(3, (BOOT, OTHER_BOOT))
    assert check("") == Records(0, ())


@pytest.mark.parametrize(
    ("content", "count", "fault"),
    [
        (record(1) + record(3), 1, "record 3 is in the place of record 2"),
        (record(1) + record(2).replace(BOOT, OTHER_BOOT), 1, "the checksum of record 2 does not match its content"),
        (record(1) + record(2)[:30], 1, f"record 2 is damaged: {record(2)[:30]!r}"),
        (record(1) + "\0" * SIZE + record(3), 1, f"record 2 is damaged: {chr(0) * SIZE!r}"),
    ],
)
def test_the_first_fault_is_named(content: str, count: int, fault: str) -> None:
    assert check(content) == Records(count, (BOOT,), fault)
