# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fault suite: each result is kept, and a test that held is not repeated for the same runtime and pass."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from kvmfaults import cases, results, schedule
from kvmfaults.results import FAILED, HELD, Result
from kvmfaults.stand import Stand
from kvmfaults.story import Story
from kvmlab.parts.kinds import USUAL
from kvmlab.watch import ledger

STAND = pytest.StashKey[Stand]()
SEED = pytest.StashKey[int]()
LONGEST = 1000
# How much earlier than a test of the lab a test of this suite has to begin: it takes as long as several, and the first one prepares a host.
LONGER_S = 20 * 60
NAME = re.compile(r"test_(?P<number>\d\d)_\w+\[(?P<variant>[^]]+)\]")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pass", dest="turn", type=int, default=1, help="the pass in which the results count (default: 1)")
    parser.addoption("--again", action="store_true", help="also run tests that held in this pass")
    parser.addoption("--one-host", action="store_true", help="do not start a new host for each case, as long as all holds")
    parser.addoption("--seed", type=int, help="of the random schedule of test 22, instead of the one of its variant")
    parser.addoption("--schedule", help="of test 22, as it was printed: NAME@STEP, separated by spaces")


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does, so that no emulated host outlives it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def test_of(item: pytest.Item) -> str:
    """The name by which the results of a test are kept."""
    found = NAME.fullmatch(item.name)
    assert found, f"{item.name}: the name of a test of the suite is test_NN_WORDS[VARIANT]"
    return f"{found['number']}-{found['variant']}"


@functools.cache
def runtime() -> str:
    """The digest of the code on hosts when this run began. It takes more than a second, and most of the tests may only be skipped."""
    return ledger.runtime()


def turn_of(config: pytest.Config) -> int:
    """The pass."""
    return int(config.getoption("turn"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what held already. Where time is short (.ci/run), no test begins after this moment, in seconds since the epoch."""
    latest = os.environ.get("KVM_LIVEUPDATE_NO_TEST_AFTER")
    if latest and time.time() > float(latest) - LONGER_S:
        pytest.skip("not enough of the time that KVM_LIVEUPDATE_NO_TEST_AFTER gives is left")
    known = results.latest(results.read(results.path()), runtime(), turn_of(item.config)).get(test_of(item))
    if known and known.end == HELD and not item.config.getoption("again"):
        pytest.skip(f"held on {time.strftime('%Y-%m-%d', time.gmtime(known.at))} in this pass with this runtime; --again repeats it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep the result of a test. What was skipped or interrupted has none."""
    report: pytest.TestReport = yield
    ended = call.when == "call" or (call.when == "setup" and report.failed)
    if ended and not report.skipped and not (call.excinfo and call.excinfo.errisinstance(KeyboardInterrupt)):
        stand = item.config.stash.get(STAND, None)
        seen = stand.end_of_case(report.passed) if stand else ""
        why = next(iter(str(call.excinfo.value).splitlines()), "") if call.excinfo else ""
        if why and why not in seen:
            seen = f"{seen}; {why}".lstrip("; ")
        name, turn, end = test_of(item), turn_of(item.config), HELD if report.passed else FAILED
        if not replayed(item.config):
            result = Result(name, ledger.runtime(), turn, time.time(), end, seen[:LONGEST], item.stash.get(SEED, None))
            results.add(results.path(), result)
    return report


def replayed(config: pytest.Config) -> bool:
    """Whether test 22 gets another schedule than that of the pass. Its result does not count then."""
    return bool(config.getoption("schedule")) or config.getoption("seed") is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What is left to do in this pass."""
    known, digest, turn = results.read(results.path()), ledger.runtime(), turn_of(config)
    every = [name for case in cases.CASES for name in cases.tests(case)]
    left = results.left(every, known, digest, turn)
    now = results.latest(known, digest, turn)
    terminalreporter.section(f"fault suite, runtime {digest}, pass {turn}; tests/run --faults runs all of it")
    terminalreporter.write_line(f"{len(every) - len(left)} of {len(every)} tests held ({results.path()})")
    waiting = [name for name in left if name not in now]
    for name in (name for name in left if name in now):
        terminalreporter.write_line(f"{name}: FAILED, {now[name].seen}")
    if waiting:
        terminalreporter.write_line(f"not run yet: {', '.join(waiting)}")
    for result in (result for result in now.values() if result.seed is not None):
        terminalreporter.write_line(f"{result.test}: seed {result.seed}: {' '.join(map(str, schedule.schedule(result.seed)))}")


@pytest.fixture(scope="session", name="stand")
def stand_of(request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand(bool(request.config.getoption("one_host")))
    request.config.stash[STAND] = stand
    try:
        yield stand
    finally:
        stand.down()


@pytest.fixture(name="begin")
def beginning(request: pytest.FixtureRequest, stand: Stand) -> Callable[..., Story]:
    """Begins the story of the case, on a host of this kind."""

    def begin(kind: str = USUAL[0]) -> Story:
        return stand.story(test_of(request.node), kind)

    return begin


@pytest.fixture(name="story")
def story_of(begin: Callable[..., Story]) -> Story:
    """The story of the case, on a host of the usual kind."""
    return begin()


@pytest.fixture(name="planned")
def planned_schedule(request: pytest.FixtureRequest, variant: str) -> list[schedule.Fault]:
    """The schedule of test 22. Its seed is recorded with the result."""
    given = request.config.getoption("schedule")
    seed = request.config.getoption("seed")
    seed = schedule.seed_of(turn_of(request.config), int(variant)) if seed is None else seed
    request.node.stash[SEED] = seed
    return schedule.read(given) if given else schedule.schedule(seed)
