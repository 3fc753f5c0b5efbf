# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _run


def test_all_workers_of_a_run_name_the_same_run():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = {pool.apply(_run.this_run) for _number in range(4)}
    (name,) = found
    assert name.split("/")[2] == str(os.getpid()) and name == _run.this_run()
    assert not _run.ended(name)


def test_a_process_that_has_ended_is_known_to_have_ended_and_another_with_its_id_is_not_taken_for_it():
    space = _run.this_run().rsplit("/", 2)[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        name = f"{space}/{child.pid}/{_run._started(child.pid)}"
        assert not _run.ended(name)
        assert _run.ended(f"{space}/{child.pid}/1")
        child.communicate()
    assert _run.ended(name)


@pytest.mark.parametrize("run", ["", "nonsense", "other/4026531836/999999999/1", "a/b"])
def test_of_the_process_of_another_controller_nothing_is_known(run):
    assert not _run.ended(run)


def test_a_process_of_another_user_is_not_taken_for_ended(monkeypatch):
    def refused(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(_run.os, "kill", refused)
    monkeypatch.setattr(_run, "_started", lambda _pid: "")
    assert not _run.ended(f"{_run._space()}/1/5")


def test_who_started_a_run():
    assert _run.by({}, {"USER": "alice"}).startswith("alice on ")
    assert _run.by({}, {}).startswith(f"uid {os.geteuid()} on ")
    job = {"awx_job_id": 7, "awx_job_template_name": "update", "awx_user_name": "bob"}
    assert _run.by(job, {}) == "AWX job 7 (update), started by bob"
    assert _run.by({"awx_job_id": 7}, {}) == "AWX job 7 (a template without a name), started by a schedule"
