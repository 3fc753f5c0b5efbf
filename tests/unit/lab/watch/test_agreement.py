# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether three clocks speak of one blackout."""

from __future__ import annotations

from typing import Any

import pytest
from kvmlab.watch.agreement import DRIFT, Measure, agreement, measures, network
from kvmlab.watch.heartbeat import Verdict
from kvmlab.watch.probe import Answers

TOLD: dict[str, Any] = {"times": {"paused": 100.0, "resumed": 110.0}, "clock_step": -0.3}
HOST, GUEST, OUTSIDE = Measure("host", 10.0, 0.02 + 10.0 * DRIFT), Measure("guest", 10.2, 0.5), Measure("outside", 10.05, 0.06)


def test_the_three_measures() -> None:
    verdict = Verdict(True, "", blackout_s=10.2, period_s=0.5)
    assert measures(TOLD, verdict, Answers(200, 10.1, 0.01)) == [HOST, GUEST, Measure("outside", 10.1 - 0.05, 0.05 + 0.01)]


@pytest.mark.parametrize("told", [{}, {"times": {"paused": 1.0}}])
def test_what_was_not_measured_is_left_out(told: dict[str, object]) -> None:
    assert measures(told, Verdict(False, ""), None) == []
    assert measures(told, Verdict(False, ""), Answers()) == []


def test_a_clock_whose_step_is_not_known_may_be_off_by_a_second() -> None:
    (host,) = measures({**TOLD, "clock_step": None}, Verdict(False, ""), None)
    assert host == Measure("host", 10.0, 1.0 + 10.0 * DRIFT)


def test_they_agree_within_their_resolution() -> None:
    found = agreement([HOST, GUEST, OUTSIDE], late_s=0.0)
    assert found.agree
    assert found.text == "host 10.00 s (to 0.22 s), guest 10.20 s (to 0.50 s), outside 10.05 s (to 0.06 s): they agree"


def test_a_difference_is_told() -> None:
    found = agreement([HOST, GUEST, Measure("outside", 12.0, 0.06)], late_s=0.1)
    assert found.agree is False
    assert found.text.endswith("host and outside are 2.00 s apart, and no measure explains it")


def test_a_guest_that_was_kept_waiting_explains_a_difference() -> None:
    found = agreement([HOST, Measure("guest", 12.0, 0.5), Measure("outside", 12.0, 0.06)], late_s=1.95)
    assert (found.agree, found.explained) == (False, True)
    assert found.text.endswith(
        "host and outside are 2.00 s apart, because the guest had to wait: its own clock went on for 1.95 s of its silence"
    )


def test_a_shorter_pause_is_not_explained_by_a_late_tick() -> None:
    assert agreement([HOST, Measure("outside", 8.0, 0.06)], late_s=2.0).text.endswith("no measure explains it")


@pytest.mark.parametrize(
    ("up_at", "explained"), [(112.0, True), (112.2, True), (111.0, False), (109.0, False), (114.0, False), (None, False)]
)
def test_a_network_that_came_up_later_explains_what_was_seen_from_outside(up_at: float | None, explained: bool) -> None:
    """The guest was paused at 100; by the clock after the jump, 0.3 s behind, the network was there at so much."""
    cut = network(TOLD, None if up_at is None else up_at - 0.3)
    answers = Answers(200, 12.08, 0.01, (3.0, 12.02, 12.07))
    found = agreement([HOST, GUEST, Measure("outside", 12.03, 0.06)], late_s=0.0, cut=cut, answers=answers)
    assert (found.agree, found.explained) == (False, explained)
    said = f"its host's network was down until {cut.seconds if cut else 0:.2f} s after the guest was paused"
    assert found.text.endswith(said) is explained
    assert ("no measure explains it" in found.text) is not explained


@pytest.mark.parametrize(("sent_s", "explained"), [((3.0, 10.25, 10.3), True), ((3.0, 10.5, 10.55), False), ((3.0,), False)])
def test_what_came_back_late_explains_what_was_seen_from_outside(sent_s: tuple[float, ...], explained: bool) -> None:
    """The guest was back after 10 s. What is sent to it from then on is answered, or lost."""
    found = agreement([HOST, Measure("outside", 12.0, 0.06)], late_s=0.0, answers=Answers(200, 12.05, 0.01, sent_s))
    assert (found.agree, found.explained) == (False, explained)
    assert found.text.endswith("because it or its host was busy: datagrams sent from 10.25 s on were answered late") is explained


def test_a_network_does_not_keep_the_guest_itself_waiting() -> None:
    found = agreement([HOST, Measure("guest", 12.0, 0.5), OUTSIDE], late_s=0.0, cut=Measure("network", 12.0, 0.02))
    assert "no measure explains it" in found.text


def test_without_a_pause_or_a_network_nothing_is_said_of_it() -> None:
    assert network({}, 112.0) is None
    assert network(TOLD, None) is None
    assert network({**TOLD, "clock_step": None}, 112.0) == Measure("network", 12.0, pytest.approx(1.24))


def test_the_stamps_of_a_domain_are_around_its_pause() -> None:
    (host,) = measures({**TOLD, "times": {**TOLD["times"], "libvirt": 105.0}}, Verdict(False, ""), None)
    found = agreement([host, Measure("guest", 8.1, 0.5), Measure("outside", 8.0, 0.06)], late_s=0.0)
    assert found.agree and found.text.startswith("host at most 10.00 s (to 0.22 s), guest 8.10 s")
    assert agreement([host, Measure("outside", 10.5, 0.06)], late_s=0.0).agree is False


@pytest.mark.parametrize(("found", "text"), [([], "not measured"), ([HOST], "only measured by host")])
def test_one_clock_alone_neither_agrees_nor_not(found: list[Measure], text: str) -> None:
    seen = agreement(found, late_s=0.0)
    assert (seen.agree, seen.text) == (None, text)
