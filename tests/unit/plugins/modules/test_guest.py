# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, reason
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.modules import guest
from made_up_clock import Clock

SAVED = {"state": "saved", "unit": "db.service"}
RESTORED = {"state": "restored", "unit": "db.service"}


class Host:
    """Guests that are held and let go of at a word, and what was asked of the host to do so."""

    def __init__(self, names):
        who = {"provider": "qemu", "pid": 7, "started": 1, "ram": [{"size": 64 << 20}]}
        self.running = {name: {"name": name, "uuid": f"{name}-1", **who} for name in names}
        self.states = dict.fromkeys(names, "running")
        self.journals, self.reasons, self.faults = {}, {}, {}
        self.held, self.calls = set(), []

    def known(self):
        self.calls.append("known")
        return dict(self.running)

    def survey(self, records):
        self.calls.append(("survey", *(record["name"] for record in records)))

    def inspect(self, record):
        return self.reasons.get(record["name"], [])

    def held_each(self, records):
        self.calls.append("held_each")
        return {record["name"]: {"session": "s"} for record in records if record["name"] in self.held}

    def hold_each(self, records):
        problems = {}
        for name in (record["name"] for record in records):
            try:
                self._act("hold", name)
                self.held.add(name)
            except LiveUpdateError as err:
                problems[name] = err
        return {name: {} for name in self.held}, problems

    def release(self, record):
        self._act("release", record["name"])
        self.held.discard(record["name"])

    def status(self, record):
        return self.states[record["name"]]

    def resume(self, record, running):
        self.calls.append(("resume", record["name"], running))

    def _act(self, what, name):
        with pytest.raises(LiveUpdateError, match="another live update operation"), _lock.Lock():
            pass
        if name in self.faults:
            raise LiveUpdateError(self.faults[name])
        self.calls.append((what, name))


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    host = Host(["web", "db", "app"])
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    for name in ("GUESTS_RUN", "GUESTS_STATE"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_providers, "known", host.known)
    for name in ("survey", "inspect"):
        monkeypatch.setattr(_reasons, name, getattr(host, name))
    monkeypatch.setattr(_journal, "of_guest", lambda name: host.journals.get(name, {}))
    for name in ("held_each", "hold_each", "release"):
        monkeypatch.setattr(_hold, name, getattr(host, name))
    monkeypatch.setattr(_providers, "of", lambda record: host)
    host.clock = Clock(monkeypatch, guest)
    return host


def ask(state, *names, check_mode=False, timeout=120):
    return guest.manage(SimpleNamespace(params={"names": list(names), "state": state, "timeout": timeout}, check_mode=check_mode))


def fails(state, *names, **words):
    with pytest.raises(LiveUpdateError) as failure:
        ask(state, *names, **words)
    return failure.value


def test_held_and_let_go_of_as_predicted(host):
    predicted = ask("preserved", "web", "db", check_mode=True)
    assert not host.held
    done = ask("preserved", "web", "db", "web")
    assert done == predicted and host.held == {"web", "db"}
    assert [(each["name"], each["changed"], each["session"]) for each in done["guests"]] == [
        ("web", True, "kvm-web1"),
        ("db", True, "kvm-db1"),
    ]
    assert done["msg"] == (
        "guest web: its 64 MiB of RAM are preserved in session kvm-web1; guest db: its 64 MiB of RAM are preserved in session kvm-db1"
    )
    assert done["diff"] == {"before": {"web": "running", "db": "running"}, "after": {"web": "preserved", "db": "preserved"}}
    some = ask("preserved", "web", "app")
    assert [each["changed"] for each in some["guests"]] == [False, True] and host.held == {"web", "db", "app"}
    host.held.discard("app")
    again = ask("preserved", "web", "db")
    assert not again["changed"] and again["guests"][0]["session"] == "kvm-web1" and "are already preserved" in again["msg"]
    predicted = ask("running", "web", "db", "app", check_mode=True)
    assert host.held == {"web", "db"}
    done = ask("running", "web", "db", "app")
    assert done == predicted and not host.held
    assert [(each["name"], each["changed"], each["session"]) for each in done["guests"]] == [
        ("web", True, ""),
        ("db", True, ""),
        ("app", False, ""),
    ]
    assert done["diff"]["before"] == {"web": "preserved", "db": "preserved", "app": "running"}
    assert not ask("running", "web", "db", "app")["changed"]


def test_the_host_is_asked_once_for_all_guests(host):
    ask("preserved", "web", "db", "app")
    assert [call for call in host.calls if call[0] != "hold"] == ["known", ("survey", "web", "db", "app"), "held_each"]
    host.calls.clear()
    ask("running", "web", "db", "app")
    assert [call for call in host.calls if call[0] not in ("resume", "release")] == ["known", "held_each"]


def test_a_guest_with_a_reason_is_refused_before_any_is_held(host):
    why = reason("qemu-replaced", "QEMU was replaced", "restart the guest")
    host.reasons = {"db": [why], "app": [why]}
    for check_mode in (True, False):
        err = fails("preserved", "web", "db", "app", check_mode=check_mode)
        assert err.message == (
            "guest db cannot be preserved: QEMU was replaced - restart the guest;"
            " guest app cannot be preserved: QEMU was replaced - restart the guest"
        )
        assert [(each["name"], each["failed"], each["reasons"]) for each in err.details["guests"]] == [
            ("web", False, []),
            ("db", True, [why]),
            ("app", True, [why]),
        ]
        assert not host.held and err.details["changed"] is False


def test_what_came_up_after_the_hold_is_a_reason_too(host):
    """An upgrade of QEMU, or a job that somebody started."""
    ask("preserved", "web")
    host.reasons = {"web": [reason("qemu-replaced", "QEMU was replaced", "restart the guest")]}
    assert "QEMU was replaced" in fails("preserved", "web").message


def test_a_guest_that_does_not_run_is_named_beside_the_others(host):
    del host.running["db"]
    err = fails("preserved", "web", "db", "nobody")
    assert "guest 'db' does not run on this host. The running guests are: web, app" in err.message and "guest 'nobody'" in err.message
    assert not host.held


def test_a_hold_that_fails_is_told_and_the_others_stay_held(host):
    host.faults = {"web": "guest web: EBUSY", "app": "guest app: out of memory"}
    err = fails("preserved", "web", "db", "app")
    assert err.message == "guest web: EBUSY; guest app: out of memory"
    assert [(each["name"], each["failed"], each["changed"]) for each in err.details["guests"]] == [
        ("web", True, False),
        ("db", False, True),
        ("app", True, False),
    ]
    assert host.held == {"db"} and err.details["changed"] is True


def test_a_release_that_fails_keeps_no_other_guest_held(host):
    ask("preserved", "web", "db", "app")
    host.faults = {"web": "guest web: no answer"}
    err = fails("running", "web", "db", "app")
    assert err.message == "guest web: no answer" and host.held == {"web"}


@pytest.mark.parametrize("state", ["preserved", "running"])
def test_nothing_is_done_while_another_operation_is_under_way(host, state):
    host.held = {"web"} if state == "running" else set()
    before = set(host.held)
    with _lock.Lock():
        assert "another live update operation" in fails(state, "web").message
    assert host.held == before


def test_a_guest_whose_undo_was_cut_off_runs_on(host):
    host.states["db"] = "postmigrate"
    _files.write_json(_files.run_path("db", "paused"), {"pid": 7, "started": 1})
    done = ask("running", "web", "db")
    assert [each["changed"] for each in done["guests"]] == [False, True]
    assert ("resume", "db", True) in host.calls and ("resume", "web", True) not in host.calls


def test_guests_are_waited_for_together_and_only_their_journals_are_looked_at(host):
    """Its QEMU runs before its state is loaded: the journal says when it is back."""
    host.journals = {"db": SAVED, "app": {**SAVED, "unit": "app.service"}}
    host.clock.at = {3: lambda: host.journals.update(app=RESTORED), 5: lambda: host.journals.update(db=RESTORED)}
    done = ask("running", "web", "db", "app")
    assert len(host.clock.slept) == 5 and host.calls.count("known") == 1
    assert not done["changed"] and [each["last_update"] for each in done["guests"]] == [{}, RESTORED, RESTORED]


def test_a_guest_that_starts_clean_is_waited_for(host):
    record = host.running.pop("db")
    host.journals = {"db": {"state": "lost", "unit": "db.service"}}
    host.clock.at = {2: lambda: host.running.update(db=record)}
    assert ask("running", "db")["guests"][0]["last_update"]["state"] == "lost" and len(host.clock.slept) == 2


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("state", ["postmigrate", "paused"])
def test_a_guest_that_its_owner_migrated_away_or_paused_is_let_alone(host, held, state):
    """QEMU stays in postmigrate at the source: it would run twice, on the same disks."""
    host.states["db"] = state
    host.held = {"db"} if held else set()
    for check_mode in (True, False):
        done = ask("running", "db", check_mode=check_mode)
        told = f"guest db is {'in state ' if state == 'postmigrate' else ''}{state}, and no update "
        assert done["changed"] is held and done["msg"].startswith(told) and "is not resumed" in done["msg"]
    assert ("resume", "db", True) not in host.calls and not host.held


def test_a_guest_that_is_back_and_went_off_has_nothing_to_wait_for(host):
    host.journals = {"db": RESTORED}
    del host.running["db"]
    assert "the update recorded it as restored, and its QEMU does not run;" in fails("running", "db", timeout=0).message


@pytest.mark.parametrize("runs", [True, False])
def test_who_is_back_in_time_is_told_beside_who_is_not(host, runs):
    """A restart would end a QEMU that loads, or has gone on already."""
    host.journals = {"web": RESTORED, "db": SAVED}
    if not runs:
        del host.running["db"]
    err = fails("running", "web", "db", timeout=0)
    assert err.message.startswith(f"guest db: not restored within 0 s: its QEMU {'runs' if runs else 'does not run'}")
    assert "'journalctl -b -u db.service' shows why" in err.message and "run 'systemctl start db.service'" in err.message
    assert "systemctl restart" not in err.message and ("Do not restart or stop db.service. Wait" in err.message) is runs
    web, db = err.details["guests"]
    assert (web["failed"], web["last_update"]) == (False, RESTORED)
    assert (db["failed"], db["last_update"]) == (True, SAVED)


def test_a_guest_whose_memory_differs_is_told_with_the_place_and_what_to_do(host):
    host.journals = {"db": {**SAVED, "memory_wrong": "1 of 2 places that were read differ: file 1"}}
    del host.running["db"]
    told = fails("running", "db", timeout=0).message
    assert "its preserved memory is not the same as before the jump: 1 of 2 places that were read differ: file 1. It is not started" in told
    assert "'kvm-liveupdate discard db' on the host, then start it" in told and "systemctl start" not in told


def test_a_guest_that_was_never_updated_and_does_not_run_is_not_waited_for(host):
    del host.running["db"]
    assert "guest 'db' does not run on this host" in fails("running", "db").message and not host.clock.slept


def test_a_monitor_that_does_not_answer_keeps_no_other_guest_held(host):
    host.held = {"web", "db"}

    def status(record):
        if record["name"] == "db":
            raise LiveUpdateError("monitor /run/db.qmp: no answer")
        return "running"

    host.status = status
    assert fails("running", "web", "db").message == "guest db: monitor /run/db.qmp: no answer"
    assert host.held == {"db"}


def test_no_guest_at_all(host):
    for state in ("preserved", "running"):
        assert ask(state) == {"changed": False, "guests": [], "msg": "", "diff": {"before": {}, "after": {}}}
    assert "one name is empty" in fails("running", "web", "").message


@pytest.mark.parametrize(
    ("state", "ours", "goes_on"),
    [("paused", True, True), ("paused", False, None), ("postmigrate", True, True), ("postmigrate", False, None), ("running", True, None)],
)
def test_a_guest_that_only_our_undo_left_paused_runs_on(host, monkeypatch, state, ours, goes_on):
    host.states["web"] = state
    if ours:
        _files.write_json(_files.run_path("web", "paused"), {"pid": 7, "started": 1})
    assert ask("running", "web", check_mode=True)["changed"] is bool(goes_on)
    assert ("resume", "web", True) not in host.calls
    assert ask("running", "web")["changed"] is bool(goes_on)
    assert (("resume", "web", True) in host.calls) is bool(goes_on)
    assert not goes_on or not _hold.owes(host.running["web"])


def test_a_guest_that_is_held_already_is_not_held_again(host):
    """A new hold would release its memory first."""
    ask("preserved", "web")
    host.calls.clear()
    ask("preserved", "web", "app")
    assert [call for call in host.calls if call[0] == "hold"] == [("hold", "app")]


def test_where_nothing_is_to_be_done_a_running_operation_is_not_in_the_way(host):
    ask("preserved", "web")
    with _lock.Lock():
        assert ask("preserved", "web")["msg"].startswith("guest web: its 64 MiB of RAM are already preserved")
        assert ask("running", "db")["msg"] == "guest db runs"


def test_the_wait_ends_at_its_limit(host):
    host.journals = {"db": SAVED}
    assert fails("running", "db", timeout=60).message.startswith("guest db: not restored within 60 s: its QEMU runs")
    assert 60 < host.clock.now <= 61


def test_a_guest_that_still_loads_is_neither_resumed_nor_loses_its_memory(host):
    host.journals, host.held = {"db": SAVED}, {"db"}
    host.states["db"] = "inmigrate"
    fails("running", "db", "web", timeout=0)
    assert host.held == {"db"} and not [call for call in host.calls if call[0] in ("resume", "release")]


def memory_on_record(name):
    """A hold of this boot, as it stays on record when the guest ends."""
    _files.write_json(_files.run_path(name, "held"), {"unit": f"{name}.service"})


def test_the_memory_of_a_guest_that_has_ended_is_released_and_no_other(host):
    memory_on_record("web")
    memory_on_record("db")
    del host.running["db"], host.running["app"]
    for check_mode in (True, False):
        err = fails("running", "web", "db", "app", check_mode=check_mode)
        web, db, app = err.details["guests"]
        assert (web["msg"], web["changed"], web["failed"]) == ("guest web runs", False, False)
        assert db["msg"].startswith("guest 'db' does not run on this host")
        assert db["msg"].endswith(". The memory that was preserved for it is released")
        assert (db["changed"], db["failed"]) == (True, True)
        assert "is released" not in app["msg"] and (app["changed"], app["failed"]) == (False, True)
        assert [call for call in host.calls if call[0] == "release"] == ([] if check_mode else [("release", "db")])


def test_memory_of_a_guest_that_has_ended_and_cannot_be_released_is_not_said_to_be(host):
    memory_on_record("db")
    del host.running["db"]
    host.faults = {"db": "guest db: systemd does not answer"}
    err = fails("running", "db")
    assert err.message == "guest db: systemd does not answer" and err.details["changed"] is False


def cut_off(host, name):
    """A restore whose process was killed while it resumed the guest: only QEMU knows whether the guest runs."""
    saved = {"state": "saved", "unit": f"{name}.service", "guest": name, "hold": "h", "boot_id": "earlier", "was_running": True}
    host.journals = {name: saved}
    _journal.record_guest(saved)
    _files.write_json(_files.run_path(name, "trying"), {})


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_guest_whose_restore_was_cut_off_right_after_the_resume_is_back(host, monkeypatch, state):
    """Its saved state is older than its memory now, so it must not be loaded again."""
    monkeypatch.setattr(_early, "start_early", lambda *_given: None)
    cut_off(host, "db")
    host.states["db"] = state
    predicted = ask("running", "db", timeout=0, check_mode=True)
    assert _journal.recorded("db")["state"] == "saved" and ("resume", "db", True) not in host.calls
    done = ask("running", "db", timeout=0)
    assert done == predicted
    assert done["msg"] == ("guest db runs" if state == "running" else "guest db runs, and its RAM is no longer preserved")
    assert (("resume", "db", True) in host.calls) is (state == "paused")
    assert _journal.recorded("db")["state"] == "restored"


@pytest.mark.parametrize(("state", "tried"), [("inmigrate", True), ("no answer", True), ("running", False)])
def test_a_guest_of_which_nobody_knows_that_it_runs_is_not_taken_for_restored(host, state, tried):
    """QEMU says running or paused also before it has loaded the state: only after a try to resume the guest that means something."""
    cut_off(host, "db")
    if not tried:
        _files.remove(_files.run_path("db", "trying"))

    def status(_record):
        if state == "no answer":
            raise LiveUpdateError("monitor /run/db.qmp: no answer")
        return state

    host.status = status
    told = fails("running", "db", timeout=0).message
    assert told.startswith("guest db: not restored within 0 s: its QEMU runs, but may still load the saved state")
    assert _journal.recorded("db")["state"] == "saved" and ("resume", "db", True) not in host.calls


def test_a_fault_of_the_disk_is_told_with_its_guest_and_keeps_no_other_held(host, monkeypatch):
    host.held = {"web", "db"}

    def release(record):
        if record["name"] == "web":
            raise OSError(28, "No space left on device")
        host.release(record)

    monkeypatch.setattr(_hold, "release", release)
    assert fails("running", "web", "db").message == "guest web: [Errno 28] No space left on device" and host.held == {"web"}


def test_of_a_guest_whose_memory_was_discarded_nothing_is_said_to_be_kept_and_it_may_be_elsewhere(host):
    host.journals = {"db": {"state": "lost", "unit": "db.service", "memory_wrong": "1 of 2 places that were read differ"}}
    del host.running["db"]
    told = fails("running", "db", timeout=0).message
    assert (
        "the update recorded it as lost, and its QEMU does not run" in told and "The host does not preserve memory of it any more" in told
    )
    assert "kept" not in told and "Otherwise start it" in told
    assert "moved it to another host, run 'kvm-liveupdate discard db' on the host, then repeat the update" in told


def test_a_held_guest_that_its_owner_paused_stays_paused_and_its_save_is_undone(host):
    host.held, host.states["db"] = {"db"}, "paused"
    ask("running", "db")
    assert [call for call in host.calls if call[0] in ("resume", "release")] == [("resume", "db", False), ("release", "db")]


def test_a_guest_that_we_paused_is_resumed_once_and_said_to_run(host):
    host.states["web"] = "paused"
    _files.write_json(_files.run_path("web", "paused"), {"pid": 7, "started": 1})
    assert ask("running", "web")["msg"] == "guest web runs, and its RAM is no longer preserved"
    assert [call for call in host.calls if call[0] == "resume"] == [("resume", "web", True)]


def test_a_held_guest_that_runs_is_said_to_run(host):
    host.held = {"web"}
    assert ask("running", "web")["msg"] == "guest web runs, and its RAM is no longer preserved"


def test_the_module_takes_what_its_documentation_says(monkeypatch):
    given = {}
    monkeypatch.setattr(guest, "run_module", lambda body, argument_spec: given.update(argument_spec, body=body))
    guest.main()
    assert given.pop("body") is guest.manage
    options = yaml.safe_load(guest.DOCUMENTATION)["options"]
    assert given == {name: {key: value for key, value in option.items() if key != "description"} for name, option in options.items()}
