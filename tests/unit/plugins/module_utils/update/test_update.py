# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import os
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _journal, _lock, _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _systemd, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _unit
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _gate, _jump, _services

UPDATE = {"state": "jumping", "boot_id": "b1", "image": {"release": "7.3.4"}}


@pytest.mark.parametrize(
    ("update", "boot_id", "release", "by_kexec", "outcome"),
    [
        ({}, "b1", "7.2.13", None, "none"),
        ({**UPDATE, "state": "aborted"}, "b1", "7.2.13", None, "aborted"),
        ({**UPDATE, "state": "aborted"}, "b2", "7.3.4", True, "aborted"),
        ({**UPDATE, "state": "saving"}, "b1", "7.2.13", False, "pending"),
        (UPDATE, "b1", "7.2.13", False, "pending"),
        (UPDATE, "b2", "7.3.4", True, "jumped"),
        (UPDATE, "b2", "7.3.4", None, "jumped"),
        (UPDATE, "b2", "7.3.4", False, "rebooted"),  # a power cut at that moment, and the new kernel is the boot default
        (UPDATE, "b2", "7.2.13", True, "rebooted"),
        ({**UPDATE, "state": "saving"}, "b2", "7.3.4", True, "rebooted"),
    ],
)
def test_outcome(update, boot_id, release, by_kexec, outcome):
    assert _journal.outcome(update, boot_id, release, by_kexec) == outcome


READY = {"image": {"path": "/boot/k"}, "guests": {"web": {}}, "holds": {"web": {"hold": "h"}}, "not_back": [], "strangers": []}
STRANGER = {"name": "pid-7", "pid": 7, "reasons": [{"code": "not-managed", "message": "no monitor is known", "remedy": "wrap it"}]}


@pytest.mark.parametrize(
    ("names", "seen", "says"),
    [
        (["web"], {}, ""),
        (["web"], {"image": {}}, "no kernel is staged in this boot"),
        (["web", "db"], {}, "guest db no longer runs"),
        ([], {}, "guest web runs but is not part of this update"),
        (["web"], {"holds": {}}, "guest web: its RAM is not preserved"),
        (["web"], {"strangers": [STRANGER]}, "pid-7 (process 7) is a virtual machine that would be lost: no monitor is known"),
        (["web"], {"not_back": [{"code": "not-back", "message": "app was saved", "remedy": "start it"}]}, "app was saved - start it"),
    ],
)
def test_the_gate_names_what_would_be_lost(names, seen, says):
    problems = _gate.gate(names, {**READY, **seen})
    assert len(problems) == bool(says) and all(says in problem for problem in problems)


CALM = {unit: {"ActiveState": "inactive"} for unit in _gate.CLUSTERS}


@pytest.mark.parametrize(
    ("keep", "shown", "says"),
    [
        (["iscsid.service"], {"iscsid.service": {"LoadState": "loaded"}}, ""),
        (["iscsid"], {"iscsid": {"LoadState": "loaded"}}, "'iscsid' is not a full unit name; write for example iscsid.service"),
        (["icsid.service"], {"icsid.service": {"LoadState": "not-found"}}, "unit icsid.service does not exist on this host"),
        ([], {"pacemaker.service": {"ActiveState": "active"}}, "the cluster manager pacemaker.service runs"),
        (["pacemaker.service"], {"pacemaker.service": {"LoadState": "loaded", "ActiveState": "active"}}, ""),
    ],
)
def test_units_that_are_mistyped_or_would_stop_guests_forbid_the_jump(keep, shown, says):
    problems = _gate.unit_problems(keep, {**CALM, **shown})
    assert len(problems) == bool(says) and all(says in problem for problem in problems)


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


def test_sessions_and_containers_end_but_no_guest():
    active = ["init.scope", "session-3.scope", "user@0.service", "machine-qemu.scope", "docker-1.scope", "ssh.service"]
    assert _services.sessions(active, {"machine-qemu.scope", None}) == ["session-3.scope", "user@0.service", "docker-1.scope"]


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
        _services.start_again(["gone.service", "ssh.service"], 1.0, [])
    assert started == ["default.target", "ssh.service"]


def test_a_unit_that_was_made_on_the_fly_is_told_and_is_no_failure(monkeypatch):
    started, notes = [], []
    monkeypatch.setattr(_services, "active_units", list)
    monkeypatch.setattr(_services, "_sockets_again", lambda units, since: [])
    monkeypatch.setattr(_commands, "run", lambda *command: started.append(command[-1]))
    known = {"run-u1.service": "not-found", "ssh.service": "loaded"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, _name: {unit: {"LoadState": known[unit]} for unit in units})
    _services.start_again(list(known), 1.0, notes)
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
    _services.start_again(["logind.service", "logind.socket"], ISOLATED, notes)
    assert host.active == {"default.target", "logind.service", "logind.socket", "web.service"}
    assert notes == []


@pytest.mark.parametrize(("link", "stops"), [(_processes.VM_LINK, 0), ("anon_inode:[eventfd]", 1)])
def test_a_service_that_runs_a_virtual_machine_is_not_stopped_for_its_socket(monkeypatch, link, stops):
    host = Sockets()
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_gate, "others", lambda ours: {7: [link]})
    monkeypatch.setattr(_processes, "unit_of", {7: "logind.service"}.get)
    if stops:
        _services.start_again(["logind.service", "logind.socket"], ISOLATED, [])
    else:
        with pytest.raises(LiveUpdateError, match=r"logind\.socket"):
            _services.start_again(["logind.service", "logind.socket"], ISOLATED, [])
    assert host.stops == stops


def test_nothing_is_told_of_logins_that_run_again(monkeypatch):
    monkeypatch.setattr(_services, "active_units", lambda types: ["session-3.scope"])
    notes: list = []
    _services.tell_ended(["session-3.scope"], notes)
    assert notes == []
    _services.tell_ended(["session-3.scope", "session-4.scope"], notes)
    assert len(notes) == 1 and notes[0].endswith("session-4.scope")


def test_a_socket_that_stays_down_is_said(monkeypatch):
    host = Sockets(awakenings=100)
    monkeypatch.setattr(_commands, "run", host.run)
    with pytest.raises(
        LiveUpdateError,
        match=r"logind\.socket: Device or resource busy; .* sockets are not started again:"
        r" logind\.socket\..*start the sockets",
    ):
        _services.start_again(["logind.service", "logind.socket"], ISOLATED, [])
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
        _services.start_again(["logind.socket", "web.service"], since, [])
    assert not host.stops and {"logind.service", "web.service"} <= host.active


def test_a_service_with_a_virtual_machine_in_it_does_not_stop_for_a_socket(monkeypatch):
    host = Sockets()
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_processes, "pids", lambda: [7])
    monkeypatch.setattr(_processes, "fd_links", lambda pid: {3: _processes.VM_LINK})
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "logind.service")
    with pytest.raises(LiveUpdateError, match=r"logind\.socket: Device or resource busy"):
        _services.start_again(["logind.socket"], ISOLATED, [])
    assert not host.stops


def test_a_service_that_is_needed_by_nothing_that_runs_may_stop(monkeypatch):
    host = Sockets(needed="absent.service")
    monkeypatch.setattr(_commands, "run", host.run)
    _services.start_again(["logind.service", "logind.socket"], ISOLATED, [])
    assert host.stops == 1 and "logind.socket" in host.active


def test_file_systems_that_do_not_answer_do_not_keep_a_host_down(monkeypatch):
    _jump._write_out(30.0)
    monkeypatch.setattr(os, "sync", lambda: time.sleep(2))
    with pytest.raises(LiveUpdateError, match=r"not written to disk in the remaining time"):
        _jump._write_out(0.1)
    with pytest.raises(LiveUpdateError, match=r"not written to disk within 1 s"):
        _jump._write_out(1.0)


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
        "units": [],
        "records": {"web": {"unit": "web.service", "pid": 7}},
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
    active = ["ufw.service", "firewalld.service", "multipathd.service", "multipathd.socket", "cron.service", "web.service"]
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
    update = {"id": "u", "times": {}, "guests": ["web"], "keep_units": [], "units": active}
    update |= {"records": {"web": {"unit": "web.service", "pid": 7}}, "pause_by": time.monotonic() + 60}
    _services.stop_the_rest(update)
    wanted = (tmp_path / f"{_units.JUMP_TARGET}.d/kept.conf").read_text().splitlines()
    assert wanted[0] == "[Unit]"
    assert sorted(wanted[1:]) == [
        f"Wants={unit}" for unit in ("firewalld.service", "multipathd.service", "multipathd.socket", "ufw.service", "web.service")
    ]
    assert sorted(update["kept"]) == ["firewalld.service", "multipathd.service", "multipathd.socket", "ufw.service"]
    assert ran[-1] == ("isolate", True)


def test_a_guest_that_cannot_run_on_keeps_its_memory_and_its_state(tmp_path, monkeypatch):
    """A domain that is saved has its RAM in the session and in its holder only."""
    released, late = [], []

    class Provider:
        @staticmethod
        def resume(record, running):
            assert running
            if record["name"] != "db":
                raise LiveUpdateError("no bridge br0")

        @staticmethod
        def status(record):
            return "paused" if record["name"] == "app" else "running"

    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_providers, "of", lambda record: Provider)
    monkeypatch.setattr(_hold, "release", lambda record: released.append(record["name"]))
    monkeypatch.setattr(_early, "start_early", lambda unit, wanted: wanted or late.append(unit))
    monkeypatch.setattr(_kexec, "unload", lambda: None)
    monkeypatch.setattr(_services, "start_again", lambda units, since, notes: None)
    monkeypatch.setattr(_services, "_MANAGER", str(tmp_path / "none"))
    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome.json"))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    for name in ("app", "db", "web"):  # web runs on although not all of its save could be undone
        (tmp_path / f"{name}.state").touch()
        (tmp_path / f"{name}.json").write_text("{}")
    process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    records = {name: {"name": name, "unit": f"{name}.service", "provider": "qemu", **process} for name in ("app", "db", "web")}
    early = ["app.service", "db.service", "gone.service"]  # the last one's guest ended meanwhile
    _jump._abort(
        {"id": "u", "times": {}, "guests": list(records), "records": records, "running": list(records), "early": early},
        "db cannot be saved",
    )
    assert released == ["db", "web"] and late == early
    assert (tmp_path / "app.state").exists() and not (tmp_path / "db.state").exists() and not (tmp_path / "web.state").exists()
    assert not (tmp_path / "app.json").exists()
    error = _files.read_json(_files.UPDATE)["error"]
    assert (
        "db cannot be saved" in error
        and "the undo could not end the save of guest web: no bridge br0" in error
        and "guest web is not resumed" not in error
        and "'kvm-liveupdate discard app'" in error
    )


GOOD = {"FileDescriptorStorePreserve": "yes", "NotifyAccess": "all", "IgnoreOnIsolate": "yes", "FileDescriptorStoreMax": "4"}


def test_a_unit_with_all_it_needs_is_a_holder():
    assert _reasons.unit_reasons("web1.service", GOOD) == []


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_a_unit_lacks_is_named(key):
    (reason,) = _reasons.unit_reasons("web1.service", {**GOOD, key: "no" if key != "FileDescriptorStoreMax" else "0"})
    assert f"{key}=" in reason["message"]
    assert "hypervisor_setup_guest_units" in reason["remedy"]


@pytest.mark.parametrize("setting", ["FailureAction", "StartLimitAction"])
def test_a_unit_that_would_end_the_host_is_refused(setting):
    (reason,) = _reasons.unit_reasons("web1.service", {**GOOD, setting: "reboot-force"})
    assert reason["code"] == "unit-action" and f"{setting}=reboot-force" in reason["message"]
    assert _reasons.unit_reasons("web1.service", {**GOOD, setting: "none"}) == []


OWN = {"MainPID": "7", "DevicePolicy": "auto", "DeviceAllow": ""}


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({}, ""),
        ({"DeviceAllow": "/dev/liveupdate rw /dev/kvm rw"}, ""),
        ({"DeviceAllow": "/dev/kvm rw char-misc rw"}, ""),
        ({"DeviceAllow": "/dev/kvm rw"}, "may not open /dev/liveupdate"),
        ({"DevicePolicy": "closed"}, "may not open /dev/liveupdate"),
        ({"MainPID": "6"}, "process 7, is not the main process of web1.service"),
    ],
)
def test_a_unit_that_would_not_find_its_guests_memory_is_told_before(properties, says):
    found = _unit.start_reasons("web1.service", 7, {**OWN, **properties})
    assert [reason["code"] for reason in found] == ["unit"] * bool(says)
    assert all(says in reason["message"] for reason in found)


def test_session_names_fit():
    assert _session.name_of("2F6F0D5A-54F0-4F4E-8F4B-0B7E5C0F5C11") == "kvm-2f6f0d5a54f04f4e8f4b0b7e5c0f5c11"


def test_one_operation_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation"), _lock.Lock(wait_s=0.2):
        pass
    with open(tmp_path / "lock", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_records_are_whole_or_an_error(tmp_path):
    path = str(tmp_path / "sub" / "record.json")
    assert _files.read_json(path) == {}
    _files.write_json(path, {"a": 1})
    assert _files.read_json(path) == {"a": 1}
    assert (tmp_path / "sub" / "record.json").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "sub").iterdir())) == 1
    (tmp_path / "sub" / "record.json").write_text('{"a": ')
    with pytest.raises(LiveUpdateError, match=r"record\.json"):
        _files.read_json(path)
    assert _files.remove(path) and not _files.remove(path)


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "record.json" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"record\.json"):
        _files.write_json(str(tmp_path / "record.json"), {})
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]
