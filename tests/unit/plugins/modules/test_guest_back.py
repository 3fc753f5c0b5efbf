# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest whose QEMU is there is back only when its state is loaded."""

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.modules import guest

SAVED = {"state": "saved", "unit": "web.service"}


@pytest.fixture(name="looks")
def what_is_seen_at_each_look(monkeypatch):
    seen = []
    monkeypatch.setattr(_guests, "journal", lambda _name: seen[0][0])
    monkeypatch.setattr(_guests, "known", lambda: {"web": {"name": "web"}} if seen[0][1] else {})
    monkeypatch.setattr(guest.time, "sleep", lambda _s: seen.pop(0) if len(seen) > 1 else None)
    return seen


def test_a_guest_is_waited_for_until_its_journal_says_that_it_is_back(looks):
    looks += [(SAVED, False), (SAVED, True), ({"state": "restored"}, True)]
    assert guest.wait_until_back("web", 60) == {"name": "web"}
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("runs", "said"),
    [(True, r"its state is not loaded.*'systemctl restart web\.service'"), (False, r"does not run.*'systemctl start web\.service'")],
)
def test_a_guest_that_is_not_back_is_told_with_what_tries_again(looks, runs, said):
    looks.append((SAVED, runs))
    with pytest.raises(LiveUpdateError, match=rf"guest web: not back within -1 s: .*{said} tries again") as told:
        guest.wait_until_back("web", -1)
    assert told.value.details["last_update"] == SAVED
