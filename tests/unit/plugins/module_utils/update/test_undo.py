# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The undo of an update: which guests run on, what a process that was killed leaves, and what the operator is told."""

from __future__ import annotations

import errno
import os
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _processes, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump, _services
from made_up_host import a_login, killed, reason, undone, update


def test_an_undo_in_the_pause_looks_for_no_guests(host):
    """It has them from the last gate. A search takes time, and the guests are paused."""
    host.at["kill"] = host.calls.clear
    undone(host, update(host), "PID 1 got the request for the kexec")
    assert host.calls == []


def test_whoever_undoes_an_update_knows_which_guests_it_paused(host):
    """The process of the update may be killed while a guest is paused."""
    host.state["app"] = "paused"  # by its owner
    owed = []
    host.at["save"] = lambda: owed.extend(name for name, record in host.records.items() if _hold.owes(record))
    ended = update(host)
    assert owed == ["web"] and not _hold.owes(host.records["web"])
    assert "does not run on" not in ended["error"] and host.state["web"] == "running"
    assert sorted(host.done("release")) == ["app.service", "web.service"]


def test_an_undo_before_the_pause_leaves_guests_alone_that_started_meanwhile(host):
    def starts():
        host.records["new"], host.state["new"] = host.record("new"), "running"

    host.at["isolate"] = starts
    ended = update(host)
    undone(host, ended, "guest new runs but is not part of this update, so it would be lost")
    assert not host.done("resume") and sorted(host.done("release")) == ["app.service", "web.service"]


def test_an_undo_before_the_pause_touches_no_guest(host):
    """Its owner may migrate it just now: then it would be cut off, or be told to start a second time."""

    def leaves(_record, _running):
        host.started[0] = host.started.pop(os.getpid())
        raise LiveUpdateError("QEMU has ended", ended=True)

    host.resume = leaves
    _files.write_json(_files.state_path("web"), {"left": "by an earlier update"})
    _files.write_json(f"{_files.GUESTS_STATE}/web.json", {"state": "restored", "guest": "web"})
    reason(host)
    error = update(host)["error"]
    assert "a block job is running" in error and "has ended" not in error and "start it" not in error
    assert os.path.exists(_files.state_path("web")) and _journal.of_guest("web") == {"state": "restored", "guest": "web"}
    assert sorted(host.done("release")) == ["app.service", "web.service"]


def test_an_undo_before_the_pause_forgets_nobody_whom_an_earlier_one_left_paused(host):
    host.state["web"] = "paused"
    _files.write_json(_files.run_path("web", "paused"), _hold.process(host.records["web"]))
    reason(host)
    assert "a block job is running" in update(host)["error"]
    assert host.state["web"] == "paused" and _hold.owes(host.records["web"])


def test_a_guest_that_an_undo_could_not_let_go_on_runs_after_the_next_update(host, monkeypatch):
    """It stands still by our doing, and is not taken for its owner's wish."""

    def hangs(_record, _running):
        raise LiveUpdateError("no answer")

    host.state["app"] = "paused"  # by its owner
    real = host.resume
    host.resume = hangs
    ended = update(host)
    resume_it = "Correct the cause, then run 'kvm-liveupdate resume web' on the host"
    assert f"guest web is not resumed; its memory is kept. {resume_it}" in ended["error"] and "start it" not in ended["error"]
    assert host.state == {"app": "postmigrate", "web": "postmigrate"} and ended["not_back"] == ["web"]
    assert "guest app is not resumed" not in ended["error"]  # nobody may resume it but its owner
    host.state = dict.fromkeys(host.state, "paused")
    host.resume = real
    assert "end its QEMU ('systemctl stop web.service'), run 'kvm-liveupdate discard web', and start" in ended["error"]
    assert _jump._meant_to_run(host.records) == ["web"]
    real_time = _processes.guest_time
    monkeypatch.setattr(_processes, "guest_time", lambda pid: 9)  # it ran, and its owner paused it again
    assert _jump._meant_to_run(host.records) == [] and not _hold.owes(host.records["web"])
    monkeypatch.setattr(_processes, "guest_time", real_time)
    assert _hold.owes(host.records["web"]) and not _hold.owes({**host.records["web"], "started": 2})
    assert os.path.exists(_files.state_path("web"))
    _hold.let_go_on(host.records["web"], True)
    assert not os.path.exists(_files.state_path("web"))  # libvirt's hook would refuse every start for it
    assert host.state["web"] == "running" and not _hold.owes(host.records["web"])


def test_a_guest_that_cannot_run_on_keeps_its_memory_and_its_state(tmp_path, monkeypatch):
    """A domain that is saved has its RAM in the session and in its holder only."""
    released, late = [], []

    class Provider:
        @staticmethod
        def resume(record, running):
            assert running
            if record["name"] != "db":
                raise LiveUpdateError("no bridge br0")

        @staticmethod
        def status(record):
            return "paused" if record["name"] == "app" else "running"

    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_providers, "of", lambda record: Provider)
    monkeypatch.setattr(_hold, "release", lambda record: released.append(record["name"]))
    monkeypatch.setattr(_early, "start_early", lambda unit, wanted: wanted or late.append(unit))
    monkeypatch.setattr(_kexec, "unload", lambda: None)
    monkeypatch.setattr(_services, "start_again", lambda units, since, notes, guests: None)
    monkeypatch.setattr(_services, "_MANAGER", str(tmp_path / "none"))
    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome.json"))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    for name in ("app", "db", "web"):  # web runs on although not all of its save could be undone
        (tmp_path / f"{name}.state").touch()
        (tmp_path / f"{name}.json").write_text("{}")
    process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    records = {name: {"name": name, "unit": f"{name}.service", "provider": "qemu", **process} for name in ("app", "db", "web")}
    early = ["app.service", "db.service", "gone.service"]  # the last one's guest ended meanwhile
    _jump._abort(
        {"id": "u", "times": {}, "guests": list(records), "records": records, "running": list(records), "early": early},
        "db cannot be saved",
    )
    assert released == ["db", "web"] and late == early
    assert (tmp_path / "app.state").exists() and not (tmp_path / "db.state").exists() and not (tmp_path / "web.state").exists()
    assert not (tmp_path / "app.json").exists()
    error = _files.read_json(_files.UPDATE)["error"]
    assert (
        "db cannot be saved" in error
        and "the undo could not end the save of guest web: no bridge br0" in error
        and "guest web is not resumed" not in error
        and "'kvm-liveupdate discard app'" in error
    )


def test_a_guest_that_cannot_be_asked_is_told_as_one_that_does_not_run_on(host):
    def hangs(_record, *_running):
        raise LiveUpdateError("no answer")

    host.at["kill"] = lambda: setattr(host, "status", hangs)
    host.resume = hangs
    error = update(host)["error"]
    assert "guest app is not resumed" in error and "guest web is not resumed" in error
    assert not host.done("release") and os.path.exists(_files.state_path("web"))


def test_a_guest_that_runs_after_all_is_no_failure_to_it(host):
    """QEMU let it go on, and its answer came too late."""

    def late(record, _running):
        host.state[record["name"]] = "running"
        raise LiveUpdateError("no answer in time")

    host.resume = late
    error = update(host)["error"]
    assert "is not resumed" not in error and sorted(host.done("release")) == ["app.service", "web.service"]
    assert _journal.of_update()["not_back"] == []


def test_a_guest_that_ends_before_the_pause_is_no_failed_undo(host):
    """Nothing of it is kept."""

    def ends():
        del host.records["web"], host.state["web"]

    host.at["isolate"] = ends
    ended = update(host)
    undone(host, ended, "guest web no longer runs; run the update again")
    assert ended["error"].count("run the update again") == 1
    assert "is not resumed" not in ended["error"] and not host.done("resume")
    assert sorted(host.done("release")) == ["app.service", "web.service"]  # its memory would stay taken until a reboot
    assert not os.path.exists(_files.run_path("web", "held"))
    services_started = host.did.index(("start", "default.target"))
    assert host.did.index(("release", "web.service")) > services_started  # 'systemctl clean' needs D-Bus, which isolation stops


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("image_stays", [True, False])
def test_the_state_of_a_guest_stays_as_long_as_its_saved_image(host, image_stays, lives):
    """The image lacks the RAM. Libvirt's hook refuses to start the domain from it while the state is there."""

    def resume(record, _running):
        host.state[record["name"]] = "running"
        if not lives and host.started.pop(os.getpid(), 0):
            host.started[0] = 1
        raise LiveUpdateError("the saved image cannot be removed", **({"image_stays": True} if image_stays else {}))

    host.resume = resume
    error = update(host)["error"]
    assert "the undo could not end the save of guest web: the saved image cannot be removed" in error and "is not resumed" not in error
    assert [os.path.exists(_files.state_path(name)) for name in ("app", "web")] == [image_stays] * 2
    assert sorted(host.done("release")) == ["app.service", "web.service"]
    ended = "the QEMU of guest web has ended during the update, and its memory with it: "
    start = "make sure that the guest runs nowhere else, then start it"
    discard = "first run 'kvm-liveupdate discard web'. Then make sure that the guest runs nowhere else, and start it"
    assert (f"{ended}{discard}" in error) is (image_stays and not lives)
    assert (f"{ended}{start}" in error) is (not image_stays and not lives)


def test_a_guest_that_ends_in_the_pause_is_told_and_its_session_given_up(host):
    def resume(record, _running):
        if host.started.pop(os.getpid(), 0):
            host.started[0] = 1
        raise LiveUpdateError(f"QEMU of {record['name']} has ended")

    host.resume = resume
    error = update(host)["error"]
    assert "the QEMU of guest web has ended during the update, and its memory with it: make sure" in error
    assert "is not resumed" not in error and sorted(host.done("release")) == ["app.service", "web.service"]
    assert not os.path.exists(_files.state_path("web"))


def test_a_guest_that_another_program_migrated_in_the_pause_is_not_resumed_later(host):
    """It runs on another host: a mark that we paused it would have the next command resume it here too."""
    real = host.resume

    def resume(record, running):
        if record["name"] == "web":
            raise LiveUpdateError("another program has migrated it", elsewhere=True)
        real(record, running)

    host.resume = resume
    ended = update(host)
    assert "the undo could not end the save of guest web: another program has migrated it" in ended["error"]
    assert "is not resumed" not in ended["error"] and ended["not_back"] == []
    assert not _hold.owes(host.records["web"]) and not os.path.exists(_files.state_path("web"))
    assert sorted(host.done("release")) == ["app.service", "web.service"]


def test_a_failure_without_words_is_named(host):
    def fails():
        raise KeyError

    host.at["isolate"] = fails
    undone(host, update(host), "KeyError(). Correct this, then run the update again")


def test_a_host_that_gets_late_in_the_pause_is_not_told_to_take_more_time(host, monkeypatch):
    monkeypatch.setattr(_jump, "_late", lambda update: bool(host.done("save")))
    goes_wrong = "the disk is gone"

    def fails():
        raise LiveUpdateError(goes_wrong)

    host.at["save", "web"] = fails
    ended = update(host)
    undone(host, ended, goes_wrong)
    assert "hypervisor_update_timeout" not in ended["error"]
    assert f"{goes_wrong}. Correct this, then run the update again" in ended["error"]


def test_an_undo_on_a_full_disk_is_done_and_told(host, monkeypatch):
    """The controller would wait to its limit, and take the host for lost."""
    real = _files.write_text

    def write(path, text, mode):
        if path.startswith(_files.GUESTS_STATE) or (path == _files.UPDATE and os.path.exists(_files.state_path("web"))):
            raise OSError(errno.ENOSPC, "No space left on device")
        if path == _files.UPDATE and host.done("resume"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text, mode)

    monkeypatch.setattr(_files, "write_text", write)
    ended = update(host)
    undone(host, ended, "No space left on device")
    told = _files.read_json(_files.OUTCOME)
    assert told == {"id": ended["id"], "state": "aborted", "error": ended["error"], "not_back": []}
    assert _files.read_json(_files.UPDATE)["state"] == "saving"
    with _lock.Lock():
        assert _files.read_json(_files.UPDATE)["state"] == "saving"  # still no room, and no failure of this operation
    host.did.clear()
    _jump.recover()
    assert host.did == []  # not undone twice


def test_an_outcome_that_run_does_not_take_is_on_the_disk(host, monkeypatch):
    real = _files.write_json

    def write(path, record):
        if path == _files.OUTCOME:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, record)

    monkeypatch.setattr(_files, "write_json", write)
    update(host)
    assert _files.read_json(_files.UPDATE)["state"] == "aborted"


@pytest.mark.parametrize("of_update", [False, True])
def test_an_end_that_the_disk_did_not_accept_is_written_by_the_next_operation(host, of_update):
    """/run does not survive a power cut."""
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": "jumping"})
    _files.write_json(_files.OUTCOME, {"id": "of an earlier update", "state": "aborted", "error": "no"})
    with _lock.Lock(of_update=of_update):
        assert _files.read_json(_files.UPDATE)["state"] == "jumping"
    _files.write_json(_files.OUTCOME, {"id": committed["id"], "state": "aborted", "error": "no room"})
    with _lock.Lock(of_update=of_update):
        assert _files.read_json(_files.UPDATE) == {**committed, "state": "aborted", "error": "no room"}
    written = os.stat(_files.UPDATE).st_ino
    with _lock.Lock(of_update=of_update):
        assert os.stat(_files.UPDATE).st_ino == written  # once


def test_a_journal_that_is_damaged_does_not_keep_the_undo_from_the_lock(host):
    with open(_files.UPDATE, "w", encoding="utf-8") as file:
        file.write("torn")
    with _lock.Lock(of_update=True):
        pass


@pytest.mark.parametrize(("state", "boot_id"), [("aborted", "b"), ("jumping", "b2"), ("saving", "b2")])
def test_what_has_ended_or_is_of_another_boot_is_not_undone(host, monkeypatch, state, boot_id):
    """After the jump it would take the journals that the guests come back from."""
    _files.write_json(_files.UPDATE, {**_jump.commit(list(host.records), [], "start"), "state": state})
    monkeypatch.setattr(_this_boot, "boot_id", lambda: boot_id)
    host.did.clear()
    _jump.recover()
    assert host.did == [] and _files.read_json(_files.UPDATE)["state"] == state


def test_an_undo_after_a_crash_waits_for_the_lock_and_needs_no_leave(host, monkeypatch):
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": "stopping"})
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "deactivating", "Job": "0"})
    with _lock.Lock(of_update=True), pytest.raises(LiveUpdateError, match="another live update operation"):
        _jump.recover()
    assert _journal.of_update()["state"] == "stopping"
    _jump.recover()
    assert _journal.of_update()["state"] == "aborted"


@pytest.mark.parametrize(("state", "waits"), [("saving", []), ("jumping", [15.0])])
def test_the_undo_of_a_process_that_was_killed_waits_for_a_kexec_that_is_under_way(host, monkeypatch, state, waits):
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": state, "records": host.records, "running": ["app"]})
    slept = []
    host.state = {"app": "postmigrate", "web": "paused"}
    host.did.clear()
    monkeypatch.setattr(_jump, "RECOVER_S", 15.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) if not host.did else None)
    _jump.recover()
    assert slept == waits and host.state == {"app": "running", "web": "paused"}
    assert f"ended in the step '{state}'" in _journal.of_update()["error"]


def test_a_process_that_is_killed_leaves_no_drop_in(host, monkeypatch):
    monkeypatch.setattr(_services, "_bound_to", lambda units: ["vms.target"])
    state = {"vms.target": "active"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"ActiveState": state.get(unit, "")} for unit in units})
    assert killed(host, "daemon-reload")["in_place"] == ["vms.target"]
    assert (host.root / "units/vms.target.d").is_dir() and list((host.root / "units/vms.target.d").iterdir())
    _jump.recover()
    assert not list((host.root / "units/vms.target.d").iterdir())


def test_a_process_that_is_killed_in_the_isolation_has_noted_what_ran(host, monkeypatch):
    """Else the undo would not know what to start again."""
    runs = ["run-u1.service", "cron.service"]
    monkeypatch.setattr(_services, "active_units", lambda types="": list(runs))
    host.at["daemon-reload"] = lambda: runs.remove("run-u1.service")  # it has ended by itself
    assert killed(host, "isolate")["units"] == ["cron.service"]


@pytest.mark.parametrize("done", [True, False])
def test_what_a_process_that_is_killed_has_ended_is_told(host, monkeypatch, done):
    a_login(host, monkeypatch)
    assert killed(host, "stop")["ended"] == ["session-3.scope"]
    if done:
        host.did.append(("stop", "session-3.scope"))
    _jump.recover()
    assert ("do not start again by themselves: session-3.scope" in _journal.of_update()["error"]) is done
