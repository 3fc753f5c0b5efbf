# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way to the jump on a made-up host: the commit, the gate, the saves, the last look, and the request for the kexec."""

from __future__ import annotations

import errno
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
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump, _rest_of_boot
from made_up_host import ASKED, LINK, Host, a_login, make, reason, stranger, undone, update


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


def test_a_commit_starts_the_jump(host):
    _jump.commit(list(host.records), [], "start")
    assert host.done("start") == [_units.JUMP]


def test_a_commit_that_starts_nothing_is_no_update_under_way(host):
    """Else it would be one for the rest of the boot, and no state could be discarded."""

    def fails():
        raise LiveUpdateError("systemctl start: Failed to connect to bus; see 'systemctl status'")

    host.at["start"] = fails
    with pytest.raises(LiveUpdateError, match=r"nothing was stopped: systemctl start: Failed to connect to bus.*run the update again"):
        _jump.commit(list(host.records), [], "start")
    seen = _journal.of_update()
    assert seen["state"] == "aborted" and "Failed to connect to bus" in seen["error"]
    with pytest.raises(LiveUpdateError, match="no update is committed"):
        _jump.jump()  # PID 1 may have started it nevertheless


def test_a_commit_that_is_withdrawn_while_the_jump_waits_for_it_stops_nothing(host, monkeypatch):
    """PID 1 may start the jump although systemctl failed. The commit has the lock until it has withdrawn the update."""
    committed = _jump.commit(list(host.records), [], "start")
    take = _lock.Lock._take

    def taken(lock):
        take(lock)
        _files.write_json(_files.UPDATE, {**committed, "state": "aborted"})

    monkeypatch.setattr(_lock.Lock, "_take", taken)
    host.did.clear()
    with pytest.raises(LiveUpdateError, match="no update is committed"):
        _jump.jump()
    assert host.did == []


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_commit_that_cannot_be_recorded_says_where_and_is_no_update_under_way(host, monkeypatch, written, earlier):
    """Its record may be on the disk nevertheless: the write of its folder comes last. An earlier update that is over stays over.

    The disk may have refused the end of that one too, so that only /run has it.
    """
    if earlier:
        _files.write_json(_files.UPDATE, {"id": "old", "state": "saving", "boot_id": "b"})
        _files.write_json(_files.OUTCOME, {"id": "old", "state": "aborted", "error": "disk full"})
    real = _files.write_json

    def write(path, record):
        if path != _files.UPDATE or written:
            real(path, record)
        if path == _files.UPDATE:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "write_json", write)
    with pytest.raises(LiveUpdateError, match=r"/update\.json cannot be written: No space left on device \(free space on its file"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start") and _journal.of_update().get("state") == ("aborted" if written or earlier else None)
    assert (_journal.of_update().get("id") == "old") is (earlier and not written)


def test_a_commit_whose_record_cannot_be_read_back_counts_as_over(host, monkeypatch):
    """The jump may be queued already, so the controller is told that it is refused only if the host takes it for refused too."""
    real = _files.read_json

    def read(path):
        if path == _files.UPDATE and started:
            raise LiveUpdateError(f"record {path} is damaged")
        return real(path)

    def start(*command, **limits):
        if command[:2] != ("systemctl", "start"):
            return run(*command, **limits)
        started.append(command)
        raise LiveUpdateError("systemctl start: no answer within 60 s")

    run, started = _commands.run, []
    monkeypatch.setattr(_files, "read_json", read)
    monkeypatch.setattr(_commands, "run", start)
    with pytest.raises(LiveUpdateError, match="no answer within 60 s"):
        _jump.commit(list(host.records), [], "start")
    assert real(_files.UPDATE)["state"] == "aborted"


def test_a_commit_is_refused_by_the_gate(host):
    stranger(host)
    with pytest.raises(LiveUpdateError, match="nothing was stopped: pid-7"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start") and not os.path.exists(_files.UPDATE)


DOG = {"name": "watchdog0", "identity": "iTCO_wdt", "nowayout": "1", "active": True, "fed_by": ["watchdog.service"]}


def test_a_commit_is_refused_for_a_watchdog_that_nothing_can_stop(host):
    host.watchdogs = [DOG]
    with pytest.raises(LiveUpdateError, match=r"nothing was stopped: the watchdog /dev/watchdog0 \(iTCO_wdt\) is active.*nowayout=0"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start")


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("at", ["isolate", "stop"])
def test_a_watchdog_that_is_still_armed_when_the_services_have_stopped_pauses_nobody(host, monkeypatch, left, at):
    """Its program was killed, or is kept: it would reset the host in the pause."""
    a_login(host, monkeypatch)
    host.watchdogs = [{**DOG, "nowayout": "0", "fed_by": ["PID 1"] if at == "stop" else ["watchdog.service"]}]
    host.at[at] = lambda: host.watchdogs[0].update(fed_by=[] if left else ["PID 1"], active=left or at == "isolate")
    ended = update(host)
    assert bool(host.done("save")) is not left
    assert host.done("stop") == ([] if left and at == "isolate" else ["session-3.scope"])  # a watchdog does not wait for sessions
    undone(host, ended, "the watchdog /dev/watchdog0 (iTCO_wdt) is still active" if left else "PID 1 got the request")


def test_a_commit_is_refused_for_a_unit_that_is_not_there(host, monkeypatch):
    monkeypatch.setattr(_systemd, "show_each", lambda units, *names: {unit: {"LoadState": "not-found"} for unit in units})
    with pytest.raises(LiveUpdateError, match=r"unit icsid\.service does not exist on this host"):
        _jump.commit(list(host.records), ["icsid.service"], "start")
    assert not host.done("start")


def test_a_commit_is_refused_while_the_last_update_has_not_ended(host, monkeypatch):
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "deactivating", "Job": "0"})
    with pytest.raises(LiveUpdateError, match=r"kvm-liveupdate-jump\.service of the last update still runs"):
        _jump.commit(list(host.records), [], "start")
    assert not host.done("start")


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


def test_the_jump_is_carried_out_by_its_own_unit(host, monkeypatch):
    """That an update is under way keeps others away, not the one that carries it out."""
    _jump.commit(list(host.records), [], "start")
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "active", "Job": "0"})
    assert _jump.jump() == 1
    assert host.done("kill") == [ASKED]


def test_the_answer_leaves_the_host_before_anything_stops(host, monkeypatch):
    slept = []
    monkeypatch.setattr(_jump, "GRACE_S", 3.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append((seconds, list(host.did))))
    update(host)
    assert slept[0] == (3.0, [])


def test_what_is_not_loaded_stops_nothing(host, monkeypatch):
    """The kernel may refuse an image: that is tried while everything runs."""

    def refuses(*_what):
        raise LiveUpdateError("the kernel refuses the image")

    monkeypatch.setattr(_kexec, "_kexec_file_load", refuses)
    ended = update(host)
    assert "the kernel refuses the image" in ended["error"] and not host.done("isolate") and not host.done("save")


def test_the_modules_that_guests_use_are_listed_for_the_next_boot_before_services_are_stopped(host, monkeypatch):
    monkeypatch.setattr(_modules, "loaded", lambda: ["kvm_amd", "vhost_net"])
    seen = []
    host.at["isolate"] = lambda: seen.append(Path(_files.MODULES).read_text())
    update(host)
    assert seen == ["kvm_amd\nvhost_net\n"]


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


def test_the_kernel_is_loaded_for_the_jump_only(host):
    """Loaded, it would turn somebody's reboot into a jump."""
    at = {}
    for step in ("isolate", "save"):
        host.at[step] = lambda step=step: at.update({step: host.loaded})
    update(host)
    assert at == {"isolate": False, "save": True}


def test_the_file_systems_are_written_out_between_the_last_stop_and_the_pause(host, monkeypatch):
    """Nobody unmounts them before the kexec."""
    monkeypatch.setattr(_jump, "_write_out", lambda limit: host.note("write out", limit))
    _jump.commit(list(host.records), [], "start", timeout=4000)
    assert _jump.jump() == 1
    steps = [step[0] for step in host.did]
    assert steps.index("isolate") < steps.index("write out") < steps.index("save")
    assert 1900 < host.done("write out")[0] <= 2000 and 1900 < host.limits["isolate"] <= 2000


def test_file_systems_that_do_not_answer_do_not_keep_a_host_down(monkeypatch):
    _jump._write_out(30.0)
    monkeypatch.setattr(os, "sync", lambda: time.sleep(2))
    with pytest.raises(LiveUpdateError, match=r"not written to disk in the remaining time"):
        _jump._write_out(0.1)
    with pytest.raises(LiveUpdateError, match=r"not written to disk within 1 s"):
        _jump._write_out(1.0)


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


def test_the_clock_is_compared_after_the_services_have_stopped(host, monkeypatch):
    """A step of the clock before that, by a time service or by hand, must not look like a part of the pause."""
    monkeypatch.setattr(_this_boot, "ahead", lambda: host.note("ahead", ""))
    update(host)
    steps = [step[0] for step in host.did]
    assert steps.index("isolate") < steps.index("ahead") < steps.index("save")


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


def another_qemu(host) -> None:
    host.started[os.getpid()] = 2


def other_memory(host) -> None:
    """The process is the same, and its descriptor another file."""
    ram = host.records["web"]["ram"][0]["fd"]
    os.dup2(os.memfd_create("other"), ram)


def replaced_kernel(host) -> None:
    (host.root / "vmlinuz").write_bytes(b"another")


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
        (another_qemu, "guest app ended while services were stopped, and systemd may have started app.service again"),
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


def test_a_kernel_that_somebody_unloads_before_the_pause_pauses_nobody(host, monkeypatch):
    load = _kexec.load
    monkeypatch.setattr(_kexec, "load", lambda image: (load(image), unloaded(host)))
    undone(host, update(host), "another program has unloaded the kernel")
    assert not host.done("save")


def test_who_only_has_the_device_open_has_nothing_to_lose(host, monkeypatch):
    host.processes[7] = ["/dev/kvm"]
    update(host)
    assert host.done("kill") == [ASKED]


def test_a_guests_own_virtual_machine_is_no_strangers(host):
    host.processes[os.getpid()] = [_processes.VM_LINK]
    update(host)
    assert host.done("kill") == [ASKED]


def test_a_provider_may_have_nothing_to_survey(host, monkeypatch):
    monkeypatch.delattr(Host, "survey")
    monkeypatch.setattr(_reasons, "inspect", lambda record: [])
    update(host)
    assert host.done("kill") == [ASKED]


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


def test_holds_are_on_record_until_all_guests_are_saved(host, monkeypatch):
    """Somebody else's reboot meanwhile is a kexec, from the moment in which the kernel is loaded: a guest may not have a journal yet."""
    seen, load = {}, _kexec.load
    monkeypatch.setattr(_kexec, "load", lambda image: (load(image), seen.update(loaded=_session.recorded_holds())))
    for name in host.records:
        host.at["save", name] = lambda name=name: seen.update({name: _session.recorded_holds()})
    host.at["kill"] = lambda: seen.update(kexec=_session.recorded_holds())
    update(host)
    assert seen == {"loaded": ["app", "web"], "app": ["app", "web"], "web": ["app", "web"], "kexec": []}


@pytest.mark.parametrize("what", [another_qemu, other_memory])
def test_no_state_is_kept_of_another_qemu_or_other_memory_than_was_held(host, what):
    """It would be loaded onto the memory of the one that was held."""
    journals = []
    host.at["save", "web"] = lambda: what(host)  # guests are saved at the same time: not in another one's save
    host.at["resume"] = lambda: journals.extend(os.listdir(_files.GUESTS_STATE))
    ended = update(host)
    undone(host, ended, "guest web: its QEMU or its memory is no longer the one that is preserved")
    assert "web.json" not in journals and not host.done("kill")


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


def test_pid_1_has_time_to_end_the_process_that_asked_for_the_kexec(host, monkeypatch):
    slept = []
    monkeypatch.setattr(_jump, "DOWN_LIMIT_S", 77)
    monkeypatch.setattr(time, "sleep", slept.append)
    host.at["kill"] = slept.clear
    assert "did not carry it out within 77 s" in update(host)["error"]
    assert slept[0] == 77


@pytest.mark.parametrize(
    ("waits", "says"), [(True, "nobody can take it back: when PID 1 continues, it reboots"), (False, "did not carry it out")]
)
def test_a_request_that_still_waits_for_pid_1_is_told(host, monkeypatch, waits, says):
    """PID 1 stands still, for example because its disk does not answer. The guests run again, and end when it continues."""
    status = host.root / "status"
    status.write_text(f"Name:\tsystemd\nSigPnd:\t{1 << 49:016x}\nShdPnd:\t{waits << 49:016x}\nSigBlk:\t{1 << 49:016x}\n")
    monkeypatch.setattr(_jump, "_PID_1", str(status))
    undone(host, update(host), says)


@pytest.mark.parametrize("status", [None, "Name:\tsystemd\n", "ShdPnd:\tzero\n", "ShdPnd:\t0000000000000000\n"])
def test_pid_1_whose_signals_cannot_be_read_is_not_said_to_reboot_the_host(host, monkeypatch, status):
    path = host.root / "status"
    if status is not None:
        path.write_text(status)
    monkeypatch.setattr(_jump, "_PID_1", str(path))
    undone(host, update(host), "PID 1 got the request for the kexec, but did not carry it out within 0 s")


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


def test_what_cannot_be_written_to_the_journals_daemon_is_no_failure(host, monkeypatch):
    class Gone:
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    undone(host, update(host), "PID 1 got the request for the kexec")
