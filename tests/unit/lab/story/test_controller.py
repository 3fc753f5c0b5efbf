# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A playbook that runs in the background, and what is read from its output."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from kvmlab import limits
from kvmlab.errors import LabError
from kvmlab.story.controller import Run, read_recap, read_report, state_of

OUTPUT = """
PLAY RECAP *********************************************************************
hv1                        : ok=10   changed=3    unreachable=0    failed=0    skipped=1    rescued=0    ignored=0
hv2                        : ok=3    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
"""


def test_recap_and_report_are_read(tmp_path):
    recap = read_recap(OUTPUT)
    assert recap["hv1"]["changed"] == 3 and recap["hv2"]["unreachable"] == 1
    (tmp_path / "report.html.json").write_text('{"hv1": {"update_id": "u1"}}')
    assert read_report(tmp_path / "report.html.json") == {"hv1": {"update_id": "u1"}}
    assert read_recap("nothing") == {} and read_report(tmp_path / "nothing") == {}


def wait_for(what, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_is_stopped_continued_and_killed_with_what_it_left_in_the_background(tmp_path: Path):
    """As ssh leaves the master of its connections: its parent has ended."""
    orphan = tmp_path / "orphan"
    script = f"(sh -c 'echo $$ >{orphan}.new; mv {orphan}.new {orphan}; exec sleep 300' &); sleep 300"
    run = Run(["sh", "-c", script], dict(os.environ), tmp_path / "page.html")
    try:
        wait_for(orphan.exists)
        pid = int(orphan.read_text())
        run.stop()
        wait_for(lambda: run.states() == {"T"} and state_of(pid) == "T")
        run.go_on()
        wait_for(lambda: run.states() == {"S"} and state_of(pid) == "S")
    finally:
        run.kill()
    wait_for(lambda: state_of(pid) in ("", "Z"))


def test_the_end_of_a_run_is_read(tmp_path: Path):
    (tmp_path / "page.html.json").write_text('{"hv1": {"outcome": "updated"}}')
    play = Run(["sh", "-c", "echo 'hv1 : ok=10 changed=3'; exit 2"], dict(os.environ), tmp_path / "page.html").end()
    assert (play.code, play.recap, play.report) == (2, {"hv1": {"ok": 10, "changed": 3}}, {"hv1": {"outcome": "updated"}})


def test_what_a_run_writes_is_shown_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    play = Run(["sh", "-c", "echo first; sleep 1; echo 'lást' >&2"], os.environ, tmp_path / "page.html").end(show=True)
    assert capsys.readouterr().out == play.output == "first\nlást\n"


def test_a_run_is_killed_if_the_wait_for_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pid = tmp_path / "pid"
    run = Run(["sh", "-c", f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 300"], os.environ, tmp_path / "page.html")
    wait_for(pid.exists)
    monkeypatch.setattr(limits, "PLAYBOOK", 0)
    with pytest.raises(LabError, match="runs for more than 0 s"):
        run.end()
    wait_for(lambda: state_of(int(pid.read_text())) in ("", "Z"))
