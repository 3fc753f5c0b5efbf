# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Medians with their spread, and how a page shows them. Pure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .results import Result


@dataclass(frozen=True)
class Figure:
    """The median of some measurements, the shortest, the longest, and their number."""

    median: float
    least: float
    greatest: float
    count: int

    @property
    def words(self) -> str:
        """For a table."""
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"

    @property
    def precise(self) -> str:
        """For a table of short times."""
        return f"{self.median:.3f} ({self.least:.3f} to {self.greatest:.3f})"


# By scenario and by what was measured.
Figures = dict[str, dict[str, Figure]]


def figure(values: Sequence[float]) -> Figure:
    """The figure of at least one value."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def figures(results: Iterable[Result]) -> Figures:
    """The figures of results."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for name, seconds in result.seconds.items():
            values.setdefault(result.scenario, {}).setdefault(name, []).append(seconds)
    return {scenario: {name: figure(found) for name, found in named.items()} for scenario, named in values.items()}


def day(results: Sequence[Result]) -> str:
    """The day of these, or from which day to which day they are."""
    days = (time.strftime("%Y-%m-%d", time.gmtime(moment(result.at for result in results))) for moment in (min, max))
    return " to ".join(dict.fromkeys(days))


def title(text: str, line: str) -> str:
    """A heading."""
    return f"{text}\n{line * len(text)}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head."""
    lines = "".join(f"   * - {line[0]}\n" + "".join(f"     - {cell}\n" for cell in line[1:]) for line in (head, *rows))
    return f".. list-table::\n   :header-rows: 1\n\n{lines}"
