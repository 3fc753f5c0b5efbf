# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _systemd, _watchdogs

TCO = {"identity": "iTCO_wdt", "nowayout": "0", "state": "active"}


@pytest.fixture(name="host")
def host_tree(tmp_path):
    """A host with these watchdogs and these processes, each with what it has open and its cgroup."""

    def build(watchdogs, processes):
        for name, files in watchdogs.items():
            folder = tmp_path / "sys/class/watchdog" / name
            folder.mkdir(parents=True)
            for key, value in files.items():
                (folder / key).write_text(f"{value}\n")
        for pid, (link, cgroup) in processes.items():
            (tmp_path / f"proc/{pid}/fd").mkdir(parents=True)
            (tmp_path / f"proc/{pid}/fd/5").symlink_to(link)
            (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::{cgroup}\n")
        return str(tmp_path)

    return build


def test_a_host_without_watchdogs_has_none_and_its_processes_are_not_looked_at(tmp_path):
    assert _watchdogs.read(str(tmp_path)) == []  # it has no proc either


def test_each_watchdog_is_read_with_who_feeds_it(host):
    processes = {
        1: ("/dev/watchdog0", "/init.scope"),
        7: ("/dev/watchdog1", "/system.slice/watchdog.service"),
        8: ("/dev/watchdog2", "/"),
        9: ("/dev/null", "/system.slice/ssh.service"),
    }
    root = host({"watchdog0": TCO, "watchdog1": {**TCO, "identity": "Software Watchdog", "nowayout": "1"}, "watchdog2": TCO}, processes)
    assert _watchdogs.read(root) == [
        {"name": "watchdog0", "identity": "iTCO_wdt", "nowayout": "0", "active": True, "fed_by": ["PID 1"]},
        {**DOG_1, "active": True, "fed_by": ["watchdog.service"]},
        {"name": "watchdog2", "identity": "iTCO_wdt", "nowayout": "0", "active": True, "fed_by": ["process 8"]},
    ]


@pytest.mark.parametrize(
    ("cgroup", "transient", "feeder"),
    [
        ("/machine.slice/libpod-1.scope", False, "process 7 in libpod-1.scope"),
        ("/system.slice/run-1.service", True, "process 7 in run-1.service"),
        ("/system.slice/a.service", False, "a.service"),
    ],
)
def test_what_systemd_cannot_start_again_is_told_as_a_process(host, tmp_path, cgroup, transient, feeder):
    root = host({"watchdog0": TCO}, {7: ("/dev/watchdog0", cgroup)})
    if transient:
        (tmp_path / "run/systemd/transient").mkdir(parents=True)
        (tmp_path / "run/systemd/transient/run-1.service").touch()
    assert _watchdogs.read(root)[0]["fed_by"] == [feeder]


DOG_1 = {"name": "watchdog1", "identity": "Software Watchdog", "nowayout": "1"}


def test_the_old_name_is_of_the_first_watchdog_and_one_that_is_armed_may_be_fed_by_nobody(host):
    root = host({"watchdog0": {**TCO, "state": "inactive"}, "watchdog1": TCO}, {7: ("/dev/watchdog", "/system.slice/a.service")})
    assert [(dog["active"], dog["fed_by"]) for dog in _watchdogs.read(root)] == [(False, ["a.service"]), (True, [])]


@pytest.mark.parametrize("link", ["/dev/watchdog0", "/dev/null"])
def test_a_watchdog_of_which_the_kernel_tells_nothing_is_active_if_a_process_has_it_open(host, link):
    (dog,) = _watchdogs.read(host({"watchdog0": {}}, {7: (link, "/system.slice/a.service")}))
    assert dog["active"] is (link == "/dev/watchdog0") and dog["identity"] == dog["nowayout"] == ""


def test_pid_1_is_asked_for_the_watchdog_of_a_kexec(monkeypatch):
    monkeypatch.setattr(_commands, "run", lambda *command: f"{command[2].partition('=')[2]}\n")
    assert _systemd.kexec_watchdog() == "KExecWatchdogUSec"


def test_the_feeders_are_the_services_that_feed_an_active_watchdog():
    dogs = [{"active": True, "fed_by": ["b.service", "PID 1", "process 7 in c.service"]}, {"active": False, "fed_by": ["d.service"]}]
    assert _watchdogs.feeders([*dogs, {"active": True, "fed_by": ["a.service", "b.service"]}]) == ["a.service", "b.service"]
