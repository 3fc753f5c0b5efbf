# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One pause, measured three times: by the host's timestamps, by the guest's heartbeat, and from outside. Pure.

Two measures agree if they differ by no more than the sum of their resolutions. If they do not agree, the text says by how much they
differ, and why. The host's timestamps of a libvirt domain include the virsh commands that pause and start it. So they may be longer
than the real pause, but never shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .heartbeat import Verdict
from .probe import Answers

# Before and after the jump, the clock is compared with the hardware clock, to 0.01 s each (plugins/module_utils/host/_this_boot.py).
# Without that, the new kernel's clock may be off by a second.
STEP_KNOWN_S = 0.02
STEP_UNKNOWN_S = 1.0
# The clock of a booting host was seen to run 1.1 % off another host's, perhaps until its kernel knows the exact CPU frequency.
DRIFT = 0.02


@dataclass(frozen=True)
class Measure:
    """A pause as one party measured it, and how far off that may be. ``at_most``: the real pause may be shorter."""

    who: str
    seconds: float
    resolution: float
    at_most: bool = False


@dataclass(frozen=True)
class Agreement:
    """Whether the measures agree (None if there is only one), as a sentence. explained: they differ, and the text says why."""

    agree: bool | None
    text: str
    explained: bool = False


def measures(told: dict[str, Any], verdict: Verdict, answers: Answers | None) -> list[Measure]:
    """All measures of a pause: from the role's report of the guest, the verdict on its heartbeat, and the answers to a probe."""
    found = []
    times = told.get("times") or {}
    if "paused" in times and "resumed" in times:
        found.append(Measure("host", *_by_the_host(times["resumed"] - times["paused"], told), "libvirt" in times))
    if verdict.blackout_s is not None:
        found.append(Measure("guest", verdict.blackout_s, verdict.period_s))
    if answers and answers.count:
        found.append(Measure("outside", answers.blackout_s, answers.resolution_s))
    return found


def network(told: dict[str, Any], forwarding_at: float | None) -> Measure | None:
    """How long the guest could not be reached because its host's bridge did not forward frames, by the host's timestamps."""
    paused = (told.get("times") or {}).get("paused")
    if forwarding_at is None or paused is None:
        return None
    return Measure("network", *_by_the_host(forwarding_at - (told.get("clock_step") or 0.0) - paused, told))


def _by_the_host(seconds: float, told: dict[str, Any]) -> tuple[float, float]:
    """A time that the clock of a host measured across its boot, with its resolution."""
    return seconds, (STEP_UNKNOWN_S if told.get("clock_step") is None else STEP_KNOWN_S) + seconds * DRIFT


def agreement(found: Sequence[Measure], late_s: float, cut: Measure | None = None, answers: Answers | None = None) -> Agreement:
    """Compare the measures. late_s is the part of the silence in which the guest's clock went on. cut comes from :func:`network`."""
    if len(found) < 2:
        return Agreement(None, f"only measured by {found[0].who}" if found else "not measured")
    listed = ", ".join(
        f"{measure.who} {'at most ' if measure.at_most else ''}{measure.seconds:.2f} s (to {measure.resolution:.2f} s)" for measure in found
    )
    apart = [pair for pair in combinations(found, 2) if _distance(*pair) > _resolution(*pair)]
    if not apart:
        return Agreement(True, f"{listed}: they agree")
    one, two = max(apart, key=lambda pair: _distance(*pair) - _resolution(*pair))
    difference = f"{listed}: {one.who} and {two.who} are {_distance(one, two):.2f} s apart"
    why = _why(one, two, late_s, cut, answers)
    if why:
        return Agreement(False, f"{difference}, {why}", True)
    hints = [f"its host's network was up after {cut.seconds:.2f} s"] if cut else []
    if answers and answers.sent_s:
        through = answers.got_through_s(min(one.seconds, two.seconds))
        hints.append(
            "no datagram sent after that was answered" if through is None else f"datagrams sent from {through:.2f} s on were answered"
        )
    return Agreement(False, "; ".join((f"{difference}, and no measure explains it", *hints)))


def _why(one: Measure, two: Measure, late_s: float, cut: Measure | None, answers: Answers | None) -> str:
    """Why these two differ. Empty if that is not known."""
    shorter, longer = sorted((one, two), key=lambda measure: measure.seconds)
    if shorter.who == "host" and late_s > 0 and _distance(one, two) - late_s <= _resolution(one, two):
        return f"because the guest had to wait: its own clock went on for {late_s:.2f} s of its silence"
    if longer.who != "outside" or not answers:
        return ""
    back = shorter.seconds + shorter.resolution
    through = answers.got_through_s(back)
    if through is not None and through - back <= longer.resolution:
        return f"because it or its host was busy: datagrams sent from {through:.2f} s on were answered late"
    if through is not None and cut and cut.seconds > shorter.seconds and abs(through - cut.seconds) <= _resolution(longer, cut):
        return f"because its host's network was down until {cut.seconds:.2f} s after the guest was paused"
    return ""


def _distance(one: Measure, two: Measure) -> float:
    longer, shorter = (one, two) if one.seconds > two.seconds else (two, one)
    return 0.0 if longer.at_most else longer.seconds - shorter.seconds


def _resolution(one: Measure, two: Measure) -> float:
    return one.resolution + two.resolution
