# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _away, _guests
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor

RECORD = {"name": "web", "pid": 7, "started": 70, "monitor": "/run/web.qmp", "ram": [{"fd": 5, "size": 1 << 30}]}
AWAY = {"guest": "web", "way": "shutdown", "unit": "web.service", "was_running": True, "monitor": "/run/web.qmp", "pid": 7, "started": 70}


class Host:
    """A QEMU in a unit that starts it again whenever it ends by itself."""

    def __init__(self):
        self.state, self.on_shutdown, self.heeds_the_button, self.calls = "running", "poweroff", True, []
        self.faults = {}

    def __call__(self, path):
        assert path == RECORD["monitor"]
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def execute(self, command, **arguments):
        self.calls.append((command, *arguments.values()))
        if (command, *arguments.values()) in self.faults:
            self.faults[command, *arguments.values()]()
        if command == "set-action":
            self.on_shutdown = arguments["shutdown"]
        if command == "system_powerdown" and self.heeds_the_button:
            self.state = "shutdown" if self.on_shutdown == "pause" else "running"

    def status(self):
        return self.state

    def run(self, *words, **limit):
        assert limit["timeout"] > 0
        self.calls.append(words[:2])
        if words[:2] in self.faults:
            self.faults[words[:2]]()
        self.state = {"stop": "", "start": self.state or "prelaunch", "restart": "prelaunch"}[words[1]]

    def known(self):
        """It takes a moment from the start of the unit to a guest that runs."""
        now, self.state = self.state, "running" if self.state == "prelaunch" else self.state
        return [{**RECORD, "now": now}] if now else []


@pytest.fixture(name="host")
def a_host(monkeypatch):
    host = Host()
    monkeypatch.setattr(_monitor, "Monitor", host)
    monkeypatch.setattr(_away, "_POLL_S", 0.001)
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_guests, "known", host.known)
    monkeypatch.setattr(_guests, "status", lambda record: record.get("now", host.state))
    return host


def test_what_is_kept_of_a_guest(host):
    host.state = "paused"
    assert _away.about(RECORD) == {"bytes": 1 << 30, "was_running": False, "autostart": False, "monitor": "/run/web.qmp"}


@pytest.mark.parametrize(
    ("way", "was_running", "says"),
    [
        ("shutdown", True, ""),
        ("shutdown", False, "resume it"),
        ("save", True, "only libvirt can save a guest"),
        ("migrate", True, "only libvirt can migrate a guest"),
    ],
)
def test_a_guest_of_a_unit_can_shut_down_only(way, was_running, says):
    found = _away.obstacles({**AWAY, "way": way, "was_running": was_running})
    assert (len(found), says in "".join(found)) == (1 if says else 0, True)


def test_its_unit_is_stopped_once_it_is_off_and_started_again(host):
    _away.leave(AWAY, 5)
    assert host.calls == [("set-action", "pause"), ("system_powerdown",), ("systemctl", "stop")]
    assert not _away.is_back(AWAY)
    assert _away.come_back(AWAY, 5) == ""
    assert host.calls[3:] == [("systemctl", "start")] and _away.is_back(AWAY)


def test_a_guest_that_does_not_heed_its_power_button_runs_on_as_before(host):
    host.heeds_the_button = False
    with pytest.raises(LiveUpdateError, match=r"guest web: still running 0.01 s after its power button was pressed") as failure:
        _away.leave(AWAY, 0.01)
    assert failure.value.details["settled"] is False
    assert host.state == "running" and host.on_shutdown == "poweroff"
    assert ("systemctl", "stop") not in host.calls


def no_answer():
    raise LiveUpdateError("no answer")


@pytest.mark.parametrize(
    ("lost", "settled"), [(("set-action", "pause"), False), (("system_powerdown",), False), (("systemctl", "stop"), False)]
)
def test_once_its_button_is_pressed_nobody_knows_whether_a_guest_stays(host, lost, settled):
    host.faults = {lost: no_answer}
    with pytest.raises(LiveUpdateError, match="no answer") as failure:
        _away.leave(AWAY, 5)
    assert failure.value.details["settled"] is settled


@pytest.mark.parametrize(("refused", "settled"), [(("set-action", "pause"), True), (("system_powerdown",), False)])
def test_a_guest_whose_qemu_refuses_the_first_step_stays(host, refused, settled):
    """QEMU before 6.0 does not know set-action. After that step, it has to be taken back."""

    def refuse():
        raise LiveUpdateError("The command has not been found", refused=refused[0])

    host.faults = {refused: refuse}
    with pytest.raises(LiveUpdateError, match="has not been found") as failure:
        _away.leave(AWAY, 5)
    assert failure.value.details["settled"] is settled


def test_a_guest_that_stays_after_its_request_was_cut_off_can_power_off_again(host):
    """The process was killed while it waited for the guest, or the answer of QEMU was lost."""
    host.faults, host.heeds_the_button = {("system_powerdown",): no_answer}, False
    with pytest.raises(LiveUpdateError):
        _away.leave(AWAY, 5)
    assert host.on_shutdown == "pause"
    _away.stay({**AWAY, "started": 71})
    assert host.on_shutdown == "pause"  # not the QEMU that was asked
    _away.stay(AWAY)
    assert host.on_shutdown == "poweroff"
    host.state = "shutdown"
    with pytest.raises(LiveUpdateError, match=r"guest web: it has just powered off\. Run this again"):
        _away.stay(AWAY)


def test_a_guest_that_goes_off_at_the_very_limit_has_left(host):
    host.heeds_the_button = False
    host.faults = {("set-action", "poweroff"): lambda: setattr(host, "state", "shutdown")}
    _away.leave(AWAY, 0.01)
    assert host.calls[-1] == ("systemctl", "stop")


def test_a_guest_that_is_off_in_a_qemu_that_is_still_there_is_started_again(host):
    """Its unit could not be stopped, or who was to do it was lost; to start what runs does nothing."""
    host.faults = {("systemctl", "stop"): no_answer}
    with pytest.raises(LiveUpdateError):
        _away.leave(AWAY, 5)
    assert host.state == "shutdown" and not _away.is_back(AWAY)
    assert _away.come_back(AWAY, 1) == "" and host.calls[-1] == ("systemctl", "restart")


def test_a_guest_that_does_not_start_is_waited_for_in_bounds(host, monkeypatch):
    def silent(record):
        raise LiveUpdateError("is QEMU running?")

    host.state = ""
    monkeypatch.setattr(_guests, "status", silent)
    with pytest.raises(
        LiveUpdateError, match=r"guest web is unknown \(is QEMU running\?\) 0.01 s after its start; 'journalctl -b -u web.service'"
    ):
        _away.come_back(AWAY, 0.01)
