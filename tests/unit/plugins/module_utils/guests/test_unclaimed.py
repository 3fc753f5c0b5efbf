# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _command, _limits, _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _unclaimed
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _rest_of_boot

WEB = {"name": "web", "uuid": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "unit": "web.service"}
SESSION = "kvm-6f9619ff8b86d011b42d00cf4fc964ff"


@pytest.fixture(name="host")
def host_after_a_boot(tmp_path, monkeypatch):
    """The guest web was held before this boot; ``incoming`` are the sessions that came over, ``stores`` what PID 1 took of them."""
    seen = SimpleNamespace(incoming=[SESSION], stores={}, finished=[], closed=[], forgotten=[], waited=[], error=None)
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "before")
    _session.record_hold(WEB)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")

    def retrieve(name):
        if seen.error:
            raise LiveUpdateError("the device says no", errno=seen.error, verb="open")
        if name not in seen.incoming:
            raise LiveUpdateError("no such session", errno="ENOENT", verb="retrieve")
        return os.memfd_create(name)

    def closing(fd):
        seen.closed.append(os.readlink(f"/proc/self/fd/{fd}").partition(" ")[0])
        real(fd)

    real = os.close
    monkeypatch.setattr(_luo, "retrieve_session", retrieve)
    monkeypatch.setattr(_luo, "finish", lambda fd: seen.finished.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "close", closing)
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: seen.stores.get(unit, []) for unit in units})
    monkeypatch.setattr(_systemd, "wait_for_the_bus", seen.waited.append)
    monkeypatch.setattr(_systemd, "forget_fd", lambda *words: seen.forgotten.append((*words, len(seen.waited))))
    return seen


def test_memory_that_nobody_takes_is_given_up(host, capsys):
    _unclaimed.give_up()
    assert len(host.finished) == 1 and f"/memfd:{SESSION}" in host.closed
    assert _session.recorded_holds() == [] and not host.forgotten
    assert "web: the host was rebooted by a kexec that was not a live update" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["web.service", "kvm-liveupdate-hold@web.service"])
def test_memory_that_pid_1_has_taken_is_given_up_there(host, unit):
    host.stores, host.error = {unit: [_session.FDNAME], "other.service": [_session.FDNAME]}, "EINVAL"
    _unclaimed.give_up()
    # At a boot D-Bus is not there yet: "Failed to connect to system scope bus", and the memory stayed reserved until the next reboot.
    assert host.forgotten == [(unit, 0, _session.FDNAME, 1)] and host.waited == [_limits.SYSTEM_BUS]
    assert _session.recorded_holds() == []


def test_an_ordinary_reboot_leaves_only_the_record(host, capsys):
    host.incoming = []
    _unclaimed.give_up()
    assert _session.recorded_holds() == [] and not host.finished and not host.waited and not capsys.readouterr().err


def test_what_is_held_in_this_boot_is_kept(host, monkeypatch):
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "before")
    _unclaimed.give_up()
    assert _session.recorded_holds() == ["web"] and not host.finished and not host.forgotten


@pytest.mark.parametrize("saved", [True, False])
def test_a_guest_that_was_saved_takes_its_memory_itself(host, saved):
    """Its state may be there before its journal."""
    if saved:
        _files.write_json(_files.journal_path("web"), {"state": "saved", "session": SESSION})
    else:
        _files.write_json(_files.state_path("web"), {})
    _unclaimed.give_up()
    assert not host.finished and not host.forgotten


def test_a_guest_that_was_renamed_since_its_hold_keeps_its_memory(host):
    """Its session goes by its UUID, and the record of the hold by its old name."""
    _files.write_json(_files.journal_path("www"), {"state": "saved", "session": SESSION})
    _unclaimed.give_up()
    assert not host.finished and not host.forgotten


def test_a_guest_that_was_restored_long_ago_and_one_that_waits_are_no_obstacles(host):
    _files.write_json(_files.journal_path("web"), {"state": "restored", "session": SESSION})
    _files.write_json(_files.journal_path("db"), {"state": "saved", "session": "kvm-2"})
    _unclaimed.give_up()
    assert len(host.finished) == 1


def test_one_guest_does_not_keep_another_from_it(host, capsys):
    for name, content in (("a", "{"), ("b", "{}")):
        with open(_files.hold_path(name), "w", encoding="utf-8") as file:
            file.write(content)
    _unclaimed.give_up()
    assert len(host.finished) == 1 and _session.recorded_holds() == ["a", "b"]
    said = capsys.readouterr().err
    assert said.count("memory that an earlier kernel preserved for this guest may still be reserved") == 2
    assert said.count("An ordinary reboot frees it") == 2


def test_a_device_that_is_busy_leaves_the_record_for_the_next_boot(host, capsys):
    host.error = "EBUSY"
    _unclaimed.give_up()
    assert _session.recorded_holds() == ["web"] and "the device says no" in capsys.readouterr().err


def test_a_host_without_guests_has_no_holds(monkeypatch, tmp_path):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path / "none"))
    assert _session.recorded_holds() == []


def test_every_boot_does_it_before_guests_start(monkeypatch):
    monkeypatch.setattr(_setup, "has_libvirt", lambda: False)
    files = {path: content for path, (content, _mode) in _runtime.files(["web.service"]).items()}
    unit = files[f"{_units.FOLDER}/{_units.UNCLAIMED_UNIT}"]
    assert f"ExecStart={_files.COMMAND} give-up-unclaimed\n" in unit and "Before=libvirtd.service virtqemud.service\n" in unit
    assert f"ConditionPathExistsGlob={_files.hold_path('*')}\n" in unit
    assert f"Wants={_units.UNCLAIMED_UNIT}\n" in files[f"{_units.FOLDER}/sysinit.target.d/{_runtime.DROPIN}"]
    assert f"After={_units.UNCLAIMED_UNIT} " in files[f"{_units.FOLDER}/web.service.d/{_runtime.DROPIN}"]
    assert _rest_of_boot.alone(["-.mount", _units.UNCLAIMED_UNIT, "system.slice"])


def test_the_command_gives_up(host):
    assert _command.main(["give-up-unclaimed"]) == 0 and len(host.finished) == 1
