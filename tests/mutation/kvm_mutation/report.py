# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What came of all mutants: figures for each file, and the list of those that nobody noticed. Pure."""

from __future__ import annotations

import typing as t

from .equivalent import Equivalent
from .pool import Verdict

KILLED_AT_LEAST = 85.0
EQUIVALENT_AT_MOST = 5.0


class Mutant(t.NamedTuple):
    """One mutant: ``line`` is the number of the source line on which it begins, ``text`` that line; without ``verdict`` it is untried."""

    file: str
    operator: str
    line: int
    text: str
    diff: str
    verdict: Verdict | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.operator, self.text.strip()


class Figures(t.NamedTuple):
    """How many mutants of a file came to which end. ``exceptions`` are the killed ones that no assertion noticed."""

    mutants: int
    killed: int
    exceptions: int
    crash: int
    timeout: int
    survived: int
    equivalent: int
    untried: int

    @property
    def killed_percent(self) -> float:
        return 100.0 * self.killed / self.mutants if self.mutants else 100.0

    @property
    def equivalent_percent(self) -> float:
        return 100.0 * self.equivalent / self.mutants if self.mutants else 0.0

    @property
    def is_enough(self) -> bool:
        return not self.untried and self.killed_percent >= KILLED_AT_LEAST and self.equivalent_percent <= EQUIVALENT_AT_MOST


def outcome(mutant: Mutant, equivalents: t.Container[tuple[str, str, str]]) -> str:
    """``equivalent`` for one that survived and may; ``untried`` before it was tried."""
    if mutant.verdict is None:
        return "untried"
    if mutant.verdict.outcome != "killed" and mutant.key in equivalents:
        return "equivalent"
    return mutant.verdict.outcome


def figures(mutants: t.Sequence[Mutant], equivalents: t.Container[tuple[str, str, str]]) -> Figures:
    """Count them. What is not killed by a test counts as not killed, also a crash and a timeout."""
    outcomes = [outcome(mutant, equivalents) for mutant in mutants]
    exceptions = sum(1 for mutant in mutants if mutant.verdict and mutant.verdict.how == "exception")
    names = ("crash", "timeout", "survived", "equivalent", "untried")
    return Figures(len(mutants), outcomes.count("killed"), exceptions, *map(outcomes.count, names))


def table(by_file: dict[str, Figures]) -> str:
    """The figures as a table in Markdown, with a last line for all files together."""
    rows = dict(by_file)
    if len(by_file) > 1:
        rows["**together**"] = Figures(*(sum(column) for column in zip(*by_file.values(), strict=True)))
    heads = ("file", "mutants", "killed", "of these by an exception", "crash at import", "timeout", "survived", "equivalent", "not tried")
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for file, row in rows.items():
        killed, equivalent = f"{row.killed} ({row.killed_percent:.1f} %)", f"{row.equivalent} ({row.equivalent_percent:.1f} %)"
        cells = (file, row.mutants, killed, row.exceptions, row.crash, row.timeout, row.survived, equivalent, row.untried)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def unnoticed(mutants: t.Iterable[Mutant], equivalents: t.Container[tuple[str, str, str]]) -> str:
    """Each mutant that no test killed and that is not set aside, with its place and its change."""
    blocks = []
    for mutant in sorted(mutants, key=lambda mutant: (mutant.file, mutant.line, mutant.operator)):
        found = outcome(mutant, equivalents)
        if found in ("survived", "timeout", "crash"):
            why = f" ({mutant.verdict.what})" if mutant.verdict and mutant.verdict.what else ""
            blocks.append(f"{mutant.file}:{mutant.line} {mutant.operator}: {found}{why}\n{mutant.diff}")
    return "\n".join(blocks)


def stale(equivalents: dict[tuple[str, str, str], Equivalent], mutants: t.Iterable[Mutant]) -> list[str]:
    """What ``equivalent.toml`` sets aside although there is no such mutant, or a test kills it. For the files of these mutants only."""
    seen = list(mutants)
    files = {mutant.file for mutant in seen}
    alive = {mutant.key for mutant in seen if mutant.verdict is None or mutant.verdict.outcome != "killed"}
    there = {mutant.key for mutant in seen}
    return [
        f"equivalent.toml: {entry.file}, {entry.operator}, {entry.line!r}: "
        + ("a test kills each such mutant; remove the entry" if key in there else "there is no such mutant; adapt or remove the entry")
        for key, entry in equivalents.items()
        if entry.file in files and key not in alive
    ]
