# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the heartbeats of a guest prove. Pure: text in, verdict out.

A log line is "MONO WALL TEXT": this machine's clocks at the arrival, then what the guest printed. Ticks are judged by their
numbers, and times by their arrival here, never by the guest's own clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.25

_LINE = re.compile(r"^(?P<mono>\d+\.\d+) (?P<wall>\d+\.\d+) (?P<text>.*)$")
_TICK = re.compile(
    r"^TICK n=(?P<n>\d+) mono=(?P<guest>\d+\.\d{6}) boot=(?P<boot>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r" sum=(?P<sum>[0-9a-f]{16}) pass=(?P<turn>\d+)$"
)


@dataclass(frozen=True)
class Tick:
    """One sign of life."""

    arrived: float
    wall: float
    number: int
    guest_monotonic: float
    boot_id: str
    checksum: str
    turn: int


@dataclass(frozen=True)
class Verdict:
    """Whether a guest came through, and what speaks for it."""

    survived: bool
    reason: str
    boot_ids: tuple[str, ...]
    ticks: int
    contiguous: bool
    torn: tuple[int, ...]
    checksum_before: str | None
    checksum_after: str | None
    checked_after: bool
    blackout_s: float | None
    blackout_after_tick: int | None
    last_tick: int | None
    last_tick_age_s: float | None


def parse(lines: Iterable[str]) -> list[Tick]:
    """The whole ticks in a log; other lines (a torn tick, a kernel message) are left out."""
    ticks = []
    for line in lines:
        stamped = _LINE.match(line.rstrip("\n"))
        tick = _TICK.match(stamped["text"]) if stamped else None
        if stamped and tick:
            ticks.append(
                Tick(
                    arrived=float(stamped["mono"]),
                    wall=float(stamped["wall"]),
                    number=int(tick["n"]),
                    guest_monotonic=float(tick["guest"]),
                    boot_id=tick["boot"],
                    checksum=tick["sum"],
                    turn=int(tick["turn"]),
                )
            )
    return ticks


def read_ticks(log: Path) -> list[Tick]:
    """The ticks in a log file; none when there is no such file."""
    try:
        return parse(log.read_text(encoding="ascii", errors="replace").splitlines())
    except FileNotFoundError:
        return []
