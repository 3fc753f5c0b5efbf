# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One blackout, measured three times: by the host's stamps, by the guest's heartbeat, and from outside. Pure.

They agree when no two of them differ by more than their resolutions together. Where they do not, the sentence says by how much, and
what explains it. The host's stamps of a libvirt domain are from before virsh was asked to pause it to after virsh had started it, which is
at least as long as the guest stood still, and may be longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .heartbeat import Verdict
from .probe import Answers

# Each side of the jump is held against the hardware clock to 0.01 s (plugins/module_utils/host/_this_boot.py); without that a new kernel's
# clock may be off by a second.
STEP_KNOWN_S = 0.02
STEP_UNKNOWN_S = 1.0
# The clock of a host that boots was seen 1.1 % off against another one's, perhaps until its kernel has refined its processor's frequency.
DRIFT = 0.02


@dataclass(frozen=True)
class Measure:
    """A blackout as somebody saw it, and by how much it may be off; ``at_most``: or the true one is shorter."""

    who: str
    seconds: float
    resolution: float
    at_most: bool = False


@dataclass(frozen=True)
class Agreement:
    """Whether the measures are of the same blackout, in a sentence; None when there was but one of them. explained: or why they differ."""

    agree: bool | None
    text: str
    explained: bool = False


def measures(told: dict[str, Any], verdict: Verdict, answers: Answers | None) -> list[Measure]:
    """What was measured: the role's report of the guest, the verdict on its heartbeat, and the answers that a probe had."""
    found = []
    times = told.get("times") or {}
    if "paused" in times and "resumed" in times:
        known = told.get("clock_step") is not None
        found.append(Measure("host", times["resumed"] - times["paused"], STEP_KNOWN_S if known else STEP_UNKNOWN_S, "libvirt" in times))
    if verdict.blackout_s is not None:
        found.append(Measure("guest", verdict.blackout_s, verdict.period_s))
    if answers and answers.count:
        found.append(Measure("outside", answers.blackout_s, answers.resolution_s))
    return found


def network(told: dict[str, Any], forwarding_at: float | None) -> Measure | None:
    """For how long the guest could not be reached because its host's bridge passed nothing on; told by the host's stamps, as its pause."""
    paused = (told.get("times") or {}).get("paused")
    if forwarding_at is None or paused is None:
        return None
    step = told.get("clock_step")
    seconds = forwarding_at - (step or 0.0) - paused
    return Measure("network", seconds, (STEP_UNKNOWN_S if step is None else STEP_KNOWN_S) + seconds * DRIFT)


def agreement(found: Sequence[Measure], late_s: float, cut: Measure | None = None, answers: Answers | None = None) -> Agreement:
    """Compare them. late_s is how much of the silence was no pause, for the guest's own clock went on; cut is what :func:`network` says."""
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
    hints = [f"its host's network was up at {cut.seconds:.2f} s"] if cut else []
    if answers and answers.sent_s:
        through = answers.got_through_s(min(one.seconds, two.seconds))
        hints.append(
            "nothing sent to it afterwards came back" if through is None else f"what was sent to it from {through:.2f} s on came back"
        )
    return Agreement(False, "; ".join((f"{difference}, and nothing that was measured explains it", *hints)))


def _why(one: Measure, two: Measure, late_s: float, cut: Measure | None, answers: Answers | None) -> str:
    """What explains that these differ; empty when nothing does."""
    shorter, longer = sorted((one, two), key=lambda measure: measure.seconds)
    if shorter.who == "host" and late_s > 0 and _distance(one, two) - late_s <= _resolution(one, two):
        return f"for the guest's own clock went on for {late_s:.2f} s of its silence: it was kept waiting"
    if longer.who != "outside" or not answers:
        return ""
    back = shorter.seconds + shorter.resolution
    through = answers.got_through_s(back)
    if through is not None and through - back <= longer.resolution:
        return f"for what was sent to it from {through:.2f} s on came back, but late: it or its host was busy"
    if through is not None and cut and cut.seconds > shorter.seconds and abs(through - cut.seconds) <= _resolution(longer, cut):
        return f"for its host's network was down until {cut.seconds:.2f} s after the guest was paused"
    return ""


def _distance(one: Measure, two: Measure) -> float:
    longer, shorter = (one, two) if one.seconds > two.seconds else (two, one)
    return 0.0 if longer.at_most else longer.seconds - shorter.seconds


def _resolution(one: Measure, two: Measure) -> float:
    return one.resolution + two.resolution
