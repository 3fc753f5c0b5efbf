# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The known fault of the emulator, and its repair."""

from __future__ import annotations

import pytest
from kvmlab.errors import LabError
from kvmlab.parts import emulator

# The instructions of QEMU 11.1.2 around the fault.
AROUND = (
    "410fb6f4 4489ab80340000",
    "89b350c2ffff",
    "c7838434000000000000 48c78388340000ffffffff f605ec45580102",
)


def test_the_fault_of_the_emulator_is_one_store_less() -> None:
    before, store, after = (bytes.fromhex(part) for part in AROUND)
    program = b"\x90" * 33 + before + store + after
    assert emulator.mended(program) == b"\x90" * 33 + before + bytes.fromhex("660f1f440000") + after


@pytest.mark.parametrize("times", [0, 2])
def test_an_emulator_that_is_not_known_is_left_as_it_is(times: int) -> None:
    with pytest.raises(LabError, match=f"in {times} places of this QEMU instead of one"):
        emulator.mended(bytes.fromhex("".join(AROUND)) * times)
