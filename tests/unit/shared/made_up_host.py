# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host that is made up: a whole update runs on it up to the kexec, which never comes, so that each is undone at last."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal, _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import (
    _commands,
    _files,
    _processes,
    _systemd,
    _this_boot,
    _units,
    _watchdogs,
)
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec
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
        self.watchdogs: list = []

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
    monkeypatch.setattr(_systemd, "kexec_watchdog", lambda: "0")
    monkeypatch.setattr(_watchdogs, "read", lambda _root="/": host.watchdogs)
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


def stranger(host) -> None:
    host.processes[7] = [_processes.VM_LINK]


def reason(host) -> None:
    host.reasons["web"] = [{"code": "block-job", "message": "a block job is running", "remedy": "let it finish"}]


def a_login(host, monkeypatch):
    """A login that runs until it is stopped, and a service."""

    def active(types=""):
        return [unit for unit in ("session-3.scope", "ssh.service") if "scope" in types and unit not in host.done("stop")]

    monkeypatch.setattr(_services, "active_units", active)
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "session-3.scope" if pid == 7 else "app.service")
