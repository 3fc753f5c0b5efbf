# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long commands: their limit, their log, their end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kvmlab.errors import LabError
from kvmlab.machines.process import Record, start_of
from kvmlab.run import run_logged, tail


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    with pytest.raises(LabError, match=r"(?s)the thing failed with exit code 3\..*log:.*why it failed"):
        run_logged(("sh", "-c", "echo why it failed >&2; exit 3"), what="the thing", log=log, limit_s=20)


def test_a_command_has_a_limit_and_leaves_no_child_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(LabError, match="did not end within 1 s"):
        run_logged(("sh", "-c", f"sleep 60 & echo $! > {pid}; wait"), what="the thing", log=tmp_path / "log", limit_s=1)
    assert time.monotonic() - began < 20
    assert Record(int(pid.read_text()), start_of(int(pid.read_text())) or 0).wait_gone(10)


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no-such-tool is not installed \(tests/lab/packages.txt"):
        run_logged(("no-such-tool",), what="the thing", log=tmp_path / "log", limit_s=1)


def test_the_tail_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"one\r\n[\x1b[0;32m  OK  \x1b[0m] two\r\n\x1b]3008;start=d3cd;user=root\x1b\\three\r\n\x1b[K\r\n\r\n")
    assert tail(log, 2) == "[  OK  ] two\nthree"
    assert tail(tmp_path / "none") == ""
