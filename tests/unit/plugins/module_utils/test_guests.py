# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _paths, _processes, _providers, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils._incoming import decide
from ansible_collections.kvm.liveupdate.plugins.modules import hypervisor_info


def test_a_guest_has_the_warnings_of_its_provider(monkeypatch):
    record = {
        "name": "web",
        "provider": "qemu",
        "unit": "web.service",
        "uuid": "u",
        "pid": 7,
        "ram": [],
        "argv": ["qemu", "-nodefaults", "-M", "q35"],
    }
    monkeypatch.setattr(_guests, "inspect", lambda _record: [])
    monkeypatch.setattr(_systemd, "show", lambda *_asked: {})
    monkeypatch.setattr(hypervisor_info._holding, "held", lambda _record: {})
    facts = hypervisor_info.guest_facts(record)
    assert [warning["code"] for warning in facts["warnings"]] == ["machine-version"]
    assert hypervisor_info.refusals([], [facts]) == []


def test_a_stranger_has_a_reason_and_no_warnings(monkeypatch):
    reason = {"code": "not-managed", "message": "no", "remedy": "yes"}
    monkeypatch.setattr(_guests, "records", list)
    monkeypatch.setattr(_processes, "pids", lambda: [7])
    monkeypatch.setattr(_processes, "fd_links", lambda _pid: {3: _processes.VM_LINK})
    monkeypatch.setattr(_processes, "unit_of", lambda _pid: None)
    monkeypatch.setattr(_providers, "foreign_reason", lambda _pid: reason)
    assert _guests.strangers() == [{"name": "pid-7", "unit": "", "pid": 7, "reasons": [reason], "warnings": []}]


def test_who_was_saved_and_does_not_run_is_a_reason_against_another_update(tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    for name, state in {"web": "saved", "db": "saved", "old": "restored", "gone": "lost"}.items():
        (tmp_path / f"{name}.json").write_text(f'{{"state": "{state}", "unit": "{name}.service"}}')
    (tmp_path / "web.state").write_text("QEVM")
    assert list(_guests.journals()) == ["db", "gone", "old", "web"]
    (reason,) = _guests.not_back({"db": {}})
    assert reason["code"] == "not-back" and "guest web " in reason["message"]
    assert "'systemctl start web.service'" in reason["remedy"] and "discard web" in reason["remedy"]
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path / "never-written"))
    assert _guests.not_back({}) == []


@pytest.mark.parametrize(
    ("provider", "state", "cut"), [("libvirt", True, True), ("libvirt", False, False), ("qemu", True, False), (None, True, False)]
)
def test_a_domain_whose_host_went_down_before_its_journal_was_written_is_lost(tmp_path, monkeypatch, provider, state, cut):
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_paths, "UPDATE", str(tmp_path / "update"))
    records = {"app": {"provider": provider, "unit": "hold.service", "uuid": "a-b"}} if provider else {}
    _paths.write_json(_paths.UPDATE, {"boot_id": "before", "on_loss": "start", "guests": ["app"], "records": records})
    if state:
        (tmp_path / "app.state").write_text('{"hold": "h"}')
    journal = _guests.cut_off("app")
    assert bool(journal) is cut
    if cut:
        assert (journal["boot_id"], journal["unit"], journal["session"]) == ("before", "hold.service", "kvm-ab")
        for note in (None, {"hold": "h"}, {}):  # whatever came over, it may have run on
            assert decide(journal, note, False)[0] == "cold"
            assert decide({**journal, "on_loss": "stop"}, note, False)[0] == "refuse"


@pytest.mark.parametrize(
    ("update", "seconds"),
    [
        ({}, None),
        ({"state": "saved", "times": {"paused": 1.0, "saved": 2.0}}, None),
        ({"state": "lost", "times": {"paused": 1.0, "saved": 2.0}}, None),
        ({"state": "restored", "times": {"paused": 1.5, "saved": 2.0, "resumed": 9.0}}, 7.5),
    ],
)
def test_a_guest_that_was_brought_back_had_a_pause(update, seconds):
    assert _guests.last_pause(update) == seconds
