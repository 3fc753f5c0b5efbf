# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A TCP connection from another host into a guest: does it survive?

As a program, on the other host: send a number, wait until it comes back, send the next one, as long as the connection lasts.
It imports nothing of the lab, because it is copied to that host.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PORT = 7
PERIOD_S = 0.5

_LINE = re.compile(r"(?P<at>\d+\.\d+) (?P<what>OPEN|ECHO (?P<number>\d+)|END .*)")


@dataclass(frozen=True)
class Echoes:
    """The state of a connection. held: it is still the first one, and open. gap_s is its longest silence."""

    held: bool
    reason: str
    count: int = 0
    gap_s: float = 0.0
    age_s: float = 0.0


def read(log: str, now: float) -> Echoes:
    """Read the program's log. now is a moment of its host's monotonic clock. Pure."""
    lines = [line for line in map(_LINE.fullmatch, log.splitlines()) if line]
    if not lines:
        return Echoes(False, "never connected")
    times = [float(line["at"]) for line in lines]
    numbers = [int(line["number"]) for line in lines if line["number"]]
    gap = max((two - one for one, two in pairwise(times)), default=0.0)
    ended = next((line["what"] for line in lines if line["what"].startswith("END")), None)
    fault = ended or (None if [line["what"] for line in lines].count("OPEN") == 1 else "opened again")
    if not fault and numbers != list(range(1, len(numbers) + 1)):
        fault = "an echo is missing"
    return Echoes(fault is None, fault or f"{len(numbers)} echoes on one connection", len(numbers), gap, now - times[-1])


def main(arguments: Sequence[str]) -> int:
    """Connect to an address and use the connection until it ends."""
    with socket.create_connection((arguments[0], PORT), timeout=60) as connection:
        connection.settimeout(None)
        note("OPEN")
        answers = connection.makefile("rb")
        number = 0
        while True:
            number += 1
            try:
                connection.sendall(b"%d\n" % number)
                answer = answers.readline()
            except OSError as error:
                note(f"END {error}")
                return 1
            if answer != b"%d\n" % number:
                note(f"END {answer!r} came back for {number}")
                return 1
            note(f"ECHO {number}")
            time.sleep(PERIOD_S)


def note(text: str) -> None:
    """Print one line of the log."""
    print(f"{time.monotonic():.3f} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
