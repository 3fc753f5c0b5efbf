# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from kvmlab.watch.heartbeat import Verdict
from kvmlab.watch.probe import Answers
from kvmlab.watch.report import Boot, all_survived, host_report, table

BEFORE, AFTER = Boot("b1", "7.2.13"), Boot("b2", "7.3.4")
ALIVE = Verdict(True, "ticks 1 to 9", boot_ids=("g",), contiguous=True, checksum_before="a", checksum_after="a", blackout_s=9.8765)
TOLD = {"update_id": "u1", "guests": {"web": {"times": {"paused": 100.0, "resumed": 109.9}, "clock_step": 0.2}}}
RESTARTED = Verdict(False, "restarted", boot_ids=("g", "h"))


def test_a_survivor():
    report = host_report(BEFORE, AFTER, TOLD, {"web": ALIVE}, {"web": Answers(100, 9.95, 0.01)})
    assert report["jumped"] and report["update_id"] == "u1"
    assert report["guests"]["web"] == {
        "survived": True,
        "reason": "ticks 1 to 9",
        "blackout_s": 9.877,
        "blackouts_s": {"host": 9.9, "guest": 9.877, "outside": 9.9},
        "clocks_agree": True,
        "clocks_explained": False,
        "clocks": "host 9.90 s (to 0.22 s), guest 9.88 s (to 0.50 s), outside 9.90 s (to 0.06 s): they agree",
        "same_boot_id": True,
        "ticks_contiguous": True,
        "checksum_before": "a",
        "checksum_after": "a",
    }
    assert all_survived({"hv1": report})


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(AFTER, RESTARTED), (BEFORE, ALIVE), (Boot("b1", "7.3.4"), ALIVE), (Boot("b2", "7.2.13"), ALIVE)],
)
def test_not_a_survivor(after, verdict):
    """A restarted guest, or a host that did not jump into another kernel."""
    report = host_report(BEFORE, after, TOLD, {"web": verdict, "db": ALIVE})
    assert not report["guests"]["web"]["survived"]
    assert not all_survived({"hv1": report})
    assert "NO: " in table({"hv1": report})


def test_nothing_to_survive_is_no_success():
    assert not all_survived({})
    assert not all_survived({"hv1": host_report(BEFORE, AFTER, TOLD, {})})


def test_the_table():
    lines = table({"hv1": host_report(BEFORE, AFTER, TOLD, {"web": ALIVE})}).splitlines()
    assert lines[0].split() == ["host", "kernel", "before", "kernel", "after", "guest", "survived", "pause", "clocks", "agree"]
    assert lines[2].split() == ["hv1", "7.2.13", "7.3.4", "web", "yes", "9.9", "s", "yes"]
