# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease
from ansible_collections.kvm.liveupdate.plugins.modules import update_lease


@pytest.fixture(name="host", autouse=True)
def a_host(tmp_path, monkeypatch):
    for name in ("RUN", "LOCK", "UPDATE", "OUTCOME", "LEASE"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
    monkeypatch.setattr(update_lease._limits, "LOCK", 0.3)


def take(run, check_mode=False, ended="", seconds=60):
    given = {"run": run, "by": f"{run} on ctl", "seconds": seconds, "ended": ended}
    return update_lease.present(SimpleNamespace(params=given, check_mode=check_mode))


def release(run, check_mode=False):
    return update_lease.absent(SimpleNamespace(params={"run": run}, check_mode=check_mode))


@pytest.mark.parametrize("ended", ["", "first"])
def test_check_mode_returns_what_the_real_run_does_and_writes_nothing(ended):
    take("first", seconds=60 if ended else 0)
    dry = take("second", check_mode=True, ended=ended)
    assert _lease.read()["run"] == "first"
    assert take("second", ended=ended) == dry and dry["taken_over"].startswith("first on ctl; ")
    assert take("second") == {"changed": True, "taken_over": ""}
    assert release("second", check_mode=True) == {"changed": True} and _lease.read()["run"] == "second"
    assert release("second") == {"changed": True} and release("second") == {"changed": False}


def test_two_runs_at_once():
    take("first")
    for check_mode in (True, False):
        with pytest.raises(LiveUpdateError, match="another run updates this host: first on ctl"):
            take("second", check_mode)
    assert release("second") == {"changed": False} and _lease.read()["run"] == "first"


def test_somebody_who_knows_that_a_run_has_ended_ends_its_lease(monkeypatch):
    """As the message says. That an update may have to be verified stays known."""
    take("first")
    begun = _lease.read()["begun"]
    assert take("by hand", ended="first", seconds=1)["taken_over"].startswith("first on ctl; ")
    later = _lease.read()["since"] + 1
    monkeypatch.setattr(update_lease.time, "time", lambda: later)
    assert take("second")["taken_over"].startswith("by hand on ctl; it expired")
    assert _lease.read()["begun"] == begun


def test_nobody_takes_the_lease_during_another_operation():
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        take("first")
    assert _lease.read() == {}


def test_nobody_gives_the_lease_back_during_another_operation():
    take("first")
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        release("first")
    assert _lease.read()["run"] == "first"
