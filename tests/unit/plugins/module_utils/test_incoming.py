# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A start of a guest: state is used only with the very memory that it belongs to."""

from __future__ import annotations

import itertools

import pytest
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


def test_a_restore_needs_the_same_hold_and_a_memory_that_has_not_run():
    states, holds, notes = ("saved", "restored", "lost", None), ("h1", "h2"), (None, {}, {"hold": "h1"}, {"hold": "h2"})
    for state, hold, note, resumed, loss in itertools.product(states, holds, notes, (False, True), ("start", "stop")):
        journal = {"state": state, "guest": "g", "hold": hold, "on_loss": loss}
        restores = decide(journal, note, resumed)[0] == "restore"
        assert restores == (state == "saved" and not resumed and note is not None and note.get("hold") == hold)
