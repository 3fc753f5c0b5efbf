# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.kvm.liveupdate.plugins.module_utils import _systemd


def test_properties_of_several_units_belong_to_the_unit_that_was_asked_for(monkeypatch):
    asked = []

    def run(*command):
        asked.append(command)
        return "ActiveState=active\nTriggeredBy=a.socket\n\nActiveState=inactive\nTriggeredBy=\n"

    monkeypatch.setattr(_systemd, "run", run)
    assert _systemd.show_each(["a.service", "b.service"], "ActiveState", "TriggeredBy") == {
        "a.service": {"ActiveState": "active", "TriggeredBy": "a.socket"},
        "b.service": {"ActiveState": "inactive", "TriggeredBy": ""},
    }
    assert len(asked) == 1
    assert _systemd.show_each([], "ActiveState") == {}
    assert len(asked) == 1
