# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away, _hold, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.modules import guest_away

THERE = "qemu+ssh://hv2/system"
COMMON = {"guests": None, "names": None, "migrate_uri": None, "back_uri": None, "timeouts": {}}


class Provider:
    """Guests that leave and come back at a word."""

    def __init__(self):
        self.records = {
            name: {"name": name, "provider": "libvirt", "uuid": "u", "unit": f"hold@{name}", "pid": 7, "started": 70}
            for name in ("app", "db")
        }
        self.here, self.problems, self.faults, self.lost, self.limits, self.unsettled = ["app", "db"], {}, {}, "", [], False
        self.on_sleep, self.now, self.stayed, self.not_gone = lambda: None, 1000.0, [], ""

    def known(self):
        return {name: dict(self.records[name]) for name in self.here}

    def about(self, record):
        return {"bytes": 1 << 20, "was_running": True, "autostart": False}

    def obstacles(self, away):
        return self.problems.get(away["guest"], [])

    def limit_s(self, away):
        return 77.0

    def leave(self, away, limit):
        assert _away.read(away["guest"])["state"] == "leaving"  # on record before anything happens to the guest
        self.limits.append(limit)
        self._fail(away["guest"])
        self.here.remove(away["guest"])

    def settle(self, away):
        if self.not_gone:
            raise LiveUpdateError(self.not_gone)

    def stay(self, away):
        self.stayed.append(away["guest"])

    def is_back(self, away):
        return away["guest"] in self.here

    def come_back(self, away, limit):
        self.limits.append(limit)
        self._fail(away["guest"])
        self.here.append(away["guest"])
        return self.lost

    def _fail(self, name):
        with pytest.raises(LiveUpdateError, match="another live update operation"), _lock.Lock():
            pass
        if name in self.faults:
            raise LiveUpdateError(self.faults[name], **({"settled": False} if self.unsettled else {}))

    def sleep(self, seconds):
        self.now += seconds
        self.on_sleep()


@pytest.fixture(name="guest")
def a_guest(tmp_path, monkeypatch):
    provider = Provider()
    monkeypatch.setattr(_files, "AWAY", str(tmp_path / "away"))
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_providers, "known", provider.known)
    monkeypatch.setattr(_hold, "held_each", lambda records: {})
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "b1")
    monkeypatch.setattr(_providers, "of", lambda record: {"libvirt": SimpleNamespace(away=provider)}[record["provider"]])
    clock = SimpleNamespace(time=lambda: provider.now, monotonic=lambda: provider.now, sleep=provider.sleep)
    monkeypatch.setattr(guest_away, "time", clock)
    monkeypatch.setattr(_away, "time", clock)
    return provider


def run(state, check_mode=False, **params):
    return guest_away.manage(SimpleNamespace(params={**COMMON, "state": state, **params}, check_mode=check_mode))


def away(way, *names, check_mode=False, destination=None, back=True, **params):
    guests = [{"name": name, "way": way, "destination": destination, "back": back} for name in names or ["app"]]
    return run("away", check_mode, guests=guests, **params)


def fails(call, *words, **params):
    with pytest.raises(LiveUpdateError) as failure:
        call(*words, **params)
    return failure.value


def only(done):
    (guest,) = done["guests"]
    return guest


@pytest.mark.parametrize(
    ("way", "where", "told"), [("save", "saved", "saved to disk"), ("shutdown", "shut down", "shut down"), ("migrate", "migrated", THERE)]
)
def test_there_and_back(guest, way, where, told):
    predicted = away(way, destination=THERE, check_mode=True)
    assert guest.here == ["app", "db"] and not _away.records()
    done = away(way, destination=THERE)
    assert done == predicted
    assert only(done) == {"name": "app", "changed": True, "failed": False, "left": where, "where": where, "msg": done["msg"]}
    assert told in done["msg"] and done["diff"] == {"before": {"app": "here"}, "after": {"app": where}}
    assert _away.read("app")["state"] == "away" and _away.read("app")["boot_id"] == "b1"
    again = away(way, destination=THERE)
    assert not again["changed"] and only(again)["where"] == where and "already" in again["msg"]
    predicted = run("back", check_mode=True)
    assert guest.here == ["db"] and _away.records()
    done = run("back")
    assert done == predicted
    assert (done["changed"], only(done)["left"], only(done)["where"]) == (True, where, "here")
    assert done["msg"] == f"guest app is back, it was {where}"
    assert "app" in guest.here and not _away.records()
    again = run("back", names=["app"])
    assert not again["changed"] and only(again)["left"] == "" and only(again)["where"] == "here"
    assert run("back") == {"changed": False, "guests": [], "msg": "", "diff": {"before": {}, "after": {}}}


def test_several_leave_and_all_come_back(guest):
    done = away("save", "app", "db", timeouts={"save": 5, "shutdown": 6})
    assert [each["where"] for each in done["guests"]] == ["saved", "saved"] and guest.limits == [5, 5] and guest.here == []
    assert only(run("back", names=["db"]))["name"] == "db" and guest.here == ["db"]
    assert only(run("back", timeouts={"save": 0}))["name"] == "app" and guest.limits == [5, 5, 77.0, 77.0]


def test_a_guest_that_does_not_leave_keeps_those_behind_it_here_and_those_before_it_on_record(guest):
    guest.records["web"], guest.here = {**guest.records["app"], "name": "web"}, ["app", "db", "web"]
    guest.faults = {"db": "guest db: cancelled"}
    err = fails(away, "save", "app", "db", "web")
    assert err.message == "guest db: cancelled" and err.details["changed"] is True
    assert [(each["name"], each["failed"], each["where"]) for each in err.details["guests"]] == [
        ("app", False, "saved"),
        ("db", True, ""),
        ("web", False, "here"),
    ]
    assert guest.here == ["db", "web"] and [record["guest"] for record in _away.records()] == ["app"]


def test_a_guest_that_cannot_be_brought_back_keeps_no_other_away(guest):
    away("save", "app", "db")
    guest.faults = {"app": "guest app: no such bridge"}
    err = fails(run, "back")
    assert err.message == "guest app: no such bridge" and guest.here == ["db"]
    assert [(each["name"], each["failed"], each["left"], each["where"]) for each in err.details["guests"]] == [
        ("app", True, "saved", "saved"),
        ("db", False, "saved", "here"),
    ]
    assert [record["guest"] for record in _away.records()] == ["app"] and guest.limits[2:] == [77.0, 77.0]


def test_a_guest_that_is_back_by_itself_only_loses_its_record(guest):
    away("save")
    guest.here.append("app")
    found = only(run("back"))
    assert (found["changed"], found["left"], found["where"]) == (False, "saved", "here")
    assert not _away.records() and len(guest.limits) == 1


def test_what_was_lost_on_the_way_is_told(guest):
    away("save")
    guest.lost = "its saved state was gone, it started clean"
    assert run("back")["msg"] == "guest app is back; its saved state was gone, it started clean"


def test_who_moved_for_good_stays_there(guest):
    away("migrate", destination=THERE, back=False)
    found = only(run("back"))
    assert not found["changed"] and guest.here == ["db"] and not _away.records()
    assert (found["left"], found["where"]) == ("migrated", "migrated") and found["msg"] == f"guest app has moved to {THERE} and stays there"


def test_a_guest_that_runs_on_after_a_failure_never_left(guest):
    guest.faults = {"app": "guest app: refused"}
    assert fails(away, "save", timeouts={"save": 5}).message == "guest app: refused"
    assert not _away.records() and guest.limits == [5]


def test_a_guest_that_is_gone_after_a_failure_can_be_brought_back(guest):
    """Saved at the very limit, or migrated but not set to start with its host there."""

    def leave(_away_record, _limit):
        guest.here.remove("app")
        raise LiveUpdateError("no answer within 77 s")

    guest.leave = leave
    assert "no answer" in fails(away, "save").message
    assert _away.read("app")["state"] == "leaving"
    assert not away("save", check_mode=True)["changed"] and _away.read("app")["state"] == "leaving"
    guest.not_gone = "guest app does not run, and its saved state is incomplete"
    assert fails(away, "save").message == guest.not_gone and _away.read("app")["state"] == "leaving"
    guest.not_gone = ""
    assert not away("save")["changed"] and _away.read("app")["state"] == "away"
    assert only(run("back"))["where"] == "here" and "app" in guest.here


@pytest.fixture(name="slow")
def a_guest_that_is_slow_to_shut_down(guest):
    guest.faults, guest.unsettled = {"app": "guest app: still running 77 s after it was asked to shut down"}, True
    assert "still running" in fails(away, "shutdown").message
    assert _away.read("app")["state"] == "leaving" and "app" in guest.here  # the order to shut down stands
    guest.faults = {}
    return guest


def test_a_guest_that_shuts_down_after_its_limit_is_started_again(slow):
    slow.on_sleep = lambda: slow.now == 1040.0 and slow.here.remove("app")
    found = only(run("back"))
    assert (found["left"], found["where"], found["msg"]) == ("shut down", "here", "guest app is back, it was shut down")
    assert "app" in slow.here and not _away.records()


def test_a_guest_that_may_yet_go_off_stays_on_record(slow):
    predicted = run("back", check_mode=True)
    assert not slow.stayed
    found = run("back")
    assert slow.stayed == ["app"]  # however it was asked to leave, it is as before
    assert found == predicted and not found["changed"] and "may still end it" in found["msg"]
    assert (only(found)["left"], only(found)["where"]) == ("", "here") and slow.now == pytest.approx(1078, abs=1)
    assert _away.read("app")["state"] == "leaving"
    slow.here.remove("app")  # between two runs
    assert only(run("back"))["msg"] == "guest app is back, it was shut down" and "app" in slow.here and not _away.records()


def test_a_guest_that_came_back_while_its_run_was_killed_is_as_before_its_departure(guest):
    """For example its autostart setting is missing."""
    away("migrate", destination=THERE)
    guest.here.append("app")
    run("back", check_mode=True)
    assert not guest.stayed
    run("back")
    assert guest.stayed == ["app"] and not _away.records()


@pytest.mark.parametrize("over", ["time", "boot", "process"])
def test_a_guest_that_runs_on_for_long_stays(slow, monkeypatch, over):
    """So does one whose QEMU or host was started anew: it was never asked."""
    if over == "time":
        slow.now += 77 + _away.ORDER_S
    elif over == "boot":
        monkeypatch.setattr(_this_boot, "boot_id", lambda: "b2")
    else:
        slow.records["app"]["started"] += 1
    before = slow.now
    found = only(run("back"))
    assert (found["where"], found["msg"]) == ("here", "guest app runs here, it did not leave") and slow.now == before
    assert not _away.records()


def test_who_has_not_left_is_waited_for_last(slow):
    away("save", "db")
    assert [each["name"] for each in run("back")["guests"]] == ["db", "app"]


def test_an_order_that_stands_is_not_forgotten_for_a_second_one_that_fails(slow):
    slow.problems = {"app": ["no room - make some"]}
    fails(away, "save")
    assert _away.read("app")["way"] == "shutdown"
    slow.problems, slow.faults, slow.unsettled = {}, {"app": "guest app: refused"}, False
    fails(away, "save")
    assert (_away.read("app")["way"], _away.read("app")["state"]) == ("shutdown", "leaving")


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_speaks_against_it_is_said_before_anybody_leaves(guest, monkeypatch, check_mode):
    guest.problems = {"db": ["no room - make some"]}
    monkeypatch.setattr(_hold, "held_each", lambda records: {"db": {"session": "s"}})
    err = fails(away, "save", "app", "db", check_mode=check_mode)
    assert err.message == (
        "guest db: save is not possible: no room - make some; its RAM is preserved for an update"
        " - release it with kvm.liveupdate.guest, state: running"
    )
    assert [each["failed"] for each in err.details["guests"]] == [False, True]
    assert not _away.records() and guest.here == ["app", "db"]


def test_room_that_another_guest_has_taken_is_missed(guest):
    def leave(record, _limit):
        guest.here.remove(record["guest"])
        guest.problems = {"db": ["no room - make some"]}

    guest.leave = leave
    assert fails(away, "save", "app", "db").message == "guest db: save is not possible: no room - make some"
    assert guest.here == ["db"] and [record["guest"] for record in _away.records()] == ["app"]


def test_a_guest_that_is_off_has_nothing_to_come_back_to(guest):
    guest.here = ["db"]
    found = only(away("shutdown"))
    assert (found["changed"], found["left"], found["where"]) == (False, "", "off") and not _away.records()


@pytest.mark.parametrize("state", ["away", "back"])
def test_one_operation_at_a_time(guest, state):
    if state == "back":
        away("save")
    with _lock.Lock():
        assert "another live update operation" in fails(away if state == "away" else run, "save" if state == "away" else "back").message
    assert len(_away.records()) == (1 if state == "back" else 0)
