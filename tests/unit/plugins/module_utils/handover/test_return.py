# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A start of a guest: state is used only with the very memory that it belongs to."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _paused, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session as _handover_session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo

IDENTITY = {"hold": "h1", "guest": "web1", "uuid": "u1", "sizes": [4096]}
SAVED = {"state": "saved", "on_loss": "start", **IDENTITY}


@pytest.mark.parametrize(
    ("journal", "note", "resumed", "verdict", "why"),
    [
        ({}, None, False, "cold", "no update has saved it"),
        ({}, IDENTITY, False, "cold", "no update has saved it"),
        (SAVED, IDENTITY, False, "restore", "its memory is preserved"),
        (SAVED, IDENTITY, True, "cold", "has run since"),
        (SAVED, {**IDENTITY, "hold": "h2"}, False, "cold", "belongs to another save"),
        (SAVED, {**IDENTITY, "uuid": "u2"}, False, "refuse", "uuid 'u2', not 'u1'"),
        (SAVED, {**IDENTITY, "sizes": [4096, 4096]}, False, "refuse", "discard web1"),
        (SAVED, {**IDENTITY, "guest": "db1"}, False, "refuse", "guest 'db1', not 'web1'"),
        ({**SAVED, "qemu": [7, 1]}, {**IDENTITY, "qemu": [7, 1]}, False, "restore", "its memory is preserved"),
        ({**SAVED, "qemu": [7, 1]}, {**IDENTITY, "qemu": [7, 2]}, False, "refuse", "qemu [7, 2], not [7, 1]"),
        ({**SAVED, "qemu": [7, 1]}, IDENTITY, False, "restore", "its memory is preserved"),
        (SAVED, {}, False, "cold", "belongs to another save"),
        (SAVED, None, False, "cold", "did not survive the reboot"),
        ({**SAVED, "on_loss": "stop"}, None, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, {"hold": "h2"}, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, IDENTITY, False, "restore", "its memory is preserved"),
        ({**SAVED, "state": "restored"}, IDENTITY, False, "cold", "no update has saved it"),
        ({**SAVED, "state": "lost"}, IDENTITY, False, "cold", "no update has saved it"),
    ],
)
def test_decide(journal, note, resumed, verdict, why):
    """What may have run is never loaded once more, and never thrown away."""
    if journal.get("state") == "saved" and not resumed:
        assert _return.decide(journal, note, resumed, tried=True)[0] == "refuse"
    elif not resumed:
        assert _return.decide(journal, note, resumed, tried=True)[0] == verdict
    assert _return.decide(journal, note, resumed)[0] == verdict
    assert why in _return.decide(journal, note, resumed)[1]


@pytest.mark.parametrize(("code", "lost"), [("ENOENT", True), ("EIO", True), ("EPERM", False), ("EBUSY", False), ("EINVAL", False)])
def test_memory_that_nobody_could_look_for_is_not_taken_for_lost(monkeypatch, code, lost):
    def retrieve(_name):
        raise LiveUpdateError(f"retrieve session kvm-1: no ({code})", errno=code, verb="retrieve session")

    monkeypatch.setattr(_luo, "retrieve_session", retrieve)
    monkeypatch.setattr(_systemd, "listen_fds", dict)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    journal = {**SAVED, "boot_id": "before", "session": "kvm-1", "unit": "web1.service"}
    if lost:
        assert _handover_session.incoming(journal) is None
    else:
        how = "repeated automatically" if code == "EBUSY" else "'systemctl start web1.service' to try again"
        with pytest.raises(LiveUpdateError, match=rf"guest web1: .*\({code}\).*{how}.*Its memory is kept") as told:
            _handover_session.incoming(journal)
        assert told.value.details["again"] is (code == "EBUSY")


def test_a_restore_needs_the_same_hold_and_a_memory_that_has_not_run():
    states, holds = ("saved", "restored", "lost", None), ("h1", "h2")
    notes = (None, {}, IDENTITY, {**IDENTITY, "hold": "h2"}, {**IDENTITY, "sizes": [1]})
    for state, hold, note, resumed, loss in itertools.product(states, holds, notes, (False, True), ("start", "stop")):
        journal = {**SAVED, "state": state, "hold": hold, "on_loss": loss}
        restores = _return.decide(journal, note, resumed)[0] == "restore"
        assert restores == (state == "saved" and not resumed and note == {**IDENTITY, "hold": hold})


@pytest.fixture(name="notified")
def what_systemd_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(_systemd, "notify", lambda state, *_fds: told.append(state))
    monkeypatch.setattr(_systemd, "listen_fds", dict)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    return told


def test_a_session_is_not_asked_for_in_the_boot_that_saved_the_guest(monkeypatch, notified):
    """Its memory is on no way back there; the name may be that of the session that holds it."""
    monkeypatch.setattr(_luo, "retrieve_session", lambda _name: 7)
    journal = {**SAVED, "session": "kvm-1", "unit": "web1.service"}
    assert _handover_session.incoming({**journal, "boot_id": "now"}) is None and not notified
    assert _handover_session.incoming({**journal, "boot_id": "before"}) == 7
    assert notified == [f"FDSTORE=1\nFDPOLL=0\nFDNAME={_handover_session.FDNAME}"]
    notified.clear()
    assert _handover_session.incoming({**journal, "boot_id": "before", "state": "restored"}) is None and not notified


@pytest.mark.parametrize(("code", "note"), [("EINVAL", None), ("ENOENT", None), ("ENOMEM", LiveUpdateError)])
def test_a_session_without_a_note_is_of_no_use(monkeypatch, code, note):
    """EINVAL: of this kernel. ENOENT: finished, by a restore that was cut off right after that."""

    def retrieve(_session, _token):
        raise LiveUpdateError("no", errno=code)

    monkeypatch.setattr(_luo, "retrieve_fd", retrieve)
    if note is None:
        assert _handover_session.note(7) is None
    else:
        with pytest.raises(LiveUpdateError):
            _handover_session.note(7)


@pytest.mark.parametrize(("sizes", "fits"), [([4096, 8192], True), ([8192, 4096], False), ([4096, 4096], False)])
def test_the_size_of_every_memory_file_is_compared(monkeypatch, sizes, fits):
    came = {_handover_session.RAM_TOKEN + index: os.memfd_create("ram") for index in range(2)}
    for fd, size in zip(came.values(), sizes, strict=True):
        os.ftruncate(fd, size)
    monkeypatch.setattr(_luo, "retrieve_fd", lambda _session, token: came[token])
    journal = {**SAVED, "sizes": [4096, 8192]}
    if fits:
        assert _handover_session.take(journal, 7) == list(came.values())
    else:
        with pytest.raises(LiveUpdateError, match=r"has \[.*\] bytes, not \[4096, 8192\]\. .*'kvm-liveupdate discard web1'"):
            _handover_session.take(journal, 7)
    for fd in came.values():
        os.close(fd)


@pytest.mark.parametrize("note", [{"hold": "h1"}, None])
def test_a_session_that_came_over_is_finished_before_it_is_given_up(monkeypatch, notified, note):
    """Closing it would do for an outgoing one; of an incoming one the memory would stay taken until the last copy is closed."""
    finished = []
    monkeypatch.setattr(_luo, "finish", lambda session: finished.append(os.fstat(session) and session))
    session = os.memfd_create("session")
    _handover_session.drop(session, note)
    assert finished == ([session] if note else [])
    assert notified == [f"FDSTOREREMOVE=1\nFDNAME={_handover_session.FDNAME}"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(session)


@pytest.fixture(name="home")
def folders_of_a_host(tmp_path, monkeypatch):
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    return tmp_path


def test_what_was_saved_of_a_guest_that_is_lost_is_removed(home, monkeypatch):
    early = []
    monkeypatch.setattr(_early, "start_early", lambda *unit: early.append(unit))
    (home / "web1.state").touch()
    _return.lost({**SAVED, "unit": "web1.service"}, "a power cut")
    assert not (home / "web1.state").exists() and early == [("web1.service", False)]
    assert (_journal.of_guest("web1")["state"], _journal.of_guest("web1")["why"]) == ("lost", "a power cut")


def test_a_full_disk_has_room_for_the_record_when_the_state_is_gone(home, monkeypatch):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    (home / "web1.state").touch()
    monkeypatch.setattr(_files, "write_json", lambda path, record: (home / "web1.state").exists() and 1 // 0)
    _return.settle({**SAVED, "unit": "web1.service"})
    assert not (home / "web1.state").exists()


def test_a_guest_that_may_have_run_is_settled_only_when_its_qemu_says_that_it_runs(home, monkeypatch):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    journal = {**SAVED, "boot_id": "before", "unit": "web1.service", "times": {"paused": 1.0}}
    _files.write_json(_files.journal_path("web1"), journal)
    for file in ("web1.state", "web1.trying"):
        (home / file).touch()
    states = ["paused", "inmigrate"]
    monkeypatch.setattr(_providers, "of", lambda _record: SimpleNamespace(status=lambda _record: states.pop()))
    for _state in list(states):
        _paused.settle_running({"name": "web1"})
        assert _journal.of_guest("web1")["state"] == "saved" and (home / "web1.state").exists()
        assert _return.may_have_run("web1", journal)
    assert not _return.may_have_run("web1", {**journal, "boot_id": "now"})  # of an update before
    states.append("running")
    _paused.settle_running({"name": "web1"})
    assert _journal.recorded("web1")["state"] == "restored" and not (home / "web1.state").exists()
    assert not _return.may_have_run("web1", journal)
    _return.went_on("web1")  # of no effect
    assert (home / "web1.resumed").exists()


def test_an_image_that_cannot_be_looked_at_is_not_taken_for_gone(home, monkeypatch):
    (home / "web1.resumed").touch()
    journal = {**SAVED, "boot_id": "before", "image": str(home / "web1.save")}
    assert _journal.as_seen("web1", journal)["state"] == "restored"

    def fails(_path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "lstat", fails)
    assert _journal.as_seen("web1", journal)["state"] == "saved"


@pytest.mark.parametrize(
    ("mark", "boot", "image", "state"),
    [
        (True, "before", False, "restored"),
        (False, "before", False, "saved"),
        (True, "now", False, "saved"),  # the mark is of the update before
        (True, "before", True, "saved"),  # libvirt has not taken its start for done
    ],
)
def test_a_guest_that_has_gone_on_in_this_boot_is_back_whatever_the_disk_says(home, monkeypatch, mark, boot, image, state):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    journal = {**SAVED, "boot_id": boot, "unit": "web1.service", "times": {"paused": 1.0}, "image": str(home / "web1.save")}
    _files.write_json(_files.journal_path("web1"), journal)
    if mark:
        (home / "web1.resumed").touch()
    if image:
        (home / "web1.save").touch()
    assert _journal.of_guest("web1")["state"] == state
    assert [why["code"] for why in _journal.not_back([])] == ([] if state == "restored" else ["not-back"])
    assert _journal.recorded("web1") == journal
    _return.settle_seen("web1")
    assert _journal.recorded("web1")["state"] == state
    if state == "restored":
        assert _journal.pause(_journal.of_guest("web1")) > 1
