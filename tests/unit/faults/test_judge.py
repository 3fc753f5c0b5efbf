# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the fault suite accepts and what it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvmfaults import judge
from kvmfaults.judge import Allowed, Facts, Guest, Life
from kvmlab.watch.heartbeat import Tick
from kvmlab.watch.records import Records
from kvmlab.watch.report import Boot

OLD, NEW = Boot("old", "7.2"), Boot("new", "7.3")
ONE, OTHER = Life("one", 1, 90, proven=True), Life("other", 1, 20, proven=True)
WEB = Guest("web", (ONE,), 0.5, journal={"state": "restored", "update_id": "u"})
UPDATE = {"id": "u", "state": "jumping", "boot_id": "old"}
UPDATED = Facts(OLD, NEW, (WEB,), UPDATE, "7.3", by_kexec=True, reported={"outcome": "updated"})


def problems(facts: Facts, **allowed: frozenset[str]) -> list[str]:
    return judge.judge(facts, Allowed(**allowed))


def with_guest(facts: Facts, **changes: Any) -> Facts:
    return replace(facts, guests=(replace(WEB, **changes),))


def tick(number: int, arrived: float, boot: str = "one", turn: int = 1, checksum: str = "a") -> Tick:
    return Tick(arrived, arrived, number, arrived, boot, checksum, turn)


def ticking(first: int, last: int, since: float, boot: str = "one") -> list[Tick]:
    return [tick(number, since + 0.5 * (number - first), boot, 1 + number // 4) for number in range(first, last + 1)]


def test_an_update_without_a_loss_holds() -> None:
    assert problems(UPDATED) == []
    assert judge.told(UPDATED) == "the host jumped; web kept its memory"
    both = replace(UPDATED, guests=(WEB, replace(WEB, name="db")))
    assert judge.told(both) == "the host jumped; web, db each kept its memory"


def test_an_update_is_a_kexec() -> None:
    assert problems(replace(UPDATED, by_kexec=False)) == ["the run reports an update, but a boot loader started the host's kernel"]


def test_a_guest_that_went_on_has_one_life_and_a_restarted_one_has_two() -> None:
    before, after = ticking(1, 20, 0.0), ticking(21, 40, 30.0)
    assert judge.lives([*before, *after], since=9.0) == (Life("one", 18, 40, "", True),)
    assert judge.lives([*before, *ticking(1, 20, 30.0, "two")], since=9.0) == (
        Life("one", 18, 20, "", False),
        Life("two", 1, 20, "", True),
    )


def test_a_boot_whose_longest_gap_came_before_it_had_read_its_memory_is_proven_later() -> None:
    slow = [tick(1, 30.0, "two", turn=0), *(tick(number, 40.0 + 0.5 * number, "two", number // 4) for number in range(2, 20))]
    assert judge.lives([*ticking(1, 20, 0.0), *slow], since=9.0)[1] == Life("two", 1, 19, "", True)
    assert not judge.lives([*ticking(1, 20, 0.0), *slow[:8]], since=9.0)[1].proven


@pytest.mark.parametrize(
    ("later", "says"),
    [
        (ticking(25, 40, 30.0), "lost ticks"),
        (ticking(10, 40, 30.0), "went back"),
        ([tick(number, 30.0 + number, turn=9, checksum="b") for number in range(21, 30)], "memory changed"),
    ],
)
def test_what_a_guest_on_wrong_memory_shows(later: list[Tick], says: str) -> None:
    (life,) = judge.lives([*ticking(1, 20, 0.0), *later], since=9.0)
    assert says in life.wrong
    assert "wrong memory" in problems(with_guest(UPDATED, lives=(life,)))[0]


def test_an_old_boot_that_comes_back_ran_twice() -> None:
    ticks = [*ticking(1, 20, 0.0), *ticking(1, 9, 20.0, "two"), *ticking(21, 30, 40.0)]
    found = judge.lives(ticks, since=9.0)
    assert [life.boot_id for life in found] == ["one", "two", "one"]
    facts = with_guest(UPDATED, lives=found, journal={"state": "lost", "why": "gone", "update_id": "u"})
    assert "web ran twice: ticks of an earlier boot came again after ticks of another boot" in problems(facts)


def test_two_qemus_are_one_too_many() -> None:
    assert problems(with_guest(UPDATED, processes=2)) == ["web runs twice: 2 QEMUs"]


def test_what_a_guest_found_itself_counts() -> None:
    assert problems(with_guest(UPDATED, cries="FAILED load")) == ["web found an error: FAILED load"]


LOST = {"state": "lost", "why": "its memory did not survive the reboot", "update_id": "u"}


def test_a_lost_guest_is_named_or_ended_by_the_fault() -> None:
    cold = replace(UPDATED, after=Boot("new", "7.2"), reported={"outcome": "failed"})
    named = with_guest(cold, lives=(ONE, OTHER), journal=LOST)
    silently = with_guest(cold, lives=(ONE, OTHER), journal={})
    assert problems(named) == []
    assert judge.told(named) == "the host booted; web started from its disks (lost)"
    assert judge.told(replace(named, after=NEW, by_kexec=False)) == judge.told(named)
    assert problems(silently) == ["web lost its memory, and neither the fault nor its record explains it"]
    assert problems(silently, ended=frozenset({"web"})) == []
    without_a_reason = with_guest(cold, lives=(ONE, OTHER), journal={**LOST, "why": ""})
    assert problems(without_a_reason) == problems(silently)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"journal": LOST}, "kept its memory, but its record says that it is lost"),
        ({"journal": {"state": "saved"}}, "its record says that it is saved"),
        ({"running": False}, "the host says that it does not"),
        ({"lives": (ONE, OTHER)}, "its record says that it was restored"),
        ({"lives": (ONE, OTHER), "journal": {"state": "saved"}}, "started from its disks, but its record says that it is saved"),
        ({"silent_s": 99.0}, "stands still, but its record says that it was restored"),
        ({"silent_s": 99.0, "processes": 0}, "is off, but the host says that it runs"),
    ],
)
def test_a_record_that_is_not_true_is_a_problem(changes: dict[str, Any], says: str) -> None:
    assert [problem for problem in problems(with_guest(replace(UPDATED, reported={}), **changes)) if says in problem]


def test_a_guest_that_is_held_needs_a_reason() -> None:
    off = {"silent_s": 99.0, "processes": 0, "running": False, "journal": {"state": "saved", "update_id": "u"}}
    facts = replace(UPDATED, reported={"outcome": "failed"})
    assert problems(with_guest(facts, **off)) == ["web is off: the host says nothing about it"]
    assert problems(with_guest(facts, **off, told="no QEMU"), held=frozenset({"web"})) == []
    assert problems(with_guest(facts, **off), held=frozenset({"web"})) == ["web is off, and the host does not say why"]
    assert judge.told(with_guest(facts, **off)) == "the host jumped; web is off (saved)"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (replace(UPDATED, after=OLD), "the record says that the host jumps, but it stayed"),
        (replace(UPDATED, after=OLD), "but the host runs 7.2"),
        (with_guest(UPDATED, silent_s=None), "without a loss, but web stands still"),
        (replace(UPDATED, after=OLD, update={**UPDATE, "state": "aborted"}, reported={}), "does not say why"),
        (replace(UPDATED, reported={"outcome": "refused"}, update={}), "reports the host as refused, but it has booted"),
        (replace(UPDATED, kexec_loaded=True), "a kernel is still loaded"),
    ],
)
def test_the_record_of_the_update_and_the_report_are_true(facts: Facts, says: str) -> None:
    assert [problem for problem in problems(facts) if says in problem]


def test_an_outcome_that_the_case_does_not_allow_is_a_problem() -> None:
    assert problems(UPDATED, outcomes=frozenset({"updated"})) == []
    assert problems(UPDATED, outcomes=frozenset({"undone"})) == ["the run reports the host as updated, not as undone"]


def test_a_disk_has_what_its_guest_told_of() -> None:
    assert judge.disk_problems("disk", Records(9, ("one",)), 9, ["one", "two"]) == []
    found = judge.disk_problems("disk", Records(3, ("one", "three"), "record 4 is damaged"), 9, ["one"])
    assert [problem.partition(":")[0] for problem in found] == [
        "the disk of disk",
        "the disk of disk has 3 records, but the guest had flushed 9",
        "the disk of disk has records of boots that never ticked",
    ]
