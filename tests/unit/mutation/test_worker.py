# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What pytest tells while it runs tests on a broken source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kvm_mutation
import pytest
from kvm_mutation.pool import Seen, Verdict, Worker, verdict

# As the worker does: one warm process, a fork for each run.
RUN = """
import os, sys
import pytest
from kvm_mutation import worker

for test in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        worker.EVENTS = test + ".events"
        recorder = worker.Recorder()
        words = ["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", test]
        recorder.tell(end=int(pytest.main(words, plugins=[recorder])))
        os._exit(0)
    os.waitpid(child, 0)
"""
HEAD = "import os\nimport sys\nimport pytest\n\n\n"
FIXTURE = "@pytest.fixture\ndef host():\n    raise OSError('x')\n\n\ndef test_first(host):\n    pass\n\n\n"
BODIES = {
    "fine": ("assert True", "survived", ""),
    "assertion": ("assert False", "killed", "assertion"),
    "nothing raised": ("with pytest.raises(OSError):\n        pass", "killed", "assertion"),
    "another message": ("with pytest.raises(OSError, match='x'):\n        raise OSError('y')", "killed", "assertion"),
    "exception": ("raise KeyError('hold')", "killed", "exception"),
    "skipped": ("pytest.skip('not here')", "survived", ""),
    "exit": ("sys.exit(3)", "killed", "exception"),
    "crash at import": ("pass\n\n\nraise NameError('x')", "crash", ""),
    "a fork that lost its way": ("child = os.fork()\n    assert child\n    os.waitpid(child, 0)", "survived", ""),
}
TESTS = {
    **{name: f"def test_it():\n    {body}\n" for name, (body, _outcome, _how) in BODIES.items()},
    "fixture fails": FIXTURE,
    "test after it": FIXTURE + "def test_second():\n    assert 1 == 2\n\n\ndef test_third():\n    assert 1 == 3\n",
}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What was told of each of the tests."""
    folder = tmp_path_factory.mktemp("tests")
    files = {name: folder / f"test_{number}.py" for number, name in enumerate(TESTS)}
    for name, file in files.items():
        file.write_text(HEAD + TESTS[name])
    # Without the plugins, which are slow to load and are not asked.
    environment = {**os.environ, "PYTHONPATH": str(Path(kvm_mutation.__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", RUN, *map(str, files.values())]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=600, check=True)
    return {name: [json.loads(line) for line in Path(f"{file}.events").read_text().splitlines()] for name, file in files.items()}


@pytest.mark.parametrize("name", BODIES)
def test_a_failed_call_is_told_from_a_crash_at_import(events, name):
    found = verdict({"events": events[name], "in_time": True, "seconds": 1.0})
    assert (found.outcome, found.how) == BODIES[name][1:]


def test_a_fixture_that_fails_does_not_count_but_the_test_after_it_does(events):
    (first, end) = events["fixture fails"]
    assert first["crash"].endswith("test_first") and end == {"end": 1}
    assert [event["test"].rpartition("::")[2] for event in events["test after it"] if "test" in event] == ["test_second"]


SOURCE = "import os\n\n\ndef durable(path):\n    if path:\n        return 1\n    return os.sep\n"
TWO = """import pytest
from source import durable


def test_nothing():
    assert durable("") == "/"


def test_path():
    assert durable("x") == 1


@pytest.mark.parametrize("path", ["x", "y"])
def test_paths(path):
    assert durable(path) == 1


@pytest.mark.parametrize("path", ["x", ""])
def test_wrong(path):
    assert not durable(path)
"""
TRACED = """
import json, os, sys
import pytest
from kvm_mutation import worker

worker.COPY, worker.EVENTS = os.getcwd(), "events"
sys.path.insert(0, worker.COPY)
traced = worker.trace(["source.py"])
only = ["test_two.py::test_nothing", "test_two.py::test_path", "test_two.py::test_paths"]
recorder = worker.Recorder(only, traced)
import source
status = int(pytest.main(["-q", "-p", "no:cacheprovider", "test_two.py"], plugins=[recorder]))
traced.stop()
tests = list(recorder.seconds)
print(json.dumps({"status": status, "tests": tests, "lines": worker.lines_of(traced, ["source.py"], tests)}))
"""


def test_which_tests_run_a_line_is_seen_and_only_those_that_are_named_run(tmp_path):
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "test_two.py").write_text(TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(kvm_mutation.__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    cases = ["test_nothing", "test_path", "test_paths[x]", "test_paths[y]"]
    assert found["status"] == 0 and found["tests"] == [f"test_two.py::{case}" for case in cases]
    assert found["lines"] == {"source.py": {"1": [-1], "4": [-1], "5": [0, 1, 2, 3], "6": [1, 2, 3], "7": [0]}}


class Asked(Worker):
    """A worker that notes which tests it is to run, instead of running them."""

    def __init__(self, outcomes):
        self.outcomes, self.asked = outcomes, []

    def run(self, files, tests, limit):
        self.asked.append(tests)
        assert (
            files == {"a.py": "broken"}
            and limit
            == 15 + 10 * {("t.py::one",): 1, ("own.py::three", "t.py::one"): 5, ("own.py",): 4, ("own.py", "t.py"): 7}[tuple(tests)]
        )
        return Verdict(self.outcomes.pop(0))


@pytest.mark.parametrize(
    ("line", "outcomes", "asked"),
    [
        (1, ["killed"], [["t.py::one"]]),
        (1, ["timeout"], [["t.py::one"]]),
        (1, ["survived", "killed"], [["t.py::one"], ["own.py"]]),
        (1, ["survived", "survived"], [["t.py::one"], ["own.py"]]),
        (4, ["killed"], [["own.py::three", "t.py::one"]]),
        (2, ["survived"], [["own.py", "t.py"]]),  # it runs at an import
        (3, ["killed"], [["own.py", "t.py"]]),  # no test runs it in its own process
    ],
)
def test_what_the_tests_of_a_line_do_not_notice_meets_the_own_tests_of_its_file(line, outcomes, asked):
    worker = Asked(list(outcomes))
    seen = Seen({"t.py::one": 1.0, "t.py::two": 2.0, "own.py::three": 4.0}, {"a.py": {"1": [0], "2": [-1, 0], "4": [0, 2]}})
    assert worker.try_out({"a.py": "broken"}, seen, [line], ["own.py", "t.py"]).outcome == outcomes[-1]
    assert worker.asked == asked
