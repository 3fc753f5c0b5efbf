# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
import types

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump, _lease
from ansible_collections.kvm.liveupdate.plugins.modules import kexec

PARAMS = {
    "guests": ["web"],
    "keep_units": ["iscsid.service"],
    "on_loss": "stop",
    "timeout": 1200,
    "verify_memory": "full",
    "reuse_probe": False,
    "until": "",
    "run": "mine",
}


@pytest.fixture(name="committed")
def commits(tmp_path, monkeypatch):
    """What was committed."""
    asked: list = []
    for name in ("RUN", "LOCK", "UPDATE", "OUTCOME", "LEASE"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
    monkeypatch.setattr(_jump, "commit", lambda *given: asked.append(given) or {"id": "u"})
    return asked


def run(check_mode=False, **given):
    return kexec.commit(types.SimpleNamespace(params={**PARAMS, **given}, check_mode=check_mode))


def test_a_commit_is_given_all_that_was_asked_for(committed):
    assert run(check_mode=True) == {"changed": True} and committed == []
    assert run() == {"changed": True, "journal": {"id": "u"}}
    assert committed == [(["web"], ["iscsid.service"], "stop", 1200, "full", False)]


def test_check_mode_changes_no_lease_and_takes_no_lock(committed):
    _lease.take("mine", "bob on ctl", 60, time.time() - 50)
    before = _lease.read()
    assert run(check_mode=True) == {"changed": True} and _lease.read() == before
    with _lock.Lock():
        assert run(check_mode=True) == {"changed": True}


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("timeout", [0, -1])
def test_a_time_that_is_over_at_once_is_refused_before_the_commit(committed, timeout, check_mode):
    with pytest.raises(LiveUpdateError, match=f"timeout is {timeout}; write a number of seconds, 1 or more"):
        run(check_mode, timeout=timeout)
    assert committed == []


def test_nothing_is_committed_under_another_operation(committed):
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        run()
    assert committed == []


@pytest.mark.parametrize("check_mode", [False, True])
def test_nothing_is_committed_after_the_window_has_closed(committed, check_mode):
    with pytest.raises(LiveUpdateError, match=r"hypervisor_update_until .*, 2020-01-01T04:00\+01:00, has passed"):
        run(check_mode, until="2020-01-01T04:00+01:00")
    assert committed == []
    run(until="2999-01-01T04:00Z")
    assert len(committed) == 1


@pytest.mark.parametrize("check_mode", [False, True])
def test_the_jump_of_a_run_is_not_committed_while_another_run_has_the_lease(committed, check_mode):
    _lease.take("other", "alice on ctl", 60, time.time())
    with pytest.raises(LiveUpdateError, match="another run updates this host: alice on ctl"):
        run(check_mode)
    assert committed == []
    _lease.take("mine", "bob on ctl", 60, time.time() - 59)
    run()
    assert len(committed) == 1 and _lease.seen(_lease.read(), time.time())["left"] > 50


def test_a_play_without_a_run_commits_too_but_not_against_the_lease_of_a_run(committed):
    """A task that calls the module by hand names no run."""
    run(run=None)
    assert len(committed) == 1
    _lease.take("", "nobody", 60, time.time() - 59)  # that of such a task
    run(run=None)
    assert len(committed) == 2 and _lease.seen(_lease.read(), time.time())["left"] > 50
    _lease.take("other", "alice on ctl", 60, time.time())
    with pytest.raises(LiveUpdateError, match="another run updates this host"):
        run(run=None)
    assert len(committed) == 2


def test_the_shortest_time_is_one_second(committed):
    assert run(check_mode=True, timeout=1) == {"changed": True}
    run(timeout=1)
    assert committed[0][3] == 1


def test_the_module_takes_what_its_documentation_says(monkeypatch):
    given = {}
    monkeypatch.setattr(kexec, "run_module", lambda body, argument_spec: given.update(argument_spec, body=body))
    kexec.main()
    assert given.pop("body") is kexec.commit and given.pop("run") == {"type": "str"}  # the action adds the run
    options = yaml.safe_load(kexec.DOCUMENTATION)["options"]
    assert given == {name: {key: value for key, value in option.items() if key != "description"} for name, option in options.items()}
