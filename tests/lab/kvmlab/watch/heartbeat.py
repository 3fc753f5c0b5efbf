# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the heartbeats of a guest prove. Pure: text in, verdict out.

A log line is "MONO WALL TEXT": this machine's clocks at the arrival, then what the guest printed. Ticks are judged by their
numbers and times by their arrival here, never by the guest's own clock.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .. import limits

PERIOD_S = 0.5
# So many ticks before and after a silence tell how far the guest's clock is behind.
NEAR = 10

_LINE = re.compile(r"(?P<mono>\d+\.\d+) (?P<wall>\d+\.\d+) (?P<text>.*)")
# Searched, not matched: the first half of a torn tick may stand before it on the same line.
_TICK = re.compile(
    r"TICK n=(?P<number>\d+) mono=(?P<guest>\d+\.\d{6})(?: real=(?P<real>\d+\.\d{6}))?"
    r" boot=(?P<boot>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r" sum=(?P<sum>[0-9a-f]{16}) pass=(?P<turn>\d+)(?: disk=(?P<synced>\d+))?$"
)
_WORDS_OF_A_TICK = re.compile(r"TICK|mono=|real=|boot=|sum=|pass=|disk=")


@dataclass(frozen=True)
class Tick:
    """One sign of life. Scraps are torn ticks that came between the tick before and this one.

    synced is the number of records that the guest knows to be on its disk, if it writes any; guest_wall the time of day that
    it believes in, if it tells.
    """

    arrived: float
    wall: float
    number: int
    guest_monotonic: float
    boot_id: str
    checksum: str
    turn: int
    scraps: int = 0
    synced: int | None = None
    guest_wall: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a guest came through, why, and the evidence.

    blackout_s is the longest time without a tick, less the usual time between two, which is period_s as it arrived. late_s is how much
    of it was no pause: the guest's own clock, which stands still in one, went on, because the guest or its tick was kept waiting.
    torn are numbers of ticks of which only a piece arrived. A guest is only said to have survived when its memory was read through
    once after the blackout.
    """

    survived: bool
    reason: str
    ticks: int = 0
    boot_ids: tuple[str, ...] = ()
    contiguous: bool = False
    torn: tuple[int, ...] = ()
    checksum_before: str | None = None
    checksum_after: str | None = None
    blackout_s: float | None = None
    period_s: float = PERIOD_S
    late_s: float = 0.0
    last_tick: int | None = None
    last_tick_age_s: float | None = None


def parse(lines: Iterable[str]) -> list[Tick]:
    """The whole ticks in a log."""
    ticks: list[Tick] = []
    scraps = 0
    for line in lines:
        stamped = _LINE.fullmatch(line.rstrip("\n"))
        if not stamped:
            continue
        text = stamped["text"]
        tick = _TICK.search(text)
        if _WORDS_OF_A_TICK.search(text[: tick.start()] if tick else text):
            scraps += 1
        if tick:
            ticks.append(
                Tick(
                    arrived=float(stamped["mono"]),
                    wall=float(stamped["wall"]),
                    number=int(tick["number"]),
                    guest_monotonic=float(tick["guest"]),
                    boot_id=tick["boot"],
                    checksum=tick["sum"],
                    turn=int(tick["turn"]),
                    scraps=scraps,
                    synced=None if tick["synced"] is None else int(tick["synced"]),
                    guest_wall=None if tick["real"] is None else float(tick["real"]),
                )
            )
            scraps = 0
    return ticks


def read_ticks(log: Path) -> list[Tick]:
    """The ticks in a log file; none when there is no such file."""
    try:
        return parse(log.read_text(encoding="ascii", errors="replace").splitlines())
    except FileNotFoundError:
        return []


def verdict(ticks: Sequence[Tick], *, since: float = 0.0, now: float | None = None) -> Verdict:
    """Whether the guest came through everything since a moment of this machine's monotonic clock, until now."""
    heard = [tick for tick in ticks if tick.arrived >= since]
    earlier = [tick for tick in ticks if tick.arrived < since]
    if not heard:
        if not earlier:
            return Verdict(False, "silent: never heard")
        age = None if now is None else now - earlier[-1].arrived
        number = earlier[-1].number
        return Verdict(False, f"silent: no tick came, the last one before was {number}", last_tick=number, last_tick_age_s=age)
    # The last tick before the moment is where the guest was left: a loss right after it must show.
    window = earlier[-1:] + heard
    boot_ids = tuple(dict.fromkeys(tick.boot_id for tick in window))
    fault, torn = _first_break(window)
    steps = list(pairwise(window))
    before, after = max(steps, key=lambda step: step[1].arrived - step[0].arrived, default=(window[0], window[0]))
    period = statistics.median(two.arrived - one.arrived for one, two in steps) if steps else PERIOD_S
    last = window[-1]
    sum_before = _checksum([tick for tick in [*earlier, *heard] if tick.arrived <= before.arrived and tick.boot_id == before.boot_id])
    sum_after = _checksum([last] if last.boot_id == before.boot_id and last.turn >= before.turn + 2 else [])
    age = None if now is None else now - last.arrived
    reason = fault or _doubt(window, before, sum_before, sum_after, age)
    return Verdict(
        survived=reason is None,
        reason=reason or f"ticks {window[0].number} to {last.number} without a break, memory unchanged",
        ticks=len(window),
        boot_ids=boot_ids,
        contiguous=fault is None,
        torn=torn,
        checksum_before=sum_before,
        checksum_after=sum_after,
        blackout_s=max(0.0, after.arrived - before.arrived - PERIOD_S) if steps else None,
        period_s=period,
        late_s=_late(window, before, after),
        last_tick=last.number,
        last_tick_age_s=age,
    )


def _late(window: Sequence[Tick], before: Tick, after: Tick) -> float:
    """By how much a silence is longer than the guest's clock stood still in it, going by the ticks that came the quickest."""
    if after.boot_id != before.boot_id:
        return 0.0
    place = window.index(after)
    lags = [
        [tick.arrived - tick.guest_monotonic for tick in near] for near in (window[max(0, place - NEAR) : place], window[place:][:NEAR])
    ]
    stood_still = min(lags[1]) - min(lags[0]) if lags[0] else 0.0
    return max(0.0, after.arrived - before.arrived - PERIOD_S - stood_still)


def _first_break(window: Sequence[Tick]) -> tuple[str | None, tuple[int, ...]]:
    """The first place where the ticks do not go on by one, in words, and the ticks that were torn."""
    torn: list[int] = []
    for one, two in pairwise(window):
        if two.boot_id != one.boot_id:
            return f"restarted: boot {one.boot_id} ended after tick {one.number}, boot {two.boot_id} goes on with {two.number}", tuple(torn)
        if two.number <= one.number:
            return f"went back: after tick {one.number} came tick {two.number} of the same boot", tuple(torn)
        missing = range(one.number + 1, two.number)
        # A piece of a line is proof of a tick only as far as its neighbours leave room for exactly that many.
        if len(missing) > two.scraps:
            return f"lost ticks: after tick {one.number} came tick {two.number}", tuple(torn)
        torn.extend(missing)
    return None, tuple(torn)


def _doubt(window: Sequence[Tick], before: Tick, sum_before: str | None, sum_after: str | None, age: float | None) -> str | None:
    """What is still missing for a guest whose ticks go on."""
    if age is not None and age > limits.SILENCE:
        return f"silent: nothing for {age:.1f} s after tick {window[-1].number}"
    sums = {tick.checksum for tick in window if tick.turn > 0}
    if len(sums) > 1:
        return f"memory changed: its checksum was {sum_before}, then {' and '.join(sorted(sums - {str(sum_before)}))}"
    if sum_before is None:
        return "not proven: the memory was not read through once before the longest gap"
    if sum_after is None:
        return f"not proven: the memory was not read through once after the longest gap, which followed tick {before.number}"
    return None


def _checksum(ticks: Sequence[Tick]) -> str | None:
    """The newest checksum of a complete pass."""
    return next((tick.checksum for tick in reversed(ticks) if tick.turn > 0), None)
