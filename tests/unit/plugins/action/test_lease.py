# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller adds to modules so that only one run updates a host: which run this is, and whether another one has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as Normal
from ansible_collections.kvm.liveupdate.plugins.action import boot_default, hypervisor_info, kexec, update_lease
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _run


@pytest.fixture(name="run", autouse=True)
def a_run(monkeypatch: pytest.MonkeyPatch):
    """This run is called mine, and one that is called gone has ended. What the module answers can be set."""
    known = SimpleNamespace(answer={})
    monkeypatch.setattr(_run, "this_run", lambda: "mine")
    monkeypatch.setattr(_run, "ended", lambda run: run == "gone")

    def module(action, _tmp=None, _task_vars=None):
        known.args = dict(action._task.args)
        if isinstance(known.answer, Exception):
            raise known.answer
        return known.answer

    monkeypatch.setattr(Normal, "run", module)
    return known


def action(module, **args):
    """The action plugin of a task with these arguments."""
    made = module.ActionModule.__new__(module.ActionModule)
    made._task = SimpleNamespace(args=args, check_mode=False)
    return made


@pytest.mark.parametrize(
    ("lease", "own", "ended"),
    [({"run": "mine"}, True, False), ({"run": "gone"}, False, True), ({"run": "other"}, False, False)],
)
def test_a_lease_says_whose_it_is_and_whether_that_run_has_ended(run, lease, own, ended):
    run.answer = {"lease": {**lease, "left": 9.0}}
    assert action(hypervisor_info).run(None, {})["lease"] == {**lease, "left": 9.0, "own": own, "ended": ended}


@pytest.mark.parametrize("answer", [{}, {"lease": {}}, {"failed": True, "msg": "no"}])
def test_without_a_lease_nothing_is_added(run, answer):
    run.answer = answer
    told = action(hypervisor_info).run(None, {})
    assert {name: value for name, value in told.items() if name != "examined_at"} == answer and told["examined_at"] > 0


def test_the_lease_is_that_of_this_run_unless_a_task_says_otherwise(run):
    action(update_lease, seconds=60, ended=None).run(None, {"awx_job_id": 7})
    assert run.args == {"run": "mine", "by": "AWX job 7 (a template without a name), started by a schedule", "seconds": 60}
    action(update_lease, run="theirs", by="alice", ended="gone").run(None, {})
    assert run.args == {"run": "theirs", "by": "alice", "ended": "gone"}


def test_a_host_that_does_not_answer_fails_and_is_lost(run):
    """Neither rescue nor always runs for a host that Ansible calls unreachable."""
    run.answer = AnsibleConnectionFailure("no route")
    for module in (update_lease, hypervisor_info):
        told = action(module).run(None, {"inventory_hostname": "hv1"})
        assert told["failed"] and told["lost"] and told["msg"] == "hv1 cannot be reached: no route"


@pytest.fixture(name="commit")
def a_commit(monkeypatch):
    """What the module is called with, and what the task says."""

    def run(**args):
        made, asked = action(kexec, **args), []
        made._connection = SimpleNamespace(transport="ssh", get_option={}.__getitem__)
        made._look_until_answered = lambda: kexec.Look("b", ("7.2.13", "#1"), {}, [])
        monkeypatch.setattr(kexec.ActionBase, "run", lambda *_words: {})
        monkeypatch.setattr(
            kexec.ActionModule, "_execute_module", lambda _self, **words: asked.append(words["module_args"]) or {"failed": True}
        )
        return asked, made.run(None, {})

    return run


def test_the_commit_names_this_run(commit):
    """Else the host would let it commit while another run has the lease."""
    assert commit(guests=["web"])[0] == [{"run": "mine", "guests": ["web"]}]


def test_the_host_gets_the_end_of_the_window_in_a_form_that_its_python_reads(commit):
    """Else a newer Python accepts the text for the batches, and the host undoes its update at the commit."""
    assert commit(until="2026-12-01 04:00Z")[0] == [{"run": "mine", "until": "2026-12-01T04:00:00+00:00"}]
    assert commit(until="")[0] == [{"run": "mine", "until": ""}]
    asked, told = commit(until="tomorrow")
    assert asked == [] and told["failed"] and "write a date and a time with the offset from UTC" in told["msg"]


def test_a_change_of_the_boot_default_says_whose_it_is(run):
    action(boot_default, only_kept=True, kernel=None).run(None, {})
    assert run.args == {"run": "mine", "only_kept": True}
    run.answer = AnsibleConnectionFailure("gone")
    assert action(boot_default).run(None, {"inventory_hostname": "hv1"})["lost"]
