# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests said to a broken source, and what becomes of all that in the figures."""

from __future__ import annotations

import pytest
from kvm_mutation.equivalent import Equivalent
from kvm_mutation.pool import Seen, Verdict, limit_of, together, verdict
from kvm_mutation.report import Figures, Mutant, figures, outcome, stale, table, unnoticed

FAILED = {"test": "test_a.py::test_lock", "how": "assertion", "what": "assert 1 == 2"}
CRASHED = {"crash": "plugins/a.py", "what": "NameError: x"}


@pytest.mark.parametrize(
    ("events", "in_time", "expected"),
    [
        ([{"end": 0}], True, ("survived", "", "")),
        ([FAILED, {"end": 2}], True, ("killed", "test_a.py::test_lock", "assertion")),
        ([{**FAILED, "how": "exception"}, {"end": 2}], True, ("killed", "test_a.py::test_lock", "exception")),
        ([CRASHED, FAILED, {"end": 2}], True, ("killed", "test_a.py::test_lock", "assertion")),
        ([FAILED], False, ("killed", "test_a.py::test_lock", "assertion")),
        ([CRASHED], True, ("crash", "plugins/a.py", "")),
        ([CRASHED, {"end": 1}], True, ("crash", "plugins/a.py", "")),
        ([], False, ("timeout", "", "")),
        ([], True, ("crash", "", "")),
        ([{"end": 5}], True, ("crash", "", "")),
    ],
)
def test_a_mutant_is_killed_by_a_failed_test_and_by_nothing_else(events, in_time, expected):
    found = verdict({"events": events, "in_time": in_time, "seconds": 0.5, "output": ""})
    assert (found.outcome, found.test, found.how) == expected
    assert found.seconds == 0.5


def test_of_several_runs_a_failed_test_counts_before_all_else():
    verdicts = [Verdict("crash", seconds=1.0), Verdict("killed", "test_a.py::test_x", "assertion", seconds=2.0), Verdict("timeout")]
    assert together(verdicts) == Verdict("killed", "test_a.py::test_x", "assertion", seconds=3.0)
    assert together([Verdict("survived"), Verdict("crash")]).outcome == "crash"
    assert together([Verdict("survived"), Verdict("survived", seconds=0.5)]) == Verdict("survived", seconds=0.5)


def test_tests_may_take_longer_on_a_broken_source_and_on_a_busy_machine():
    assert limit_of(0.0) == 15.0
    assert limit_of(20.0) == 215.0


SEEN = Seen(
    {"tests/a/test_x.py::test_1": 1.0, "tests/a/test_x.py::test_2[a::b]": 2.0, "tests/b/test_y.py::test_1": 4.0},
    {"a.py": {"7": [0, 2], "8": [1], "1": [-1, 0]}},
)


@pytest.mark.parametrize(
    ("path", "lines", "expected"),
    [
        ("a.py", [7], ["tests/a/test_x.py::test_1", "tests/b/test_y.py::test_1"]),
        ("a.py", range(7, 10), list(SEEN.seconds)),
        ("a.py", [9], []),
        ("a.py", [1, 8], []),
        ("b.py", [7], []),
    ],
)
def test_a_mutant_is_shown_to_the_tests_that_run_its_lines(path, lines, expected):
    assert SEEN.tests(path, lines) == expected


@pytest.mark.parametrize(
    ("tests", "seconds"), [(["tests"], 7.0), (["tests/a/test_x.py"], 3.0), (list(SEEN.seconds)[1:], 6.0), (["tests/a/test"], 0.0)]
)
def test_what_tests_take_is_told_of_tests_files_and_folders(tests, seconds):
    assert SEEN.taken(tests) == seconds


def mutant(outcome: str | None, text: str = "    if x:", how: str = "") -> Mutant:
    found = Verdict(outcome, "test_a.py::test_x" if how else "", how) if outcome else None
    return Mutant("plugins/a.py", "kvm/IfTrue", 7, text, "    -if x:\n    +if True:", found)


ASIDE = {("plugins/a.py", "kvm/IfTrue", "if y:"): Equivalent("plugins/a.py", "kvm/IfTrue", "if y:", "y is always true")}


def test_figures_count_each_end_once_and_all_of_them():
    killed = [mutant("killed", how="assertion")] * 17 + [mutant("killed", how="exception")]
    others = [mutant("crash"), mutant("timeout"), mutant("survived"), mutant("survived", "if y:"), mutant(None)]
    found = figures([*killed, *others], ASIDE)
    assert found == Figures(mutants=23, killed=18, exceptions=1, crash=1, timeout=1, survived=1, equivalent=1, untried=1)
    assert found.mutants == sum(found) - found.mutants - found.exceptions


@pytest.mark.parametrize(
    ("killed", "equivalent", "untried", "enough"),
    [(85, 5, 0, True), (84, 5, 0, False), (90, 6, 0, False), (99, 0, 1, False), (100, 0, 0, True)],
)
def test_enough_is_85_percent_killed_and_5_percent_set_aside_of_all_mutants(killed, equivalent, untried, enough):
    row = Figures(100, killed, 0, 0, 0, 100 - killed - equivalent - untried, equivalent, untried)
    assert row.is_enough == enough


def test_one_that_is_set_aside_but_killed_counts_as_killed_and_is_told():
    aside = mutant("killed", "    if y:", "assertion")
    assert outcome(aside, ASIDE) == "killed"
    assert "a test kills each such mutant" in stale(ASIDE, [aside])[0]
    assert stale(ASIDE, [mutant("survived", "if y:")]) == []
    assert "there is no such mutant" in stale(ASIDE, [mutant("survived")])[0]
    assert stale(ASIDE, []) == []


def test_the_list_shows_what_nobody_noticed_with_its_change():
    text = unnoticed([mutant("survived"), mutant("survived", "if y:"), mutant("killed", how="assertion"), mutant("timeout")], ASIDE)
    assert text == "\n".join(
        [
            "plugins/a.py:7 kvm/IfTrue: survived",
            "    -if x:\n    +if True:",
            "plugins/a.py:7 kvm/IfTrue: timeout",
            "    -if x:\n    +if True:",
        ]
    )


def test_the_table_ends_with_all_files_together():
    row = Figures(10, 9, 1, 0, 0, 1, 0, 0)
    lines = table({"a.py": row, "b.py": row}).splitlines()
    assert lines[2] == "| a.py | 10 | 9 (90.0 %) | 1 | 0 | 0 | 1 | 0 (0.0 %) | 0 |"
    assert lines[-1] == "| **together** | 20 | 18 (90.0 %) | 2 | 0 | 0 | 2 | 0 (0.0 %) | 0 |"
    assert len(table({"a.py": row}).splitlines()) == 3
