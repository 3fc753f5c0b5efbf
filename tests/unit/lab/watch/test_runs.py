# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from kvmlab.watch import runs
from kvmlab.watch.runs import Run, group_of, latest, page, read

KINDS = ("forky", "trixie", "forky-dracut")
NOON = 1780056000
UPDATED = Run("test_initrd.py::test_update[there-forky-dracut]", NOON, "abc1234", "new", runs.PASSED, 90)
CRASHED = Run("test_crowd.py::test_many", NOON, "abc1234+", "old", runs.FAILED, 30)
TESTS = ("test_crowd.py::test_many", "test_initrd.py::test_update[there-forky-dracut]", "test_initrd.py::test_update[back-forky-dracut]")


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("test_crowd.py::test_many", ("test_crowd.py", "")),
        ("test_initrd.py::test_update[forky-dracut]", ("test_initrd.py", "forky-dracut")),
        ("test_initrd.py::test_update[there-forky-dracut]", ("test_initrd.py", "forky-dracut")),
        ("test_initrd.py::test_update[trixie-there]", ("test_initrd.py", "trixie")),
        ("test_a_night.py::test_refused[a/b::c[0]]", ("test_a_night.py", "")),
        ("test_trial.py::test_trial[hv1]", ("test_trial.py", "")),
    ],
)
def test_a_test_belongs_to_its_file_and_to_the_kind_that_it_names(test: str, group: tuple[str, str]) -> None:
    assert group_of(test, KINDS) == group


def test_runs_are_kept_once_and_a_line_that_is_cut_off_does_not_count(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    runs.add(here, CRASHED)
    runs.add(here, UPDATED)
    runs.write(there, [UPDATED])
    with here.open("a") as stream:
        stream.write('{"test": "test_cr')
    assert read(here, there, tmp_path / "none") == [CRASHED, UPDATED]


def test_the_last_run_of_a_test_counts() -> None:
    later = Run(CRASHED.test, NOON + 1, "def5678", "new", runs.PASSED, 40)
    assert latest([later, CRASHED, UPDATED]) == {CRASHED.test: later, UPDATED.test: UPDATED}


def test_the_page_says_what_ran_what_failed_and_what_did_not_run() -> None:
    text = page(TESTS, [CRASHED, UPDATED, Run("test_gone.py::test_x", NOON, "", "new", runs.PASSED, 1)], "new", KINDS)
    rows = [[cell.strip(" *-").strip() for cell in row.splitlines()] for row in text.split("\n   * - ")[2:]]
    assert rows == [
        ["``test_crowd.py``", "", "0 of 1, **1 failed", "0", "0", "2026-05-29: ``abc1234+``"],
        ["``test_initrd.py``", "forky-dracut", "1 of 2", "1", "2", "2026-05-29: ``abc1234``"],
    ]
    assert "no run is recorded" not in text and "no run is recorded" in page(TESTS[:1], [], "new", KINDS)
    assert "test_gone" not in text
    assert "These tests failed in their last run:\n\n* ``test_crowd.py::test_many``, 2026-05-29, commit ``abc1234+``\n" in text
    assert "No test failed in its last run." in page(TESTS, [UPDATED], "new", KINDS)
