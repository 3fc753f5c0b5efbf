# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers, _rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _systemd


class Provider:
    """A guest that is paused by its rehearsal, which fails where told so."""

    def __init__(self, failure=""):
        self.failure = failure
        self.state = "running"
        self.locked = False
        self.ended = []

    def status(self, record):
        return self.state

    def rehearse(self, record):
        self.state = "paused"
        with pytest.raises(LiveUpdateError, match="another live update operation runs"):
            _lock.Lock().__enter__()
        self.locked = True
        if self.failure:
            raise LiveUpdateError(self.failure)
        return 0.0

    def end_rehearsal(self, record, running):
        self.ended.append(record["name"])
        self.state = "running" if running else "paused"


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    said = []
    for name in ("RUN", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    record = {"name": "web", "provider": "qemu", "pid": 7, "started": 70}
    monkeypatch.setattr(_providers, "find", lambda name: record)
    monkeypatch.setattr(_providers, "known", lambda: {"web": record})
    monkeypatch.setattr(_systemd, "notify", said.append)

    def of(provider):
        monkeypatch.setattr(_providers, "of", lambda record: provider)
        return said

    return of


def test_the_host_is_locked_while_the_guest_stands_still(host):
    provider = Provider()
    assert host(provider) == []
    _rehearsal.run("web")
    assert provider.locked and provider.state == "running"
    assert _files.read_json(_files.run_path("web", "rehearsed"))["paused_s"] > 0
    with _lock.Lock():
        pass


def test_the_guest_goes_on_when_its_state_does_not_load(host):
    provider = Provider("no such device")
    said = host(provider)
    with pytest.raises(LiveUpdateError, match="no such device"):
        _rehearsal.run("web")
    assert provider.state == "running" and said == ["STATUS=no such device"]
    assert not _files.read_json(_files.run_path("web", "rehearsed"))


def test_no_guest_is_touched_while_the_host_is_locked(host):
    provider = Provider()
    said = host(provider)
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        _rehearsal.run("web")
    assert provider.state == "running" and not provider.locked and "another live update operation runs" in said[0]


def test_an_answer_that_somebody_else_took_is_said(host, monkeypatch):
    host(Provider())
    monkeypatch.setattr(_commands, "run", lambda *command, timeout: "")
    with pytest.raises(LiveUpdateError, match=r"guest web: another rehearsal of it ran .* rehearse it again"):
        _rehearsal.rehearse("web")


class Hung(Provider):
    """Libvirt does not answer while the guest is to go on."""

    hung = True

    def end_rehearsal(self, record, running):
        if self.hung:
            raise LiveUpdateError("virsh: no answer within 60 s")
        super().end_rehearsal(record, running)


def test_a_guest_that_a_rehearsal_left_paused_is_not_taken_for_one_that_its_owner_paused(host):
    provider = Hung()
    host(provider)
    for attempt in (_rehearsal.run, _rehearsal.end_cut_off):  # the unit's ExecStart=, then its ExecStopPost=
        with pytest.raises(LiveUpdateError, match="guest web may still be paused: run 'kvm-liveupdate resume web'"):
            attempt("web")
    assert provider.state == "paused"
    provider.hung = False
    _rehearsal.run("web")
    assert provider.state == "running"
    assert _files.read_json(_files.run_path("web", "rehearsed"))["paused_s"] > 0
    assert not _files.read_json(_files.run_path("web", "rehearsal"))


def test_a_guest_that_was_started_again_since_is_left_as_its_owner_has_it(host):
    provider = Provider()
    host(provider)
    provider.state = "paused"
    _files.write_json(_files.run_path("web", "rehearsal"), {"running": True, "pid": 6, "started": 60})
    _rehearsal.end("web")
    assert provider.state == "paused"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("paused", r"guest web is paused; a paused guest can be saved only once, so it is not rehearsed\. Resume it, or leave it out"),
        ("postmigrate", r"guest web is postmigrate; only a running guest can be rehearsed\. Make it running, or leave it out"),
    ],
)
def test_a_guest_that_does_not_run_is_not_touched(host, state, says):
    """QEMU could not save it once more for the update."""
    provider = Provider()
    host(provider)
    provider.state = state
    with pytest.raises(LiveUpdateError, match=says):
        _rehearsal.run("web")
    assert (provider.state, provider.locked, provider.ended) == (state, False, [])
    assert not os.path.exists(_files.run_path("web", "rehearsal"))


def test_nothing_is_left_of_the_rehearsal_of_a_guest_that_has_ended(host, monkeypatch):
    """Its stand-in is a virtual machine that nobody knows: the gate would refuse the host."""
    provider = Provider()
    host(provider)

    def rehearse(record):
        monkeypatch.setattr(_providers, "known", dict)
        raise LiveUpdateError("its QEMU has ended")

    monkeypatch.setattr(provider, "rehearse", rehearse)
    with pytest.raises(LiveUpdateError, match="its QEMU has ended"):
        _rehearsal.run("web")
    assert provider.ended == ["web"] and not os.path.exists(_files.run_path("web", "rehearsal"))
    _files.write_json(_files.run_path("web", "rehearsal"), {"running": True, "pid": 7, "started": 70})
    _rehearsal.end("web")  # of an older version, which noted less
    assert not os.path.exists(_files.run_path("web", "rehearsal"))


def test_a_guest_that_another_program_migrated_in_its_rehearsal_is_not_resumed_later(host):
    """A mark would have the next operation try it again, and refuse the host."""

    class Migrated(Provider):
        def end_rehearsal(self, record, running):
            raise LiveUpdateError("it may run on another host", elsewhere=True)

    host(Migrated("no"))
    with pytest.raises(LiveUpdateError, match=r"^guest web: it may run on another host$"):
        _rehearsal.run("web")
    assert not os.path.exists(_files.run_path("web", "rehearsal"))


def test_a_rehearsal_is_not_ended_in_the_middle_of_another_operation(host, monkeypatch):
    """A jump may be saving the guest, and would save it once more paused."""
    provider = Provider()
    host(provider)
    monkeypatch.setattr(_rehearsal, "LOCK_LIMIT_S", 0)
    _rehearsal.end_cut_off("web")  # nothing to end, nothing to wait for
    _files.write_json(_files.run_path("web", "rehearsal"), {"running": True, "pid": 7, "started": 70})
    provider.state = "paused"
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation runs"):
        _rehearsal.end_cut_off("web")
    assert provider.state == "paused"
    _rehearsal.end_cut_off("web")
    assert provider.state == "running"


def test_who_asks_waits_until_the_guest_was_let_go_on(host, monkeypatch):
    limits = []
    host(Provider())
    _files.write_json(_files.run_path("web", "rehearsed"), {"paused_s": 1.0})
    monkeypatch.setattr(_files, "remove", lambda _path: True)
    monkeypatch.setattr(_commands, "run", lambda *command, timeout: limits.append(timeout))
    _rehearsal.rehearse("web")
    assert limits[0] > _rehearsal.UNIT_LIMIT_S + _rehearsal.END_LIMIT_S
