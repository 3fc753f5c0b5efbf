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
from kvm_mutation.pool import verdict

RUN = """
import sys
import pytest
from kvm_mutation import worker

worker.EVENTS = sys.argv[1]
recorder = worker.Recorder()
recorder.tell(end=int(pytest.main(["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", sys.argv[2]], plugins=[recorder])))
"""


def answer(tmp_path: Path, test: str) -> list[dict]:
    """The events of a run of this test file."""
    (tmp_path / "test_it.py").write_text(test)
    # Without the plugins, which are slow to load and are not asked.
    environment = {**os.environ, "PYTHONPATH": str(Path(kvm_mutation.__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "events"), str(tmp_path / "test_it.py")]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=True)
    return [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]


@pytest.mark.parametrize(
    ("body", "outcome", "how"),
    [
        ("assert True", "survived", ""),
        ("assert False", "killed", "assertion"),
        ("with pytest.raises(OSError):\n        pass", "killed", "assertion"),
        ("with pytest.raises(OSError, match='x'):\n        raise OSError('y')", "killed", "assertion"),
        ("raise KeyError('hold')", "killed", "exception"),
        ("pytest.skip('not here')", "survived", ""),
        ("sys.exit(3)", "killed", "exception"),
        ("pass\nraise NameError('at import')", "crash", ""),
    ],
)
def test_a_failed_call_is_told_from_a_crash_at_import(tmp_path, body, outcome, how):
    events = answer(tmp_path, f"import sys\nimport pytest\n\n\ndef test_it():\n    {body}\n")
    found = verdict({"events": events, "in_time": True, "seconds": 1.0})
    assert (found.outcome, found.how) == (outcome, how)


def test_a_fixture_that_fails_does_not_count_but_the_test_after_it_does(tmp_path):
    fixture = "import pytest\n\n\n@pytest.fixture\ndef host():\n    raise OSError('x')\n\n\ndef test_first(host):\n    pass\n"
    (first, _end) = answer(tmp_path, fixture)
    assert first["crash"].endswith("test_first")
    events = answer(tmp_path, fixture + "\n\ndef test_second():\n    assert 1 == 2\n\n\ndef test_third():\n    assert 1 == 3\n")
    assert [event["test"].rpartition("::")[2] for event in events if "test" in event] == ["test_second"]


def test_a_fork_of_a_test_that_lost_its_way_tells_nothing(tmp_path):
    body = "child = os.fork()\n    if child == 0:\n        assert False\n    os.waitpid(child, 0)\n"
    assert answer(tmp_path, f"import os\n\n\ndef test_it():\n    {body}") == [{"end": 0}]
