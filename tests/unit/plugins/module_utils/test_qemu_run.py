# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import (
    _boot_order,
    _clock,
    _guests,
    _host,
    _incoming,
    _luo,
    _paths,
    _processes,
    _qemu,
    _qemu_run,
    _systemd,
)
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv


def test_a_guest_that_starts_clean_does_not_go_ahead_of_the_boot(monkeypatch, tmp_path):
    """With the weight that brings it back early it would keep a host with one processor from ever having booted."""
    steps = []
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "web.service")
    monkeypatch.setattr(_systemd, "run", lambda *words: steps.append(words[:2]))
    monkeypatch.setattr(os, "execvp", lambda file, command: steps.append(file))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    _qemu_run._start("web", ["qemu-system-x86_64", "-m", "128", "-uuid", "a0b1"])
    assert steps == [("systemctl", "set-property"), "qemu-system-x86_64"]


def test_a_guest_that_runs_again_steps_back_and_a_failure_of_that_is_only_said(monkeypatch, capsys):
    asked = []

    def run(*words):
        asked.append(words)
        raise LiveUpdateError("no answer from systemd")

    monkeypatch.setattr(_systemd, "run", run)
    _qemu_run._be_one_of_many("web.service")
    assert asked == [("systemctl", "set-property", "--runtime", "web.service", "StartupCPUWeight=", "StartupIOWeight=")]
    assert "no answer from systemd" in capsys.readouterr().err


@pytest.fixture(name="booting")
def host_that_boots(tmp_path, monkeypatch):
    """A host whose root file system and KVM come when the guest has waited for so many turns."""

    class Booting:
        def __init__(self):
            self.turns, self.writable_at, self.kvm_at, self.kvm = 0, 0, 0, tmp_path / "kvm"
            self.sleep(0)

        def sleep(self, _seconds):
            if self.turns == self.kvm_at:
                self.kvm.touch()
            self.turns += 1

        def access(self, path, _mode):
            return path == str(tmp_path) and self.turns > self.writable_at

    made = Booting()
    made.kvm.unlink()
    monkeypatch.setattr(_paths, "STATE", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_argv, "nodes", lambda argv: [str(made.kvm)] if "kvm" in argv else [])
    monkeypatch.setattr(_qemu_run.time, "sleep", made.sleep)
    monkeypatch.setattr(os, "access", made.access)
    return made


KVM_GUEST = ["qemu-system-x86_64", "-accel", "kvm"]


def test_a_guest_waits_for_what_its_host_lacks_and_no_longer(booting):
    """While it waits, the rest of the boot, which brings that, does not wait for it."""
    booting.writable_at, booting.kvm_at = 3, 5
    assert _qemu_run._wait_for_host("web", KVM_GUEST, []) == []
    assert booting.turns == 6
    assert os.path.exists(_guests.run_path("web", "late"))
    booting.kvm.unlink()
    assert _qemu_run._wait_for_host("db", ["qemu-system-x86_64"], []) == []
    assert booting.turns == 6
    assert not os.path.exists(_guests.run_path("db", "late"))


def test_a_guest_waits_for_its_bridge_and_goes_on_without_one_that_nobody_makes(booting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_qemu_run, "NETWORKS", str(tmp_path))
    booting.kvm_at = 5  # the bridge, this time
    assert _qemu_run._wait_for_host("web", [], ["kvm"]) == []
    assert booting.turns == 6
    assert os.path.exists(_guests.run_path("web", "late"))
    monkeypatch.setattr(_qemu_run, "HOST_LIMIT_S", -1)
    assert _qemu_run._wait_for_host("web", [], ["kvm", "br7"]) == []
    assert "web: goes on after -1 s without the host's network br7" in capsys.readouterr().err


def test_the_boot_does_not_wait_for_a_guest_that_must_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "STATE", str(tmp_path / "nowhere"))
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path / "run"))
    with pytest.raises(LiveUpdateError, match="is not there: mount it first"):
        _qemu_run.run("web", KVM_GUEST)
    assert os.path.exists(_guests.run_path("web", "late"))


@pytest.fixture(name="bare")
def host_that_gets_no_better(booting, monkeypatch):
    """Neither KVM nor a writable root file system, and nobody waits."""
    booting.kvm_at, booting.writable_at = -1, 1000
    monkeypatch.setattr(_qemu_run, "HOST_LIMIT_S", -1)
    return booting


def test_what_a_host_still_lacks_at_the_limit_is_told(bare):
    assert _qemu_run._wait_for_host("web", KVM_GUEST, []) == [f"no {bare.kvm}", f"{bare.kvm.parent} read-only"]


@pytest.mark.parametrize("verdict", ["restore", "cold"])
def test_memory_that_came_over_is_kept_where_something_is_amiss_and_a_clean_start_is_qemus_business(bare, monkeypatch, capsys, verdict):
    """With "-accel kvm -accel tcg" QEMU would load the state of KVM into something else."""
    done = []
    saved = {"state": "saved", "argv": KVM_GUEST}
    monkeypatch.setattr(_guests, "journal", lambda name: saved if verdict == "restore" else {})
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(bare.kvm.parent))
    monkeypatch.setattr(_incoming, "session_of", lambda journal: 7)
    monkeypatch.setattr(_incoming, "note_of", lambda session: {})
    monkeypatch.setattr(_incoming, "decide", lambda *facts: (verdict, "so it is"))
    monkeypatch.setattr(_incoming, "drop", lambda *session: None)
    monkeypatch.setattr(_qemu_run, "_restore", lambda *guest: done.append("restored"))
    monkeypatch.setattr(_qemu_run, "_start", lambda *guest: done.append("started"))
    if verdict == "restore":
        with pytest.raises(LiveUpdateError, match=r"guest web: .* still has no .*/kvm, .* read-only: .* its memory is kept"):
            _qemu_run.run("web", ["qemu-system-x86_64"])
    else:
        _qemu_run.run("web", KVM_GUEST)
    assert "the host still has no " in capsys.readouterr().err
    assert done == ([] if verdict == "restore" else ["started"])


@pytest.fixture(name="loads")
def guest_whose_state_is_loaded(tmp_path, monkeypatch):
    """Runs the loader beside a QEMU that lets the guest run, or refuses; returns what it ended with, and whom it killed."""
    killed = []

    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monitor = contextlib.nullcontext(types.SimpleNamespace(status=lambda: "running"))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_qemu_run, "Qmp", lambda *_socket, **_wait: monitor)
    monkeypatch.setattr(_qemu, "load", lambda *_state: None)
    monkeypatch.setattr(_luo, "finish", lambda _session: None)
    monkeypatch.setattr(_systemd, "notify", lambda *_state, **_pid: None)
    monkeypatch.setattr(_systemd, "run", lambda *_command: "")
    monkeypatch.setattr(_boot_order, "start_early", lambda *_unit: None)
    monkeypatch.setattr(_clock, "ahead", lambda: None)
    monkeypatch.setattr(_host, "boot_id", lambda: "now")
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    (tmp_path / "web.state").touch()
    journal = {"state": "saved", "was_running": True, "unit": "web.service", "times": {"paused": 1.0}}

    def load(goes_on):
        monkeypatch.setattr(_qemu, "go_on", goes_on)
        with pytest.raises(Ended) as ended:
            _qemu_run._load("web", journal, 5, 77, {})
        return ended.value.args[0], killed, sorted(path.name for path in tmp_path.iterdir())

    return load


def test_a_guest_that_runs_again_is_no_longer_saved(loads):
    assert loads(lambda _monitor: True) == (0, [], ["web.json", "web.resumed"])


def test_a_guest_that_did_not_get_to_run_can_be_brought_back_once_more(loads):
    assert loads(lambda _monitor: False) == (1, [(77, 9)], ["web.late", "web.state"])


def test_a_guest_that_may_have_run_is_neither_ended_nor_brought_back_once_more(loads):
    def silent(_monitor):
        raise LiveUpdateError("no answer")

    assert loads(silent) == (1, [], ["web.late", "web.resumed", "web.state"])
