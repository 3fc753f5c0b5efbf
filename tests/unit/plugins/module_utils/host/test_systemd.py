# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import subprocess
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _systemd


@pytest.mark.parametrize(("said", "version"), [("262 (262-1)\n", 262), ("257.9-1~deb13u1\n", 257), ("255\n", 255)])
def test_the_version_is_that_of_the_pid_1_that_runs(monkeypatch, said, version):
    """After an upgrade without its re-execution, what is installed is another one."""
    monkeypatch.setattr(_commands, "run", lambda *command: said if command[1] == "show" else "systemd 999\n")
    assert _systemd.version() == version


def test_a_version_that_is_none_is_an_error(monkeypatch):
    monkeypatch.setattr(_commands, "run", lambda *command: "v262\n")
    with pytest.raises(LiveUpdateError, match="'v262'"):
        _systemd.version()


def test_a_property_with_a_line_for_each_value_has_all_of_them(monkeypatch):
    lines = "DeviceAllow=/dev/liveupdate rw\nDeviceAllow=/dev/kvm rw\nDevicePolicy=auto\n"
    monkeypatch.setattr(_commands, "run", lambda *command: lines)
    assert _systemd.show("web.service", "DeviceAllow") == {"DeviceAllow": "/dev/liveupdate rw /dev/kvm rw", "DevicePolicy": "auto"}


def test_properties_of_several_units_belong_to_the_unit_that_was_asked_for(monkeypatch):
    asked = []

    def run(*command):
        asked.append(command)
        return "ActiveState=active\nTriggeredBy=a.socket\n\nActiveState=inactive\nTriggeredBy=\n"

    monkeypatch.setattr(_commands, "run", run)
    assert _systemd.show_each(["a.service", "b.service"], "ActiveState", "TriggeredBy") == {
        "a.service": {"ActiveState": "active", "TriggeredBy": "a.socket"},
        "b.service": {"ActiveState": "inactive", "TriggeredBy": ""},
    }
    assert len(asked) == 1
    assert _systemd.show_each([], "ActiveState") == {}
    assert len(asked) == 1


def test_the_folders_of_services_that_a_boot_starts(monkeypatch):
    blocks = (
        "RuntimeDirectory=qemu web/x\nUnitFileState=enabled",
        "RuntimeDirectory=gone\nUnitFileState=transient",
        "UnitFileState=static",
        "RuntimeDirectory=dbus\nUnitFileState=static\n",
    )
    monkeypatch.setattr(_commands, "run", lambda *_command: "\n\n".join(blocks))
    assert _systemd.runtime_directories(("enabled", "static")) == ["qemu", "web/x", "dbus"]


class Stores:
    """Some units, and what systemd and systemd-analyze say of their fd stores."""

    def __init__(self, stored):
        self.stored, self.programs = stored, []

    def run(self, program, *words):
        self.programs.append(program)
        units = words[words.index("--") + 1 :]
        if program == "systemctl":
            counts = {unit: len(self.stored[unit]) if unit in self.stored else "" for unit in units}
            return "\n".join(f"Id={unit}\nNFileDescriptorStore={count}\n" for unit, count in counts.items())
        assert all(self.stored.get(unit) for unit in units)  # it fails for a unit that is not loaded
        return "".join(json.dumps([{"fdname": name} for name in self.stored[unit]]) + "\n" for unit in units)


def test_the_fd_stores_of_all_units_take_two_programs(monkeypatch):
    host = Stores({"web.service": ["kvm-liveupdate", "log"], "db.service": [], "app.service": ["log"]})
    monkeypatch.setattr(_commands, "run", host.run)
    assert _systemd.fdstore_each(["web.service", "gone.service", "db.service", "app.service"]) == {
        "web.service": ["kvm-liveupdate", "log"],
        "gone.service": [],
        "db.service": [],
        "app.service": ["log"],
    }
    assert host.programs == ["systemctl", "systemd-analyze"]
    assert _systemd.fdstore("db.service") == [] and host.programs[2:] == ["systemctl"]
    assert _systemd.fdstore("app.service") == ["log"]


def test_an_fd_store_that_is_not_told_is_an_error(monkeypatch):
    """Else the next unit's would be taken for it."""
    host = Stores({"web.service": ["a"], "db.service": ["b"]})
    monkeypatch.setattr(_commands, "run", lambda *words: host.run(*words) if words[0] == "systemctl" else '[{"fdname": "b"}]\n')
    with pytest.raises(LiveUpdateError, match="1 answers for 2 units"):
        _systemd.fdstore_each(["web.service", "db.service"])


def test_many_units_are_asked_for_in_parts(monkeypatch):
    """The kernel limits the length of a command line."""
    asked = []

    def run(*command):
        asked.append(command[4:])
        return "\n".join(f"Id={unit}\n" for unit in command[4:])

    monkeypatch.setattr(_commands, "run", run)
    units = [f"u{number}.service" for number in range(450)]
    assert _systemd.show_each(units, "Id") == {unit: {"Id": unit} for unit in units}
    assert [len(part) for part in asked] == [200, 200, 50]


def test_no_command_runs_beyond_the_last_moment(tmp_path):
    """Whatever its own limit is; and none is begun when nothing of the time is left."""
    _commands.end_by(time.monotonic() + 0.3, "the pause")
    try:
        with pytest.raises(LiveUpdateError, match="sleep 30: no answer within the pause"):
            _commands.run("sleep", "30")
        with pytest.raises(LiveUpdateError, match=r"touch .*: not run: the time limit is over \(the pause\)"):
            _commands.run("touch", str(tmp_path / "touched"))
    finally:
        _commands.end_by(None)
    assert not (tmp_path / "touched").exists()
    assert _commands.run("sleep", "0.4") == "" and _commands.left(7.0) == 7.0
    with pytest.raises(LiveUpdateError, match=r"sleep 30: no answer within 0\.2 s"):
        _commands.run("sleep", "30", timeout=0.2)


def test_what_units_start_with_and_come_after_takes_one_program(monkeypatch):
    asked: list = []
    edges = {
        "green": "dev-vda.device",
        "black": "b.target",
        "darkblue": "c.target",
        "gold": "d.mount",
        "grey66": "e.socket",
        "red": "f.target",
    }
    drawn = [f'\t"a\\x2d1.service"->"{unit}" [color="{colour}"];\n' for colour, unit in edges.items()]
    said = "".join(("digraph systemd {\n", *drawn, '\t"b.target"->"a\\x2d1.service" [color="green"];\n', "}\n"))
    monkeypatch.setattr(_commands, "run", lambda *words: asked.append(words) or said)
    starts, after = _systemd.graph()
    assert starts == {"a\\x2d1.service": ["b.target", "c.target", "d.mount", "e.socket"]}
    assert after == {"a\\x2d1.service": ["dev-vda.device"], "b.target": ["a\\x2d1.service"]}
    assert asked == [("systemd-analyze", "dot")]


@pytest.mark.parametrize(("limit_s", "naps"), [(60.0, 3), (0.0, 0)])
def test_the_system_bus_is_waited_for_until_the_limit(monkeypatch, tmp_path, limit_s, naps):
    bus, slept = tmp_path / "bus", []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            bus.touch()

    monkeypatch.setattr(_systemd, "_SYSTEM_BUS", str(bus))
    monkeypatch.setattr(time, "sleep", sleep)
    _systemd.wait_for_the_bus(limit_s)
    assert len(slept) == naps


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.EACCES])
def test_a_command_that_the_host_cannot_start_is_a_failure_like_any_other(monkeypatch, code):
    """An undo repeats it, and does not end at once."""

    def no_process(*_command, **_keys):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(subprocess, "run", no_process)
    with pytest.raises(LiveUpdateError, match=f"systemctl stop x: cannot be started on this host: {os.strerror(code)}; check "):
        _commands.run("systemctl", "stop", "x")
