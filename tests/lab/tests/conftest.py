# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvmlab import cache
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.parts.kinds import USUAL
from kvmlab.story.controller import Controller
from kvmlab.watch import ledger, runs

TOOK = pytest.StashKey[float]()


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does, so that no emulated host outlives it, whichever lab a test uses."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """Where time is short (.ci/run), no test begins after this moment, in seconds since the epoch; those left are counted as skipped."""
    latest = os.environ.get("KVM_LIVEUPDATE_NO_TEST_AFTER")
    if latest and time.time() > float(latest):
        pytest.skip("the time that KVM_LIVEUPDATE_NO_TEST_AFTER gives is over")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep how a test ended. What was skipped or interrupted has no end."""
    report: pytest.TestReport = yield
    item.stash[TOOK] = item.stash.get(TOOK, 0.0) + call.duration
    ended = call.when == "call" or (call.when == "setup" and report.failed)
    if ended and not report.skipped and not (call.excinfo and call.excinfo.errisinstance(KeyboardInterrupt)):
        test = f"{item.path.name}::{item.name}"
        end = runs.PASSED if report.passed else runs.FAILED
        runs.add(runs.path(), runs.Run(test, round(time.time()), commit(), ledger.runtime(), end, round(item.stash[TOOK])))
    return report


@functools.cache
def commit() -> str:
    """The commit that is checked out, with a plus sign if files differ from it; empty outside of git."""
    git = ("git", "-c", f"safe.directory={ledger.COLLECTION}", "-C", str(ledger.COLLECTION))
    try:
        described = subprocess.run(
            (*git, "describe", "--always", "--exclude=*", "--dirty=+"), capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this machine knows of the failure rate of this version."""
    known = ledger.counted(update for update in ledger.read(ledger.path()) if update.runtime == ledger.runtime())
    seen = ledger.figures(known)
    terminalreporter.section("recorded updates of this version on this machine")
    terminalreporter.write_line(
        f"{seen.updates} updates of hosts, {seen.lost_updates} lost; {seen.guests} guests, {seen.lost_guests} lost ({ledger.path()})"
    )


@pytest.fixture(scope="session", name="lab")
def running_lab() -> Iterator[Lab]:
    """A fresh host of each kind, the tests' own, taken down whatever happens.

    With KVM_LIVEUPDATE_KEEP_LAB set they stay, and are taken as they are the next time: for work on the tests.
    """
    keep = bool(os.environ.get("KVM_LIVEUPDATE_KEEP_LAB"))
    lab = Lab(cache.root() / "lab-tests")
    if not keep:
        lab.down()
    try:
        lab.up(USUAL)
        yield lab
    finally:
        if not keep:
            lab.down()


@pytest.fixture(scope="session", name="controller")
def controller_of(lab: Lab) -> Controller:
    return Controller(lab)


@pytest.fixture(scope="session", name="hv1")
def first_host(lab: Lab) -> Host:
    return lab.host("hv1")


@pytest.fixture(scope="session", name="hv2")
def second_host(lab: Lab) -> Host:
    return lab.host("hv2")


@pytest.fixture(scope="session", name="kernels")
def kernels_of(hv1: Host) -> tuple[str, str]:
    """The releases of the old and the new kernel, as they lie in /boot."""
    found = sorted(Path(line).name.removeprefix("vmlinuz-") for line in hv1.ssh("ls /boot/vmlinuz-*").stdout.split())
    assert len(found) == 2
    return found[0], found[1]
