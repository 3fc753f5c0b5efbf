# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A start of a guest: state is used only with the very memory that it belongs to."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _host, _incoming, _luo, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._incoming import decide

SAVED = {"state": "saved", "guest": "web1", "hold": "h1", "on_loss": "start"}


@pytest.mark.parametrize(
    ("journal", "note", "resumed", "verdict", "why"),
    [
        ({}, None, False, "cold", "no update left it"),
        ({}, {"hold": "h1"}, False, "cold", "no update left it"),
        (SAVED, {"hold": "h1"}, False, "restore", "came over"),
        (SAVED, {"hold": "h1"}, True, "cold", "has run since"),
        (SAVED, {"hold": "h2"}, False, "cold", "not its own"),
        ({**SAVED, "qemu": [7, 1]}, {"hold": "h1", "qemu": [7, 1]}, False, "restore", "came over"),
        ({**SAVED, "qemu": [7, 1]}, {"hold": "h1", "qemu": [7, 2]}, False, "cold", "not its own"),
        ({**SAVED, "qemu": [7, 1]}, {"hold": "h1"}, False, "restore", "came over"),
        (SAVED, {}, False, "cold", "not its own"),
        (SAVED, None, False, "cold", "did not come over"),
        ({**SAVED, "on_loss": "stop"}, None, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, {"hold": "h2"}, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, {"hold": "h1"}, False, "restore", "came over"),
        ({**SAVED, "state": "restored"}, {"hold": "h1"}, False, "cold", "no update left it"),
        ({**SAVED, "state": "lost"}, {"hold": "h1"}, False, "cold", "no update left it"),
    ],
)
def test_decide(journal, note, resumed, verdict, why):
    assert decide(journal, note, resumed)[0] == verdict
    assert why in decide(journal, note, resumed)[1]


@pytest.mark.parametrize(("code", "lost"), [("ENOENT", True), ("EIO", True), ("EPERM", False), ("EBUSY", False), ("EINVAL", False)])
def test_memory_that_nobody_could_look_for_is_not_taken_for_lost(monkeypatch, code, lost):
    def retrieve(_name):
        raise LiveUpdateError(f"retrieve session kvm-1: no ({code})", errno=code, verb="retrieve session")

    monkeypatch.setattr(_luo, "retrieve_session", retrieve)
    monkeypatch.setattr(_systemd, "listen_fds", dict)
    monkeypatch.setattr(_host, "boot_id", lambda: "now")
    journal = {**SAVED, "boot_id": "before", "session": "kvm-1", "unit": "web1.service"}
    if lost:
        assert _incoming.session_of(journal) is None
    else:
        with pytest.raises(LiveUpdateError, match=rf"guest web1: .*\({code}\).* 'systemctl start web1.service' tries again"):
            _incoming.session_of(journal)


def test_a_restore_needs_the_same_hold_and_a_memory_that_has_not_run():
    states, holds, notes = ("saved", "restored", "lost", None), ("h1", "h2"), (None, {}, {"hold": "h1"}, {"hold": "h2"})
    for state, hold, note, resumed, loss in itertools.product(states, holds, notes, (False, True), ("start", "stop")):
        journal = {"state": state, "guest": "g", "hold": hold, "on_loss": loss}
        restores = decide(journal, note, resumed)[0] == "restore"
        assert restores == (state == "saved" and not resumed and note is not None and note.get("hold") == hold)
