# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mutants by cosmic-ray: its operators and our own ones, kept with their results in its database, one for each state of a file."""

from __future__ import annotations

import difflib
import json
import os
import typing as t
from importlib.metadata import version
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from . import breakages, operators
from .checkout import Checkout, digest
from .pool import Verdict
from .report import Mutant

# One replacement for each kind of fault: the other ten of a plus sign are noticed by whatever notices the first.
CORE = (
    "AddNot",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ReplaceAndWithOr",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_BitAnd_BitOr",
    "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceBinaryOperator_BitXor_BitOr",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_FloorDiv_Mul",
    "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceBinaryOperator_Mod_Mul",
    "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Pow_Mul",
    "ReplaceBinaryOperator_RShift_LShift",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBreakWithContinue",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceContinueWithBreak",
    "ReplaceFalseWithTrue",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "ZeroIterationForLoop",
)
# In the folder of a session: by job, what makes its mutant the same one in another state of the file (breakages.identity).
SAME = "same.json"
# Ours first: of two that mean the same, the one with the plainer name stays.
CHOSEN = (*(f"kvm/{name}" for name in breakages.OPERATORS), *(f"core/{name}" for name in CORE))


class Session:
    """All mutants of one file as it is, and what is known of them."""

    def __init__(self, checkout: Checkout, path: str, cache: Path) -> None:
        self.path, self._source = path, checkout.text(path)
        self._surroundings = checkout.surroundings
        # Another operator or another exemption makes other mutants.
        makers = [Path(module).read_bytes() for module in (__file__, breakages.__file__, operators.__file__)]
        folder = cache / f"{Path(path).stem}-{digest(path.encode(), checkout.files[path], *makers, version('cosmic-ray').encode())}"
        database = folder / "session.sqlite"
        if not database.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"part-{os.getpid()}"
            new = WorkDB(part, WorkDB.Mode.create)
            items = list(mutants_of(path, self._source))
            new.add_work_items(items)
            same = {item.job_id: self._identity(item.mutations[0]) for item in items}
            for job, result in _killed_before(cache, Path(path).stem, same):
                new.set_result(job, result)
            new.close()
            (folder / SAME).write_text(json.dumps(same), encoding="utf-8")
            part.replace(database)
        self._database = WorkDB(database, WorkDB.Mode.open)
        self._items: dict[str, t.Any] = {item.job_id: item.mutations[0] for item in self._database.work_items}

    def _identity(self, item: t.Any) -> str:
        mutated = _mutated(self._source, item.operator_name, item.occurrence)
        return breakages.identity(item.operator_name, self._source, mutated, item.start_pos[0])

    def mutated(self, job: str) -> str:
        """The source of a mutant."""
        item = self._items[job]
        return _mutated(self._source, item.operator_name, item.occurrence)

    def lines(self, job: str) -> range:
        """The lines of the statement that a mutant changes."""
        return breakages.statement_at(self._source, self._items[job].start_pos[0])

    def pending(self, again: bool) -> list[str]:
        """The mutants that are to be tried: new ones, and those that survived other tests than there are now; ``again`` all."""
        done = {job: json.loads(result.output) for job, result in self._database.results}
        settled = {job for job, said in done.items() if said["outcome"] == "killed" or said["surroundings"] == self._surroundings}
        return sorted(job for job in self._items if again or job not in settled)

    def record(self, job: str, verdict: Verdict) -> None:
        """Keep what came of a mutant."""
        outcomes = {"killed": TestOutcome.KILLED, "timeout": TestOutcome.KILLED, "crash": TestOutcome.INCOMPETENT}
        output = json.dumps({**verdict._asdict(), "surroundings": self._surroundings})
        result = WorkResult(WorkerOutcome.NORMAL, output, outcomes.get(verdict.outcome, TestOutcome.SURVIVED), self._diff(job))
        self._database.set_result(job, result)

    def _diff(self, job: str) -> str:
        lines = difflib.unified_diff(self._source.splitlines(), self.mutated(job).splitlines(), n=0, lineterm="")
        return "\n".join(f"    {line}" for line in list(lines)[3:])

    def mutants(self) -> list[Mutant]:
        """All of them, for a report."""
        lines, results = self._source.splitlines(), dict(self._database.results)
        found = []
        for job, item in self._items.items():
            said = json.loads(results[job].output) if job in results else {}
            verdict = Verdict(**{key: said[key] for key in Verdict._fields}) if said else None
            line = item.start_pos[0]
            found.append(Mutant(self.path, item.operator_name, line, lines[line - 1], results[job].diff if said else "", verdict))
        return found

    def close(self) -> None:
        self._database.close()


def _killed_before(cache: Path, stem: str, same: dict[str, str]) -> t.Iterator[tuple[str, WorkResult]]:
    """The results of the mutants that a test killed in an earlier state of a file, and whose function is as it was."""
    jobs: dict[str, list[str]] = {}
    for job, identity in same.items():
        jobs.setdefault(identity, []).append(job)
    for names in sorted(cache.glob(f"{stem}-*/{SAME}")):
        before = json.loads(names.read_text(encoding="utf-8"))
        database = WorkDB(names.with_name("session.sqlite"), WorkDB.Mode.open)
        for job, result in database.results:
            if json.loads(result.output)["outcome"] == "killed" and before[job]:
                for now in jobs.pop(before[job], ()):
                    yield now, result
        database.close()


def mutants_of(path: str, source: str) -> t.Iterator[t.Any]:
    """The mutants of a source as cosmic-ray's work: each is valid, means something of its own, and is more than a text or a type."""
    known: set[str] = set()
    breakages.is_new(source, known)
    nodes = list(ast_nodes(get_ast(source)))
    for name in CHOSEN:
        operator = plugins.get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(places):
            if not breakages.is_exempt(source, name, start) and breakages.is_new(_mutated(source, name, occurrence), known):
                spec = MutationSpec(path, name, occurrence, start, end)
                yield WorkItem.single(f"{name}-{occurrence}", spec)


def _mutated(source: str, operator: str, occurrence: int) -> str:
    return str(mutate_code(source, plugins.get_operator(operator)(), occurrence))
