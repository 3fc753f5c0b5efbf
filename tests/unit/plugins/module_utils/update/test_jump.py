# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole update on a host that is made up: everything up to the kexec, which never comes, so that each is undone at last."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _early, _journal, _lock, _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _systemd, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec, _kvm, _modules
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _gate, _jump, _rest_of_boot, _services

ASKED = (1, signal.SIGRTMIN + 16)
LINK = "anon_inode:[luo_session] kvm-"


class Host:
    """A host with guests of one provider, which it is itself. ``did`` is what was done, in order."""

    saves_slowly, kept, daemons = False, (), ()

    def __init__(self, root, names) -> None:
        self.root = root
        self.did: list = []
        self.calls: list = []
        self.limits: dict = {}  # of the last command with each verb
        self.state = dict.fromkeys(names, "running")
        self.reasons: dict = {}
        self.at: dict = {}  # what happens at a step: the word in ``did``, or the word and of whom -> a function
        self.records = {name: self.record(name) for name in names}
        self.started = {os.getpid(): 1}
        self.processes = {1: [LINK + name for name in names]}
        self.loaded = False

    def record(self, name) -> dict:
        ram = os.memfd_create(name)
        os.ftruncate(ram, 4096)
        record = {"name": name, "provider": "qemu", "unit": f"{name}.service", "uuid": name, "pid": os.getpid(), "started": 1}
        return {**record, "ram": [{"fd": ram, "size": 4096}]}

    def note(self, what, *about) -> None:
        self.did.append((what, *about))
        for step in (what, (what, *about)):
            self.at.pop(step, lambda: None)()

    def done(self, what) -> list:
        return [step[1] for step in self.did if step[0] == what]

    # as a provider

    def status(self, record) -> str:
        return self.state[record["name"]]

    def save(self, record, path, _running) -> dict:
        self.state[record["name"]] = "postmigrate"
        with open(path, "w", encoding="utf-8") as file:
            file.write("state")
        self.note("save", record["name"])
        return {"times": {"paused": 1.0, "saved": 2.0}, "provider": "qemu"}

    def still_saved(self, records) -> list:
        self.note("look", len(records))
        return [f"{record['name']} goes on" for record in records if self.state[record["name"]] != "postmigrate"]

    def survey(self, records) -> None:
        self.note("survey", len(records))
        for record in records:
            record["xml"] = "<domain/>"

    def resume(self, record, running) -> None:
        self.note("resume", record["name"])
        assert not os.path.exists(_files.journal_path(record["name"])), "a state that the memory no longer belongs to"
        if running:
            self.state[record["name"]] = "running"

    # as a host

    def run(self, *command, **limit) -> str:
        self.limits[command[1]] = limit.get("timeout")
        if command[1] == "show":
            return "\n".join(f"Id={unit}\n" for unit in command[command.index("--") + 1 :])
        self.note(command[1], command[-1])
        return ""

    def known(self) -> list:
        self.calls.append("known")
        return [dict(record) for record in self.records.values()]

    def kexec(self, _kernel, _initrd, _cmdline, flags) -> None:
        self.loaded = not flags & 1
        self.note("load" if self.loaded else "unload", flags)


def make(root, monkeypatch, names) -> Host:
    for name, path in {"RUN": "run", "GUESTS_RUN": "run/guests", "GUESTS_STATE": "guests"}.items():
        monkeypatch.setattr(_files, name, str(root / path))
        (root / path).mkdir(parents=True, exist_ok=True)
    for name in ("IMAGE_RECORD", "LOCK", "OUTCOME"):
        monkeypatch.setattr(_files, name, str(root / "run" / name))
    monkeypatch.setattr(_files, "UPDATE", str(root / "update.json"))
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # many guests, and a disk that others write to
    host = Host(root, names)
    for step in ("GRACE_S", "DOWN_LIMIT_S", "LOCK_LIMIT_S", "RECOVER_S"):
        monkeypatch.setattr(_jump, step, 0)
    monkeypatch.setattr(_gate, "OTHER_VM_S", 0)
    for module, name, path in (
        (_units, "RUN_FOLDER", "units"),
        (_services, "_MANAGER", "system.conf.d/limit.conf"),
        (_jump, "_EXITRD", "shutdown"),
        (_jump, "_EXITRD_ASIDE", "aside"),
    ):
        monkeypatch.setattr(module, name, str(root / path))
    monkeypatch.setattr(_units, "FOLDER", str(root / "etc"))
    monkeypatch.setattr(_rest_of_boot, "plan", lambda records: [])
    monkeypatch.setattr(_files, "MODULES", str(root / "modules-load.d/kvm-liveupdate.conf"))
    monkeypatch.setattr(_this_boot, "consoles", lambda: "")
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "b")
    monkeypatch.setattr(_this_boot, "kernel", dict)
    monkeypatch.setattr(_commands, "run", host.run)
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "inactive", "Job": "0"})
    monkeypatch.setattr(_systemd, "version", lambda: 262)
    monkeypatch.setattr(_systemd, "fdstore_each", lambda units: {unit: [_session.FDNAME] for unit in units})
    monkeypatch.setattr(_systemd, "forget_fd", lambda unit, pid, name: host.note("release", unit))
    monkeypatch.setattr(_processes, "start_time", lambda pid: host.started.get(pid, 0))
    monkeypatch.setattr(_processes, "pids", lambda: sorted({*host.processes, *host.started}))
    monkeypatch.setattr(_processes, "fd_links", lambda pid: dict(enumerate(host.processes.get(pid, []))))
    monkeypatch.setattr(_reasons, "inspect", lambda record: host.reasons.get(record["name"], []) if record.pop("xml") else [])
    monkeypatch.setattr(_providers, "of", lambda record: host)
    monkeypatch.setattr(_providers, "all_of_them", lambda: (host,))
    monkeypatch.setattr(_providers._qemu_guests, "foreign_reason", lambda pid: {"message": "nobody knows it", "remedy": "", "code": ""})
    monkeypatch.setattr(_kexec, "_kexec_file_load", host.kexec)
    monkeypatch.setattr(_kexec, "loaded", lambda: host.loaded)
    monkeypatch.setattr(os, "kill", lambda *what: host.note("kill", what))
    kernel = root / "vmlinuz"
    kernel.write_bytes(b"kernel")
    digest = hashlib.sha256(b"kernel").hexdigest()
    image = {"path": str(kernel), "sha256": digest, "initrd": None, "initrd_sha256": None, "cmdline": "kho=on", "release": "7.3"}
    _files.write_json(_files.IMAGE_RECORD, image)
    for record in host.records.values():
        hold = {"hold": f"hold-{record['name']}", "session": f"kvm-{record['name']}", "sizes": [4096], "pid": record["pid"], "started": 1}
        _files.write_json(_files.run_path(record["name"], "held"), {**hold, "files": _hold._ram_files(record)})
        _session.record_hold(record)
    return host


@pytest.fixture(name="host")
def host_with_two_guests(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch, ["app", "web"])


def update(host) -> dict:
    """Commit and carry out an update; returns what became of it."""
    _jump.commit(list(host.records), [], "start")
    host.did.clear()
    assert _jump.jump() == 1
    return _journal.of_update()


def undone(host, ended, says) -> None:
    """The update was undone, and every guest runs on."""
    assert ended["state"] == "aborted" and says in ended["error"] and "the undo could not" not in ended["error"]
    assert set(host.state.values()) == {"running"}
    assert not host.loaded and _kexec.record() == {}


def test_everything_is_in_place_when_pid_1_is_asked_for_the_kexec(host):
    (host.root / "shutdown").touch()

    def at_the_kexec():
        assert host.loaded
        assert set(host.state.values()) == {"postmigrate"}
        assert not (host.root / "shutdown").exists()  # systemd-shutdown would execute it instead of the kexec
        assert "DefaultTimeoutStopSec=10s" in (host.root / "system.conf.d/limit.conf").read_text()
        assert _files.read_json(_files.UPDATE)["state"] == "jumping"
        journal = _journal.of_guest("web")
        assert (journal["hold"], journal["qemu"], journal["session"]) == ("hold-web", [os.getpid(), 1], "kvm-web")
        assert _session.recorded_holds() == []  # the boot that follows has nothing to give up
        assert journal["was_running"] and journal["state"] == "saved" and journal["update_id"] == _journal.of_update()["id"]

    host.at["kill"] = at_the_kexec
    ended = update(host)
    assert host.done("kill") == [ASKED]
    undone(host, ended, "PID 1 got the request for the kexec")
    assert (host.root / "shutdown").exists() and not (host.root / "system.conf.d/limit.conf").exists()
    assert sorted(host.done("release")) == ["app.service", "web.service"]


@pytest.mark.parametrize("kind", ["sample", "full"])
def test_digests_of_the_memory_are_on_the_disk_before_the_kexec_and_are_of_the_guest_that_was_saved(host, kind):
    """What the guest wrote until its save is in them. Nothing writes to the memory after that."""
    seen = {}

    def last_words():
        os.pwrite(host.records["web"]["ram"][0]["fd"], b"last words", 100)

    def at_the_kexec():
        for name, record in host.records.items():
            journal = _journal.recorded(name)
            assert _digests.wrong(journal["memory"], [record["ram"][0]["fd"]])[0] == []
            seen[name] = (journal["memory_check"], journal["memory"]["kind"], journal["times"]["read"] > journal["times"]["saved"])

    host.at["save", "web"] = last_words
    host.at["kill"] = at_the_kexec
    _jump.commit(list(host.records), [], "start", 1800, kind)
    assert _journal.of_update()["verify_memory"] == kind
    assert _jump.jump() == 1
    assert seen == {"app": (kind, kind, True), "web": (kind, kind, True)} and host.done("kill") == [ASKED]


def test_memory_that_is_not_to_be_checked_is_not_read(host, monkeypatch):
    seen = []
    monkeypatch.setattr(_digests, "note", lambda *_words: 1 // 0)
    host.at["kill"] = lambda: seen.append(_journal.recorded("web"))
    _jump.commit(list(host.records), [], "start", 1800, "none")
    assert _jump.jump() == 1 and host.done("kill") == [ASKED]
    assert seen[0]["memory_check"] == "none" and "memory" not in seen[0] and "read" not in seen[0]["times"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), LiveUpdateError("RAM file 1 ends")])
def test_memory_that_cannot_be_read_before_the_jump_undoes_the_update(host, monkeypatch, failure):
    """An undo is still possible, and a page that cannot be read would not survive the jump either."""

    def fails(*_words):
        raise failure

    monkeypatch.setattr(_digests, "note", fails)
    undone(host, update(host), "guest web: its memory cannot be read for the check after the jump: ")
    assert not host.done("kill")


@pytest.mark.parametrize(("kind", "limits"), [("none", 1), ("sample", 1), ("full", 3)])
def test_the_time_of_a_full_check_is_not_taken_from_the_commands_of_the_pause(host, monkeypatch, kind, limits):
    given = []
    monkeypatch.setattr(_commands, "end_by", lambda moment, what="": given.append(what) if "for the pause of the guests" in what else None)
    _jump.commit(list(host.records), [], "start", 1800, kind)
    assert _jump.jump() == 1 and len(given) == limits


def test_the_kernel_is_loaded_for_the_jump_only(host):
    """Loaded, it would turn somebody's reboot into a jump."""
    at = {}
    for step in ("isolate", "save"):
        host.at[step] = lambda step=step: at.update({step: host.loaded})
    update(host)
    assert at == {"isolate": False, "save": True}


def test_the_modules_that_guests_use_are_listed_for_the_next_boot_before_services_are_stopped(host, monkeypatch):
    monkeypatch.setattr(_modules, "loaded", lambda: ["kvm_amd", "vhost_net"])
    seen = []
    host.at["isolate"] = lambda: seen.append(Path(_files.MODULES).read_text())
    update(host)
    assert seen == ["kvm_amd\nvhost_net\n"]


@pytest.mark.parametrize("kind", ["sample", "full"])
def test_a_check_of_the_memory_leaves_no_file_open(host, monkeypatch, kind):
    """Each is a file descriptor for the RAM of a guest."""
    given: list[int] = []
    preserved = _hold.preserved_files
    monkeypatch.setattr(_hold, "preserved_files", lambda *words: given.extend(found := preserved(*words)) or found)
    _jump.commit(list(host.records), [], "start", 1800, kind)
    links = set()
    host.at["kill"] = lambda: links.update(fd for fd in given if os.path.exists(f"/proc/self/fd/{fd}"))
    assert _jump.jump() == 1
    assert len(given) == 2 and not links


def test_an_undo_in_the_pause_looks_for_no_guests(host):
    """It has them from the last gate. A search takes time, and the guests are paused."""
    host.at["kill"] = host.calls.clear
    undone(host, update(host), "PID 1 got the request for the kexec")
    assert host.calls == []


@pytest.mark.parametrize("status", [None, "Name:\tsystemd\n", "ShdPnd:\tzero\n", "ShdPnd:\t0000000000000000\n"])
def test_pid_1_whose_signals_cannot_be_read_is_not_said_to_reboot_the_host(host, monkeypatch, status):
    path = host.root / "status"
    if status is not None:
        path.write_text(status)
    monkeypatch.setattr(_jump, "_PID_1", str(path))
    undone(host, update(host), "PID 1 got the request for the kexec, but did not carry it out within 0 s")


def another_qemu(host) -> None:
    host.started[os.getpid()] = 2


def other_memory(host) -> None:
    """The process is the same, and its descriptor another file."""
    ram = host.records["web"]["ram"][0]["fd"]
    os.dup2(os.memfd_create("other"), ram)


def stranger(host) -> None:
    host.processes[7] = [_processes.VM_LINK]


def replaced_kernel(host) -> None:
    (host.root / "vmlinuz").write_bytes(b"another")


def reason(host) -> None:
    host.reasons["web"] = [{"code": "block-job", "message": "a block job is running", "remedy": "let it finish"}]


def no_session(host) -> None:
    host.processes[1].remove(LINK + "web")


def goes_on(host) -> None:
    host.state["web"] = "running"


def unloaded(host) -> None:
    host.loaded = False


def restaged(host) -> None:
    _files.write_json(_files.IMAGE_RECORD, {**_kexec.record(), "cmdline": "other"})


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (another_qemu, "guest app: its RAM is not preserved"),
        (other_memory, "guest web: its RAM is not preserved"),
        (stranger, "process 7) is a virtual machine that would be lost: nobody knows it"),
        (replaced_kernel, "vmlinuz has changed since it was staged; stage it again"),
        (reason, "guest web: a block job is running - let it finish"),
        (restaged, "is no longer staged as it was committed"),
    ],
)
def test_what_changed_while_services_were_stopped_is_seen_before_a_guest_is_paused(host, what, says):
    host.at["isolate"] = lambda: what(host)
    undone(host, update(host), says)
    assert not host.done("save") and not host.done("kill")


@pytest.mark.parametrize("what", [another_qemu, other_memory])
def test_no_state_is_kept_of_another_qemu_or_other_memory_than_was_held(host, what):
    """It would be loaded onto the memory of the one that was held."""
    journals = []
    host.at["save", "web"] = lambda: what(host)  # guests are saved at the same time: not in another one's save
    host.at["resume"] = lambda: journals.extend(os.listdir(_files.GUESTS_STATE))
    ended = update(host)
    undone(host, ended, "guest web: its QEMU or its memory is no longer the one that is preserved")
    assert "web.json" not in journals and not host.done("kill")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (another_qemu, "guest web: its QEMU or its memory is no longer the one that was saved"),
        (other_memory, "guest web: its QEMU or its memory is no longer the one that was saved"),
        (stranger, "process 7 (stranger.service) is a virtual machine that was started during the update"),
        (no_session, "guest web: no process has its session open any more"),
        (goes_on, "web goes on"),
        (unloaded, "the kernel for the jump is no longer loaded"),
        (restaged, "the kernel for the jump is no longer loaded"),
    ],
)
def test_the_last_look_sees_what_changed_in_the_pause(host, monkeypatch, what, says):
    monkeypatch.setattr(_jump, "_put_exitrd_aside", lambda: what(host))
    monkeypatch.setattr(_processes, "unit_of", {7: "stranger.service"}.get)
    undone(host, update(host), says)
    assert sorted(host.done("save")) == ["app", "web"] and not host.done("kill")


def test_the_last_look_asks_each_provider_once(host):
    update(host)
    assert host.done("look") == [2]


def read_from_the_gate_on(root, monkeypatch, count):
    """The searches for guests and how often /proc is read, from the last gate of an update with so many guests to its kexec."""
    host = make(root, monkeypatch, [f"g{number}" for number in range(count)])
    seen: list = []
    found: list = []
    for name in ("fd_links", "start_time"):
        inner = getattr(_processes, name)
        monkeypatch.setattr(_processes, name, lambda pid, inner=inner: seen.append(pid) or inner(pid))

    def meant_to_run(records):
        host.calls.clear()
        seen.clear()
        return list(records)

    monkeypatch.setattr(_jump, "_meant_to_run", meant_to_run)
    host.at["kill"] = lambda: found.append((list(host.calls), len(seen)))
    update(host)
    return found[0]


def test_the_pause_looks_up_nothing_for_each_guest(tmp_path, monkeypatch):
    """What is read from the gate on: with ten times the guests at most twelve times as much."""
    ten = read_from_the_gate_on(tmp_path / "10", monkeypatch, 10)
    hundred = read_from_the_gate_on(tmp_path / "100", monkeypatch, 100)
    assert ten[0] == hundred[0] == []  # no search for guests
    assert 0 < hundred[1] <= 12 * ten[1]


def work_from_the_gate_on(root, monkeypatch, count):
    """The calls of Python and C functions, in all threads, from the last gate of an update with so many guests to its kexec.

    They stand for the processor time, which differs from run to run. A search for guests makes as many calls as it would: it
    reads the descriptors of each guest's process.
    """
    host = make(root, monkeypatch, [f"g{number}" for number in range(count)])
    calls = itertools.count()
    found: list[int] = []

    def known():
        for _record in host.records.values():
            for name in os.listdir("/proc/self/fd"):
                os.path.basename(name)
        return [dict(record) for record in host.records.values()]

    def seen(_frame, event, _arg):
        if event in ("call", "c_call"):
            next(calls)

    def meant_to_run(records):
        threading.setprofile(seen)
        sys.setprofile(seen)
        return list(records)

    def end():
        sys.setprofile(None)
        threading.setprofile(None)
        found.append(next(calls))

    monkeypatch.setattr(host, "known", known)
    monkeypatch.setattr(_jump, "_meant_to_run", meant_to_run)
    host.at["kill"] = end
    update(host)
    for record in host.records.values():
        os.close(record["ram"][0]["fd"])
    return found[0]


def test_the_pause_makes_at_most_twelve_times_the_calls_for_ten_times_the_guests(tmp_path, monkeypatch):
    before = sys.getprofile()
    try:
        ten = work_from_the_gate_on(tmp_path / "10", monkeypatch, 10)
        hundred = work_from_the_gate_on(tmp_path / "100", monkeypatch, 100)
    finally:
        threading.setprofile(None)
        sys.setprofile(before)
    assert 1000 < ten < hundred <= 12 * ten


def test_records_are_on_the_disk_before_the_first_guest_is_paused(host):
    seen = []
    host.at["save"] = lambda: seen.append(_files.read_json(_files.UPDATE))
    update(host)
    assert seen[0]["state"] == "saving" and seen[0]["running"] == ["app", "web"]
    assert seen[0]["records"] == json.loads(json.dumps(host.records))  # and nothing of what the survey found


@pytest.mark.parametrize(("reuse_probe", "kvm"), [(True, "what KVM answers"), (False, "")])
def test_what_kvm_answers_is_recorded_before_the_jump_if_it_may_be_used(host, monkeypatch, reuse_probe, kvm):
    monkeypatch.setattr(_kvm, "answers", lambda: "what KVM answers")
    seen = []
    host.at["save"] = lambda: seen.append(_files.read_json(_files.UPDATE))
    _jump.commit(list(host.records), [], "start", reuse_probe=reuse_probe)
    _jump.jump()
    assert seen[0]["kvm"] == kvm


def test_a_journal_that_cannot_be_written_pauses_nobody(host, monkeypatch):
    real = _files.write_json

    def write(path, record):
        if path == _files.UPDATE and record["state"] == "saving":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, record)

    monkeypatch.setattr(_files, "write_json", write)
    undone(host, update(host), "No space left on device")
    assert not host.done("save")


@pytest.mark.parametrize(
    ("change", "boot_id"),
    [({"state": "aborted"}, "b"), ({"state": "saving"}, "b"), ({"state": "jumping"}, "b"), ({}, "b2"), (None, "b")],
)
def test_only_an_update_that_was_committed_in_this_boot_is_carried_out(host, monkeypatch, change, boot_id):
    if change is not None:
        committed = _jump.commit(list(host.records), [], "start")
        _files.write_json(_files.UPDATE, {**committed, **change})
    monkeypatch.setattr(_this_boot, "boot_id", lambda: boot_id)
    host.did.clear()
    with pytest.raises(LiveUpdateError, match="no update is committed"):
        _jump.jump()
    assert host.did == []


def test_a_commit_is_refused_by_the_gate(host):
    stranger(host)
    with pytest.raises(LiveUpdateError, match="nothing was stopped: pid-7"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start") and not os.path.exists(_files.UPDATE)


def test_a_commit_is_refused_for_a_unit_that_is_not_there(host, monkeypatch):
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"LoadState": "not-found"} for unit in units})
    with pytest.raises(LiveUpdateError, match=r"unit icsid\.service does not exist on this host"):
        _jump.commit(list(host.records), ["icsid.service"], "start")
    assert not host.done("start")


def test_nobody_else_gets_the_lock_between_the_commit_and_the_end(host, monkeypatch):
    busy = {"ActiveState": "inactive", "Job": "7"}  # queued, and not begun yet
    _jump.commit(list(host.records), [], "start")
    with _lock.Lock():
        pass  # a journal that nobody carries out blocks nothing
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: dict(busy))
    for state in ("activating", "active", "deactivating", "inactive"):
        busy["ActiveState"] = state
        with pytest.raises(LiveUpdateError, match="a live update of this host is running"), _lock.Lock():
            pass
    with _lock.Lock(of_update=True):
        pass
    busy.update(ActiveState="failed", Job="0")
    with _lock.Lock():
        pass


def test_an_update_that_does_not_get_the_lock_says_so(host):
    _jump.commit(list(host.records), [], "start")
    with _lock.Lock():
        assert _jump.jump() == 1
    ended = _journal.of_update()
    assert ended["state"] == "aborted" and "another live update operation" in ended["error"]
    assert ended["error"].startswith("Nothing was stopped, and the guests continue to run: another live update operation")
    assert ended["error"].endswith(". Then run the update again") and set(host.state.values()) == {"running"}


def test_an_undo_on_a_full_disk_is_done_and_told(host, monkeypatch):
    """The controller would wait to its limit, and take the host for lost."""
    real = _files.write_text

    def write(path, text, mode):
        if path.startswith(_files.GUESTS_STATE) or (path == _files.UPDATE and os.path.exists(_files.state_path("web"))):
            raise OSError(errno.ENOSPC, "No space left on device")
        if path == _files.UPDATE and host.done("resume"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text, mode)

    monkeypatch.setattr(_files, "write_text", write)
    ended = update(host)
    undone(host, ended, "No space left on device")
    told = _files.read_json(_files.OUTCOME)
    assert told == {"id": ended["id"], "state": "aborted", "error": ended["error"]}
    assert _files.read_json(_files.UPDATE)["state"] == "saving"
    with _lock.Lock():
        assert _files.read_json(_files.UPDATE)["state"] == "saving"  # still no room, and no failure of this operation
    host.did.clear()
    _jump.recover()
    assert host.did == []  # not undone twice


@pytest.mark.parametrize("of_update", [False, True])
def test_an_end_that_the_disk_did_not_accept_is_written_by_the_next_operation(host, of_update):
    """/run does not survive a power cut."""
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": "jumping"})
    _files.write_json(_files.OUTCOME, {"id": "of an earlier update", "state": "aborted", "error": "no"})
    with _lock.Lock(of_update=of_update):
        assert _files.read_json(_files.UPDATE)["state"] == "jumping"
    _files.write_json(_files.OUTCOME, {"id": committed["id"], "state": "aborted", "error": "no room"})
    with _lock.Lock(of_update=of_update):
        assert _files.read_json(_files.UPDATE) == {**committed, "state": "aborted", "error": "no room"}
    written = os.stat(_files.UPDATE).st_ino
    with _lock.Lock(of_update=of_update):
        assert os.stat(_files.UPDATE).st_ino == written  # once


def test_a_journal_that_is_damaged_does_not_keep_the_undo_from_the_lock(host):
    with open(_files.UPDATE, "w", encoding="utf-8") as file:
        file.write("torn")
    with _lock.Lock(of_update=True):
        pass


@pytest.mark.parametrize(("state", "boot_id"), [("aborted", "b"), ("jumping", "b2"), ("saving", "b2")])
def test_what_has_ended_or_is_of_another_boot_is_not_undone(host, monkeypatch, state, boot_id):
    """After the jump it would take the journals that the guests come back from."""
    _files.write_json(_files.UPDATE, {**_jump.commit(list(host.records), [], "start"), "state": state})
    monkeypatch.setattr(_this_boot, "boot_id", lambda: boot_id)
    host.did.clear()
    _jump.recover()
    assert host.did == [] and _files.read_json(_files.UPDATE)["state"] == state


@pytest.mark.parametrize(("state", "waits"), [("saving", []), ("jumping", [15.0])])
def test_the_undo_of_a_process_that_was_killed_waits_for_a_kexec_that_is_under_way(host, monkeypatch, state, waits):
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": state, "records": host.records, "running": ["app"]})
    slept = []
    host.state = {"app": "postmigrate", "web": "paused"}
    host.did.clear()
    monkeypatch.setattr(_jump, "RECOVER_S", 15.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds) if not host.did else None)
    _jump.recover()
    assert slept == waits and host.state == {"app": "running", "web": "paused"}
    assert f"ended in the step '{state}'" in _journal.of_update()["error"]


def test_a_guest_that_an_undo_could_not_let_go_on_runs_after_the_next_update(host, monkeypatch):
    """It stands still by our doing, and is not taken for its owner's wish."""

    def hangs(_record, _running):
        raise LiveUpdateError("no answer")

    host.state["app"] = "paused"  # by its owner
    real = host.resume
    host.resume = hangs
    ended = update(host)
    assert "guest web is not resumed" in ended["error"] and host.state == {"app": "postmigrate", "web": "postmigrate"}
    host.state = dict.fromkeys(host.state, "paused")
    host.resume = real
    assert "end its QEMU first ('systemctl stop web.service'), then run 'kvm-liveupdate discard web'" in ended["error"]
    assert _jump._meant_to_run(host.records) == ["web"]
    real_time = _processes.guest_time
    monkeypatch.setattr(_processes, "guest_time", lambda pid: 9)  # it ran, and its owner paused it again
    assert _jump._meant_to_run(host.records) == [] and not _hold.owes(host.records["web"])
    monkeypatch.setattr(_processes, "guest_time", real_time)
    assert _hold.owes(host.records["web"]) and not _hold.owes({**host.records["web"], "started": 2})
    assert os.path.exists(_files.state_path("web"))
    _hold.let_go_on(host.records["web"], True)
    assert not os.path.exists(_files.state_path("web"))  # libvirt's hook would refuse every start for it
    assert host.state["web"] == "running" and not _hold.owes(host.records["web"])


def test_an_undo_before_the_pause_forgets_nobody_whom_an_earlier_one_left_paused(host):
    host.state["web"] = "paused"
    _files.write_json(_files.run_path("web", "paused"), _hold.process(host.records["web"]))
    reason(host)
    assert "a block job is running" in update(host)["error"]
    assert host.state["web"] == "paused" and _hold.owes(host.records["web"])


def test_a_guest_that_ends_before_the_pause_is_no_failed_undo(host):
    """Nothing of it is kept."""

    def ends():
        del host.records["web"], host.state["web"]

    host.at["isolate"] = ends
    ended = update(host)
    undone(host, ended, "guest web no longer runs; run the update again")
    assert ended["error"].count("run the update again") == 1
    assert "is not resumed" not in ended["error"] and host.done("resume") == ["app"]
    assert sorted(host.done("release")) == ["app.service", "web.service"]  # its memory would stay taken until a reboot
    assert not os.path.exists(_files.run_path("web", "held"))
    services_started = host.did.index(("start", "default.target"))
    assert host.did.index(("release", "web.service")) > services_started  # 'systemctl clean' needs D-Bus, which isolation stops


def test_a_guest_that_ends_in_the_pause_is_told_and_its_session_given_up(host):
    def resume(record, _running):
        if host.started.pop(os.getpid(), 0):
            host.started[0] = 1
        raise LiveUpdateError(f"QEMU of {record['name']} has ended")

    host.resume = resume
    error = update(host)["error"]
    assert "guest web has ended during the update, and nothing of it is kept; start it" in error
    assert "is not resumed" not in error and sorted(host.done("release")) == ["app.service", "web.service"]
    assert not os.path.exists(_files.state_path("web"))


def test_a_host_that_is_too_slow_pauses_nobody(host):
    _jump.commit(list(host.records), [], "start", timeout=0)
    assert _jump.jump() == 1
    ended = _journal.of_update()
    undone(host, ended, "Half of hypervisor_update_timeout (0 s) is over, and no guest was paused: run the update again, or raise")
    assert not host.done("save")


def test_a_host_that_gets_late_just_before_the_pause_pauses_nobody(host, monkeypatch):
    granted = []
    monkeypatch.setattr(_jump, "_write_out", granted.append)
    _jump.commit(list(host.records), [], "start", timeout=0)
    assert _jump.jump() == 1
    assert granted == [0.0] and host.limits["isolate"] == 0.0
    undone(
        host, _journal.of_update(), "the host was too slow: it could not pause its guests in time. Half of hypervisor_update_timeout (0 s)"
    )
    assert not host.done("save")


def test_the_file_systems_are_written_out_between_the_last_stop_and_the_pause(host, monkeypatch):
    """Nobody unmounts them before the kexec."""
    monkeypatch.setattr(_jump, "_write_out", lambda limit: host.note("write out", limit))
    _jump.commit(list(host.records), [], "start", timeout=4000)
    assert _jump.jump() == 1
    steps = [step[0] for step in host.did]
    assert steps.index("isolate") < steps.index("write out") < steps.index("save")
    assert 1900 < host.done("write out")[0] <= 2000 and 1900 < host.limits["isolate"] <= 2000


def test_whoever_undoes_an_update_knows_which_guests_it_paused(host):
    """The process of the update may be killed while a guest is paused."""
    host.state["app"] = "paused"  # by its owner
    owed = []
    host.at["save"] = lambda: owed.extend(name for name, record in host.records.items() if _hold.owes(record))
    ended = update(host)
    assert owed == ["web"] and not _hold.owes(host.records["web"])
    assert "does not run on" not in ended["error"] and host.state["web"] == "running"
    assert sorted(host.done("release")) == ["app.service", "web.service"]


def test_an_undo_before_the_pause_leaves_guests_alone_that_started_meanwhile(host):
    def starts():
        host.records["new"], host.state["new"] = host.record("new"), "running"

    host.at["isolate"] = starts
    ended = update(host)
    undone(host, ended, "guest new runs but is not part of this update, so it would be lost")
    assert sorted(host.done("resume")) == ["app", "web"] and "new.service" not in host.done("release")


def test_pid_1_has_time_to_end_the_process_that_asked_for_the_kexec(host, monkeypatch):
    slept = []
    monkeypatch.setattr(_jump, "DOWN_LIMIT_S", 77)
    monkeypatch.setattr(time, "sleep", slept.append)
    host.at["kill"] = slept.clear
    assert "did not carry it out within 77 s" in update(host)["error"]
    assert slept[0] == 77


def test_logins_end_before_a_guest_is_paused(host, monkeypatch):
    monkeypatch.setattr(
        _services, "active_units", lambda types="": [] if host.done("stop") or "scope" not in types else ["session-3.scope"]
    )
    ended = update(host)
    steps = [step[0] for step in host.did]
    assert host.done("stop") == ["session-3.scope"] and steps.index("isolate") < steps.index("stop") < steps.index("save")
    assert "these logins and containers were ended and do not start again by themselves: session-3.scope" in ended["error"]


def test_commands_before_the_pause_share_one_limit_and_those_in_it_another(host, monkeypatch):
    moments, told = [], []
    monkeypatch.setattr(_commands, "end_by", lambda moment, of_what="": (moments.append(moment), told.append(of_what)))
    now = time.monotonic()
    _jump.commit(list(host.records), [], "start", timeout=4000)
    assert _jump.jump() == 1
    before, pause, undo = moments
    assert now + 1990 < before < now + 2100 and undo is None
    assert now + _jump.PAUSE_LIMIT_S <= pause < now + _jump.PAUSE_LIMIT_S + 60
    assert "half of hypervisor_update_timeout" in told[0] and "180 s for the pause of the guests" in told[1] and not told[2]


def test_guests_that_are_quick_to_save_are_paused_last(tmp_path, monkeypatch):
    host = make(tmp_path, monkeypatch, ["app", "db", "web"])
    begun, all_paused = [], threading.Barrier(2, timeout=10)

    class Slow:
        saves_slowly = True

        @staticmethod
        def save(record, path, running):
            begun.append(record["name"])
            all_paused.wait()  # at once
            if record["name"] == "db":
                raise LiveUpdateError("db cannot be saved")
            return host.save(record, path, running)

    monkeypatch.setattr(_providers, "of", lambda record: host if record["name"] == "web" else Slow)
    holds = {name: _hold.held(record) for name, record in host.records.items()}
    journal = {"id": "u", "boot_id": "b", "on_loss": "start", "holds": holds, "running": []}
    with pytest.raises(LiveUpdateError, match="db cannot be saved"):
        _jump._save_all(journal, host.records)
    assert sorted(begun) == ["app", "db"] and host.done("save") == ["app"]
    monkeypatch.setattr(Slow, "save", host.save)
    host.did.clear()
    _jump._save_all(journal, host.records)
    assert sorted(host.done("save")[:2]) == ["app", "db"] and host.done("save")[2:] == ["web"]


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


def test_what_is_kept_running_is_no_session_to_end(host, monkeypatch):
    running = ["session-3.scope", "kept.scope", "in-place.scope", "app.scope"]
    monkeypatch.setattr(_services, "active_units", lambda types="": [unit for unit in running if unit not in host.done("stop")])
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": ["kept.scope"], "in_place": ["in-place.scope"]})
    assert host.did == [("stop", "session-3.scope")]


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


def a_login(host, monkeypatch):
    """A login that runs until it is stopped, and a service."""

    def active(types=""):
        return [unit for unit in ("session-3.scope", "ssh.service") if "scope" in types and unit not in host.done("stop")]

    monkeypatch.setattr(_services, "active_units", active)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "session-3.scope" if pid == 7 else "app.service")


@pytest.mark.parametrize(("before", "stopped"), [("daemon-reload", []), ("isolate", ["isolate"])])
def test_a_virtual_machine_that_somebody_started_meanwhile_is_not_stopped(host, monkeypatch, before, stopped):
    """Neither with a service nor with a login or a container, not even in the moment before that."""
    a_login(host, monkeypatch)
    host.at[before] = lambda: stranger(host)
    ended = update(host)
    undone(host, ended, "process 7 (session-3.scope) is a virtual machine that was started during the update and would be lost")
    assert [step[0] for step in host.did if step[0] in ("isolate", "stop", "kill")] == stopped
    assert not host.done("save") and "logins and containers were ended" not in ended["error"]


class Killed(BaseException):
    """The process that carries the update out is gone at once."""


def killed(host, step) -> dict:
    """What is on the disk when that happens right before this step."""

    def kill():
        raise Killed

    host.at[step] = kill
    _jump.commit(list(host.records), [], "start")
    with pytest.raises(Killed):
        _jump.jump()
    host.did.clear()
    return _files.read_json(_files.UPDATE)


def test_a_process_that_is_killed_leaves_no_drop_in(host, monkeypatch):
    monkeypatch.setattr(_services, "_bound_to", lambda units: ["vms.target"])
    state = {"vms.target": "active"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"ActiveState": state.get(unit, "")} for unit in units})
    assert killed(host, "daemon-reload")["in_place"] == ["vms.target"]
    assert (host.root / "units/vms.target.d").is_dir() and list((host.root / "units/vms.target.d").iterdir())
    _jump.recover()
    assert not list((host.root / "units/vms.target.d").iterdir())


def test_a_process_that_is_killed_in_the_isolation_has_noted_what_ran(host, monkeypatch):
    """Else the undo would not know what to start again."""
    runs = ["run-u1.service", "cron.service"]
    monkeypatch.setattr(_services, "active_units", lambda types="": list(runs))
    host.at["daemon-reload"] = lambda: runs.remove("run-u1.service")  # it has ended by itself
    assert killed(host, "isolate")["units"] == ["cron.service"]


@pytest.mark.parametrize("done", [True, False])
def test_what_a_process_that_is_killed_has_ended_is_told(host, monkeypatch, done):
    a_login(host, monkeypatch)
    assert killed(host, "stop")["ended"] == ["session-3.scope"]
    if done:
        host.did.append(("stop", "session-3.scope"))
    _jump.recover()
    assert ("do not start again by themselves: session-3.scope" in _journal.of_update()["error"]) is done


def test_what_ended_by_itself_before_anything_was_stopped_is_neither_started_nor_told(host, monkeypatch):
    runs = ["run-u1.service", "cron.service"]
    monkeypatch.setattr(_services, "active_units", lambda types="": [] if host.done("isolate") else list(runs))
    load = {"run-u1.service": "not-found"}
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"LoadState": load.get(unit, "loaded")} for unit in units})
    host.at["daemon-reload"] = lambda: runs.remove("run-u1.service")
    error = update(host)["error"]
    assert "run-u1.service" not in error and host.done("start") == ["default.target", "cron.service"]


def test_an_update_that_stopped_nothing_starts_nothing(host):
    reason(host)
    assert "a block job is running" in update(host)["error"] and not host.done("start")


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


def test_who_only_has_the_device_open_has_nothing_to_lose(host, monkeypatch):
    host.processes[7] = ["/dev/kvm"]
    update(host)
    assert host.done("kill") == [ASKED]


def test_the_process_that_writes_out_has_nothing_of_ours_open(tmp_path, monkeypatch):
    """It may outlive us, and would keep the lock."""
    listed = tmp_path / "fds"
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_files, "OUTCOME", str(tmp_path / "outcome.json"))
    links = "[os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]"
    monkeypatch.setattr(os, "sync", lambda: listed.write_text(repr(eval(links))))
    with _lock.Lock():
        assert str(tmp_path / "lock") in eval(links)
        _jump._write_out(30.0)
    assert str(tmp_path / "lock") not in listed.read_text() and listed.read_text()


def test_a_commit_starts_the_jump(host):
    _jump.commit(list(host.records), [], "start")
    assert host.done("start") == [_units.JUMP]


def test_a_commit_is_refused_while_the_last_update_has_not_ended(host, monkeypatch):
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "deactivating", "Job": "0"})
    with pytest.raises(LiveUpdateError, match=r"kvm-liveupdate-jump\.service of the last update still runs"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start")


def test_the_answer_leaves_the_host_before_anything_stops(host, monkeypatch):
    slept = []
    monkeypatch.setattr(_jump, "GRACE_S", 3.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append((seconds, list(host.did))))
    update(host)
    assert slept[0] == (3.0, [])


def test_the_jump_is_carried_out_by_its_own_unit(host, monkeypatch):
    """That an update is under way keeps others away, not the one that carries it out."""
    _jump.commit(list(host.records), [], "start")
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "active", "Job": "0"})
    assert _jump.jump() == 1
    assert host.done("kill") == [ASKED]


def test_what_is_not_loaded_stops_nothing(host, monkeypatch):
    """The kernel may refuse an image: that is tried while everything runs."""

    def refuses(*_what):
        raise LiveUpdateError("the kernel refuses the image")

    monkeypatch.setattr(_kexec, "_kexec_file_load", refuses)
    ended = update(host)
    assert "the kernel refuses the image" in ended["error"] and not host.done("isolate") and not host.done("save")


def test_guests_start_early_after_the_jump_and_those_of_the_first_stage_ahead(host, monkeypatch):
    early, times = [], {}
    stages = [{"guests": ["web"], "start": "a.target"}, {"guests": ["app"], "start": "default.target"}]

    def start_early(unit, wanted, ahead=False):
        early.append((unit, wanted, ahead))
        if wanted:  # so that a crash from here on can take it back
            assert _files.read_json(_files.UPDATE)["early"] == ["app.service", "web.service"]

    monkeypatch.setattr(_rest_of_boot, "plan", lambda records: stages if [record["name"] for record in records] == ["app", "web"] else [])
    monkeypatch.setattr(_early, "start_early", start_early)
    monkeypatch.setattr(_this_boot, "ahead", lambda: 5.5)
    host.at["kill"] = lambda: times.update(_files.read_json(_files.UPDATE)["times"], clock=_journal.of_guest("web")["clock_ahead"])
    update(host)
    assert early[:2] == [("app.service", True, False), ("web.service", True, True)]
    assert early[2:] == [("app.service", False, False), ("web.service", False, False)]
    assert times.pop("clock") == 5.5
    assert sorted(times, key=times.__getitem__) == ["committed", "stopping", "gate", "saving", "jumping"]


@pytest.mark.parametrize(
    ("waits", "says"), [(True, "nobody can take it back: when PID 1 continues, it reboots"), (False, "did not carry it out")]
)
def test_a_request_that_still_waits_for_pid_1_is_told(host, monkeypatch, waits, says):
    """PID 1 stands still, for example because its disk does not answer. The guests run again, and end when it continues."""
    status = host.root / "status"
    status.write_text(f"Name:\tsystemd\nSigPnd:\t{1 << 49:016x}\nShdPnd:\t{waits << 49:016x}\nSigBlk:\t{1 << 49:016x}\n")
    monkeypatch.setattr(_jump, "_PID_1", str(status))
    undone(host, update(host), says)


def test_the_signals_that_wait_are_read_as_the_kernel_writes_them(monkeypatch):
    """Of a real process with a blocked signal."""
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 16])
        while True:
            time.sleep(60)
    try:
        monkeypatch.setattr(_jump, "_PID_1", f"/proc/{child}/status")
        until = time.monotonic() + 60
        while not int(re.search(r"SigBlk:\t(\w+)", Path(_jump._PID_1).read_text())[1], 16) >> 49 & 1:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not _jump._is_pending()
        os.kill(child, signal.SIGRTMIN + 16)
        assert _jump._is_pending()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_clock_is_compared_after_the_services_have_stopped(host, monkeypatch):
    """A step of the clock before that, by a time service or by hand, must not look like a part of the pause."""
    monkeypatch.setattr(_this_boot, "ahead", lambda: host.note("ahead", ""))
    update(host)
    steps = [step[0] for step in host.did]
    assert steps.index("isolate") < steps.index("ahead") < steps.index("save")


def test_holds_are_on_record_until_all_guests_are_saved(host, monkeypatch):
    """Somebody else's reboot meanwhile is a kexec, from the moment in which the kernel is loaded: a guest may not have a journal yet."""
    seen, load = {}, _kexec.load
    monkeypatch.setattr(_kexec, "load", lambda image: (load(image), seen.update(loaded=_session.recorded_holds())))
    for name in host.records:
        host.at["save", name] = lambda name=name: seen.update({name: _session.recorded_holds()})
    host.at["kill"] = lambda: seen.update(kexec=_session.recorded_holds())
    update(host)
    assert seen == {"loaded": ["app", "web"], "app": ["app", "web"], "web": ["app", "web"], "kexec": []}


def test_a_kernel_that_somebody_unloads_before_the_pause_pauses_nobody(host, monkeypatch):
    load = _kexec.load
    monkeypatch.setattr(_kexec, "load", lambda image: (load(image), unloaded(host)))
    undone(host, update(host), "another program has unloaded the kernel")
    assert not host.done("save")


def test_a_failure_without_words_is_named(host):
    def fails():
        raise KeyError

    host.at["isolate"] = fails
    undone(host, update(host), "KeyError(). Fix this, then run the update again")


def test_a_host_that_gets_late_in_the_pause_is_not_told_to_take_more_time(host, monkeypatch):
    monkeypatch.setattr(_jump, "_late", lambda update: bool(host.done("save")))
    goes_wrong = "the disk is gone"

    def fails():
        raise LiveUpdateError(goes_wrong)

    host.at["save", "web"] = fails
    ended = update(host)
    undone(host, ended, goes_wrong)
    assert "hypervisor_update_timeout" not in ended["error"]
    assert f"{goes_wrong}. Fix this, then run the update again" in ended["error"]


def test_a_guests_own_virtual_machine_is_no_strangers(host):
    host.processes[os.getpid()] = [_processes.VM_LINK]
    update(host)
    assert host.done("kill") == [ASKED]


def test_a_provider_may_have_nothing_to_survey(host, monkeypatch):
    monkeypatch.delattr(Host, "survey")
    monkeypatch.setattr(_reasons, "inspect", lambda record: [])
    update(host)
    assert host.done("kill") == [ASKED]


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


def test_what_cannot_be_written_to_the_journals_daemon_is_no_failure(host, monkeypatch):
    class Gone:
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    undone(host, update(host), "PID 1 got the request for the kexec")


def test_an_outcome_that_run_does_not_take_is_on_the_disk(host, monkeypatch):
    real = _files.write_json

    def write(path, record):
        if path == _files.OUTCOME:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, record)

    monkeypatch.setattr(_files, "write_json", write)
    update(host)
    assert _files.read_json(_files.UPDATE)["state"] == "aborted"


def test_sessions_that_cannot_be_stopped_do_not_end_the_update(host, monkeypatch, capsys):
    def refuses(*_command, **_limit):
        raise LiveUpdateError("Unit session-3.scope not loaded.")

    monkeypatch.setattr(_services, "active_units", lambda types="": ["session-3.scope"])
    monkeypatch.setattr(_commands, "run", refuses)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "app.scope")
    _services.end_sessions({"records": host.records, "kept": [], "in_place": []})
    assert "these units did not end, not even by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(("most", "at_once"), [(0, 6), (2, 2)])
def test_no_more_steps_at_once_than_asked_for(most, at_once):
    together, lock, under_way, seen = threading.Barrier(at_once, timeout=10), threading.Lock(), set(), set()

    def step(item):
        with lock:
            under_way.add(item)
            seen.add(len(under_way))
        together.wait()
        time.sleep(0.05)  # so that one more than may be would be seen
        with lock:
            under_way.remove(item)
        return -item

    assert [job.result() for job in _gate.at_once(step, range(6), most)] == [0, -1, -2, -3, -4, -5]
    assert max(seen) == at_once
    assert _gate.at_once(step, []) == []


def test_a_guest_that_cannot_be_asked_is_told_as_one_that_does_not_run_on(host):
    def hangs(_record, *_running):
        raise LiveUpdateError("no answer")

    host.at["kill"] = lambda: setattr(host, "status", hangs)
    host.resume = hangs
    error = update(host)["error"]
    assert "guest app is not resumed" in error and "guest web is not resumed" in error
    assert not host.done("release") and os.path.exists(_files.state_path("web"))


def test_a_guest_that_runs_after_all_is_no_failure_to_it(host):
    """QEMU let it go on, and its answer came too late."""

    def late(record, _running):
        host.state[record["name"]] = "running"
        raise LiveUpdateError("no answer in time")

    host.resume = late
    error = update(host)["error"]
    assert "is not resumed" not in error and sorted(host.done("release")) == ["app.service", "web.service"]


def test_an_undo_after_a_crash_waits_for_the_lock_and_needs_no_leave(host, monkeypatch):
    committed = _jump.commit(list(host.records), [], "start")
    _files.write_json(_files.UPDATE, {**committed, "state": "stopping"})
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "deactivating", "Job": "0"})
    with _lock.Lock(of_update=True), pytest.raises(LiveUpdateError, match="another live update operation"):
        _jump.recover()
    assert _journal.of_update()["state"] == "stopping"
    _jump.recover()
    assert _journal.of_update()["state"] == "aborted"


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


def test_blank_lines_of_systemctl_are_no_units(monkeypatch):
    monkeypatch.setattr(_commands, "run", lambda *words: "a.service loaded active running A\n\nb.socket loaded active listening B\n")
    assert _services.active_units() == ["a.service", "b.socket"]
