# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _away, _guests, _holding, _host, _paths, _update
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.modules import guest_away

RECORD = {"name": "app", "provider": "libvirt", "uuid": "u", "unit": "hold@app"}
THERE = "qemu+ssh://hv2/system"
DEFAULTS = {"name": "app", "way": None, "destination": None, "migrate_uri": None, "back_uri": None, "back": True, "timeout": None}


class Provider:
    """One guest, that leaves and comes back at a word."""

    def __init__(self):
        self.here, self.problems, self.fault, self.lost, self.limits = True, [], "", "", []

    def known(self):
        return {"app": RECORD} if self.here else {}

    def about(self, record):
        return {"bytes": 1 << 20, "was_running": True, "autostart": False}

    def obstacles(self, away):
        return self.problems

    def limit_s(self, away):
        return 77.0

    def leave(self, away, limit):
        assert _away.read("app")["state"] == "leaving"  # on record before anything happens to the guest
        self.limits.append(limit)
        if self.fault:
            raise LiveUpdateError(self.fault)
        self.here = False

    def is_back(self, away):
        return self.here

    def come_back(self, away, limit):
        self.limits.append(limit)
        if self.fault:
            raise LiveUpdateError(self.fault)
        self.here = True
        return self.lost


@pytest.fixture(name="guest")
def a_guest(tmp_path, monkeypatch):
    provider = Provider()
    monkeypatch.setattr(_paths, "AWAY", str(tmp_path / "away"))
    monkeypatch.setattr(_paths, "RUN", str(tmp_path))
    monkeypatch.setattr(_paths, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_guests, "known", provider.known)
    monkeypatch.setattr(_holding, "held", lambda record: {})
    monkeypatch.setattr(_host, "boot_id", lambda: "b1")
    monkeypatch.setitem(guest_away.PROVIDERS, "libvirt", provider)
    return provider


def ask(state, check_mode=False, **params):
    module = SimpleNamespace(params={**DEFAULTS, "state": state, **params}, check_mode=check_mode)
    return guest_away.send(module) if state == "away" else guest_away.bring_back(module)


@pytest.mark.parametrize(
    ("way", "where", "told"), [("save", "saved", "saved to disk"), ("shutdown", "shut down", "shut down"), ("migrate", "migrated", THERE)]
)
def test_there_and_back(guest, way, where, told):
    asked = {"way": way, "destination": THERE}
    predicted = ask("away", check_mode=True, **asked)
    assert guest.here and not _away.records()
    done = ask("away", **asked)
    assert done == predicted
    assert (done["changed"], done["left"], done["where"]) == (True, where, where) and told in done["msg"]
    assert done["diff"] == {"before": {"guest": "app", "where": "here"}, "after": {"guest": "app", "where": where}}
    assert _away.read("app")["state"] == "away" and _away.read("app")["boot_id"] == "b1"
    again = ask("away", **asked)
    assert not again["changed"] and again["where"] == where and "already" in again["msg"]
    predicted = ask("back", check_mode=True)
    assert not guest.here and _away.records()
    done = ask("back")
    assert done == predicted
    assert (done["changed"], done["left"], done["where"]) == (True, where, "here")
    assert done["msg"] == f"guest app is back, it was {where}"
    assert guest.here and not _away.records()
    again = ask("back")
    assert not again["changed"] and again["left"] == "" and again["where"] == "here"


def test_a_guest_that_is_back_by_itself_only_loses_its_record(guest):
    ask("away", way="save")
    guest.here = True
    found = ask("back")
    assert (found["changed"], found["left"], found["where"]) == (False, "saved", "here")
    assert not _away.records() and len(guest.limits) == 1


def test_what_was_lost_on_the_way_is_told(guest):
    ask("away", way="save")
    guest.lost = "its saved state was gone, it started clean"
    assert ask("back")["msg"] == "guest app is back; its saved state was gone, it started clean"


def test_who_moved_for_good_stays_there(guest):
    ask("away", way="migrate", destination=THERE, back=False)
    found = ask("back")
    assert not found["changed"] and not guest.here and not _away.records()
    assert (found["left"], found["where"]) == ("migrated", "migrated") and found["msg"] == f"guest app has moved to {THERE} and stays there"


def test_a_guest_that_runs_on_after_a_failure_never_left(guest):
    guest.fault = "still running 5 s after"
    with pytest.raises(LiveUpdateError, match="still running 5 s after"):
        ask("away", way="shutdown", timeout=5)
    assert not _away.records() and guest.limits == [5]


def test_a_guest_that_is_gone_after_a_failure_can_be_brought_back(guest):
    """Saved at the very limit, or migrated but not set to start with its host there."""

    def leave(_away_record, _limit):
        guest.here = False
        raise LiveUpdateError("no answer within 77 s")

    guest.leave = leave
    with pytest.raises(LiveUpdateError, match="no answer"):
        ask("away", way="save")
    assert _away.read("app")["state"] == "leaving"
    assert not ask("away", check_mode=True, way="save")["changed"] and _away.read("app")["state"] == "leaving"
    assert not ask("away", way="save")["changed"] and _away.read("app")["state"] == "away"
    assert ask("back")["where"] == "here" and guest.here


def test_a_guest_that_cannot_be_brought_back_stays_on_record(guest):
    ask("away", way="save")
    guest.fault = "no such bridge"
    with pytest.raises(LiveUpdateError, match="no such bridge"):
        ask("back")
    assert _away.read("app")["state"] == "away" and guest.limits == [77.0, 77.0]


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_speaks_against_it_is_said_before_anything_is_done(guest, monkeypatch, check_mode):
    guest.problems = ["no room - make some"]
    monkeypatch.setattr(_holding, "held", lambda record: {"session": "s"})
    with pytest.raises(
        LiveUpdateError, match=r"guest app cannot leave by way of save: no room - make some; its RAM is held .* state: running"
    ):
        ask("away", check_mode=check_mode, way="save")
    assert not _away.records() and guest.here


def test_a_guest_that_is_off_has_nothing_to_come_back_to(guest):
    guest.here = False
    found = ask("away", way="shutdown")
    assert (found["changed"], found["left"], found["where"]) == (False, "", "off") and not _away.records()


def test_one_operation_at_a_time(guest):
    with _update.Lock(), pytest.raises(LiveUpdateError, match="another live update operation"):
        ask("away", way="save")
    assert guest.here and not _away.records()
