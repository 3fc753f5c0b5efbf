# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of results: one measurement a line, as JSON. It only grows, so that an interrupted run loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar


class Named(Protocol):  # pylint: disable=too-few-public-methods
    """Something to be measured."""

    @property
    def name(self) -> str:
        """Its name in the results."""


Measurement = TypeVar("Measurement", bound=Named)


@dataclass(frozen=True)
class Result:
    """One measurement of a scenario: seconds by what they are, or the error that it ended with.

    at is seconds since the epoch; code a digest of everything that was measured (the collection, the lab, the bench); machine
    where; load its load average before; kernels those before and after.
    """

    scenario: str
    at: float
    code: str
    machine: str
    load: float = 0.0
    kernels: tuple[str, str] = ("", "")
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""


def append(path: Path, result: Result) -> None:
    """Add a result, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result), sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Result]:
    """All results; a last line that is cut off, as a power cut leaves it, does not count. None when there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        if line.endswith("\n"):
            content = json.loads(line)
            found.append(Result(**{**content, "kernels": tuple(content["kernels"])}))
    return found


def of_setting(results: Iterable[Result], code: str, machine: str) -> list[Result]:
    """Those without an error that compare: the same code on the same machine. Pure."""
    return [result for result in results if not result.error and (result.code, result.machine) == (code, machine)]


def due(scenarios: Sequence[Measurement], done: Iterable[Result], rounds: int) -> list[Measurement]:
    """What is still to be measured until each scenario has its rounds, interleaved: round by round, not scenario by scenario. Pure."""
    counts = dict.fromkeys((scenario.name for scenario in scenarios), 0)
    for result in done:
        if result.scenario in counts:
            counts[result.scenario] += 1
    return [scenario for number in range(rounds) for scenario in scenarios if counts[scenario.name] <= number]
