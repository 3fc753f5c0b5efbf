# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _early, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal as _handover_journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _session as _handover_session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _start
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv, _block, _disk_files, _monitor


def test_a_guest_that_starts_clean_does_not_go_ahead_of_the_boot(monkeypatch, tmp_path):
    """With the weight that brings it back early it would keep a host with one processor from ever having booted."""
    steps = []
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "web.service")
    monkeypatch.setattr(_commands, "run", lambda *words: steps.append(words[:2]))
    monkeypatch.setattr(os, "execvp", lambda file, command: steps.append(file))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    _start._start("web", ["qemu-system-x86_64", "-m", "128", "-uuid", "a0b1"])
    assert steps == [("systemctl", "set-property"), "qemu-system-x86_64"]


def test_a_guest_that_runs_again_steps_back_and_a_failure_of_that_is_only_said(monkeypatch, capsys):
    asked = []

    def run(*words):
        asked.append(words)
        raise LiveUpdateError("no answer from systemd")

    monkeypatch.setattr(_commands, "run", run)
    _start._be_one_of_many("web.service")
    assert asked == [("systemctl", "set-property", "--runtime", "web.service", "StartupCPUWeight=", "StartupIOWeight=")]
    assert "no answer from systemd" in capsys.readouterr().err


def sleeps(monkeypatch, sleep):
    """Have the wrapper, and nobody else, sleep in this way."""
    monkeypatch.setattr(_start, "time", SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep))


@pytest.fixture(name="booting")
def host_that_boots(tmp_path, monkeypatch):
    """A host whose root file system and KVM come when the guest has waited for so many turns."""

    class Booting:
        def __init__(self):
            self.turns, self.looks, self.writable_at, self.kvm_at, self.kvm = 0, 0, 0, 0, tmp_path / "kvm"
            self.sleep(0)

        def sleep(self, _seconds):
            if self.turns == self.kvm_at:
                self.kvm.touch()
            self.turns += 1
            self.looks = 0

        def access(self, path, _mode):
            self.looks += 1
            assert self.turns < 1000 and self.looks < 1000, "it waits for ever, or never sleeps"
            return path == str(tmp_path) and self.turns > self.writable_at

    made = Booting()
    made.kvm.unlink()
    monkeypatch.setattr(_files, "STATE", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_argv, "nodes", lambda argv: [str(made.kvm)] if "kvm" in argv else [])
    sleeps(monkeypatch, made.sleep)
    monkeypatch.setattr(os, "access", made.access)
    return made


KVM_GUEST = ["qemu-system-x86_64", "-accel", "kvm"]


def test_a_guest_waits_for_what_its_host_lacks_and_no_longer(booting):
    """While it waits, the rest of the boot, which brings that, does not wait for it."""
    booting.writable_at, booting.kvm_at = 3, 5
    assert _start._wait_for_host("web", KVM_GUEST, []) == []
    assert booting.turns == 6
    assert os.path.exists(_files.run_path("web", "late"))
    booting.kvm.unlink()
    assert _start._wait_for_host("db", ["qemu-system-x86_64"], []) == []
    assert booting.turns == 6
    assert not os.path.exists(_files.run_path("db", "late"))


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENXIO])
def test_a_guest_waits_for_the_driver_behind_a_node(booting, monkeypatch, code):
    """systemd-tmpfiles makes the nodes of all modules. QEMU would end: no such device."""
    real, opened = os.open, []
    booting.kvm.touch()

    def without_driver(path, flags, *mode):
        if path == str(booting.kvm):
            opened.append(flags)
            if len(opened) < 3:
                raise OSError(code, os.strerror(code))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", without_driver)
    assert _start._wait_for_host("web", KVM_GUEST, []) == []
    assert len(opened) == 3 and os.path.exists(_files.run_path("web", "late"))
    assert all(flags & os.O_NONBLOCK and flags & os.O_CLOEXEC for flags in opened)


def test_qemu_itself_says_why_a_driver_refuses(booting, monkeypatch):
    def refuses(path, flags, *_mode):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuses)
        assert _start._works("/dev/kvm")


def test_a_guest_waits_until_somebody_listens_where_its_qemu_connects_to(booting, monkeypatch):
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert _start._wait_for_host("web", [], [], [], [port]) == [f"no process that listens at TCP port {port}"]
        listener.listen()
        assert _start._wait_for_host("web", [], [], [], [port]) == []


def test_a_guest_waits_for_its_bridge_and_goes_on_without_one_that_nobody_makes(booting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_start, "NETWORKS", str(tmp_path))
    booting.kvm_at = 5  # the bridge, this time
    assert _start._wait_for_host("web", [], ["kvm"]) == []
    assert booting.turns == 6
    assert os.path.exists(_files.run_path("web", "late"))
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    assert _start._wait_for_host("web", [], ["kvm", "br7"]) == []
    assert "web: waited -1 s for the host's network br7, and starts without it" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [{}, {"state": "saved", "argv": ["qemu"], "interfaces": ["br7"]}])
def test_a_cold_start_waits_for_the_bridge_of_its_command_line(booting, monkeypatch, saved):
    """Its unit has no default dependencies: in a boot after a power cut it starts before the network."""
    asked = []

    def wait(name, argv, interfaces):
        asked.append((name, argv, interfaces))
        raise LiveUpdateError("enough")

    monkeypatch.setattr(_start, "_wait_for_host", wait)
    monkeypatch.setattr(_start._journal, "recorded", lambda name: saved)
    argv = ["qemu-system-x86_64", "-netdev", "bridge,id=n,br=br3"]
    with pytest.raises(LiveUpdateError, match="enough"):
        _start.run("web", argv)
    assert asked == [("web", ["qemu"], ["br7"]) if saved else ("web", argv, ["br3"])]


def test_the_boot_does_not_wait_for_a_guest_that_must_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    monkeypatch.setattr(_files, "STATE", str(tmp_path / "nowhere"))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    with pytest.raises(LiveUpdateError, match="does not exist, so guest web is not started"):
        _start.run("web", KVM_GUEST)
    assert os.path.exists(_files.run_path("web", "late"))


@pytest.fixture(name="bare")
def host_that_gets_no_better(booting, monkeypatch):
    """Neither KVM nor a writable root file system, and nobody waits."""
    booting.kvm_at, booting.writable_at = -1, 1000
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    return booting


def test_what_a_host_still_lacks_at_the_limit_is_told(bare):
    assert _start._wait_for_host("web", KVM_GUEST, []) == [f"no {bare.kvm}", f"{bare.kvm.parent} read-only"]


@pytest.mark.parametrize("verdict", ["restore", "cold"])
def test_memory_that_came_over_is_kept_where_something_is_amiss_and_a_clean_start_is_qemus_business(bare, monkeypatch, capsys, verdict):
    """With "-accel kvm -accel tcg" QEMU would load the state of KVM into something else."""
    done = []
    saved = {"state": "saved", "argv": KVM_GUEST}
    monkeypatch.setattr(_handover_journal, "recorded", lambda name: saved if verdict == "restore" else {})
    monkeypatch.setattr(_files, "GUESTS_RUN", str(bare.kvm.parent))
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: 7)
    monkeypatch.setattr(_handover_session, "note", lambda session: {})
    monkeypatch.setattr(_return, "decide", lambda *facts: (verdict, "so it is"))
    monkeypatch.setattr(_handover_session, "drop", lambda *session: None)
    monkeypatch.setattr(_start, "_restore", lambda *guest: done.append("restored"))
    monkeypatch.setattr(_start, "_start", lambda *guest: done.append("started"))
    if verdict == "restore":
        with pytest.raises(
            LiveUpdateError, match=r"guest web: .* still has no .*/kvm, .* read-only; .* the guest's memory is kept"
        ) as told:
            _start.run("web", ["qemu-system-x86_64"])
        assert told.value.details["again"]  # systemd starts the unit once more
    else:
        _start.run("web", KVM_GUEST)
    assert "the host still has no " in capsys.readouterr().err
    assert done == ([] if verdict == "restore" else ["started"])


@pytest.mark.parametrize("verdict", ["restore", "cold"])
def test_a_guest_that_comes_back_waits_for_its_disks_and_is_tried_again_without_them(booting, tmp_path, monkeypatch, verdict):
    """QEMU would exit, and systemd would not start it again. A clean start is QEMU's business."""
    done = []
    booting.kvm_at = 5  # the disk, this time
    saved = {"state": "saved", "argv": ["qemu"], "paths": [str(booting.kvm)]}
    monkeypatch.setattr(_handover_journal, "recorded", lambda name: saved)
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: 7)
    monkeypatch.setattr(_handover_session, "note", lambda session: {})
    monkeypatch.setattr(_return, "decide", lambda *facts: (verdict, "so it is"))
    monkeypatch.setattr(_handover_session, "drop", lambda *session: None)
    monkeypatch.setattr(_return, "lost", lambda *why: None)
    monkeypatch.setattr(_start, "_restore", lambda *guest: done.append("restored") or 1 // 0)
    monkeypatch.setattr(_start, "_start", lambda *guest: done.append("started"))
    with pytest.raises(ZeroDivisionError) if verdict == "restore" else contextlib.nullcontext():
        _start.run("web", ["qemu"])
    assert (done, booting.turns) == ((["restored"], 6) if verdict == "restore" else (["started"], 1))
    if verdict == "restore":
        booting.kvm.unlink()
        monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
        with pytest.raises(
            LiveUpdateError, match=rf"guest web: the host still has no {booting.kvm}; .* is kept. .* discard web'\. .* its disks"
        ) as told:
            _start.run("web", ["qemu"])
        assert told.value.details["again"] and done == ["restored"]


@pytest.fixture(name="below")
def old_copy_below_a_mount_point(booting, tmp_path, monkeypatch):
    """A saved guest, and the disk's path with an old copy, until the mount comes in turn ``kvm_at``. Tells what was done with the guest."""
    path, mounted, done = tmp_path / "web1.raw", tmp_path / "mounted", []
    mounted.write_text("own")
    files = {str(path): _disk_files.identity(str(mounted), ("/srv", "xfs", "/dev/mapper/vg-srv"))}
    path.write_text("old")

    def sleep(seconds, turn=booting.sleep):
        turn(seconds)
        if booting.turns > booting.kvm_at and mounted.exists():
            mounted.rename(path)

    def restore(*_guest):
        done.append(path.read_text())
        raise ZeroDivisionError

    sleeps(monkeypatch, sleep)
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: 7)
    monkeypatch.setattr(_handover_session, "note", lambda session: {})
    monkeypatch.setattr(_return, "decide", lambda *facts: ("restore", "so it is"))
    monkeypatch.setattr(_start, "_restore", restore)
    journal = {"state": "saved", "argv": ["qemu"], "paths": [str(path)], "disks": files}
    monkeypatch.setattr(_handover_journal, "recorded", lambda name: journal)
    return journal, done


def test_a_guest_waits_for_the_mount_with_its_disk_although_an_old_copy_is_below_it(booting, below):
    """QEMU would open the old one below what the guest has in its page cache."""
    booting.kvm_at = 5
    with pytest.raises(ZeroDivisionError):
        _start.run("web", ["qemu"])
    assert below[1] == ["own"] and booting.turns == 6 and os.path.exists(_files.run_path("web", "late"))


def test_a_disk_that_is_missing_is_told_once(booting, below, monkeypatch):
    booting.kvm_at = 100
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    (path,) = below[0]["paths"]
    os.unlink(path)
    assert _start._wait_for_host("web", [], [], [path], [], below[0]["disks"]) == [f"no {path}"]
    assert _start._wait_for_host("web", [], [], [], [], below[0]["disks"]) == [f"no {path}"]


def test_a_guest_whose_disk_does_not_come_stays_off_and_is_tried_again(booting, below, monkeypatch):
    booting.kvm_at = 100
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    says = (
        r"guest web: the host still has another file at .*/web1\.raw \(inode \d+, not \d+; the guest's own is on /dev/mapper/vg-srv,"
        r" mounted at /srv\); mount what is missing.* and the guest's memory is kept"
    )
    with pytest.raises(LiveUpdateError, match=says) as told:
        _start.run("web", ["qemu"])
    assert told.value.details["again"] and below[1] == []


@pytest.mark.parametrize("comes", [True, False])
def test_a_guest_waits_until_the_name_of_its_disk_leads_to_its_multipath_map(booting, below, monkeypatch, comes):
    """udev first lets the name lead to one of the paths."""
    name, own, path = "/dev/disk/by-id/scsi-3600a", ["dm/uuid mpath-3600a"], ["device/wwid naa.600a"]
    journal, done = below
    booting.kvm_at = 0
    journal["devices"] = {name: own}
    monkeypatch.setattr(_block, "identity", lambda _path: own if comes and booting.turns > 8 else path)
    if comes:
        with pytest.raises(ZeroDivisionError):
            _start.run("web", ["qemu"])
        assert done == ["own"] and booting.turns == 9 and os.path.exists(_files.run_path("web", "late"))
        return
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    says = rf"another device at {name} \(device/wwid naa\.600a, not dm/uuid mpath-3600a\); .*give the right device its old name again"
    with pytest.raises(LiveUpdateError, match=says) as told:
        _start.run("web", ["qemu"])
    assert told.value.details["again"] and done == []


@pytest.mark.parametrize("tried", [False, True])
def test_a_size_that_a_failed_restore_changed_keeps_no_guest_off(booting, below, monkeypatch, tried):
    """A QEMU that ends writes the bitmaps of a qcow2 once more."""
    monkeypatch.setattr(_start, "HOST_LIMIT_S", -1)
    (own,) = below[0]["disks"].values()
    own["inode"] = os.stat(below[0]["paths"][0]).st_ino
    own["size"] = 4096
    if tried:
        _files.write_json(_files.run_path("web"), {})
    with pytest.raises(ZeroDivisionError if tried else LiveUpdateError):
        _start.run("web", ["qemu"])


def test_a_guest_that_an_older_version_saved_comes_back(booting, below):
    """Its journal tells nothing of its files."""
    del below[0]["disks"]
    with pytest.raises(ZeroDivisionError):
        _start.run("web", ["qemu"])
    assert below[1] == ["old"]


# A QEMU that waits for a state: its run state, and whether it lets the guest go on, are files beside its monitor.
QEMU = """
import json, os, socket, sys
base = sys.argv[1]
with socket.socket(socket.AF_UNIX) as server:
    server.bind(base + ".qmp")
    server.listen()
    def state(now=None):
        if now:
            with open(base + ".qemu", "w") as file:
                file.write(now)
        with open(base + ".qemu") as file:
            return file.read()
    state("inmigrate")
    while True:
        client = server.accept()[0]
        with client, client.makefile("rwb", 0) as monitor:
            monitor.write(b"{}\\n")
            for line in monitor:
                command = json.loads(line)["execute"]
                answer = {"return": {}}
                if command == "migrate-incoming":
                    state("paused")
                elif command == "query-migrate":
                    answer = {"return": {"status": "completed"}}
                elif command == "query-status":
                    answer = {"return": {"status": state()}}
                elif command == "cont" and os.path.exists(base + ".locked"):
                    answer = {"error": {"desc": "Failed to get lock"}}
                elif command == "cont":
                    state("running")
                try:
                    monitor.write(json.dumps(answer).encode() + b"\\n")
                except BrokenPipeError:
                    break
"""
SAVED = {
    "guest": "web",
    "state": "saved",
    "hold": "h",
    "boot_id": "before",
    "was_running": True,
    "unit": "web.service",
    "times": {"paused": 1.0},
}


def until(seen, limit_s=10):
    limit = time.monotonic() + limit_s
    while not seen():
        assert time.monotonic() < limit
        time.sleep(0.005)


def ended(child, limit_s=10):
    """The exit code of a child, which must not run for ever."""
    found = []

    def over():
        pid, status = os.waitpid(child, os.WNOHANG)
        found.extend([status] if pid else [])
        return found

    try:
        until(over, limit_s)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(found[0])


@pytest.fixture(name="qemu")
def qemu_that_waits_for_its_state(tmp_path, monkeypatch):
    """Runs what sees the guest back, in a process of its own, beside a QEMU; tells what is the end of it."""
    for name in ("RUN", "GUESTS_RUN", "GUESTS_STATE"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(_luo, "finish", lambda _session: None)
    monkeypatch.setattr(_systemd, "notify", lambda *_state, **_pid: None)
    monkeypatch.setattr(_commands, "run", lambda *_command: "")
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_return, "SETTLE_S", 0.05)
    monkeypatch.setattr(_return, "BACK_LIMIT_S", 30.0)
    monkeypatch.setattr(_start, "AGAIN_S", 0.05)
    monkeypatch.setattr(_monitor, "GO_ON_LIMIT_S", 0.3)
    (tmp_path / "web.state").touch()
    _files.write_json(_files.journal_path("web"), SAVED)

    class Machine:
        def __init__(self):
            self.process = subprocess.Popen([sys.executable, "-IS", "-c", QEMU, str(tmp_path / "web")])

        def start(self):
            child = os.fork()
            if child == 0:
                try:
                    _start._see_it_back("web", SAVED, 5, self.process.pid, {})
                finally:
                    os._exit(99)
            return child

        def end(self):
            """The exit code, QEMU's run state (none when it was ended), the guest's journal and what lies there of it."""
            code = ended(self.start())
            left = {path.suffix[1:] for path in tmp_path.iterdir()} & {"state", "trying", "resumed", "late", "part"}
            state = None if code and self.process.wait(10) else (tmp_path / "web.qemu").read_text()
            return code, state, _files.read_json(_files.journal_path("web"))["state"], left

    machine = Machine()
    yield machine
    machine.process.kill()
    machine.process.wait()


def once(monkeypatch, tmp_path, place, what, when, how):
    """Have the process that calls this function end by a signal, or fail, before it or after it; the first of the calls only."""
    real = getattr(place, what)

    def strike():
        try:
            os.close(os.open(tmp_path / "struck", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, "no luck")

    def call(*words, **more):
        if when == "before":
            strike()
        result = real(*words, **more)
        if when == "after":
            strike()
        return result

    monkeypatch.setattr(place, what, call)


NOT_RUN = (1, None, "saved", {"state", "late"})
BACK = (0, "running", "restored", {"resumed"})
STEPS = [
    (_monitor, "Monitor", "before", NOT_RUN),
    (_monitor, "load", "before", NOT_RUN),
    (_monitor, "load", "after", NOT_RUN),
    (_start, "_mark", "before", NOT_RUN),
    (_start, "_mark", "after", BACK),
    (_return, "went_on", "before", BACK),
    (_return, "went_on", "after", BACK),
    (_monitor, "go_on", "after", BACK),
    (_luo, "finish", "before", BACK),
    (_luo, "finish", "after", BACK),
    (_systemd, "notify", "after", BACK),
    (_this_boot, "ahead", "before", BACK),
    (_return, "settle", "before", BACK),
    (_files, "remove", "after", BACK),
    (_files, "write_json", "before", BACK),
    (_files, "write_json", "after", BACK),
    (_start, "_be_one_of_many", "before", BACK),
]


@pytest.mark.parametrize("how", ["killed", "failed"])
@pytest.mark.parametrize(("place", "what", "when", "end"), STEPS, ids=[f"{when}-{what}" for _place, what, when, _end in STEPS])
def test_wherever_the_loader_ends_a_guest_either_runs_and_is_known_to_or_can_be_brought_back(
    qemu, monkeypatch, tmp_path, place, what, when, end, how
):
    once(monkeypatch, tmp_path, place, what, when, how)
    code, *found = qemu.end()
    assert (tmp_path / "struck").exists()
    left = found[-1] - {"late"}  # that the boot goes on without it is right where anything failed
    assert [*found[:-1], left] == [*end[1:-1], end[-1] - {"late"}]
    assert _handover_journal.of_guest("web")["state"] == end[2]
    assert code == end[0]
    if end is BACK:
        assert _handover_journal.pause(_handover_journal.of_guest("web")) > 0


def test_a_guest_that_runs_again_is_no_longer_saved(qemu, monkeypatch, capfd):
    """It is told once, with all its times."""
    times = []
    monkeypatch.setattr(_return, "restored", lambda journal, seen, real=_return.restored: times.append(seen) or real(journal, seen))
    monkeypatch.setattr(
        _start, "_record", lambda restored, main, real=_start._record: print(sorted(times[0]), flush=True) or real(restored, main)
    )
    assert qemu.end() == BACK
    said = capfd.readouterr()
    assert said.out == "['loaded', 'qemu', 'resumed']\n"
    assert (
        said.err.count("\n") == 1 and said.err.startswith("kvm-liveupdate: web: restored, ") and said.err.endswith(" s after its pause\n")
    )


@pytest.mark.parametrize(("how", "says"), [("killed", True), ("failed", False)])
def test_a_loader_that_was_killed_is_told_from_one_that_failed(qemu, monkeypatch, tmp_path, capfd, how, says):
    once(monkeypatch, tmp_path, _monitor, "load", "before", how)
    assert qemu.end()[:3] == NOT_RUN[:3]
    assert qemu.process.returncode == -signal.SIGKILL  # nothing else is sure to end QEMU
    said = capfd.readouterr().err
    assert ("web: the process that loads its state was ended by signal 9" in said) is says
    assert ("web: [Errno 5] no luck" in said) is not says
    assert (tmp_path / "web.late").exists() is not says  # the rest of the boot does not wait for a guest that cannot be loaded


def test_another_qemu_that_answers_is_not_let_go_on(qemu, tmp_path):
    """The main process has ended, and a QEMU of another start answers at the monitor."""
    with pytest.raises(LiveUpdateError, match="its QEMU has ended; the QEMU that answers is from another start"):
        _start._mark("web", (qemu.process.pid, 1))
    assert not (tmp_path / "web.trying").exists()


def test_the_mark_is_for_root_only_and_is_made_once(qemu, tmp_path, monkeypatch):
    main = (qemu.process.pid, _processes.start_time(qemu.process.pid))
    _start._mark("web", main)
    assert (tmp_path / "web.trying").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "_exit", lambda code: 1 // (code - _start._GIVEN_UP))
    with pytest.raises(ZeroDivisionError):
        _start._mark("web", main)
    assert qemu.process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(("main", "lasts"), [("own", True), ("another start", False), ("gone", False)])
def test_a_process_lasts_as_long_as_it_is_the_one_that_started_then(main, lasts):
    started = _processes.start_time(os.getpid())
    pids = {"own": (os.getpid(), started), "another start": (os.getpid(), started + 1), "gone": (4194304, 0)}
    assert _start._lasts(*pids[main]) is lasts


def test_a_running_guest_lets_its_session_go_whatever_fails(monkeypatch, capsys):
    """The main process of the unit is QEMU: only in its name PID 1 takes a notification."""
    told = []

    def fail(what):
        raise LiveUpdateError(f"no {what}")

    monkeypatch.setattr(_luo, "finish", lambda session: told.append(session) or fail("finish"))
    monkeypatch.setattr(_systemd, "notify", lambda state, pid: told.append((state, pid)) or fail("notification"))
    _start._let_go("web", 5, (77, 1))
    assert told == [5, (f"FDSTOREREMOVE=1\nFDNAME={_handover_session.FDNAME}", 77)]
    said = capsys.readouterr().err
    assert "web: no finish" in said and "web: no notification" in said


def test_a_qemu_that_cannot_be_asked_is_told_once_and_asked_again(qemu, tmp_path, monkeypatch, capfd):
    """The guest has run or may have run; the loader is gone."""
    asked = []
    real = _monitor.Monitor

    def monitor(path, **limits):
        asked.append(path)
        if len(asked) <= 4:
            raise LiveUpdateError("no answer" if len(asked) <= 3 else "no room")
        return real(path, **limits)

    (tmp_path / "web.trying").touch()
    (tmp_path / "web.qemu").write_text("running")
    monkeypatch.setattr(_monitor, "Monitor", monitor)
    until((tmp_path / "web.qmp").exists)
    slept = []
    sleeps(monkeypatch, lambda seconds: slept.append(seconds) or time.sleep(0.001))
    _start._go_on_at_last("web", SAVED, 5, (qemu.process.pid, _processes.start_time(qemu.process.pid)))
    assert slept == [_start.AGAIN_S] * 4 and (tmp_path / "web.resumed").exists()
    said = capfd.readouterr().err
    assert said.count("it is not known yet whether it runs: no answer. This is repeated until its QEMU ends") == 1
    assert said.count("it is not known yet whether it runs: no room") == 1


@pytest.mark.parametrize(
    ("state", "was_running", "goes_on"),
    [("paused", True, True), ("paused", False, False), ("running", True, False), ("postmigrate", True, False)],
)
def test_only_a_paused_guest_that_ran_before_its_save_is_resumed_at_last(qemu, tmp_path, monkeypatch, state, was_running, goes_on):
    until((tmp_path / "web.qmp").exists)
    asked, finished = [], []
    monkeypatch.setattr(_monitor, "go_on", lambda monitor: asked.append("cont") or True)
    monkeypatch.setattr(_monitor.Monitor, "status", lambda monitor: asked.append("status") or state)
    monkeypatch.setattr(_luo, "finish", finished.append)
    main = (qemu.process.pid, _processes.start_time(qemu.process.pid))
    _start._go_on_at_last("web", {**SAVED, "was_running": was_running}, 5, main)
    assert asked == (["status", "cont"] if goes_on else ["status"])
    assert finished == [5] and _handover_journal.recorded("web")["state"] == "restored"


@pytest.mark.parametrize("newer", [{"hold": "of the next update", "state": "saved"}, {"state": "lost"}, {"hold": "x", "state": "restored"}])
def test_what_is_known_at_last_does_not_replace_a_newer_record(qemu, tmp_path, monkeypatch, newer):
    until((tmp_path / "web.qmp").exists)
    _files.write_json(_files.journal_path("web"), {**SAVED, **newer, "boot_id": "now"})
    (tmp_path / "web.resumed").touch()
    recorded = []
    monkeypatch.setattr(_start, "_record", lambda *what: recorded.append(what))
    _start._go_on_at_last("web", SAVED, 5, (qemu.process.pid, _processes.start_time(qemu.process.pid)))
    assert not recorded


def test_a_record_that_the_disk_does_not_take_is_tried_again_while_qemu_lasts(monkeypatch):
    tried = []
    monkeypatch.setattr(_commands, "run", lambda *_words: "")
    monkeypatch.setattr(_return, "settled", lambda restored: False)
    monkeypatch.setattr(_return, "settle_at_last", lambda restored, lasts: tried.append((restored["guest"], lasts())))
    _start._record({**SAVED, "times": {"paused": 1.0, "resumed": 2.0}}, (os.getpid(), _processes.start_time(os.getpid())))
    _start._record({**SAVED, "times": {"paused": 1.0, "resumed": 2.0}}, (os.getpid(), 1))
    assert tried == [("web", True), ("web", False)]


class Became(BaseException):
    """The wrapper has become QEMU."""


@pytest.fixture(name="becomes")
def wrapper_that_becomes_qemu(tmp_path, monkeypatch):
    """What is run in place of the wrapper: the program, its words, and the record of the guest at that moment."""
    ran = []

    def execvp(program, words):
        ran.append((program, words, _files.read_json(_files.run_path("web"))))
        raise Became

    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_processes, "unit_of", lambda pid: "web.service")
    monkeypatch.setattr(_commands, "run", lambda *words: "")
    monkeypatch.setattr(os, "execvp", execvp)
    return ran


PLAIN = ["qemu-system-x86_64", "-m", "128", "-uuid", "a0b1"]
OWN_RAM = [*PLAIN, "-mem-path", "/dev/hugepages"]


@pytest.mark.parametrize("argv", [PLAIN, OWN_RAM, PLAIN[:3]])
def test_a_guest_starts_on_new_memory_that_can_be_preserved_or_on_its_own(becomes, tmp_path, monkeypatch, argv):
    """The record is on the disk before QEMU runs, and a unit that was started early is so no more."""
    not_early, before = [], set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(_early, "not_early", not_early.append)
    with pytest.raises(Became):
        _start._start("web", argv)
    ((program, words, record),) = becomes
    assert program == words[0] == "qemu-system-x86_64" and not_early == ["web.service"] and (tmp_path / "web.late").exists()
    assert record["pid"] == os.getpid() and record["started"] == _processes.start_time(os.getpid()) and record["argv"] == argv
    assert (record["provider"], record["unit"], record["monitor"]) == ("qemu", "web.service", str(tmp_path / "web.qmp"))
    if argv is OWN_RAM:
        assert record["ram"] == [] and record["reason"]
        assert words == _argv.command(argv, record["monitor"], None, 0, False)
        return
    assert record["uuid"] == "a0b1" if argv is PLAIN else len(record["uuid"]) == 36
    (ram,) = record["ram"]
    assert record["reason"] is None and ram["size"] == os.fstat(ram["fd"]).st_size == 128 << 20
    assert words == _argv.command(argv, record["monitor"], ram["fd"], 128 << 20, False) and "-incoming" not in words
    assert os.get_inheritable(ram["fd"])
    os.close(ram["fd"])
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_guest_without_a_uuid_has_the_same_one_at_each_start():
    assert _start._own_uuid("web") == _start._own_uuid("web") != _start._own_uuid("db")
    assert len(_start._own_uuid("web")) == 36


def test_a_guest_outside_of_any_unit_starts_too(becomes, monkeypatch):
    monkeypatch.setattr(_processes, "unit_of", lambda pid: None)
    monkeypatch.setattr(_early, "not_early", lambda unit: 1 // 0)
    monkeypatch.setattr(_commands, "run", lambda *words: 1 // 0)
    with pytest.raises(Became):
        _start._start("web", OWN_RAM)
    assert becomes[0][2]["unit"] == ""


def test_a_guest_is_restored_by_a_process_that_is_not_qemus_child(becomes, tmp_path, monkeypatch):
    """QEMU would never reap it. QEMU gets the memory and waits for the state; the session is the loader's alone."""
    ram, session = os.memfd_create("ram"), os.memfd_create("session")
    os.ftruncate(ram, 128 << 20)
    journal = {**SAVED, "argv": PLAIN, "sizes": [128 << 20]}
    real = os.execvp

    def execvp(program, words):
        with contextlib.suppress(Became):
            real(program, words)
        record = becomes[0][2]
        try:
            os.waitpid(-1, 0)
            children = True
        except ChildProcessError:
            children = False
        left = {"words": words, "record": record, "children": children, "session": os.path.exists(f"/proc/self/fd/{session}")}
        _files.write_json(str(tmp_path / "became"), {**left, "inheritable": os.get_inheritable(ram), "pid": os.getpid()})
        os._exit(42)

    def see(name, journal, session, main, times):
        parent = os.getppid()
        told = {"what": [name, journal["guest"], os.fstat(session).st_size], "main": main, "times": sorted(times), "parent": parent}
        _files.write_json(str(tmp_path / "seen"), told)
        os._exit(0)

    monkeypatch.setattr(os, "execvp", execvp)
    monkeypatch.setattr(_return, "verify", lambda journal, path: None)
    monkeypatch.setattr(_handover_session, "take", lambda journal, session: [ram])
    monkeypatch.setattr(_start, "_see_it_back", see)
    child = os.fork()
    if child == 0:
        try:
            _start._restore("web", journal, session, 12.0)
        finally:
            os._exit(99)
    assert ended(child) == 42
    until((tmp_path / "seen").exists)
    became, seen = _files.read_json(str(tmp_path / "became")), _files.read_json(str(tmp_path / "seen"))
    assert became["pid"] == became["record"]["pid"] == seen["main"] == child != seen["parent"]
    assert not became["children"] and not became["session"] and became["inheritable"]
    assert became["words"] == _argv.command(PLAIN, str(tmp_path / "web.qmp"), ram, 128 << 20, True) and "-incoming" in became["words"]
    assert became["record"]["ram"] == [{"fd": ram, "size": 128 << 20}] and became["record"]["reason"] is None
    assert seen["what"] == ["web", "web", 0] and seen["times"] == ["retrieved", "start"]
    os.close(ram)
    os.close(session)


@pytest.mark.parametrize("error", [LiveUpdateError("the record is damaged"), OSError(errno.EROFS, "Read-only file system"), None])
@pytest.mark.parametrize(("saved", "resumed"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_clean_start_settles_what_was_before_it_and_does_not_depend_on_that(
    becomes, booting, tmp_path, monkeypatch, capsys, saved, resumed, error
):
    did = []

    def settle(name):
        did.append(("settle", name))
        if error:
            raise error

    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path / "guests"))
    if saved:
        _files.write_json(_files.journal_path("web"), {**SAVED, "argv": PLAIN})
    if resumed:
        _files.write_json(_files.run_path("web", "resumed"), {})
    booting.kvm.touch()
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_handover_session, "incoming", lambda journal: None)
    monkeypatch.setattr(_handover_session, "drop", lambda *session: did.append("drop"))
    monkeypatch.setattr(_return, "settle_seen", settle)
    monkeypatch.setattr(_return, "lost", lambda journal, why: did.append(("lost", why)))
    monkeypatch.setattr(_start, "_start", lambda name, argv: did.append(("start", argv)))
    _start.run("web", PLAIN)
    settled = {
        (True, True): [("settle", "web")],
        (True, False): [("lost", "its memory did not survive the reboot; it starts from its disks")],
    }
    assert did == ["drop", *settled.get((saved, resumed), []), ("start", PLAIN)]
    assert ("web: its restore cannot be recorded" in capsys.readouterr().err) is bool(error and saved and resumed)
    assert os.path.isdir(tmp_path / "run")


def test_a_guest_that_did_not_get_to_run_can_be_brought_back_once_more(qemu, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_processes, "unit_of", lambda _pid: r"db\x2d1.service")
    (tmp_path / "web.locked").touch()
    assert qemu.end() == NOT_RUN
    said = capfd.readouterr().err
    assert "QEMU did not resume it within" in said and "'journalctl -b -u web.service' shows why" in said
    assert r"run 'systemctl start 'db\x2d1.service'' to try again" in said


def test_while_qemu_refuses_to_let_a_guest_go_on_it_counts_as_saved_and_its_state_stays(qemu, tmp_path, monkeypatch):
    """Whoever looks meanwhile, the module, or a discard: a guest that has not run has nothing but its state."""
    monkeypatch.setattr(_monitor, "GO_ON_LIMIT_S", 60.0)
    (tmp_path / "web.locked").touch()
    child = qemu.start()
    until((tmp_path / "web.late").exists)  # refused at least once; nobody waits for the next tries
    for _look in range(50):
        assert _handover_journal.of_guest("web")["state"] == "saved" and not (tmp_path / "web.resumed").exists()
        _return.settle_seen("web")
        assert (tmp_path / "web.state").exists() and _handover_journal.recorded("web")["state"] == "saved"
        time.sleep(0.01)
    (tmp_path / "web.locked").unlink()
    assert ended(child) == 0
    assert _handover_journal.of_guest("web")["state"] == "restored" and not (tmp_path / "web.trying").exists()


def test_a_guest_whose_qemu_ends_between_two_tries_can_be_brought_back_once_more(qemu, tmp_path, monkeypatch):
    monkeypatch.setattr(_monitor, "GO_ON_LIMIT_S", 60.0)
    (tmp_path / "web.locked").touch()
    child = qemu.start()
    until((tmp_path / "web.late").exists)
    until(lambda: not (tmp_path / "web.trying").exists())
    qemu.process.kill()
    qemu.process.wait(10)
    assert ended(child) == 1
    if not (tmp_path / "web.trying").exists():  # else it was killed in the middle of the next try
        assert not _return.may_have_run("web", SAVED)
    assert (tmp_path / "web.state").exists() and _handover_journal.recorded("web")["state"] == "saved"


def test_a_guest_whose_qemu_ends_in_a_try_is_neither_loaded_once_more_nor_started_clean(qemu, tmp_path, monkeypatch, booting):
    """Nobody knows whether it has run. What there is of it stays."""
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    real = _start._mark

    def mark(*words):
        real(*words)
        os.kill(qemu.process.pid, signal.SIGKILL)
        until(lambda: not _processes.start_time(qemu.process.pid))

    threading.Thread(target=qemu.process.wait).start()  # what PID 1 does
    monkeypatch.setattr(_start, "_mark", mark)
    assert ended(qemu.start()) == 1
    assert _handover_journal.of_guest("web")["state"] == "saved" and (tmp_path / "web.trying").exists()
    booting.kvm.touch()
    monkeypatch.setattr(_handover_session, "incoming", lambda _journal: 5)
    monkeypatch.setattr(_handover_session, "note", lambda _session: {"hold": "h"})
    monkeypatch.setattr(_start, "_restore", lambda *_guest: 1 // 0)
    monkeypatch.setattr(_start, "_start", lambda *_guest: 1 // 0)
    _files.write_json(_files.journal_path("web"), {**SAVED, "argv": []})
    with pytest.raises(LiveUpdateError, match=r"guest web: .* it is unknown whether the guest ran; .*'kvm-liveupdate discard web'"):
        _start.run("web", [])
    assert (tmp_path / "web.state").exists() and _handover_journal.recorded("web")["state"] == "saved"


def test_a_guest_that_somebody_else_let_go_on_is_not_ended(qemu, monkeypatch, tmp_path):
    """At a monitor of its own, right after the load, where what loads it fails then."""
    real = _monitor.load

    def load(monitor, *words):
        real(monitor, *words)
        monitor.execute("cont")
        raise LiveUpdateError("no luck")

    monkeypatch.setattr(_monitor, "load", load)
    code, state, journal, left = qemu.end()
    assert (code, state, journal) == (0, "running", "restored") and "resumed" in left


def test_another_process_with_the_id_of_its_qemu_is_not_ended(qemu):
    _start._give_up("web", (qemu.process.pid, 1))
    assert qemu.process.poll() is None


def test_a_guest_that_has_run_is_not_let_go_on_against_its_owner(qemu, tmp_path, monkeypatch):
    """What loaded it was killed right after that, and its owner paused it."""
    real = _return.went_on

    def went_on(name):
        real(name)
        (tmp_path / "web.qemu").write_text("paused")

    monkeypatch.setattr(_return, "went_on", went_on)
    once(monkeypatch, tmp_path, _return, "went_on", "after", "killed")
    assert qemu.end()[1:3] == ("paused", "restored")


def test_a_guest_that_was_paused_comes_back_paused(qemu, monkeypatch):
    monkeypatch.setitem(SAVED, "was_running", False)
    assert qemu.end() == (0, "paused", "restored", {"resumed"})


def test_a_guest_that_is_marked_goes_on_when_its_disk_is_free(qemu, tmp_path, monkeypatch):
    """The loader ended right after the mark, and QEMU refuses at first: it is neither ended nor left paused."""
    once(monkeypatch, tmp_path, _start, "_mark", "after", "killed")
    (tmp_path / "web.locked").touch()
    threading.Timer(1.0, (tmp_path / "web.locked").unlink).start()
    assert qemu.end()[1:3] == ("running", "restored")


def test_memory_that_has_run_is_not_let_go_on_once_more(qemu, tmp_path):
    """Should a state ever be loaded onto it all the same."""
    (tmp_path / "web.resumed").touch()
    _code, state, _journal, left = qemu.end()
    assert state is None and "state" in left


def test_a_disk_that_is_full_keeps_no_guest_saved(qemu, tmp_path, monkeypatch):
    """Every look at it within this boot says that it is back; the disk says so as soon as it can."""
    real = _files.write_text

    def write(path, text, mode):
        if path.endswith("web.json") and not (tmp_path / "room").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, text, mode)

    monkeypatch.setattr(_files, "write_text", write)
    child = qemu.start()
    until = time.monotonic() + 20
    while _handover_journal.of_guest("web")["state"] != "restored" and time.monotonic() < until:
        time.sleep(0.02)
    assert _handover_journal.recorded("web")["state"] == "saved"
    assert _handover_journal.not_back([]) == [] and _handover_journal.pause(_handover_journal.of_guest("web")) > 0
    (tmp_path / "room").touch()
    assert ended(child) == 0
    assert _handover_journal.recorded("web")["state"] == "restored" and not (tmp_path / "web.state").exists()


def test_what_is_tried_again_does_not_touch_a_newer_save(qemu, tmp_path, monkeypatch):
    _files.write_json(_files.journal_path("web"), {**SAVED, "hold": "of the next update"})
    _return.settle_at_last({**SAVED, "state": "restored"}, lambda: True)
    assert _handover_journal.recorded("web")["hold"] == "of the next update" and (tmp_path / "web.state").exists()


def test_a_start_after_a_cut_off_restore_is_clean_and_the_guest_counts_as_restored(tmp_path, monkeypatch, booting):
    """Its unit is started again in the same boot, and neither is the old state loaded, nor the guest told to be lost."""
    done = []
    booting.kvm.touch()
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path / "guests"))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    monkeypatch.setattr(_handover_session, "incoming", lambda _journal: 5)
    monkeypatch.setattr(_handover_session, "note", lambda _session: {"hold": "h"})
    monkeypatch.setattr(_handover_session, "drop", lambda *session: done.append("dropped"))
    monkeypatch.setattr(_start, "_start", lambda *guest: done.append("started"))
    _files.write_json(_files.journal_path("web"), {**SAVED, "argv": []})
    _files.write_json(_files.run_path("web", "resumed"), {})
    (tmp_path / "guests/web.state").touch()
    _start.run("web", [])
    assert done == ["dropped", "started"]
    assert _handover_journal.recorded("web")["state"] == "restored" and not (tmp_path / "guests/web.state").exists()


@pytest.mark.parametrize("found", ["other", None])
def test_a_state_that_is_not_the_one_that_was_saved_is_not_loaded(tmp_path, monkeypatch, found):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_handover_session, "take", lambda *_session: 1 // 0)
    (tmp_path / "web.state").write_text("state")
    journal = {**SAVED, "digest": _files.digest(_files.state_path("web"))}
    if found:
        (tmp_path / "web.state").write_text(found)
    else:
        (tmp_path / "web.state").unlink()
    with pytest.raises(
        LiveUpdateError,
        match=r"guest web: .*/web\.state is not the state that was saved: .* kept\. .*'kvm-liveupdate"
        r" discard web'",
    ):
        _start._restore("web", journal, 5, 0.0)


@pytest.mark.parametrize("same", [True, False])
def test_no_qemu_is_started_on_memory_that_differs(tmp_path, monkeypatch, same):
    """Not even the process that would load the state: the fork comes after the check."""
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    ram = os.memfd_create("ram")
    os.pwrite(ram, b"memory", 0)
    (tmp_path / "web.state").write_text("state")
    journal = {**SAVED, "digest": _files.digest(_files.state_path("web")), "memory_check": "full", "memory": _digests.note("full", [ram])}
    monkeypatch.setattr(_handover_session, "take", lambda *_session: [ram])
    monkeypatch.setattr(os, "fork", lambda: 1 // 0)
    os.pwrite(ram, b"m" if same else b"M", 0)
    with pytest.raises(ZeroDivisionError) if same else pytest.raises(LiveUpdateError, match="is not the same as before the jump") as told:
        _start._restore("web", journal, 5, 0.0)
    assert same or not told.value.details.get("again")
    assert (tmp_path / "web.state").exists()
    os.close(ram)


def test_a_disk_that_is_another_one_after_the_jump_is_not_opened_below_the_guests_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_return, "verify", lambda *_state: None)
    monkeypatch.setattr(_handover_session, "take", lambda *_session: 1 // 0)
    monkeypatch.setattr(_block, "identity", lambda path: ["wwid b"])
    with pytest.raises(LiveUpdateError, match=r"guest web: .* at /dev/sdb \(wwid b, not wwid a\)\. .* its memory is kept") as told:
        _start._restore("web", {**SAVED, "devices": {"/dev/sdb": ["wwid a"]}}, 5, 0.0)
    assert told.value.details["again"]
    with pytest.raises(ZeroDivisionError):
        _start._restore("web", {**SAVED, "devices": {"/dev/sdb": ["wwid b"]}}, 5, 0.0)
