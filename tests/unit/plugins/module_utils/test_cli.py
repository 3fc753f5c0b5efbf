# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import (
    _boot_order,
    _cli,
    _guests,
    _holding,
    _host,
    _libvirt,
    _libvirt_run,
    _paths,
    _systemd,
)


@pytest.fixture(name="virsh")
def virsh_calls(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_libvirt, "virsh", lambda *words, **_limit: calls.append(words) or "")
    return calls


@pytest.fixture(name="stored", autouse=True)
def what_units_store(monkeypatch):
    """The units that hold a session; what is forgotten leaves them."""
    stored = set()
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [_holding.FDNAME] if unit in stored else [])
    ended = set()

    def forget(unit, pid, _name):
        assert not pid and {("stop", unit), ("reset-failed", unit)} <= ended, "systemd cleans what has ended only"
        stored.discard(unit)

    monkeypatch.setattr(_systemd, "run", lambda *command: ended.add(command[1:]) or "")
    monkeypatch.setattr(_systemd, "forget_fd", forget)
    monkeypatch.setattr(_guests, "known", dict)
    return stored


@pytest.fixture(name="late", autouse=True)
def no_longer_started_early(monkeypatch):
    units = []
    monkeypatch.setattr(_boot_order, "start_early", lambda unit, wanted: wanted or units.append(unit))
    return units


def test_a_domain_that_a_power_cut_left_with_a_state_alone_can_be_given_up(tmp_path, monkeypatch, virsh, late):
    (tmp_path / "app.state").write_text("{}")
    monkeypatch.setattr(_libvirt, "is_defined", lambda name: name == "app")
    assert _cli.main(["discard", "app"]) == 0
    assert virsh == [("managedsave-remove", "app")]
    assert not (tmp_path / "app.state").exists()
    assert late == ["kvm-liveupdate-hold@app.service"]


def test_the_status_tells_of_guests_that_are_not_back(tmp_path, monkeypatch, capsys, virsh):
    (tmp_path / "web.json").write_text('{"state": "saved", "unit": "web.service"}')
    monkeypatch.setattr(_paths, "UPDATE", str(tmp_path / "no-update"))
    monkeypatch.setattr(_paths, "AWAY", str(tmp_path / "nobody"))
    monkeypatch.setattr(_guests, "known", lambda: {"db": {"name": "db"}})
    monkeypatch.setattr(_holding, "held", lambda _record: {"hold": "h"})
    assert _cli.main(["status"]) == 0
    assert not virsh
    assert json.loads(capsys.readouterr().out)["guests"] == {
        "db": {"running": True, "held": True, "journal": {}},
        "web": {"running": False, "held": False, "journal": {"state": "saved", "unit": "web.service"}},
    }


def test_where_nothing_is_saved_nothing_is_given_up(capsys, virsh):
    assert _cli.main(["discard", "app"]) == 1
    assert "nothing is saved" in capsys.readouterr().err
    assert not virsh


def test_a_domain_that_is_gone_can_be_given_up_with_its_memory(tmp_path, monkeypatch, virsh, stored):
    """It was undefined, or migrated: libvirt would answer with an error for ever, and its host would be refused for ever."""
    (tmp_path / "app.json").write_text('{"provider": "libvirt", "state": "saved", "unit": "kvm-liveupdate-hold@app.service"}')
    stored.update(("kvm-liveupdate-hold@app.service", "web.service"))
    monkeypatch.setattr(_libvirt, "is_defined", lambda name: False)
    assert _cli.main(["discard", "app"]) == 0
    assert not virsh and not list(tmp_path.iterdir()) and stored == {"web.service"}


def test_a_guest_of_another_provider_is_not_libvirts(tmp_path, monkeypatch, virsh, late, stored):
    (tmp_path / "web.json").write_text('{"state": "saved", "unit": "web.service"}')
    (tmp_path / "web.state").write_text("QEVM")
    monkeypatch.setattr(_libvirt, "is_defined", lambda name: True)  # one of libvirt's has its name
    stored.add("web.service")
    assert _cli.main(["discard", "web"]) == 0
    assert not virsh and not list(tmp_path.iterdir()) and not stored
    assert late == ["web.service"]


@pytest.mark.parametrize("boot", ["before", "now"])
def test_a_domain_whose_save_was_cut_off_is_brought_back_by_the_next_boot_only(tmp_path, monkeypatch, virsh, boot):
    done = []
    cut_off = {"provider": "libvirt", "state": "saved", "guest": "app", "boot_id": boot}
    monkeypatch.setattr(_guests, "cut_off", lambda name: cut_off)
    monkeypatch.setattr(_host, "boot_id", lambda: "now")
    monkeypatch.setattr(_libvirt_run, "restore", lambda name, journal: done.append(journal))
    monkeypatch.setattr(_holding, "reside", done.append)
    assert _cli.main(["hold", "app"]) == 0 and not virsh
    assert done == ([cut_off] if boot == "before" else ["app"])
    assert _guests.journals() == ({"app": cut_off} if boot == "before" else {})
