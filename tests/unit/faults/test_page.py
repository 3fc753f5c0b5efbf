# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of the fault suite says what the repository's results say."""

from __future__ import annotations

import re

from kvmfaults import cases, page, results
from kvmfaults.results import FAILED, HELD, Result

DAY = 1_790_000_000.0


def seen(text: str) -> dict[str, str]:
    """What the page says was seen, by the number of the case."""
    rows = re.findall(r"   \* - (\d+)\n((?:     - .*\n)+)", text)
    return {number: re.findall(r"     - (.*)\n", cells)[2] for number, cells in rows}


def test_the_page_is_written_from_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    (runtime,) = re.findall(r"the digest ``([0-9a-f]{12})``", text)
    assert text == page.page(results.read(results.KEPT), runtime)


def test_what_did_not_run_is_said() -> None:
    text = page.page([], "cafe")
    assert set(seen(text).values()) == {"not run yet"} and len(seen(text)) == len(cases.CASES)
    assert "Pass 1: not run yet; pass 2: not run yet." in text


def test_each_pass_says_what_was_seen_and_what_is_left() -> None:
    known = [
        Result("06-truncated-staged", "cafe", 1, DAY, HELD, "the update was undone; web_1 kept its memory"),
        Result("06-swapped-staged", "cafe", 1, DAY + 86400, HELD, "the update was undone; web_1 kept its memory"),
        Result("09-saving", "cafe", 2, DAY, FAILED, "web is off"),
        Result("09-saving", "beef", 1, DAY, HELD, "of another version"),
        Result("22-1", "cafe", 1, DAY, HELD, "the host jumped", 101),
    ]
    text = page.page(known, "cafe")
    found = seen(text)
    assert found["6"] == (
        "*Pass 1, 2026-09-21 to 2026-09-22:* truncated-staged, swapped-staged: the update was undone; web\\_1 kept its memory."
        " swapped-stopping: not run yet."
    )
    assert found["9"].startswith("*Pass 2, 2026-09-21:* saving: **FAILED**, web is off. staged, preserved,")
    assert found["22"].startswith("*Pass 1, 2026-09-21:* 1 (seed 101: second@preserved")
    assert "Pass 1: 3 of 96 tests held; pass 2: 0 of 96 tests held, 1 failed." in text
