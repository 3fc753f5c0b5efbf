# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that we left paused is never taken for one that its owner paused."""

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _paused, _providers, _rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _processes, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor
from ansible_collections.kvm.liveupdate.plugins.modules import guest

RECORD = {"name": "web", "provider": "qemu", "unit": "web.service", "pid": 7, "started": 70}


class Machine:
    """A guest with a run state."""

    def __init__(self):
        self.state, self.released = "paused", []
        self.unsaved: list = []  # what speaks against its being as a save left it

    def status(self, _record):
        return self.state

    def resume(self, _record, running):
        if running:
            self.state = "running"

    def end_rehearsal(self, record, running):
        self.resume(record, running)

    def still_saved(self, records):
        assert records
        if self.unsaved == ["no answer"]:
            raise LiveUpdateError("virsh list: no answer within 30 s")
        return self.unsaved


@pytest.fixture(name="machine")
def a_paused_guest(tmp_path, monkeypatch):
    made = Machine()
    for name in ("RUN", "GUESTS_RUN", "GUESTS_STATE"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome"))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_providers, "known", lambda: {"web": RECORD})
    monkeypatch.setattr(_providers, "find", lambda name, running=None: RECORD)
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    monkeypatch.setattr(_hold, "held_each", lambda _records: {})
    monkeypatch.setattr(_hold, "release", made.released.append)
    for user in (_paused, _rehearsal, guest):
        monkeypatch.setattr(user._providers, "of", lambda _record: made)
    return made


def after_a_rehearsal(_folder):
    _files.write_json(_files.run_path("web", "rehearsal"), {"running": True, "pid": 7, "started": 70})


def after_an_undone_update(folder):
    _files.write_json(_files.run_path("web", "paused"), _hold.process(RECORD))
    (folder / "web.state").touch()


def after_a_restore(folder):
    saved = {"state": "saved", "guest": "web", "hold": "h", "boot_id": "before", "was_running": True, "unit": "web.service"}
    _files.write_json(_files.journal_path("web"), {**saved, "times": {"paused": 1.0}})
    (folder / "web.trying").touch()


def lets_go(check_mode=False):
    (done,) = guest.run_free(["web"], timeout=1, check_mode=check_mode)
    assert not done["failed"], done
    return done["changed"]


CAUSES = {"rehearsal": after_a_rehearsal, "update": after_an_undone_update, "restore": after_a_restore}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_guest_that_we_left_paused_is_a_reason_and_goes_on_when_it_is_to_run(machine, tmp_path, cause):
    CAUSES[cause](tmp_path)
    (why,) = _paused.reasons(RECORD)
    assert why["code"] == "left-paused" and "guest web was paused by" in why["message"] and "resume web" in why["remedy"]
    assert lets_go(check_mode=True) and machine.state == "paused"
    assert lets_go()
    assert machine.state == "running" and _paused.reasons(RECORD) == []
    assert not lets_go()
    assert not (tmp_path / "web.state").exists() and not (tmp_path / "web.rehearsal").exists()
    if cause == "restore":
        assert _journal.recorded("web")["state"] == "restored"


@pytest.mark.parametrize("cause", [None, *CAUSES])
def test_a_guest_that_its_owner_paused_stays_so(machine, tmp_path, cause):
    """Nothing of ours is there; or it ran since; or another QEMU runs it."""
    if cause == "rehearsal":
        _files.write_json(_files.run_path("web", "rehearsal"), {"running": False, "pid": 7, "started": 70})
    elif cause == "update":
        after_an_undone_update(tmp_path)
        _files.write_json(_files.run_path("web", "paused"), _hold.process({**RECORD, "pid": 8}))
    elif cause == "restore":
        after_a_restore(tmp_path)
        _return.went_on("web")  # and its owner paused it then
    _paused.let_go_on(RECORD)
    assert machine.state == "paused" and _paused.reasons(RECORD) == []


def test_a_guest_that_may_run_on_another_host_is_not_to_be_resumed_for_ever(machine, monkeypatch, tmp_path):
    """An undo of an older version noted no save of ours. The remedy for it must not be the command that has just refused it."""

    def resume(_record, _running):
        raise LiveUpdateError("it may run on another host", elsewhere=True)

    machine.resume = resume
    after_an_undone_update(tmp_path)
    with pytest.raises(LiveUpdateError, match="it may run on another host"):
        _paused.let_go_on(RECORD)
    assert _paused.reasons(RECORD) == []


def test_a_guest_that_runs_is_left_alone(machine, tmp_path):
    machine.state = "running"
    after_a_restore(tmp_path)
    after_an_undone_update(tmp_path)
    assert _paused.by(RECORD) == "" and _paused.let_go_on(RECORD) == ""


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_is_held_of_a_guest_that_has_ended_is_given_up(machine, monkeypatch, check_mode):
    """Its memory would stay taken. That it does not run is a failure all the same."""

    def find(name, running):
        raise LiveUpdateError(f"guest {name!r} does not run")

    monkeypatch.setattr(_providers, "known", dict)
    monkeypatch.setattr(_providers, "find", find)
    _files.write_json(_files.run_path("web", "held"), {"session": "kvm-1", "unit": "web.service"})
    (done,) = guest.run_free(["web"], timeout=1, check_mode=check_mode)
    assert done["failed"] and "does not run." in done["msg"]
    assert done["changed"] and "is released" in done["msg"]
    assert [record["unit"] for record in machine.released] == ([] if check_mode else ["web.service"])


@pytest.mark.parametrize(("provider", "on", "said"), [("qemu", True, True), ("qemu", False, False), ("libvirt", True, False)])
def test_qemu_is_told_to_put_the_ram_into_its_saves_where_it_does_not(monkeypatch, provider, on, said):
    told = []

    class Monitor:
        def __init__(self, path):
            assert path == "/run/qmp"

        def __enter__(self):
            return self

        def __exit__(self, *_exception):
            pass

        def execute(self, command):
            assert command == "query-migrate-capabilities"
            return [{"capability": "x-ignore-shared", "state": on}]

        def ignore_shared(self, state):
            told.append(state)

    monkeypatch.setattr(_monitor, "Monitor", Monitor)
    assert _paused.whole_saves({"provider": provider, "monitor": "/run/qmp"}) is said
    assert told == [False] * said


@pytest.mark.parametrize("under_way", [True, False])
def test_our_mark_does_not_outlive_the_pause(machine, tmp_path, under_way):
    """It would pass a later pause of the owner's off as ours. Only an update that is about to pause the guest needs it."""
    after_an_undone_update(tmp_path)
    state = "saving" if under_way else "aborted"
    _files.write_json(_files.UPDATE, {"id": "u", "boot_id": "now", "state": state})
    machine.state = "running"
    assert _paused.by(RECORD) == ""
    machine.state = "paused"
    assert _paused.by(RECORD) == ("update" if under_way else "")


@pytest.mark.parametrize(
    ("provider", "state", "says"),
    [
        ("qemu", "postmigrate", "resume it in its QEMU monitor (cont), and pause it again (stop)"),
        ("libvirt", "paused", "run 'virsh resume 1-2' and then 'virsh suspend 1-2'"),
    ],
)
@pytest.mark.parametrize(
    "amiss", ["", "it has run since", "it was not saved", "its save failed early", "no answer", "it is another process"]
)
def test_a_guest_that_an_undone_update_saved_while_it_was_paused_is_told_so(machine, tmp_path, monkeypatch, provider, state, says, amiss):
    """QEMU saves it once more only after it has run. Nobody migrated it."""
    ticks, record = [5], {**RECORD, "provider": provider, "uuid": "1-2"}
    monkeypatch.setattr(_processes, "guest_time", lambda pid: ticks[0])
    monkeypatch.setattr(machine, "resume", lambda _record, _running: _files.remove(str(tmp_path / "web.state")))  # as that of a domain does
    if amiss != "it was not saved":
        (tmp_path / "web.state").touch()  # a save writes it first
    machine.unsaved = [amiss] if amiss in ("its save failed early", "no answer") else []
    _hold.let_go_on(record, running=False)
    if amiss == "it has run since":
        ticks[0] = 6
    elif amiss == "it is another process":
        record = {**record, "started": 71}
    told = guest.as_it_is(record, state)
    assert (says in told) is (not amiss)
    assert ("before an update that was undone" in told) is (not amiss)
    assert ("migrated or saved by other means" in told) is (bool(amiss) and provider == "qemu")
    assert guest.as_it_is(record, "running") == "guest web runs"


def test_a_guest_that_runs_after_an_undo_has_no_mark(machine, tmp_path):
    (tmp_path / "web.state").touch()
    _hold.let_go_on(RECORD, running=True)
    assert not _hold.was_saved_paused(RECORD) and not (tmp_path / "web.state").exists()


def test_a_guest_that_has_run_since_is_its_owners(machine, monkeypatch):
    ticks = [5]
    monkeypatch.setattr(_processes, "guest_time", lambda pid: ticks[0])
    _hold.note_left_paused(RECORD)
    assert _paused.by(RECORD) == "update"
    ticks[0] = 6
    assert _paused.by(RECORD) == ""


def test_a_guest_that_is_seen_to_run_has_no_mark_of_a_pause_or_a_save(machine, tmp_path):
    """Without KVM the marks do not show that it has run."""
    _hold.note_left_paused(RECORD)
    (tmp_path / "web.written").touch()
    machine.state = "running"
    assert _paused.by(RECORD) == "" and not list(tmp_path.iterdir())
