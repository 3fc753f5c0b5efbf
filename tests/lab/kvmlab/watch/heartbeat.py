# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the heartbeat of a guest proves. Pure: text in, verdict out.

A log line is "MONO WALL TEXT": this machine's two clocks at the arrival, then the guest's text. The verdict rests on the numbers
of the ticks and on their arrival here, never on the guest's own clock.
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
# This many ticks before and after a silence are used to see how long the guest's clock stood still.
NEAR = 10

_LINE = re.compile(r"(?P<mono>\d+\.\d+) (?P<wall>\d+\.\d+) (?P<text>.*)")
# Searched, not matched: half of a torn tick may come before it on the same line.
_TICK = re.compile(
    r"TICK n=(?P<number>\d+) mono=(?P<guest>\d+\.\d{6})(?: real=(?P<real>\d+\.\d{6}))?"
    r" boot=(?P<boot>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r" sum=(?P<sum>[0-9a-f]{16}) pass=(?P<turn>\d+)(?: disk=(?P<synced>\d+))?(?: disk2=(?P<second>\d+))?"
    r"(?: cpus=(?P<processors>\d+(?:,\d+)+))?(?: tpm=(?P<pcr>[0-9a-f]{16}),(?P<counted>\d+))?(?: efi=(?P<variable>\d+))?$"
)
_WORDS_OF_A_TICK = re.compile(r"TICK|mono=|real=|boot=|sum=|pass=|disk2?=|cpus=|tpm=|efi=")


@dataclass(frozen=True)
class Tick:
    """One tick. scraps is the number of torn ticks between the previous tick and this one.

    synced is how many records the guest has flushed to its disk, if it writes any. guest_wall is the guest's time of day,
    if it sends that.

    What only some guests tell: synced_second, the same of a second disk; processors, how often each of its processors has counted; pcr,
    what a register of its TPM holds; tpm_count, how often it has counted in its TPM; efi_count, how often in a variable of its firmware.
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
    synced_second: int | None = None
    processors: tuple[int, ...] = ()
    pcr: str | None = None
    tpm_count: int | None = None
    efi_count: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a guest has survived, why, and the evidence. It has only survived if it has read all its memory after the longest silence.

    blackout_s is the longest time without a tick, minus the usual time between two ticks. period_s is that usual time, as measured.
    late_s is the part of blackout_s in which the guest was not paused: its clock stands still in a pause, but it went on here,
    because the guest or its tick had to wait.
    torn are the numbers of ticks of which only a piece arrived. lost is how many did not arrive, where ticks may be lost on their way.
    """

    survived: bool
    reason: str
    ticks: int = 0
    boot_ids: tuple[str, ...] = ()
    contiguous: bool = False
    torn: tuple[int, ...] = ()
    lost: int = 0
    checksum_before: str | None = None
    checksum_after: str | None = None
    blackout_s: float | None = None
    period_s: float = PERIOD_S
    late_s: float = 0.0
    last_tick: int | None = None
    last_tick_age_s: float | None = None


def parse(lines: Iterable[str]) -> list[Tick]:
    """The complete ticks in a log."""
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
                    synced=_number(tick["synced"]),
                    guest_wall=None if tick["real"] is None else float(tick["real"]),
                    synced_second=_number(tick["second"]),
                    processors=tuple(int(count) for count in (tick["processors"] or "").split(",") if count),
                    pcr=tick["pcr"],
                    tpm_count=_number(tick["counted"]),
                    efi_count=_number(tick["variable"]),
                )
            )
            scraps = 0
    return ticks


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def read_ticks(log: Path) -> list[Tick]:
    """The ticks in a log file. Empty if there is no such file."""
    try:
        return parse(log.read_text(encoding="ascii", errors="replace").splitlines())
    except FileNotFoundError:
        return []


def verdict(ticks: Sequence[Tick], *, since: float = 0.0, now: float | None = None, lossy: bool = False) -> Verdict:
    """Whether the guest has survived from ``since`` until ``now``, two moments of this machine's monotonic clock.

    lossy: the ticks are datagrams, so a missing number is no fault. A guest that goes on from older memory still shows.
    """
    heard = [tick for tick in ticks if tick.arrived >= since]
    earlier = [tick for tick in ticks if tick.arrived < since]
    if not heard:
        if not earlier:
            return Verdict(False, "silent: no tick has ever arrived")
        age = None if now is None else now - earlier[-1].arrived
        number = earlier[-1].number
        return Verdict(False, f"silent: no tick has arrived after tick {number}", last_tick=number, last_tick_age_s=age)
    # Includes the last tick before ``since``: a tick that was lost right after it must show.
    window = earlier[-1:] + heard
    boot_ids = tuple(dict.fromkeys(tick.boot_id for tick in window))
    fault, torn = _first_break(window, lossy)
    lost = 0 if fault or not lossy else window[-1].number - window[0].number + 1 - len(window)
    steps = list(pairwise(window))
    before, after = max(steps, key=lambda step: step[1].arrived - step[0].arrived, default=(window[0], window[0]))
    period = statistics.median(two.arrived - one.arrived for one, two in steps) if steps else PERIOD_S
    last = window[-1]
    sum_before = _checksum([tick for tick in [*earlier, *heard] if tick.arrived <= before.arrived and tick.boot_id == before.boot_id])
    sum_after = _checksum([last] if last.boot_id == before.boot_id and last.turn >= before.turn + 2 else [])
    age = None if now is None else now - last.arrived
    reason = fault or _doubt(window, before, sum_before, sum_after, age) or _doubt_of_parts(window, before, after)
    seen = f"with {lost} lost on the network" if lost else "without a break"
    return Verdict(
        survived=reason is None,
        reason=reason or f"ticks {window[0].number} to {last.number} {seen}, memory unchanged",
        ticks=len(window),
        boot_ids=boot_ids,
        contiguous=fault is None,
        torn=torn,
        lost=lost,
        checksum_before=sum_before,
        checksum_after=sum_after,
        blackout_s=max(0.0, after.arrived - before.arrived - PERIOD_S) if steps else None,
        period_s=period,
        late_s=_late(window, before, after),
        last_tick=last.number,
        last_tick_age_s=age,
    )


def _late(window: Sequence[Tick], before: Tick, after: Tick) -> float:
    """For how much of a silence the guest's clock went on. Uses the ticks nearby that arrived with the least delay."""
    if after.boot_id != before.boot_id:
        return 0.0
    place = window.index(after)
    lags = [
        [tick.arrived - tick.guest_monotonic for tick in near] for near in (window[max(0, place - NEAR) : place], window[place:][:NEAR])
    ]
    stood_still = min(lags[1]) - min(lags[0]) if lags[0] else 0.0
    return max(0.0, after.arrived - before.arrived - PERIOD_S - stood_still)


def _first_break(window: Sequence[Tick], lossy: bool) -> tuple[str | None, tuple[int, ...]]:
    """The first gap in the numbers of the ticks, as a sentence, and the torn ticks before it."""
    torn: list[int] = []
    for one, two in pairwise(window):
        if two.boot_id != one.boot_id:
            return f"restarted: boot {one.boot_id} ended after tick {one.number}, then came tick {two.number} of boot {two.boot_id}", tuple(
                torn
            )
        if two.number <= one.number:
            return f"went back: after tick {one.number} came tick {two.number} of the same boot", tuple(torn)
        missing = range(one.number + 1, two.number)
        if lossy:
            continue
        # Each torn piece accounts for one missing number at most.
        if len(missing) > two.scraps:
            return f"lost ticks: after tick {one.number} came tick {two.number}", tuple(torn)
        torn.extend(missing)
    return None, tuple(torn)


def _doubt(window: Sequence[Tick], before: Tick, sum_before: str | None, sum_after: str | None, age: float | None) -> str | None:
    """Why it is not certain that a guest without a gap has survived. None if it is."""
    if age is not None and age > limits.SILENCE:
        return f"silent: no tick for {age:.1f} s after tick {window[-1].number}"
    sums = {tick.checksum for tick in window if tick.turn > 0}
    if len(sums) > 1:
        return f"memory changed: its checksum was {sum_before}, then {' and '.join(sorted(sums - {str(sum_before)}))}"
    if sum_before is None:
        return "not proven: the guest had not read all its memory before the longest gap"
    if sum_after is None:
        return f"not proven: the guest has not read all its memory since the longest gap, which came after tick {before.number}"
    return None


def _doubt_of_parts(window: Sequence[Tick], before: Tick, after: Tick) -> str | None:
    """What is wrong, or not proven, with the processors, the TPM or the firmware's variable of a guest. None if nothing is.

    before and after are the ticks around the longest silence.
    """
    last = window[-1]
    pcrs = list(dict.fromkeys(tick.pcr for tick in window if tick.pcr is not None))
    if len(pcrs) > 1:
        return f"TPM changed: its register was {pcrs[0]}, then {' and '.join(pcrs[1:])}"
    counts = {
        "TPM": [tick.tpm_count for tick in window],
        "firmware's variable": [tick.efi_count for tick in window],
        **{f"processor {place}": [_at(tick.processors, place) for tick in window] for place in range(len(last.processors))},
    }
    for part, seen in counts.items():
        known = [count for count in seen if count is not None]
        for one, two in pairwise(known):
            if two < one:
                return f"went back: after count {one} of its {part} came count {two}"
        first, then = seen[window.index(before)], seen[window.index(after)]
        if known and first is None:
            return f"not proven: its {part} had not counted before the longest gap"
        if known and then is not None and known[-1] <= then:
            return f"not proven: its {part} has not counted since the longest gap, which came after tick {before.number}"
    return None


def _at(counts: Sequence[int], place: int) -> int | None:
    return counts[place] if place < len(counts) else None


def _checksum(ticks: Sequence[Tick]) -> str | None:
    """The newest checksum of a complete pass over the memory."""
    return next((tick.checksum for tick in reversed(ticks) if tick.turn > 0), None)
