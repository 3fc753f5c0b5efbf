# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which units an update stops before the pause and which it keeps, and what an undo starts again."""

from __future__ import annotations

import itertools
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _systemd, _units, _watchdogs
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _gate, _jump, _services
from made_up_host import ASKED, a_login, reason, stranger, undone, update


def test_what_running_guests_would_notice_is_kept():
    active = ["ufw.service", "wg-quick@wg0.service", "virtnetworkd.socket", "cron.service", "ssh.service", "apt-daily.timer"]
    assert _services.noticed(active) == ["ufw.service", "wg-quick@wg0.service", "virtnetworkd.socket"]


@pytest.mark.parametrize(
    "unit",
    [
        *("wicked.service", "wickedd-dhcp4.service", "teamd@team0.service", "lldpd.service", "nbd@nbd0.service", "open-iscsi.service"),
        *("zerotier-one.service", "tailscaled.service", "quagga.service", "zebra.service", "bird6.service", "ospf6d.service"),
        *("ceph-osd@3.service", "glusterd.service", "rbd-target-api.service", "tcmu-runner.service", "dm-event.socket", "rpc-gssd.service"),
        *("multipathd.socket", "iscsid.service", "nvmf-connect@a.service", "drbd@r0.service", "pve-firewall.service"),
    ],
)
def test_what_hypervisors_run_for_their_guests_is_kept(unit):
    assert _services.noticed([unit]) == [unit]


def test_services_that_will_be_stopped_are_known_before(monkeypatch):
    said = "cron.service loaded active running Cron\nufw.service loaded active running u\nweb.service loaded active running w\n\n"
    monkeypatch.setattr(_commands, "run", lambda *_command: said)
    running = [*_services.services(), "NetworkManager.service", "virtqemud.service", "systemd-journald.service", "user@0.service"]
    assert _services.to_be_stopped([*running, "kvm-liveupdate-hold@db.service"], ["web.service"]) == ["cron.service"]


def test_blank_lines_of_systemctl_are_no_units(monkeypatch):
    monkeypatch.setattr(_commands, "run", lambda *words: "a.service loaded active running A\n\nb.socket loaded active listening B\n")
    assert _services.active_units() == ["a.service", "b.socket"]


def test_what_is_kept_runs_already_and_keeps_its_sockets():
    """systemd refuses to start the socket of a service that runs: stopped, it would be lost until a reboot."""
    seen = {
        "machined.service": {"ActiveState": "active", "TriggeredBy": "machined.socket idle.socket"},
        "absent.service": {"ActiveState": "inactive", "TriggeredBy": "absent.socket"},
        "machined.socket": {"ActiveState": "active"},
    }
    active = ["machined.service", "machined.socket", "absent.socket"]
    assert _services.kept(seen, active) == ["machined.service", "machined.socket"]
    assert _services.kept({"machined.service": seen["machined.service"]}, active) == ["machined.service", "machined.socket"]


def test_what_a_guests_unit_stops_with_is_kept(monkeypatch):
    """Isolation does not stop a guest, but what stops with others would stop with them; and so on through what it requires."""
    units = {
        "web.service": {"PartOf": "vms.target", "Requires": "-.mount net.service", "StopPropagatedFrom": ""},
        "net.service": {"BindsTo": "card.device", "StopPropagatedFrom": "switch.service"},
        "vms.target": {"PartOf": "site.target"},
        "site.target": {"Requires": "vms.target web.service"},  # and round again
    }
    asked = []

    def show_each(names, *properties):
        assert {"PartOf", "StopPropagatedFrom", "Requires"} <= set(properties)
        asked.extend(names)
        return {name: units.get(name, {}) for name in names}

    monkeypatch.setattr(_systemd, "show_each", show_each)
    assert sorted(_services._bound_to(["web.service"])) == ["site.target", "switch.service", "vms.target"]
    assert len(asked) == len(set(asked))


def test_isolation_passes_over_what_a_guest_stops_with_until_the_undo(tmp_path, monkeypatch):
    """Wanted instead, it would start whatever it wants itself."""
    ran = []
    monkeypatch.setattr(_units, "RUN_FOLDER", str(tmp_path))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_services, "_MANAGER", str(tmp_path / "none"))
    monkeypatch.setattr(_gate, "others", lambda ours: {})
    monkeypatch.setattr(_processes, "start_time", lambda pid: 1)
    monkeypatch.setattr(_services, "_bound_to", lambda units: ["vms.target", "idle.target"])
    monkeypatch.setattr(
        _systemd, "show_each", lambda units, *_names: {unit: {"ActiveState": "active"} for unit in units if unit == "vms.target"}
    )
    monkeypatch.setattr(_commands, "run", lambda *command, **_limit: ran.append(command[1]) or "")
    update = {
        "id": "u",
        "times": {},
        "guests": ["web"],
        "keep_units": [],
        "servers": [],
        "units": [],
        "records": {"web": {"unit": "web.service", "pid": 7, "started": 1}},
    }
    update["pause_by"] = time.monotonic() + 60
    _services.stop_the_rest(update)
    del update["records"]
    assert [verb for verb in ran if verb != "list-units"] == ["daemon-reload", "isolate"] and update["in_place"] == ["vms.target"]
    assert "IgnoreOnIsolate=yes" in (tmp_path / "vms.target.d/40-kvm-liveupdate.conf").read_text()
    assert (tmp_path / "vms.target.d/40-kvm-liveupdate.conf").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / f"{_units.JUMP_TARGET}.d/kept.conf").read_text() == "[Unit]\nWants=web.service\n"
    for step in (_kexec, "unload"), (_services, "start_again"):
        monkeypatch.setattr(*step, lambda *_nothing: None)
    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome.json"))
    monkeypatch.setattr(_providers, "known", dict)
    _jump._abort(update, "enough")
    assert not (tmp_path / "vms.target.d/40-kvm-liveupdate.conf").exists()


def test_isolation_spares_what_running_guests_would_notice(tmp_path, monkeypatch):
    """The packet filter would flush its rules. What does not run is not wanted: that would start it."""
    monkeypatch.setattr(_units, "RUN_FOLDER", str(tmp_path))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_gate, "others", lambda ours: {})
    monkeypatch.setattr(_processes, "start_time", lambda pid: 1)
    active = [
        "ufw.service",
        "firewalld.service",
        "multipathd.service",
        "multipathd.socket",
        "cron.service",
        "web.service",
        "web-nbd.service",
    ]
    triggers = {"multipathd.service": {"TriggeredBy": "multipathd.socket"}}
    monkeypatch.setattr(
        _systemd,
        "show_each",
        lambda units, *_names: {
            unit: {"ActiveState": "active" if unit in active else "inactive", **triggers.get(unit, {})} for unit in units
        },
    )
    ran = []
    monkeypatch.setattr(
        _commands,
        "run",
        lambda *command, **_limit: ran.append((command[1], (tmp_path / f"{_units.JUMP_TARGET}.d/kept.conf").exists())) or "",
    )
    update = {"id": "u", "times": {}, "guests": ["web"], "keep_units": [], "servers": ["web-nbd.service"], "units": active}
    update |= {"records": {"web": {"unit": "web.service", "pid": 7, "started": 1}}, "pause_by": time.monotonic() + 60}
    _services.stop_the_rest(update)
    wanted = (tmp_path / f"{_units.JUMP_TARGET}.d/kept.conf").read_text().splitlines()
    assert wanted[0] == "[Unit]"
    assert sorted(wanted[1:]) == [
        f"Wants={unit}"
        for unit in ("firewalld.service", "multipathd.service", "multipathd.socket", "ufw.service", "web-nbd.service", "web.service")
    ]
    assert sorted(update["kept"]) == ["firewalld.service", "multipathd.service", "multipathd.socket", "ufw.service", "web-nbd.service"]
    assert ran[-1] == ("isolate", True)


def test_what_serves_a_guest_is_kept_until_the_jump(host, monkeypatch):
    """The stop of a qemu-nbd takes the disk from a running guest, minutes before its pause."""

    def inspect(record):
        record["servers"] = [f"nbd-{record['name']}.service", "swtpm.service"]
        return []

    monkeypatch.setattr(_reasons, "inspect", inspect)
    monkeypatch.setattr(
        _systemd, "show_each", lambda units, *names: {unit: {"ActiveState": "active", "LoadState": "loaded"} for unit in units}
    )
    monkeypatch.setattr(_gate, "unit_problems", lambda *_units: [])
    ended = update(host)
    assert ended["servers"] == sorted([*(f"nbd-{name}.service" for name in host.records), "swtpm.service"])
    kept = (host.root / f"units/{_units.JUMP_TARGET}.d/kept.conf").read_text().splitlines()
    assert {f"Wants={unit}" for unit in ended["servers"]} <= set(kept)


@pytest.mark.parametrize("step", ["load", "daemon-reload"])
def test_a_guest_that_ended_before_the_isolation_is_not_started_by_it(host, step):
    """The target wants its unit: it would boot cold, maybe a second time if its owner has started it on another host."""
    host.at[step] = host.started.clear
    ended = update(host)
    undone(host, ended, "guest app no longer runs; run the update again")
    assert not host.done("isolate") and not host.done("start")  # default.target may want it too


def test_a_guest_that_the_isolation_may_have_started_again_is_told(host):
    """It ended right before. Nothing was saved of it, so it has started from its disks. Of a domain only the hold unit is wanted."""
    host.at["isolate"] = host.started.clear
    ended = update(host)
    assert ended["not_back"] == [] and not host.done("save")
    told = "ended while services were stopped, and systemd may have started web.service again, from the guest's disks: make sure that"
    undone(host, ended, f"guest web {told}")
    assert "is a virtual machine" not in ended["error"] and "Fix this" not in ended["error"]
    domain = {"unit": "kvm-liveupdate-hold@app.service", "pid": 7, "started": 1}
    assert _gate.started_again({"records": {"app": domain}}) == []


def test_a_guest_that_ended_after_the_isolation_is_not_started_by_the_undo(host, monkeypatch):
    """Nor by a target that wants it. Isolation has not stopped it. A service of the host that isolation passed over is started again."""
    runs = ["app.service", "cron.service", "vms.service", "multi-user.target"]
    monkeypatch.setattr(_services, "active_units", lambda types="": [] if host.done("isolate") else list(runs))
    shown = {"app.service": {"IgnoreOnIsolate": "yes"}, "vms.service": {"IgnoreOnIsolate": "yes"}}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: shown.get(unit, {}) for unit in units})
    started = []
    run = host.run
    monkeypatch.setattr(
        _commands, "run", lambda *command, **limit: started.append(command[2:]) if command[1] == "start" else run(*command, **limit)
    )
    host.at["isolate"] = lambda: host.records.pop("app")
    assert "guest app no longer runs" in update(host)["error"]
    alone = "--job-mode=ignore-requirements"
    assert started[1:] == [
        ("--no-block", alone, "default.target"),
        ("--no-block", "cron.service"),
        ("--no-block", "vms.service"),
        ("--no-block", alone, "multi-user.target"),
    ]


class Debian:
    """A host with the package watchdog: the stop of watchdog.service takes a moment, and starts wd_keepalive.service (OnFailure=)."""

    def __init__(self, host, monkeypatch, needed: str = "", since: float = 0.0, disarms: bool = True) -> None:
        self.host, self.run_it, self.needed, self.since, self.disarms = host, host.run, needed, since, disarms
        self.dog = {"name": "watchdog0", "identity": "iTCO_wdt", "nowayout": "0"}
        self.dog |= {"active": True, "fed_by": ["watchdog.service"]}
        self.looks, self.stopped = 0, []
        host.watchdogs = [self.dog]
        monkeypatch.setattr(_commands, "run", self.run)
        monkeypatch.setattr(_services, "_POLL_S", 0)

    def run(self, *command, **limit):
        verb = command[1]
        if verb == "list-units":
            return "watchdog.service loaded active running\nweb.service loaded active running\n" if not self.stopped else ""
        if verb == "list-jobs":
            self.looks += 1
            feeding = {2: [], 4: ["wd_keepalive.service"]}.get(self.looks)
            if feeding is not None:
                self.dog.update(active=bool(feeding), fed_by=feeding)
            return "" if self.looks > 6 else f"{self.looks} wd_keepalive.service start running\n"
        if verb == "show" and command[-1] == "wd_keepalive.service":
            started = 0 if self.looks < 6 else (self.since or time.monotonic()) * 1e6
            return f"Id=wd_keepalive.service\nActiveEnterTimestampMonotonic={started:.0f}\nRequiredBy={self.needed}\n"
        if verb == "stop":
            self.stopped += command[command.index("--") + 1 :]
            self.dog.update(active=not self.disarms, fed_by=[])
        return self.run_it(*command, **limit)


def test_a_service_that_feeds_a_watchdog_in_place_of_a_stopped_one_is_stopped_too(host, monkeypatch):
    """It starts some time after the isolation, which does not wait for it. The watchdog is not active then, and is soon again."""
    debian = Debian(host, monkeypatch)
    ended = update(host)
    undone(host, ended, "PID 1 got the request")
    assert debian.stopped == ["wd_keepalive.service"] and ended["feeders"] == ["watchdog.service"]
    order = [step[0] for step in host.did if step[0] in ("isolate", "stop", "save")]
    assert order[:3] == ["isolate", "stop", "save"] and "watchdog.service" in host.done("start")


@pytest.mark.parametrize(
    ("settings", "stops"),
    [({"needed": "web.service"}, []), ({"since": 1.0}, []), ({"disarms": False}, ["wd_keepalive.service"])],
    ids=["a guest stops with it", "it ran all the time", "it does not stop its watchdog"],
)
def test_nobody_is_paused_while_a_service_feeds_a_watchdog_that_must_run_or_cannot_stop_it(host, monkeypatch, settings, stops):
    debian = Debian(host, monkeypatch, **settings)
    undone(host, update(host), "the watchdog /dev/watchdog0 (iTCO_wdt) is still active")
    assert debian.stopped == stops and not host.done("save")


def test_the_wait_for_a_service_that_feeds_a_watchdog_ends(host, monkeypatch):
    debian = Debian(host, monkeypatch)
    monkeypatch.setattr(_services, "WATCHDOGS_LIMIT_S", 0)
    undone(host, update(host), "; watchdog.service feeds it")
    assert not debian.looks and not host.done("save")


@pytest.mark.parametrize(
    ("fed", "asked"), [([[], []], 0), ([[], ["wd_keepalive.service"], None], 2)], ids=["by nobody", "by one that has just opened it"]
)
def test_a_watchdog_that_nobody_feeds_ends_the_wait_at_the_second_look(monkeypatch, fed, asked):
    """It may reset the host soon, and the undo starts its service again."""
    looks, jobs = iter(fed), []
    monkeypatch.setattr(_services, "_POLL_S", 0)
    monkeypatch.setattr(_watchdogs, "read", lambda: [{"active": by is not None, "fed_by": by or []} for by in [next(looks)]])
    monkeypatch.setattr(_services, "active_units", list)
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {} for unit in units})
    monkeypatch.setattr(
        _commands, "run", lambda *command: jobs.append(command[1]) or ("7 a.service stop running" if len(jobs) == 1 else "")
    )
    _services.end_feeders({"pause_by": time.monotonic() + 60, "stopping_from": 1.0})
    assert jobs == ["list-jobs"] * asked and next(looks, "none") == "none"


def test_a_host_whose_watchdog_no_service_feeds_waits_for_no_jobs(host):
    host.watchdogs = [{"name": "watchdog0", "identity": "i", "nowayout": "0", "active": True, "fed_by": ["PID 1"]}]
    undone(host, update(host), "PID 1 got the request")
    assert not host.done("list-jobs") and host.done("save")


def test_units_to_keep_that_do_not_run_are_said(host, monkeypatch, capsys):
    states = {"a.service": "active", "b.service": "failed"}
    monkeypatch.setattr(
        _systemd, "show_each", lambda units, *names: {unit: {"ActiveState": states.get(unit, ""), "LoadState": "loaded"} for unit in units}
    )
    _jump.commit(list(host.records), ["a.service", "b.service"], "start")
    assert _jump.jump() == 1
    said = capsys.readouterr().err
    assert "b.service of keep_units is failed, so it is not kept running" in said and "a.service of keep_units" not in said
    assert "Wants=a.service\n" in (host.root / f"units/{_units.JUMP_TARGET}.d/kept.conf").read_text()
    assert "Wants=b.service\n" not in (host.root / f"units/{_units.JUMP_TARGET}.d/kept.conf").read_text()


@pytest.mark.parametrize(("before", "stopped"), [("daemon-reload", []), ("isolate", ["isolate"])])
def test_a_virtual_machine_that_somebody_started_meanwhile_is_not_stopped(host, monkeypatch, before, stopped):
    """Neither with a service nor with a login or a container, not even in the moment before that."""
    a_login(host, monkeypatch)
    host.at[before] = lambda: stranger(host)
    ended = update(host)
    undone(host, ended, "process 7 (session-3.scope) is a virtual machine that was started during the update and would be lost")
    assert [step[0] for step in host.did if step[0] in ("isolate", "stop", "kill")] == stopped
    assert not host.done("save") and "logins and containers were ended" not in ended["error"]


def test_one_that_is_started_in_a_login_that_does_not_end_is_not_killed(host, monkeypatch):
    a_login(host, monkeypatch)
    monkeypatch.setattr(_services, "active_units", lambda types="": ["session-3.scope"] if "scope" in types else [])
    host.at["stop"] = lambda: stranger(host)
    assert "process 7 (session-3.scope) is a virtual machine" in update(host)["error"]
    assert host.done("stop") == ["session-3.scope"] and not host.done("kill")


@pytest.mark.parametrize("link", [_processes.VM_LINK, "/dev/kvm", "/kvm"])
def test_a_qemu_that_ends_at_once_is_waited_for(host, monkeypatch, link):
    """Libvirt asks it what it can."""
    a_login(host, monkeypatch)
    monkeypatch.setattr(_gate, "OTHER_VM_S", 10.0)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        host.processes.pop(7, None)

    monkeypatch.setattr(time, "sleep", sleep)
    host.at["daemon-reload"] = lambda: host.processes.update({7: [link]})
    update(host)
    assert host.done("kill") == [ASKED] and 0.1 in slept


def test_sessions_and_containers_end_but_no_guest():
    active = ["init.scope", "session-3.scope", "user@0.service", "machine-qemu.scope", "docker-1.scope", "ssh.service"]
    assert _services.sessions(active, {"machine-qemu.scope", None}) == ["session-3.scope", "user@0.service", "docker-1.scope"]


def test_logins_end_before_a_guest_is_paused(host, monkeypatch):
    monkeypatch.setattr(
        _services, "active_units", lambda types="": [] if host.done("stop") or "scope" not in types else ["session-3.scope"]
    )
    ended = update(host)
    steps = [step[0] for step in host.did]
    assert host.done("stop") == ["session-3.scope"] and steps.index("isolate") < steps.index("stop") < steps.index("save")
    assert "these logins and containers were ended and do not start again by themselves: session-3.scope" in ended["error"]


def test_what_is_kept_running_is_no_session_to_end(host, monkeypatch):
    running = ["session-3.scope", "kept.scope", "in-place.scope", "app.scope"]
    monkeypatch.setattr(_services, "active_units", lambda types="": [unit for unit in running if unit not in host.done("stop")])
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": ["kept.scope"], "in_place": ["in-place.scope"]})
    assert host.did == [("stop", "session-3.scope")]


@pytest.mark.parametrize("stubborn", [0, 1, 2, 9])
def test_what_does_not_end_is_killed_while_the_guests_run(host, monkeypatch, capsys, stubborn):
    """In the pause a login whose shell ignores SIGTERM would be waited for."""
    left = itertools.count()
    monkeypatch.setattr(_services, "active_units", lambda types="": ["session-3.scope"] if next(left) <= stubborn else [])
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    journal = {"records": host.records, "kept": [], "in_place": []}
    _services.end_sessions(journal)
    assert [step[0] for step in host.did] == (["stop", "kill", "stop"] if stubborn > 1 else ["stop", "kill"][: stubborn + 1])
    assert journal["ended"] == ["session-3.scope"]
    assert ("these units did not end" in capsys.readouterr().err) == (stubborn == 9)


def test_one_session_that_has_just_ended_keeps_the_others_from_no_stop(host, monkeypatch):
    """systemd 262 stops no unit if it does not know one of them. So they are asked to stop again before they are killed."""
    running = ["session-3.scope", "session-4.scope"]

    def run(*command, **_limit):
        host.did.append((command[1], command[3:]))
        if "session-4.scope" in command:
            running.remove("session-4.scope")
            raise LiveUpdateError("Failed to enqueue jobs: Unit session-4.scope not loaded.")
        running.clear()

    monkeypatch.setattr(_services, "active_units", lambda types="": list(running))
    monkeypatch.setattr(_commands, "run", run)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": [], "in_place": []})
    assert host.did == [("stop", ("session-3.scope", "session-4.scope")), ("stop", ("session-3.scope",))]


def test_sessions_that_cannot_be_stopped_do_not_end_the_update(host, monkeypatch, capsys):
    def refuses(*_command, **_limit):
        raise LiveUpdateError("Unit session-3.scope not loaded.")

    monkeypatch.setattr(_services, "active_units", lambda types="": ["session-3.scope"])
    monkeypatch.setattr(_commands, "run", refuses)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": [], "in_place": []})
    assert "these units did not end, not even by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(("passed", "tries"), [(0.0, 3), (_services.SESSIONS_LIMIT_S / 2, 2), (_services.SESSIONS_LIMIT_S, 1)])
def test_all_stops_of_sessions_together_have_one_limit(host, monkeypatch, passed, tries):
    """Each stop gets what is left of it, but at least a second; at the limit the next, harder way begins."""
    now, did = [1000.0], []

    def run(*command, timeout):
        did.append((command[1], timeout))
        now[0] += passed
        raise LiveUpdateError("the command did not end in time")

    monkeypatch.setattr(_services.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_services, "active_units", lambda types="": ["session-3.scope"])
    monkeypatch.setattr(_commands, "run", run)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": [], "in_place": []})
    limit = _services.SESSIONS_LIMIT_S
    left = [max(limit - passed * number, 1.0) for number in range(tries)]
    assert did == [(verb, seconds) for verb in ("stop", "kill", "stop") for seconds in left]


def test_nothing_is_told_of_logins_that_run_again(monkeypatch):
    monkeypatch.setattr(_services, "active_units", lambda types: ["session-3.scope"])
    notes: list = []
    _services.tell_ended(["session-3.scope"], notes)
    assert notes == []
    _services.tell_ended(["session-3.scope", "session-4.scope"], notes)
    assert len(notes) == 1 and notes[0].endswith("session-4.scope")


def test_the_shutdown_waits_for_nobody_for_long_from_the_pause_until_the_undo(host):
    """PID 1 knows of the limit only once it is told to read it."""
    limit, seen = host.root / "system.conf.d/limit.conf", []
    limit.parent.mkdir()
    note = host.note

    def reload(what, *about):
        if what == "daemon-reload":
            seen.append((limit.exists(), bool(host.done("save"))))
        note(what, *about)

    host.note = reload
    host.at["save"] = lambda: seen.append(limit.stat().st_mode & 0o777)
    update(host)
    assert seen == [(False, False), (True, False), 0o644, (False, True)]


def test_an_update_that_stopped_nothing_starts_nothing(host):
    reason(host)
    assert "a block job is running" in update(host)["error"] and not host.done("start")


def test_what_ended_by_itself_before_anything_was_stopped_is_neither_started_nor_told(host, monkeypatch):
    runs = ["run-u1.service", "cron.service"]
    monkeypatch.setattr(_services, "active_units", lambda types="": [] if host.done("isolate") else list(runs))
    load = {"run-u1.service": "not-found"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"LoadState": load.get(unit, "loaded")} for unit in units})
    host.at["daemon-reload"] = lambda: runs.remove("run-u1.service")
    error = update(host)["error"]
    assert "run-u1.service" not in error and host.done("start") == ["default.target", "cron.service"]


def test_what_is_started_again_is_neither_a_login_nor_the_update():
    before = ["ssh.service", "cron.service", "user@0.service", "user-runtime-dir@0.service", "kvm-liveupdate.target"]
    assert _services.stopped([*before, "kvm-liveupdate-hold@web.service"], ["cron.service"]) == ["ssh.service"]


def test_a_unit_that_does_not_start_does_not_keep_the_others_down(monkeypatch):
    started = []

    def run(*command):
        if command[1] in ("list-units", "show"):
            return ""
        if command[-1] == "gone.service":
            raise LiveUpdateError("Unit gone.service not found.")
        started.append(command[-1])
        return ""

    monkeypatch.setattr(_commands, "run", run)
    with pytest.raises(LiveUpdateError, match=r"gone\.service not found"):
        _services.start_again(["gone.service", "ssh.service"], 1.0, [], [])
    assert started == ["default.target", "ssh.service"]


def test_a_unit_that_was_made_on_the_fly_is_told_and_is_no_failure(monkeypatch):
    started, notes = [], []
    monkeypatch.setattr(_services, "active_units", list)
    monkeypatch.setattr(_services, "_sockets_again", lambda units, since: [])
    monkeypatch.setattr(_commands, "run", lambda *command: started.append(command[-1]))
    known = {"run-u1.service": "not-found", "ssh.service": "loaded"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *_names: {unit: {"LoadState": known[unit]} for unit in units})
    _services.start_again(list(known), 1.0, notes, [])
    assert started == ["default.target", "ssh.service"]
    (note,) = notes
    assert "have no unit file" in note and note.endswith(": run-u1.service")


ISOLATED = 100.0


class Sockets:
    """What systemctl does to one socket and its service: the socket of a service that runs is refused, and an unlucky moment starts it."""

    def __init__(self, awakenings: int = 0, started: float = ISOLATED + 1, needed: str = "") -> None:
        self.active = {"logind.service", "web.service"}
        self.awakenings = awakenings
        self.service = f"ActiveEnterTimestampMonotonic={started * 1e6:.0f}\nRequiredBy={needed}\n"
        self.stops = 0

    def run(self, *command, **_limit):
        verb, *units = command[1:]
        if verb == "list-units":
            return "".join(f"{unit} loaded active\n" for unit in sorted(self.active))
        if verb == "show":
            if units[0] == "--property=Id,LoadState":
                return "LoadState=loaded\n\n" * (len(units) - 2)
            return self.service if units[-1] == "logind.service" else "Triggers=logind.service\n"
        if verb == "stop":
            self.stops += 1
            self.active -= set(units)
            if self.awakenings:
                self.awakenings -= 1
                self.active.add("logind.service")
        elif "logind.socket" in units and "logind.service" in self.active:
            raise LiveUpdateError("logind.socket: Device or resource busy")
        else:
            self.active |= {unit for unit in units if unit != "--no-block"}
        return ""


@pytest.mark.parametrize("awakenings", [0, 2])
def test_a_service_that_was_started_meanwhile_does_not_keep_its_socket_down(monkeypatch, awakenings):
    host = Sockets(awakenings)
    monkeypatch.setattr(_commands, "run", host.run)
    notes: list = []
    _services.start_again(["logind.service", "logind.socket"], ISOLATED, notes, [])
    assert host.active == {"default.target", "logind.service", "logind.socket", "web.service"}
    assert notes == []


@pytest.mark.parametrize(("link", "stops"), [(_processes.VM_LINK, 0), ("anon_inode:[eventfd]", 1)])
def test_a_service_that_runs_a_virtual_machine_is_not_stopped_for_its_socket(monkeypatch, link, stops):
    host = Sockets()
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_gate, "others", lambda ours: {7: [link]})
    monkeypatch.setattr(_processes, "unit_of", {7: "logind.service"}.get)
    if stops:
        _services.start_again(["logind.service", "logind.socket"], ISOLATED, [], [])
    else:
        with pytest.raises(LiveUpdateError, match=r"logind\.socket"):
            _services.start_again(["logind.service", "logind.socket"], ISOLATED, [], [])
    assert host.stops == stops


def test_a_socket_that_stays_down_is_said(monkeypatch):
    host = Sockets(awakenings=100)
    monkeypatch.setattr(_commands, "run", host.run)
    with pytest.raises(
        LiveUpdateError,
        match=r"logind\.socket: Device or resource busy; .* sockets are not started again:"
        r" logind\.socket\..*start the sockets",
    ):
        _services.start_again(["logind.service", "logind.socket"], ISOLATED, [], [])
    assert host.stops == _services.SOCKET_ATTEMPTS


@pytest.mark.parametrize(
    ("host", "since"),
    [(Sockets(started=ISOLATED - 1), ISOLATED), (Sockets(needed="web.service"), ISOLATED), (Sockets(), None)],
    ids=["ran all the time", "a guest stops with it", "nothing was stopped"],
)
def test_what_a_guest_may_need_does_not_stop_for_a_socket(monkeypatch, host, since):
    """The guest of a unit with Requires= on it would stop as well."""
    monkeypatch.setattr(_commands, "run", host.run)
    with pytest.raises(LiveUpdateError, match=r"logind\.socket: Device or resource busy"):
        _services.start_again(["logind.socket", "web.service"], since, [], [])
    assert not host.stops and {"logind.service", "web.service"} <= host.active


def test_a_service_with_a_virtual_machine_in_it_does_not_stop_for_a_socket(monkeypatch):
    host = Sockets()
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_processes, "pids", lambda: [7])
    monkeypatch.setattr(_processes, "fd_links", lambda pid: {3: _processes.VM_LINK})
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "logind.service")
    with pytest.raises(LiveUpdateError, match=r"logind\.socket: Device or resource busy"):
        _services.start_again(["logind.socket"], ISOLATED, [], [])
    assert not host.stops


def test_a_service_that_is_needed_by_nothing_that_runs_may_stop(monkeypatch):
    host = Sockets(needed="absent.service")
    monkeypatch.setattr(_commands, "run", host.run)
    _services.start_again(["logind.service", "logind.socket"], ISOLATED, [], [])
    assert host.stops == 1 and "logind.socket" in host.active
