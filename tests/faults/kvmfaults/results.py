# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the suite has found so far. A test that held is not repeated for the same runtime and pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvmlab import cache
from kvmlab.watch import lines

REPOSITORY = Path(__file__).parents[3]
KEPT = REPOSITORY / "tests/faults/results.jsonl"
HELD, FAILED = "held", "failed"


@dataclass(frozen=True)
class Result:
    """One test that ran.

    ``test``     case and variant, as in cases.tests
    ``runtime``  the digest of the code that runs on hosts (kvmlab.watch.ledger)
    ``turn``     in which pass
    ``at``       when it ended, in seconds since the epoch
    ``end``      one of the values above
    ``seen``     what was seen, a sentence
    ``seed``     of a random schedule
    """

    test: str
    runtime: str
    turn: int
    at: float
    end: str
    seen: str = ""
    seed: int | None = None


def path() -> Path:
    """The results of this machine."""
    return cache.root() / "faults.jsonl"


def add(file: Path, result: Result) -> None:
    """Keep a result, durably."""
    lines.append(file, result)


def read(*files: Path) -> list[Result]:
    """All results, each once, oldest first."""
    return sorted(dict.fromkeys(lines.read(Result, *files)), key=lambda result: (result.at, result.test))


def write(file: Path, results: Iterable[Result]) -> None:
    """Write a file with these results."""
    lines.write(file, results)


def latest(results: Iterable[Result], runtime: str, turn: int) -> dict[str, Result]:
    """The last result of each test with this runtime in this pass. Pure."""
    found = [result for result in results if result.runtime == runtime and result.turn == turn]
    return {result.test: result for result in sorted(found, key=lambda result: result.at)}


def left(tests: Iterable[str], results: Iterable[Result], runtime: str, turn: int) -> list[str]:
    """The tests that have to run: those whose last result in this pass is not that all held. Pure."""
    known = latest(results, runtime, turn)
    return [test for test in tests if test not in known or known[test].end != HELD]
