# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which test of the lab ran last when, on which commit, and how it ended. And the page of the documentation that says so."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import cache
from . import lines
from .ledger import COLLECTION

KEPT = COLLECTION / "tests/lab/runs.jsonl"
PAGE = COLLECTION / "docs/docsite/rst/runs.rst"
PASSED, FAILED = "passed", "failed"
NODE = re.compile(r"(?:.*/)?(?P<file>[^/]+\.py)::(?P<name>[^\[]+)(?:\[(?P<case>.*)\])?")


@dataclass(frozen=True)
class Run:
    """One test of the lab that ran.

    ``test``     file, name and case, as pytest names it: ``test_initrd.py::test_check_mode_changes_nothing[forky-dracut]``
    ``at``       when it ended, in seconds since the epoch
    ``commit``   the commit that was checked out, with a plus sign if files differed from it; empty outside of git
    ``runtime``  the digest of the code that runs on hosts (ledger.runtime)
    ``end``      one of the values above
    ``seconds``  how long it took, with what it had to prepare
    """

    test: str
    at: float
    commit: str
    runtime: str
    end: str
    seconds: int


def path() -> Path:
    """The runs of this machine."""
    return cache.root() / "runs.jsonl"


def add(file: Path, run: Run) -> None:
    """Keep a run, durably."""
    lines.append(file, run)


def read(*files: Path) -> list[Run]:
    """All runs, each once, oldest first."""
    return sorted(dict.fromkeys(lines.read(Run, *files)), key=lambda run: (run.at, run.test))


def latest(runs: Iterable[Run]) -> dict[str, Run]:
    """The last run of each test. Pure."""
    return {run.test: run for run in sorted(runs, key=lambda run: run.at)}


def write(file: Path, runs: Iterable[Run]) -> None:
    """Write a file with these runs."""
    lines.write(file, runs)


def group_of(test: str, kinds: Collection[str]) -> tuple[str, str]:
    """The file of a test, and the kind of host that its case names; empty if it names none. Pure."""
    found = NODE.fullmatch(test)
    words = (found["case"] or "").split("-") if found else []
    # A kind has a dash itself: the longest name that begins or ends the case.
    cases = ["-".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    named = sorted((case for case in cases if case in kinds), key=len)
    return found["file"] if found else test, named[-1] if named else ""


def page(tests: Iterable[str], runs: Iterable[Run], runtime: str, kinds: Collection[str]) -> str:
    """The page. ``tests`` are all that exist. The run of any other test is left out. Pure."""
    known = latest(runs)
    groups: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        groups.setdefault(group_of(test, kinds), []).append(test)
    rows = "\n".join(_row(*group, names, known, runtime) for group, names in groups.items())
    failed = [known[test] for names in groups.values() for test in names if test in known and known[test].end == FAILED]
    return f"""..
  Copyright: kvm.liveupdate contributors
  SPDX-License-Identifier: GPL-3.0-or-later

.. _ansible_collections.kvm.liveupdate.docsite.runs:

Which test ran when
===================

Each row is a file of ``tests/lab/tests``, or the part of it for one :ref:`kind of host <ansible_collections.kvm.liveupdate.docsite.lab>`.
The fault suite has :ref:`its own page <ansible_collections.kvm.liveupdate.docsite.faults>`. Runs are recorded since 2026-11-30. The last
run of each test counts.

The column *passed* counts the tests that passed with any version of the code. The column *current* counts those that passed with the
version ``{runtime}``. This is the digest of the code that runs on hosts.

{_failures(failed)}
To run one file, call in a checkout:

.. code-block:: shell

    (. tests/setup.sh; ensure_venv; PYTHONPATH=$ANSIBLE_COLLECTIONS_PATH pytest --every tests/lab/tests/test_guests.py)

Add ``-k forky-dracut`` for one kind. ``tests/lab/lab report`` adds the last runs of your machine to ``tests/lab/runs.jsonl``. Then it
writes this page.

.. list-table::
   :header-rows: 1
   :widths: 24 16 14 14 12 20

   * - File
     - Kind
     - Passed
     - Current
     - Minutes
     - Last run, commits
{rows}
"""


def _failures(failed: Iterable[Run]) -> str:
    """The tests that failed in their last run."""
    lines = [f"* ``{run.test}``, {_day(run.at)}" + (f", commit ``{run.commit}``" if run.commit else "") for run in failed]
    return "\n".join(["These tests failed in their last run:", "", *lines, ""]) if lines else "No test failed in its last run.\n"


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _row(file: str, kind: str, tests: list[str], known: dict[str, Run], runtime: str) -> str:
    ran = [known[test] for test in tests if test in known]
    passed = [run for run in ran if run.end == PASSED]
    failed = [run for run in ran if run.end == FAILED]
    current = sum(1 for run in passed if run.runtime == runtime)
    dates = sorted(_day(run.at) for run in ran)
    commits = ", ".join(dict.fromkeys(f"``{run.commit}``" for run in ran if run.commit))
    end = f"{len(passed)} of {len(tests)}" + (f", **{len(failed)} failed**" if failed else "")
    minutes = f"{sum(run.seconds for run in ran) / 60:.0f}" if ran else ""
    cells = (f"``{file}``", kind, end, str(current), minutes, f"{dates[-1]}: {commits}" if ran else "no run is recorded")
    return "\n".join(f"   {'*' if number == 0 else ' '} - {cell}".rstrip() for number, cell in enumerate(cells))
