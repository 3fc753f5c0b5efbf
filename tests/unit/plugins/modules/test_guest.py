# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _holding, _paths, _providers, _update
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.modules import guest

RECORD = {"name": "web", "provider": "qemu", "unit": "web.service", "uuid": "u-1", "pid": 7, "started": 1, "ram": []}


class Host:
    """A host with the guest web, which is its provider too."""

    def __init__(self) -> None:
        self.did: list = []
        self.state, self.held = "running", {}

    def status(self, _record) -> str:
        return self.state

    def resume(self, _record, running) -> None:
        self.did.append(("resume", running))


@pytest.fixture(name="host")
def host_with_a_guest(tmp_path, monkeypatch):
    host = Host()
    for name in ("RUN", "GUESTS_RUN", "GUESTS_STATE", "LOCK", "UPDATE", "OUTCOME"):
        monkeypatch.setattr(_paths, name, str(tmp_path / name))
    monkeypatch.setattr(_guests, "known", lambda: {"web": RECORD})
    monkeypatch.setattr(_guests, "inspect", lambda record: [])
    monkeypatch.setattr(_providers, "of", lambda record: host)
    monkeypatch.setattr(_holding, "held", lambda record: host.held)
    monkeypatch.setattr(_holding, "hold", lambda record: host.did.append("hold"))
    monkeypatch.setattr(_holding, "release", lambda record: host.did.append("release"))
    return host


def run(state, check_mode=False):
    return guest.manage(types.SimpleNamespace(params={"name": "web", "state": state, "timeout": 1}, check_mode=check_mode))


@pytest.mark.parametrize("state", ["preserved", "running"])
def test_nobody_holds_or_releases_under_another_operation(host, state):
    host.held = {} if state == "preserved" else {"hold": "h"}
    with _update.Lock(), pytest.raises(LiveUpdateError, match="another live update operation is under way"):
        run(state)
    assert host.did == []
    assert run(state)["changed"] and host.did


@pytest.mark.parametrize(
    ("state", "ours", "goes_on"),
    [("paused", True, True), ("paused", False, None), ("postmigrate", False, True), ("running", True, None)],
)
def test_a_guest_that_only_our_undo_left_paused_runs_on(host, state, ours, goes_on):
    host.state = state
    if ours:
        _paths.write_json(_guests.run_path("web", "paused"), {"pid": 7, "started": 1})
    assert run("running", check_mode=True)["changed"] is bool(goes_on) and host.did == []
    assert run("running")["changed"] is bool(goes_on)
    assert host.did == ([("resume", True), "release"] if goes_on else [])
    assert not goes_on or not _update.owes(RECORD)
