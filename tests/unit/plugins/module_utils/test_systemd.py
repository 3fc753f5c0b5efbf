# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError


@pytest.mark.parametrize(("said", "version"), [("262 (262-1)\n", 262), ("257.9-1~deb13u1\n", 257), ("255\n", 255)])
def test_the_version_is_that_of_the_pid_1_that_runs(monkeypatch, said, version):
    """After an upgrade without its re-execution, what is installed is another one."""
    monkeypatch.setattr(_systemd, "run", lambda *command: said if command[1] == "show" else "systemd 999\n")
    assert _systemd.version() == version


def test_a_version_that_is_none_is_an_error(monkeypatch):
    monkeypatch.setattr(_systemd, "run", lambda *command: "v262\n")
    with pytest.raises(LiveUpdateError, match="'v262'"):
        _systemd.version()


def test_a_property_with_a_line_for_each_value_has_all_of_them(monkeypatch):
    lines = "DeviceAllow=/dev/liveupdate rw\nDeviceAllow=/dev/kvm rw\nDevicePolicy=auto\n"
    monkeypatch.setattr(_systemd, "run", lambda *command: lines)
    assert _systemd.show("web.service", "DeviceAllow") == {"DeviceAllow": "/dev/liveupdate rw /dev/kvm rw", "DevicePolicy": "auto"}


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


def test_many_units_are_asked_for_in_parts(monkeypatch):
    """The kernel limits the length of a command line."""
    asked = []

    def run(*command):
        asked.append(command[4:])
        return "\n".join(f"Id={unit}\n" for unit in command[4:])

    monkeypatch.setattr(_systemd, "run", run)
    units = [f"u{number}.service" for number in range(450)]
    assert _systemd.show_each(units, "Id") == {unit: {"Id": unit} for unit in units}
    assert [len(part) for part in asked] == [200, 200, 50]


def test_no_command_runs_beyond_the_last_moment():
    """Whatever its own limit is."""
    _systemd.end_by(time.monotonic() + 0.3)
    try:
        with pytest.raises(LiveUpdateError, match="sleep 30: no answer within 0 s"):
            _systemd.run("sleep", "30")
    finally:
        _systemd.end_by(None)
    assert _systemd.run("sleep", "0.4") == ""
