# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import made_up_host
import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.kvm.liveupdate.plugins.action import kexec
from ansible_collections.kvm.liveupdate.plugins.action.kexec import Look, journal_of, look_command, read_look, verdict
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _processes, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _run
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import result
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import gate

BOOT = "0f3c6ae2-5a7e-4d5c-9f34-2a1f6b7c8d9e"
NEXT = "1f3c6ae2-5a7e-4d5c-9f34-2a1f6b7c8d9e"
SEEN = BOOT, ("7.3.4", "#1 SMP")
HEAD = f"m random/boot_id={BOOT}\nm osrelease=7.3.4\nm version=#1 SMP\n"
STARTED = "m KernelTimestamp=Tue 2026-11-24 09:19:46.303854 UTC\nm UserspaceTimestamp=Tue 2026-11-24 09:19:47.500000 UTC\n"
IN_INITRD = "m InitRDTimestamp=Tue 2026-11-24 09:19:46.750000 UTC\n"
LOADED = "m UnitsLoadFinishTimestamp=Tue 2026-11-24 09:19:48.250000 UTC\n"
STAMPS = {"kernel": 1795511986.303854, "userspace": 1795511987.5}
ALL_STAMPS = {**STAMPS, "units": 1795511988.25}
UPDATE = {"id": "u", "boot_id": BOOT, "kernel": {"release": "7.2.13"}, "image": {"release": "7.3.4", "version": "#1 SMP"}}


@pytest.mark.parametrize(
    ("output", "look"),
    [
        (HEAD + 'm journal={"id": "u", "state": "jumping"}\n' + STARTED, Look(*SEEN, STAMPS, [{"id": "u", "state": "jumping"}])),
        (HEAD + STARTED + LOADED, Look(*SEEN, ALL_STAMPS, [])),
        (HEAD + STARTED + IN_INITRD, Look(*SEEN, {**STAMPS, "initrd": 1795511986.75}, [])),
        (HEAD + STARTED + "m InitRDTimestamp=\n", Look(*SEEN, STAMPS, [])),
        (HEAD, Look(*SEEN, {}, [])),
        (HEAD + 'm journal={"torn\n', Look(*SEEN, {}, [])),
        (HEAD + "m journal=\nm journal=[1]\n", Look(*SEEN, {}, [])),
        (HEAD + "m ActiveState=failed\n", Look(*SEEN, {}, [], "failed")),
        (HEAD + "m ActiveState=inactive\nm Job=0\n", Look(*SEEN, {}, [], "inactive")),
        (HEAD + "m ActiveState=inactive\nm Job=4711\n", Look(*SEEN, {}, [])),
        (HEAD + "m ActiveState=deactivating\n", Look(*SEEN, {}, [])),
        (HEAD.replace("\n", "\r\n"), Look(*SEEN, {}, [])),
        (HEAD + "m bootloader_type=208\n", Look(*SEEN, {}, [])),  # a kexec
        (HEAD + "m bootloader_type=114\n", Look(*SEEN, {}, [], "", True)),  # GRUB
        (HEAD + "m bootloader_type=114\r\n", Look(*SEEN, {}, [], "", True)),
        (HEAD + "m bootloader_type=\n", Look(*SEEN, {}, [])),  # not an x86 kernel
        (f"bash: warning: setlocale: LC_ALL\nWelcome\n{NEXT}\n{HEAD}Broadcast message\n", Look(*SEEN, {}, [])),
        ("", None),
        (HEAD.replace("m ", ""), None),
        (HEAD.replace("m ", "n "), None),
        (HEAD.replace(BOOT, f"{BOOT}x"), None),
        (HEAD.replace("m osrelease", "osrelease"), None),
        (f"+ echo m random/boot_id={BOOT} m osrelease=7.3.4 m version=#1\n", None),
    ],
)
def test_only_marked_lines_count(output, look):
    assert read_look(output, "m") == look


def on_a_terminal(command, **environment):
    """What a login shell on a terminal prints, as ssh -tt has it: standard error is in it, lines end in CRLF."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["/bin/sh", "-c", f"echo 'motd: no newline' >&2; printf Last-login; {command}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 4096):
                output += chunk
        except OSError:  # EIO: the other end is closed
            pass
        process.wait(timeout=30)
    os.close(ours)
    return output.decode()


SYSTEMCTL = """#!/bin/sh
# As the real one with a pager: on a terminal it never ends, and in colour or another language nobody can read it.
[ -t 1 ] && [ "$SYSTEMD_PAGER" != cat ] && sleep 60
case "$LC_ALL $TERM $SYSTEMD_COLORS" in "C dumb 0") utc=UTC ;; *) utc="$(printf 'UTC\\033[m')" ;; esac
[ -z "$HANGS" ] || sleep 60
case "$*" in
  *kvm-liveupdate-jump.service*) echo ActiveState=failed ;;
  *) echo "KernelTimestamp=Tue 2026-11-24 09:19:46.303854 $utc"; echo noise >&2 ;;
esac
"""


@pytest.fixture
def host(tmp_path):
    """A PATH whose systemctl is the one above."""
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize("term", ["dumb", "xterm-256color", "xterm-ghostty"])
def test_a_look_at_this_machine_does_not_depend_on_the_terminal(host, term):
    output = on_a_terminal(
        look_command("m4rk"), TERM=term, LC_ALL="de_DE.UTF-8", SYSTEMD_PAGER="", PAGER="more", SYSTEMD_COLORS="1", **host
    )
    look = read_look(output, "m4rk")
    assert look is not None, output
    assert look.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert look.kernel[0] == os.uname().release and look.kernel[1] == os.uname().version
    assert look.started == {"kernel": STAMPS["kernel"]} and look.idle == "failed"
    # As the host itself decides. On a machine that a boot loader started, this is true.
    assert look.cold is (_this_boot.by_kexec() is False)


def test_a_look_reads_both_records_of_an_update(host, tmp_path, monkeypatch):
    """Where the host writes them. On a full disk only one says that the update was undone, and after a boot only the other is there."""
    monkeypatch.setattr(
        kexec, "LOOK", kexec.LOOK.replace(f" {_files.UPDATE} ", f" {tmp_path}/u ").replace(f" {_files.OUTCOME};", f" {tmp_path}/o;")
    )
    records = [{"id": "u", "state": "saving"}, {"id": "u", "state": "aborted", "error": "no room"}]
    _files.write_json(str(tmp_path / "u"), records[0])
    _files.write_json(str(tmp_path / "o"), records[1])
    look = read_look(on_a_terminal(look_command("m4rk"), **host), "m4rk")
    assert look.journals == records and journal_of(look, "u") == records[1]


def test_a_look_ends_on_the_host_and_tells_what_it_saw(host, monkeypatch):
    monkeypatch.setattr(kexec, "LOOK_S", 1)
    begun = time.monotonic()
    look = read_look(on_a_terminal(look_command("m4rk"), HANGS="yes", **host), "m4rk")
    assert time.monotonic() - begun < 20
    assert look is not None and look.kernel[0] == os.uname().release and look.started == {}


def test_another_kernel_is_a_failure():
    assert "failed" not in verdict(UPDATE, Look(NEXT, ("7.3.4", "#1 SMP"), {}, []), 12.0)
    for kernel in (("7.2.13", "#1 SMP"), ("7.3.4", "#2 SMP")):
        found = verdict(UPDATE, Look(NEXT, kernel, {}, []), 12.0)
        assert found["failed"] and found["boot_id_after"] == NEXT and "memory is lost" in found["msg"]


def test_host_and_controller_know_a_kexec_by_the_same_number():
    assert kexec.KEXEC_LOADER == _this_boot._KEXEC


def test_a_cold_boot_of_the_new_kernel_is_no_jump():
    """A power cut after the guests were saved, and the new kernel is the boot default."""
    journal = {"id": "u", "state": "jumping"}
    found = verdict(UPDATE, Look(NEXT, ("7.3.4", "#1 SMP"), {}, [journal], "", True), 12.0)
    assert (found["outcome"], found["failed"]) == ("rebooted", True)
    told = "the host came back with kernel 7.3.4 #1 SMP, but not by the jump: it did a cold boot, and its guests' memory is lost"
    assert found["msg"].startswith(told)
    assert verdict(UPDATE, Look(*SEEN, {}, [journal], "", True), 12.0) == {}  # the old kernel, which GRUB started


def test_a_host_that_came_back_has_the_stamps_of_both_kernels():
    found = verdict(
        UPDATE, Look(NEXT, ("7.3.4", "#1 SMP"), {"kernel": 3.0}, [{"id": "u", "state": "jumping", "times": {"saving": 2.0}}]), 12.0
    )
    assert (found["outcome"], found["times"]) == ("jumped", {"saving": 2.0, "kernel": 3.0})


def test_an_update_that_is_under_way_has_no_verdict():
    assert verdict(UPDATE, Look(*SEEN, {}, [{"id": "u", "state": "saving"}]), 12.0) == {}


ABORTED = {"id": "u", "state": "aborted", "error": "guest web: save; guest web does not run on"}


@pytest.mark.parametrize("journals", [[ABORTED], [{"id": "u", "state": "saving"}, ABORTED], [ABORTED, {"id": "u", "state": "saving"}]])
def test_whichever_record_says_that_the_update_was_undone_wins(journals):
    found = verdict(UPDATE, Look(BOOT, ("7.2.13", "#1"), {}, journals), 12.0)
    assert found["outcome"] == "aborted"
    assert found["msg"] == f"the update was undone before the jump. The host still runs kernel 7.2.13: {ABORTED['error']}"


@pytest.mark.parametrize("journals", [[{**ABORTED, "id": "earlier"}], [{**ABORTED, "id": "earlier"}, {"id": "u", "state": "saving"}]])
def test_the_record_of_another_update_says_nothing_of_this_one(journals):
    look = Look(*SEEN, {}, journals)
    assert verdict(UPDATE, look, 12.0) == {} and journal_of(look, "u").get("state") != "aborted"


class Connection:
    """An ssh whose looks are given; one that is a number hangs for so many seconds."""

    transport = "ssh"
    until = float("inf")

    def __init__(self, *looks):
        self.looks, self.options = list(looks), {"ssh_extra_args": "-v"}

    def reset(self):
        pass

    def get_option(self, name):
        return self.options[name]

    def set_option(self, name, value):
        self.options[name] = value

    def answer(self, command, **_given):
        assert time.monotonic() < self.until, "it waits for ever"
        mark = command.rpartition("s/^/")[2].split()[0]
        seen = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(seen, Exception):
            raise seen
        if not isinstance(seen, str):
            time.sleep(seen)
        return {"stdout": str(seen).replace("m ", f"{mark} ")}


def waited(monkeypatch, timeout, *looks):
    """What the plugin makes of a host that gives these answers, the last one for ever."""
    monkeypatch.setattr(kexec, "PAUSE_S", 0.01)
    plugin, connection = object.__new__(kexec.ActionModule), Connection(*looks)
    plugin._connection, plugin._low_level_execute_command = connection, connection.answer
    plugin._task = SimpleNamespace(args={}, check_mode=False)
    before, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    connection.until = begun + timeout + 5
    found = plugin._wait(UPDATE, begun, timeout)
    assert signal.getsignal(signal.SIGALRM) is before and signal.setitimer(signal.ITIMER_REAL, 0)[0] == 0
    assert "ServerAliveInterval" in connection.options["ssh_extra_args"] and connection.options["ssh_extra_args"].startswith("-v ")
    return found, time.monotonic() - begun


OLD = HEAD + 'm journal={"id": "u", "state": "%s"}\n'
BACK = HEAD.replace(BOOT, NEXT)


def test_a_look_that_hangs_does_not_outlast_the_timeout(monkeypatch):
    found, took = waited(monkeypatch, 1.0, 6)
    assert found["outcome"] == "gone" and "last seen: a connection without an answer" in found["msg"] and took < 5
    assert found["lost"] is True


@pytest.mark.parametrize("last", [[], [6]], ids=["answers", "has no time for the last look"])
def test_a_host_that_answers_with_its_old_kernel_has_not_jumped(monkeypatch, last):
    found, _took = waited(monkeypatch, 2.0, *[OLD % "saving" + "m ActiveState=active\n"] * (3 if last else 1), *last)
    assert found["outcome"] == "gone" and found["msg"].startswith("the host did not jump within 2 s: it answers")
    assert "update saving" in found["msg"] and "console" not in found["msg"] and "lost" not in found


def test_a_host_that_does_not_answer_any_more_may_have_jumped(monkeypatch):
    found, _took = waited(monkeypatch, 1.0, OLD % "jumping" + "m ActiveState=active\n", AnsibleConnectionFailure("refused"))
    assert found["outcome"] == "gone" and "look at its console" in found["msg"].lower()


def test_a_look_that_hangs_is_followed_by_the_next(monkeypatch):
    monkeypatch.setattr(kexec, "ATTEMPT_S", 0.2)
    found, _took = waited(monkeypatch, 8.0, 6, AnsibleConnectionFailure("refused"), "Welcome", BACK)
    assert found["outcome"] == "jumped"


def test_a_host_where_nothing_carries_the_update_on_is_not_waited_for(monkeypatch):
    found, took = waited(monkeypatch, 8.0, OLD % "committed" + "m ActiveState=failed\n")
    assert found["outcome"] == "stuck" and "update committed" in found["msg"]
    assert found["msg"].startswith("the host still runs kernel 7.3.4: kvm-liveupdate-jump.service is failed.")
    assert "systemctl status" in found["msg"] and took < 5


@pytest.mark.parametrize(
    "looks",
    [
        [OLD % "committed" + "m ActiveState=inactive\n", OLD % "committed" + "m ActiveState=active\n"] * 2,
        [OLD % "committed" + "m ActiveState=inactive\n", AnsibleConnectionFailure("refused")] * 2,
        [OLD % "jumping" + "m ActiveState=failed\n"] * 4,
        [OLD % "committed" + "m ActiveState=inactive\nm Job=7\n"] * 4,
    ],
    ids=["starts", "not two in a row", "a kexec is under way", "its start is queued"],
)
def test_one_look_without_the_unit_is_not_enough(monkeypatch, looks):
    found, _took = waited(monkeypatch, 8.0, *looks, BACK)
    assert found["outcome"] == "jumped"


def test_a_host_that_is_lost_when_it_is_told_to_jump_is_a_failure(monkeypatch):
    def gone(**_given):
        raise AnsibleConnectionFailure("closed by remote host")

    plugin = object.__new__(kexec.ActionModule)
    plugin._connection, plugin._task = Connection(HEAD), SimpleNamespace(args={}, check_mode=False)
    plugin._execute_module, plugin._low_level_execute_command = gone, plugin._connection.answer
    monkeypatch.setattr(kexec.ActionBase, "run", lambda *_given: {})
    found = plugin.run()
    assert found["failed"] and found["lost"] and found["outcome"] == "lost" and "closed by remote host" in found["msg"]
    assert json.dumps(found)


class Clock:
    """The controller's time, which only sleeps and looks move, and the limits of the looks."""

    def __init__(self, monkeypatch):
        self.now, self.asked, self.sleeps, self.limits, self.limited = 1000.0, 0, 0, [], False
        monkeypatch.setattr(kexec, "time", SimpleNamespace(monotonic=self.monotonic, sleep=self.sleep))
        monkeypatch.setattr(kexec, "_limit", self.limit)

    def monotonic(self):
        self.asked += 1
        assert self.asked < 100, "it never sleeps"
        return self.now

    def sleep(self, seconds):
        self.sleeps, self.asked = self.sleeps + 1, 0
        assert seconds > 0 and self.sleeps < 1000, "it waits for ever"
        self.now += seconds

    @contextlib.contextmanager
    def limit(self, seconds):
        self.limits.append(round(seconds, 3))
        self.limited = True
        yield
        self.limited = False

    def take(self, seconds):
        """A look that takes so long, or is ended at its limit."""
        assert self.limited, "a look without a limit"
        self.now += min(seconds, self.limits[-1])
        if seconds > self.limits[-1]:
            raise kexec._Late


@pytest.fixture(name="clock")
def the_controllers_clock(monkeypatch):
    return Clock(monkeypatch)


class Scripted(Connection):
    """As a Connection; its looks take made-up time."""

    def __init__(self, clock, looks):
        super().__init__(*looks)
        self.clock, self.resets = clock, 0

    def reset(self):
        self.resets += 1

    def answer(self, command, sudoable):
        assert sudoable  # only root reads the records
        if isinstance(self.looks[0], (int, float)):
            self.clock.take(self.looks[0] if len(self.looks) == 1 else self.looks.pop(0))
        self.clock.take(0.0)
        return super().answer(command)


def outcome_of(clock, timeout, *looks, **connection):
    """What the plugin makes of a host that gives these answers, the last one for ever."""
    plugin = object.__new__(kexec.ActionModule)
    plugin._connection = Scripted(clock, looks)
    vars(plugin._connection).update(connection)
    plugin._low_level_execute_command = plugin._connection.answer
    found = plugin._wait(UPDATE, clock.now, timeout)
    return {**found, "resets": plugin._connection.resets, "options": plugin._connection.options}


HANGS = 10_000
REFUSED = AnsibleConnectionFailure("refused")
BUSY = OLD % "saving" + "m ActiveState=active\n"
IDLE = OLD % "committed" + "m ActiveState=inactive\n"


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (HANGS, "a connection without an answer"),
        (REFUSED, "no connection: refused"),
        (BrokenPipeError(32, "Broken pipe"), "no connection: [Errno 32] Broken pipe"),
        ("Welcome", "an answer without a boot ID"),
    ],
)
def test_the_wait_for_a_host_ends_at_the_timeout_and_tells_what_was_seen_last(clock, look, seen):
    found = outcome_of(clock, 151, BUSY, look)
    assert (found["outcome"], found["failed"], found["lost"]) == ("gone", True, True)
    assert found["msg"].startswith(f"the host did not come back within 151 s; last seen: {seen}. Look at its console")
    assert 1151 <= clock.now <= 1151.1


def test_each_look_has_a_limit_and_none_outlasts_the_timeout(clock):
    outcome_of(clock, 150, HANGS)
    assert clock.limits == [60.0, 60.0, 24.0] and clock.now == 1150


def test_the_last_look_has_a_limit_too(clock):
    """A limit of 0 seconds would be none (setitimer(2))."""
    outcome_of(clock, 2, HANGS)
    assert clock.limits == [0.1]


def test_a_host_that_came_back_is_noticed_at_the_next_look_and_each_look_connects_anew(clock):
    """A connection to the old kernel that is kept open never answers again."""
    found = outcome_of(clock, 1800, BUSY, REFUSED, BACK)
    assert (found["outcome"], found["elapsed"], found["resets"]) == ("jumped", 6.0, 3)


@pytest.mark.parametrize("before", [HANGS, REFUSED, BrokenPipeError(32, "Broken pipe"), "Welcome", BUSY])
def test_a_host_is_stuck_when_two_looks_in_a_row_say_so(clock, before):
    assert outcome_of(clock, 1800, IDLE, IDLE, BACK)["outcome"] == "stuck"
    assert outcome_of(clock, 1800, before, IDLE, IDLE, BACK)["outcome"] == "stuck"
    assert outcome_of(clock, 1800, IDLE, before, IDLE, BACK)["outcome"] == "jumped"


def test_a_host_that_answered_and_then_hangs_may_have_jumped(clock):
    found = outcome_of(clock, 200, BUSY, HANGS)
    assert found["lost"] and "last seen: a connection without an answer" in found["msg"]


def test_a_look_that_only_the_timeout_cut_short_does_not_say_that_the_host_has_left(clock):
    found = outcome_of(clock, 5, BUSY, HANGS)
    assert clock.limits[-1] == 1.0 and "lost" not in found
    assert found["msg"].startswith("the host did not jump within 5 s: it answers and still runs the old kernel 7.3.4, update saving.")


@pytest.mark.parametrize("given", [None, ""])
def test_an_ssh_ends_when_nobody_waits_for_it_any_more(clock, given):
    found = outcome_of(clock, 1800, BACK, options={"ssh_extra_args": given})
    assert found["options"] == {"ssh_extra_args": kexec.KEEPALIVE}


def test_a_connection_that_is_no_ssh_is_not_given_options_of_ssh(clock):
    found = outcome_of(clock, 1800, BACK, transport="paramiko", options={})
    assert found["outcome"] == "jumped" and found["options"] == {}


def test_a_block_that_takes_too_long_is_ended():
    begun = time.monotonic()
    with pytest.raises(kexec._Late), kexec._limit(0.05):
        time.sleep(2)
    assert time.monotonic() - begun < 2


@pytest.fixture(name="alarms")
def alarms_of_ansible():
    """Ansible's own limit of a task (``timeout``) uses the same timer."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_given: rung.append(time.monotonic()))
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("ansibles", "took", "least", "most"), [(100, 40, 59, 60), (100, 99.5, 0.01, 0.5)])
def test_the_limit_of_ansible_goes_on_after_a_look(alarms, monkeypatch, ansibles, took, least, most):
    now = iter((1000.0, 1000.0 + took))
    monkeypatch.setattr(kexec, "time", SimpleNamespace(monotonic=lambda: next(now)))
    signal.setitimer(signal.ITIMER_REAL, ansibles)
    with kexec._limit(60):
        pass
    assert least < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= most and alarms == []


def test_a_limit_of_ansible_that_a_look_has_used_up_ends_the_task_at_once(alarms, monkeypatch):
    now = iter((1000.0, 1200.0))
    monkeypatch.setattr(kexec, "time", SimpleNamespace(monotonic=lambda: next(now)))
    signal.setitimer(signal.ITIMER_REAL, 100)
    with kexec._limit(60):
        pass
    until = time.monotonic() + 0.8
    while not alarms and time.monotonic() < until:
        time.sleep(0.01)
    assert alarms


def test_where_ansible_has_no_limit_there_is_none_after_a_look(alarms):
    with kexec._limit(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    time.sleep(0.05)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and alarms == []


JOURNAL = {"boot_id": BOOT, "kernel": {"release": "7.2.13"}}


class Task:
    """A task whose module gives an answer: what the module was asked, and for how long the host was waited for.

    ``looks`` are what the looks before the commit and after it see, the last one for ever.
    """

    def __init__(self, monkeypatch, answer, transport="ssh", check_mode=False, looks=(HEAD,), options=None, answer_s=0.3, **args):
        self.asked, self.waits, self.answer, self.retries = [], [], answer, []
        monkeypatch.setattr(kexec.ActionBase, "run", lambda *_given: {})
        monkeypatch.setattr(kexec, "PAUSE_S", 0.01)
        monkeypatch.setattr(kexec, "ANSWER_S", answer_s)
        monkeypatch.setattr(_run, "this_run", lambda: "mine")
        plugin = object.__new__(kexec.ActionModule)
        plugin._connection, plugin._task = Connection(*looks), SimpleNamespace(args=args, check_mode=check_mode)
        vars(plugin._connection).update(transport=transport, options={} if options is None else options)
        plugin._execute_module, plugin._wait = self.module, self.wait
        plugin._low_level_execute_command = plugin._connection.answer
        self.options = plugin._connection.options
        self.result = plugin.run()

    def module(self, module_name, module_args, task_vars):
        assert module_name == "kvm.liveupdate.kexec"
        self.asked.append(module_args)
        self.retries.append(dict(self.options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)

    def wait(self, update, _started, timeout):
        self.waits.append((update, timeout))
        return {"outcome": "jumped"}


def test_a_jump_is_committed_in_the_name_of_the_run_and_the_host_waited_for(monkeypatch):
    task = Task(monkeypatch, {"changed": True, "journal": JOURNAL}, guests=["web"], timeout=900)
    assert task.asked == [{"run": "mine", "guests": ["web"], "timeout": 900}] and task.waits == [(JOURNAL, 900.0)]
    told = {"changed": True, "journal": JOURNAL, "boot_id_before": BOOT, "kernel_before": "7.2.13", "outcome": "jumped"}
    assert task.result == told


def test_host_and_controller_give_an_update_the_same_time(monkeypatch):
    assert Task(monkeypatch, {"changed": True, "journal": JOURNAL}).waits == [(JOURNAL, float(_jump.TIMEOUT_S))]


def test_the_end_of_the_window_reaches_the_host_in_a_form_that_its_python_reads(monkeypatch):
    assert Task(monkeypatch, {"failed": True}, until="20261201T0400+0100").asked == [{"run": "mine", "until": "2026-12-01T04:00:00+01:00"}]


@pytest.mark.parametrize("given", [{"transport": "local"}, {"until": "tonight"}])
def test_what_cannot_be_done_is_refused_before_the_host_is_asked(monkeypatch, given):
    task = Task(monkeypatch, {"changed": True, "journal": JOURNAL}, **given)
    assert task.result["failed"] and task.asked == task.waits == []
    assert task.result["msg"].startswith("connection local: the jump" if "transport" in given else "hypervisor_update_until")


@pytest.mark.parametrize(("answer", "check_mode"), [({"failed": True, "msg": "no"}, False), ({"changed": True}, True)])
def test_a_host_that_will_not_jump_is_not_waited_for(monkeypatch, answer, check_mode):
    task = Task(monkeypatch, answer, check_mode=check_mode)
    assert task.result == answer and len(task.asked) == 1 and task.waits == []


@pytest.mark.parametrize("answer", [{"changed": True, "journal": JOURNAL}, {"failed": True, "msg": "no"}, AnsibleConnectionFailure("cut")])
@pytest.mark.parametrize(("before", "while_it_commits"), [({"reconnection_retries": 3}, {"reconnection_retries": 0}), ({}, {})])
def test_ssh_does_not_tell_a_host_to_jump_a_second_time(monkeypatch, answer, before, while_it_commits):
    """The second time may be in the next boot, whose answer is a failure. A connection without the option keeps what it has."""
    task = Task(monkeypatch, answer, options=dict(before))
    assert task.retries == [while_it_commits] and task.options == before


FAILED = {"failed": True, "msg": "the jump is refused, and nothing was stopped: no kernel is staged"}
EARLIER = HEAD + 'm journal={"id": "u0", "state": "saving"}\n'


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        (EARLIER, EARLIER, ""),
        (EARLIER, EARLIER.replace("saving", "aborted"), ""),  # its end was written now
        (HEAD, BACK, f"its boot ID is {NEXT} now, and was {BOOT}"),
        (EARLIER, HEAD + 'm journal={"id": "u1", "state": "committed"}\n', "it has the record of a new update"),
        (HEAD, REFUSED, "it does not answer any more"),
        (HEAD, "Welcome", "it does not answer any more"),
    ],
)
def test_a_failed_commit_leaves_the_host_as_it_was_only_if_a_look_proves_it(monkeypatch, before, after, seen):
    """Else the answer may be to a second try, and the host may have jumped after the first one."""
    task = Task(monkeypatch, FAILED, looks=[before, after])
    ended = result(
        {"boot_id": BOOT}, {"verdict": "go"}, task.result, why=task.result["msg"], step="Jump", lost=task.result.get("lost", False)
    )
    assert task.waits == [] and ended["outcome"] == ("lost" if seen else "undone")
    if seen:
        assert (task.result["failed"], task.result["outcome"], task.result["lost"]) == (True, "lost", True)
        told = (
            f"the host refused to jump, but it may have committed the update at an earlier try: {seen}. It said: {FAILED['msg']}. The host"
        )
        assert task.result["msg"].startswith(told) and "Its guests may be paused, or may run on the new kernel already" in ended["why"]
    else:
        assert task.result == FAILED


@pytest.mark.parametrize("hiccup", [REFUSED, "Welcome", 0.3])
def test_a_look_that_fails_once_is_repeated_before_the_commit_and_after_its_refusal(monkeypatch, hiccup):
    """As with MaxStartups of sshd, or a slow sudo. One more look shows that nothing is committed."""
    monkeypatch.setattr(kexec, "ATTEMPT_S", 0.1)
    task = Task(monkeypatch, FAILED, looks=[hiccup, EARLIER, hiccup, hiccup, EARLIER], answer_s=2.0)
    assert task.result == FAILED and len(task.asked) == 1


@pytest.mark.parametrize(("not_back", "outcome"), [("[]", "aborted"), ('["web"]', "half_undone")])
def test_a_commit_that_failed_half_way_or_was_undone_meanwhile_is_no_lost_host(monkeypatch, not_back, outcome):
    after = HEAD + f'm journal={{"id": "u1", "state": "aborted", "error": "the disk is full", "not_back": {not_back}}}\n'
    task = Task(monkeypatch, FAILED, looks=[EARLIER, after])
    assert task.result["failed"] and task.result["outcome"] == outcome and "lost" not in task.result
    assert "undone before the jump" in task.result["msg"] and "the disk is full" in task.result["msg"]


@pytest.mark.parametrize("look", [REFUSED, "Welcome"])
def test_a_host_whose_boot_is_unknown_is_not_told_to_jump(monkeypatch, look):
    task = Task(monkeypatch, {"changed": True, "journal": JOURNAL}, looks=[look])
    assert task.asked == task.waits == [] and (task.result["failed"], task.result["lost"]) == (True, True)
    told = f"the host did not answer for {kexec.ANSWER_S:g} s right before the jump, so it was not told to jump."
    assert task.result["msg"].startswith(told) and "outcome" not in task.result


@pytest.mark.parametrize("fails", ["resume", "end"])
def test_an_undo_after_which_a_guest_is_not_back_stops_the_rollout(tmp_path, monkeypatch, fails):
    """Whatever hypervisor_update_undone_max allows."""
    host = made_up_host.make(tmp_path, monkeypatch, ["app", "web"])
    real = host.resume

    def resume(record, running):
        if record["name"] == "app":
            return real(record, running)
        if fails == "end":
            host.records["web"]["pid"] = 0
            monkeypatch.setattr(_processes, "lives", lambda record: record["name"] == "app")
        raise LiveUpdateError("no bridge br0")

    host.resume = resume
    update = made_up_host.update(host)
    on_disk = [_files.read_json(path) for path in (_files.UPDATE, _files.OUTCOME)]
    assert [record["not_back"] for record in on_disk] == [["web"]] * 2 and _journal.of_update()["not_back"] == ["web"]
    jump = verdict(update, Look(BOOT, ("7.2.13", "#1"), {}, on_disk), 12.0)
    assert jump["outcome"] == "half_undone"
    told = "the update was undone before the jump, but these guests are not back: web. The host still runs kernel 7.2.13: PID 1"
    resume_it = "its memory is kept. Correct the cause, then run 'kvm-liveupdate resume web' on the host"
    start_it = "make sure that the guest runs nowhere else, then start it"
    does = {
        "resume": f"guest web is not resumed; {resume_it}",
        "end": f"the QEMU of guest web has ended during the update, and its memory with it: {start_it}",
    }
    assert jump["msg"].startswith(told) and does[fails] in jump["msg"]
    ended = result({"boot_id": "b"}, {"verdict": "go"}, jump, why=jump["msg"], step="Jump")
    assert (ended["outcome"], ended["why"]) == ("failed", jump["msg"]) and gate({}, {"hv1": ended}, undone_max=1)["stop"] == "hv1 failed"


def test_an_undo_after_which_all_guests_run_is_one_that_a_rollout_may_tolerate(tmp_path, monkeypatch):
    update = made_up_host.update(made_up_host.make(tmp_path, monkeypatch, ["app", "web"]))
    jump = verdict(update, Look(BOOT, ("7.2.13", "#1"), {}, [_files.read_json(_files.OUTCOME)]), 12.0)
    ended = result({"boot_id": "b"}, {"verdict": "go"}, jump, why=jump["msg"], step="Jump")
    assert (jump["outcome"], ended["outcome"]) == ("aborted", "undone") and gate({}, {"hv1": ended}, undone_max=1)["stop"] == ""


def test_a_failed_update_has_changed_the_host():
    """Services were stopped, and guests paused."""
    for found in (
        verdict(UPDATE, Look(*SEEN, {}, [ABORTED]), 12.0),
        verdict(UPDATE, Look(NEXT, ("7.2.13", "#1 SMP"), {}, []), 12.0),
    ):
        assert (found["failed"], found["changed"]) == (True, True)


def test_an_update_that_was_undone_without_a_reason_says_so():
    found = verdict(UPDATE, Look(*SEEN, {}, [{"id": "u", "state": "aborted", "error": ""}]), 12.0)
    assert found["msg"].endswith("The host still runs kernel 7.3.4: no reason recorded")


@pytest.mark.parametrize("cold", [False, True])
def test_a_host_that_came_back_with_another_kernel_names_both(cold):
    found = verdict(UPDATE, Look(NEXT, ("7.2.13", "#1 SMP"), {}, [], "", cold), 12.34567)
    assert found["msg"].startswith("the host came back with kernel 7.2.13 #1 SMP, not 7.3.4 #1 SMP: it did a cold boot")
    assert (found["kernel_after"], found["elapsed"]) == ("7.2.13", 12.346)
