# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _lock, _paths, _rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError


class Provider:
    """A guest that is paused by its rehearsal, which fails where told so."""

    def __init__(self, failure=""):
        self.failure = failure
        self.state = "running"
        self.locked = False

    def status(self, record):
        return self.state

    def rehearse(self, record, running):
        self.state = "paused"
        with pytest.raises(LiveUpdateError, match="another live update operation is under way"):
            _lock.Lock().__enter__()
        self.locked = True
        if self.failure:
            raise LiveUpdateError(self.failure)
        return 0.0

    def end_rehearsal(self, record, running):
        self.state = "running" if running else "paused"


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    said = []
    for name in ("RUN", "GUESTS_RUN"):
        monkeypatch.setattr(_paths, name, str(tmp_path))
    monkeypatch.setattr(_paths, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_guests, "find", lambda name: {"name": name})
    monkeypatch.setattr(_rehearsal._systemd, "notify", said.append)

    def of(provider):
        monkeypatch.setattr(_rehearsal._providers, "of", lambda record: provider)
        return said

    return of


def test_the_host_is_locked_while_the_guest_stands_still(host):
    provider = Provider()
    assert host(provider) == []
    _rehearsal.run("web")
    assert provider.locked and provider.state == "running"
    assert _paths.read_json(_guests.run_path("web", "rehearsed"))["paused_s"] > 0
    with _lock.Lock():
        pass


def test_the_guest_goes_on_when_its_state_does_not_load(host):
    provider = Provider("no such device")
    said = host(provider)
    with pytest.raises(LiveUpdateError, match="no such device"):
        _rehearsal.run("web")
    assert provider.state == "running" and said == ["STATUS=no such device"]
    assert not _paths.read_json(_guests.run_path("web", "rehearsed"))


def test_no_guest_is_touched_while_the_host_is_locked(host):
    provider = Provider()
    said = host(provider)
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="under way"):
        _rehearsal.run("web")
    assert provider.state == "running" and not provider.locked and "under way" in said[0]


def test_an_answer_that_somebody_else_took_is_said(host, monkeypatch):
    host(Provider())
    monkeypatch.setattr(_rehearsal._systemd, "run", lambda *command, timeout: "")
    with pytest.raises(LiveUpdateError, match=r"guest web: somebody else had it rehearsed .* rehearse it again"):
        _rehearsal.rehearse("web")
