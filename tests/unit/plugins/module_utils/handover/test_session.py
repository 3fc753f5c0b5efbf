# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The session with a guest's memory: its name, where a restore finds it, what is taken from it, and how it is given up."""

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session as _handover_session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo

SAVED = {"state": "saved", "on_loss": "start", "hold": "h1", "guest": "web1", "uuid": "u1", "sizes": [4096]}


def test_session_names_fit():
    assert _handover_session.name_of("2F6F0D5A-54F0-4F4E-8F4B-0B7E5C0F5C11") == "kvm-2f6f0d5a54f04f4e8f4b0b7e5c0f5c11"


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


def test_a_session_that_systemd_kept_is_taken_without_asking_the_kernel(monkeypatch, notified):
    monkeypatch.setattr(_systemd, "listen_fds", lambda: {_handover_session.FDNAME: 5})
    monkeypatch.setattr(_luo, "retrieve_session", lambda _name: 1 // 0)
    assert _handover_session.incoming({**SAVED, "session": "kvm-1", "unit": "web1.service", "boot_id": "before"}) == 5
    assert not notified


def test_a_note_is_read_and_its_descriptor_closed(monkeypatch):
    made = []

    def retrieve(session, token):
        assert (session, token) == (7, _handover_session.META_TOKEN)
        made.append(os.memfd_create("note"))
        os.write(made[-1], b'{"hold": "h1"}')
        return made[-1]

    monkeypatch.setattr(_luo, "retrieve_fd", retrieve)
    assert _handover_session.note(7) == {"hold": "h1"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
    assert _handover_session.note(None) is None


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


def test_where_there_is_no_session_none_is_given_up(monkeypatch, notified):
    monkeypatch.setattr(_luo, "finish", lambda session: 1 // 0)
    _handover_session.drop(None, {"hold": "h1"})
    assert not notified


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
