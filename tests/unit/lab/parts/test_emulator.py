# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The known faults of the emulator, and their repair."""

from __future__ import annotations

import struct

import pytest
from kvmlab.errors import LabError
from kvmlab.parts import elf, emulator

# The instructions of QEMU 11.1.2 around the fault.
AROUND = (
    "410fb6f4 4489ab80340000",
    "89b350c2ffff",
    "c7838434000000000000 48c78388340000ffffffff f605ec45580102",
)


def test_the_fault_of_the_emulator_is_one_store_less() -> None:
    before, store, after = (bytes.fromhex(part) for part in AROUND)
    program = b"\x90" * 33 + before + store + after
    assert emulator.without_second_delivery(program) == b"\x90" * 33 + before + bytes.fromhex("660f1f440000") + after


@pytest.mark.parametrize("times", [0, 2])
def test_an_emulator_that_is_not_known_is_left_as_it_is(times: int) -> None:
    with pytest.raises(LabError, match=f"in {times} places of this QEMU instead of one"):
        emulator.without_second_delivery(bytes.fromhex("".join(AROUND)) * times)


TEXT = 0x200  # where the code is in the file of the stand-in
ADDRESS = 0x8F8000  # and in memory
LENGTHS = {emulator.CALLER: 64, emulator.LOCKED: 32, emulator.ATOMIC: 16}
# Where each function begins, from the start of the code.
STARTS = {emulator.CALLER: 0, emulator.LOCKED: 64, emulator.ATOMIC: 96}


def program(calls: dict[int, str], exported: tuple[str, ...] = tuple(LENGTHS)) -> bytes:
    """An ELF program whose caller has a jump at each of these places, to the function of this name."""
    code = bytearray(b"\x90" * 128)
    for place, name in calls.items():
        code[place : place + 5] = b"\xe9" + struct.pack("<i", STARTS[name] - place - 5)
    names = b"\0" + b"".join(name.encode() + b"\0" for name in exported)
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", names.index(name.encode() + b"\0"), 0x12, 0, 3, ADDRESS + STARTS[name], LENGTHS[name]) for name in exported
    )
    at_names = TEXT + len(code)
    at_symbols = at_names + len(names)
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, at_symbols, len(symbols), 2, 0, 8, 24),
        struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at_names, len(names), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 0, 1, 6, ADDRESS, TEXT, len(code), 0, 0, 16, 0),
    ]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + bytes(24) + struct.pack("<Q", at_symbols + len(symbols)) + bytes(10)
    header += struct.pack("<HHH", 64, len(sections), 0)
    return header.ljust(TEXT, b"\0") + bytes(code) + names + symbols + b"".join(sections)


def test_the_exported_functions_of_a_program_are_known() -> None:
    found = elf.functions(program({}))
    assert found == {name: elf.Function(ADDRESS + STARTS[name], TEXT + STARTS[name], LENGTHS[name]) for name in LENGTHS}


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", program({})[:300], program({})[:-64]])
def test_a_file_that_is_no_such_program_has_no_functions(content: bytes) -> None:
    with pytest.raises(LabError):
        elf.functions(content)


def test_a_write_to_cr8_sets_the_interrupt_without_the_lock() -> None:
    before = program({40: emulator.LOCKED, 20: emulator.ATOMIC})
    assert emulator.without_assertion(before) == program({40: emulator.ATOMIC, 20: emulator.ATOMIC})


@pytest.mark.parametrize("calls", [{}, {10: emulator.ATOMIC}, {10: emulator.LOCKED, 40: emulator.LOCKED}, {64: emulator.LOCKED}])
def test_an_emulator_with_other_calls_is_left_as_it_is(calls: dict[int, str]) -> None:
    with pytest.raises(LabError, match=r"calls cpu_interrupt in \d places instead of one"):
        emulator.without_assertion(program(calls))


def test_an_emulator_without_the_atomic_function_is_left_as_it_is() -> None:
    with pytest.raises(LabError, match="exports no cpu_set_interrupt, so"):
        emulator.without_assertion(program({40: emulator.LOCKED}, (emulator.CALLER, emulator.LOCKED)))
