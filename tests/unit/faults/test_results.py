# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run of the suite goes on where the one before ended."""

from __future__ import annotations

from pathlib import Path

from kvmfaults import cases, results
from kvmfaults.results import FAILED, HELD, Result

TESTS = ["01-examine", "09-saving", "09-jumping"]


def result(test: str, at: float, end: str = HELD, runtime: str = "cafe", turn: int = 1) -> Result:
    return Result(test, runtime, turn, at, end)


def test_nothing_is_done_twice_for_the_same_runtime_and_pass() -> None:
    known = [result("09-saving", 1.0), result("01-examine", 2.0, FAILED)]
    assert results.left(TESTS, [], "cafe", 1) == TESTS
    assert results.left(TESTS, known, "cafe", 1) == ["01-examine", "09-jumping"]
    assert results.left(TESTS, known, "cafe", 2) == TESTS
    assert results.left(TESTS, known, "beef", 1) == TESTS


def test_the_last_result_counts() -> None:
    mended = [result("09-saving", 2.0), result("09-saving", 1.0, FAILED)]
    broken = [result("09-saving", 1.0), result("09-saving", 2.0, FAILED)]
    assert results.left(["09-saving"], mended, "cafe", 1) == []
    assert results.left(["09-saving"], broken, "cafe", 1) == ["09-saving"]


def test_results_are_kept_once_and_a_torn_line_is_none(tmp_path: Path) -> None:
    file, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    first, second = result("09-saving", 2.0), result("01-examine", 1.0, FAILED)
    results.add(file, first)
    results.add(file, second)
    results.write(other, [first])
    with file.open("a") as stream:
        stream.write('{"test": "09-')
    assert results.read(file, other, tmp_path / "none.jsonl") == [second, first]


def test_the_names_of_tests_are_unique() -> None:
    names = [name for case in cases.CASES for name in cases.tests(case)]
    assert len(set(names)) == len(names)
    assert [case.number for case in cases.CASES] == list(range(1, 23))
    assert all(set(case.quick) <= set(case.variants) for case in cases.CASES)
