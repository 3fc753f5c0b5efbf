# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random schedules of faults can be replayed."""

from __future__ import annotations

from kvmfaults import schedule
from kvmfaults.cases import BY_NUMBER, STEPS
from kvmfaults.schedule import ENDING, LASTING

SEEDS = [schedule.seed_of(turn, int(variant)) for turn in (1, 2) for variant in BY_NUMBER[22].variants]


def test_each_pass_has_seeds_of_its_own() -> None:
    assert len(set(SEEDS)) == 24


def test_a_seed_always_gives_the_same_schedule() -> None:
    assert [schedule.schedule(seed) for seed in SEEDS] == [schedule.schedule(seed) for seed in SEEDS]
    assert len({str(schedule.schedule(seed)) for seed in SEEDS}) > 20
    # Recorded seeds are worth nothing if this changes.
    assert " ".join(map(str, schedule.schedule(101))) == RECORDED


RECORDED = "second@preserved hot-plug@preserved ignore@preserved reboot@preserved"


def test_what_is_printed_can_be_read() -> None:
    for seed in SEEDS:
        planned = schedule.schedule(seed)
        assert schedule.read(" ".join(map(str, planned))) == planned


def test_faults_are_in_order_and_the_boot_ends_at_most_once_and_last() -> None:
    seen = set()
    for seed in range(500):
        planned = schedule.schedule(seed)
        steps = [STEPS.index(fault.step) for fault in planned]
        assert steps == sorted(steps) and schedule.LEAST <= len(planned) <= schedule.MOST
        assert len({fault.name for fault in planned}) == len(planned)
        ending = [fault for fault in planned if fault.name in ENDING]
        assert ending in ([], planned[-1:])
        seen |= {(fault.name, fault.step) for fault in planned}
    assert seen == {(name, step) for name, steps in {**LASTING, **ENDING}.items() for step in steps}
