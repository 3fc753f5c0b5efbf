# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Datagrams from another host to a guest: how long does the guest not answer?

As a program, on the other host: send one number each period, and log each answer. It imports nothing of the lab, because it is
copied to that host.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

PORT = 7
PERIOD_S = 0.05

_LINE = re.compile(r"(?P<at>\d+\.\d+) ANSWER (?P<number>\d+) (?P<sent>\d+\.\d+)")


@dataclass(frozen=True)
class Answers:
    """The answers: their number, the longest silence between two, and the median round trip.

    sent_s tells when the datagrams were sent whose answers came after that silence: seconds since the silence began, in order.
    """

    count: int = 0
    silence_s: float = 0.0
    round_trip_s: float = 0.0
    sent_s: tuple[float, ...] = ()

    @property
    def blackout_s(self) -> float:
        """The pause: the longest silence minus the usual time between two answers."""
        return max(0.0, self.silence_s - PERIOD_S)

    @property
    def resolution_s(self) -> float:
        """How far the pause may be off: one period and one round trip."""
        return PERIOD_S + self.round_trip_s

    def got_through_s(self, from_s: float) -> float | None:
        """When the first answered datagram at or after from_s was sent, even if its answer was late. Seconds since the silence began."""
        return next((sent for sent in self.sent_s if sent >= from_s), None)


def read(log: str) -> Answers:
    """Read the program's log. Pure."""
    lines = [line for line in map(_LINE.fullmatch, log.splitlines()) if line]
    if not lines:
        return Answers()
    times = [float(line["at"]) for line in lines]
    trips = sorted(float(line["at"]) - float(line["sent"]) for line in lines)
    silence, last = max(((two - one, number) for number, (one, two) in enumerate(pairwise(times))), default=(0.0, 0))
    sent = sorted(float(line["sent"]) - times[last] for line in lines[last + 1 :])
    return Answers(len(lines), silence, trips[len(trips) // 2], tuple(sent))


def main(arguments: Sequence[str]) -> None:
    """Probe an address until this process is ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((arguments[0], PORT))
        probe.setblocking(False)
        number, due = 0, time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                number += 1
                with suppress(OSError):  # the guest cannot be reached now
                    probe.send(f"{number} {now:.4f}".encode())
                due = max(due + PERIOD_S, now)
            elif select.select([probe], [], [], due - now)[0]:
                with suppress(OSError):
                    print(f"{time.monotonic():.4f} ANSWER {probe.recv(64).decode('ascii', 'replace')}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
