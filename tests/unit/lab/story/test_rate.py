# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of the failure rate says what the repository's ledger says."""

from __future__ import annotations

import re

from kvmlab.story import rate
from kvmlab.watch import ledger
from kvmlab.watch.ledger import JUMPED, Update


def update(number: int, kind: str = "forky", runtime: str = "cafe", **more: str) -> Update:
    return Update(str(number), float(number), runtime, kind, {"web": "", "db": ""}, **{"ended": JUMPED, **more})


def rows(page: str) -> dict[str, list[str]]:
    table = re.findall(r"   \* - (.*)\n((?:     - .*\n)+)", page)
    return {name: re.findall(r"- (.*)", cells) for name, cells in table}


def test_the_page_counts_this_version_apart() -> None:
    updates = [*map(update, range(98)), update(98, "trixie"), update(99, runtime="old", ended=""), update(100, fault="power cut", ended="")]
    page = rate.page(updates, "cafe")
    assert rows(page) == {
        "``forky``": ["98", "0", "3 %", "196", "0", "1.5 %"],
        "``trixie``": ["1", "0", "95 %", "2", "0", "78 %"],
        "all kinds, this version": ["99", "0", "3 %", "198", "0", "1.5 %"],
        "all versions": ["100", "1", "4.7 %", "200", "2", "3.1 %"],
    }
    assert "1 of these are recorded" in page and "``cafe``" in page and "between 1970-01-01 and 1970-01-01" in page


def test_a_version_without_updates_has_no_rate() -> None:
    assert rows(rate.page([], "cafe"))["all kinds, this version"] == ["0", "0", "not measured", "0", "0", "not measured"]


def test_the_page_is_written_from_the_ledger() -> None:
    page = rate.PAGE.read_text(encoding="utf-8")
    (runtime,) = re.findall(r'"This version" is ``([0-9a-f]{12})``:', page)
    assert page == rate.page(ledger.read(rate.KEPT), runtime)
