# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger of updates: nothing that was begun is forgotten."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
from kvmlab.watch import ledger
from kvmlab.watch.ledger import INTERRUPTED, JUMPED, STAYED, Figures, Update


def made(ended: str = JUMPED, fault: str = "", **guests: str) -> Update:
    return Update("id", 1.0, "cafe", "forky", guests or {"web": "", "db": ""}, fault, ended)


def test_an_update_is_on_disk_before_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "updates.jsonl"
    begun = ledger.begin(file, "forky", ["web", "db"])
    assert ledger.read(file) == [begun] and begun.lost == ["web", "db"]
    ledger.end(file, begun, JUMPED, {"web": "", "db": "restarted"})
    (ended,) = ledger.read(file)
    assert (ended.id, ended.ended, ended.lost) == (begun.id, JUMPED, ["db"])


def test_ledgers_are_merged_and_an_end_is_never_taken_back(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    one = ledger.begin(ours, "forky", ["web"])
    ledger.end(ours, one, JUMPED)
    two = ledger.begin(theirs, "trixie", ["web"])
    with theirs.open("a") as file:
        file.write('{"id": "cut')
    ledger.write(tmp_path / "c", ledger.read(ours, theirs, tmp_path / "absent"))
    assert [(update.id, update.ended) for update in ledger.read(tmp_path / "c", ours, theirs)] == [(one.id, JUMPED), (two.id, "")]


def test_a_ledger_of_begins_only_does_not_undo_an_end(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    one = ledger.begin(theirs, "forky", ["web"])
    ledger.end(ours, one, STAYED)
    assert [update.ended for update in ledger.read(ours, theirs)] == [STAYED]


@pytest.mark.parametrize(
    ("update", "counts"),
    [
        (made(), True),
        (made(ended=""), True),
        (made(ended=STAYED), False),
        (made(ended=STAYED, web="restarted"), True),
        (made(ended=INTERRUPTED), False),
        (made(fault="power cut"), False),
        (made(ended="", fault="power cut"), False),
    ],
)
def test_what_counts(update: Update, counts: bool) -> None:
    assert (ledger.counted([update]) == [update]) is counts


def test_the_figures() -> None:
    assert ledger.figures([made(), made(web="", db="restarted"), made(ended="")]) == Figures(3, 2, 6, 3)


@pytest.mark.parametrize(
    ("lost", "total", "bound"),
    [(0, 100, 0.0295), (0, 1, 0.95), (1, 100, 0.0466), (5, 50, 0.1988), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_upper_bound(lost: int, total: int, bound: float) -> None:
    """At that rate, no more losses than seen have a chance of 5 %."""
    found = ledger.upper_bound(lost, total)
    assert found == pytest.approx(bound, abs=1e-4)
    if lost < total:
        assert sum(comb(total, k) * found**k * (1 - found) ** (total - k) for k in range(lost + 1)) == pytest.approx(0.05)


def test_the_digest_is_that_of_the_code_on_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "plugins/modules").mkdir(parents=True)
    module = tmp_path / "plugins/modules/guest.py"
    monkeypatch.setattr(ledger, "COLLECTION", tmp_path)
    seen = []
    for text in ("x = 1\n", "x = 1  # why\n", "x = 2\n"):
        module.write_text(text)
        seen.append(ledger.runtime())
    assert seen[0] == seen[1] != seen[2]
    assert len(ledger.runtime()) == 12
