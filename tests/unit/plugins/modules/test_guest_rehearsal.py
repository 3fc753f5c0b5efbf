# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _rehearsal
from ansible_collections.kvm.liveupdate.plugins.modules import guest_rehearsal


@pytest.fixture(name="paused")
def guests_that_are_paused(monkeypatch):
    """Of the guests that run, "bad" does not load and "held" is held; returns who was paused, in order."""
    paused = []

    def rehearse(name):
        paused.append(name)
        if name == "bad":
            raise LiveUpdateError("guest bad: what was saved of it does not load")
        return {"paused_s": 0.25}

    monkeypatch.setattr(_providers, "known", lambda: {name: {"name": name} for name in ("web", "bad", "db", "held")})
    monkeypatch.setattr(_hold, "held_each", lambda records: {"held": {}} if {"name": "held"} in records else {})
    monkeypatch.setattr(_rehearsal, "rehearse", rehearse)
    states = {"db": "paused"}
    monkeypatch.setattr(_providers, "of", lambda _record: SimpleNamespace(status=lambda record: states.get(record["name"], "running")))
    return paused


def ask(*names, check_mode=False):
    return guest_rehearsal.manage(SimpleNamespace(params={"names": list(names)}, check_mode=check_mode))


def told(guests):
    return [(guest["name"], guest["rehearsed"], guest["paused_s"], guest["failed"]) for guest in guests]


def test_each_guest_is_rehearsed_but_one_that_is_held(paused):
    done = ask("web", "held", "db", "web")
    assert paused == ["web", "db"] and not done["changed"]
    assert told(done["guests"]) == [("web", True, 0.25, False), ("held", False, None, False), ("db", True, 0.25, False)]
    assert done["msg"].startswith("guest web: its state loads. The guest was paused for 0.25 s; guest held is not rehearsed")


def test_nobody_is_paused_after_one_whose_state_does_not_load(paused):
    with pytest.raises(LiveUpdateError) as failure:
        ask("web", "bad", "db")
    assert paused == ["web", "bad"] and failure.value.message == "guest bad: what was saved of it does not load"
    assert told(failure.value.details["guests"]) == [("web", True, 0.25, False), ("bad", False, None, True), ("db", False, None, False)]


@pytest.mark.parametrize(("names", "check_mode"), [(("web",), True), (("web", "nobody"), False), ((), False)])
def test_nobody_is_paused(paused, names, check_mode):
    """In check mode, when one of them does not run, and when nobody is named."""
    if "nobody" in names:
        with pytest.raises(LiveUpdateError, match="guest 'nobody' does not run on this host"):
            ask(*names)
    else:
        assert [guest["name"] for guest in ask(*names, check_mode=check_mode)["guests"]] == list(names)
    assert paused == []


def test_check_mode_predicts_that_a_paused_guest_is_refused(paused):
    with pytest.raises(LiveUpdateError, match=r"^guest db is paused; a paused guest can be saved only once"):
        ask("web", "db", check_mode=True)
    assert paused == []
