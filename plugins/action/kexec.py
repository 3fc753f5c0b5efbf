# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.kexec: commit the update on the host, wait for the host, and check what came back."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import signal
import time
import typing as t
from datetime import datetime, timezone

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _window
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _failure as _told
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _run

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
JUMP_UNIT = "kvm-liveupdate-jump.service"
# One look at the host. It prints lines of a name and a value: the boot id, the kernel's release and version, the boot loader's type, the
# records of the update, whether a process still carries it out, and when the boot began. Commands that may have to wait for PID 1 come
# last.
LOOK = "; ".join(
    (
        "cd /proc/sys/kernel",
        r'for name in random/boot_id osrelease version bootloader_type; do printf "%s=%s\n" "$name" "$(cat "$name")"; done',
        "for file in /var/lib/kvm-liveupdate/update.json /run/kvm-liveupdate/update-outcome.json",
        r'do test -e "$file" && printf "journal=%s\n" "$(tr -d "\n" <"$file")"; done',
        f"systemctl --no-pager show --property=ActiveState,Job {JUMP_UNIT}",
        "systemctl --no-pager show --timestamp=us+utc"
        " --property=KernelTimestamp,InitRDTimestamp,UserspaceTimestamp,UnitsLoadFinishTimestamp",
    )
)
STAMP = re.compile(r"\w+ (\S+ \S+) UTC")
# When the kernel started, when systemd started in its initial RAM disk, when PID 1 of the host started, and when that had loaded its units
# (org.freedesktop.systemd1(5)). Without systemd in an initial RAM disk the second one is empty.
STAMPS = {
    "KernelTimestamp": "kernel",
    "InitRDTimestamp": "initrd",
    "UserspaceTimestamp": "userspace",
    "UnitsLoadFinishTimestamp": "units",
}
# What a kexec calls itself in place of a boot loader (module_utils/host/_this_boot.py, by_kexec).
KEXEC_LOADER = 0xD
PAUSE_S = 2.0
# The limit of one look on the host, and on the controller. The second includes the connection: ssh(1) has no limit once connected.
LOOK_S = 30
ATTEMPT_S = 60.0
# For how long the look before the commit, and the one after a refusal, is repeated. A host may refuse an SSH connection for a moment
# (sshd_config(5), MaxStartups).
ANSWER_S = 120.0
# With these an ssh ends by itself when the controller no longer waits for it (ssh_config(5)).
KEEPALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
# The wait ends only when so many looks in a row find that no process carries the update out.
IDLE_LOOKS = 2


class Look(t.NamedTuple):
    """What one look at a host finds.

    ``kernel`` is its release and version. ``started`` has the times when the boot began (:data:`STAMPS`, since the epoch). ``journals`` are
    the records of its last update. ``idle`` is the state of the unit that carries an update out, if that unit has ended; else empty.
    ``cold`` is true if a boot loader certainly started this kernel, and no kexec did.
    """

    boot_id: str
    kernel: tuple[str, str]
    started: dict[str, float]
    journals: list[dict[str, t.Any]]
    idle: str = ""
    cold: bool = False


def look_command(mark: str) -> str:
    """The shell command of one look. It prints the mark before each line.

    It does not depend on the user's terminal, pager, language or colours. It ends by itself.
    """
    plain = "env LC_ALL=C TERM=dumb SYSTEMD_PAGER=cat SYSTEMD_COLORS=0"
    limited = f"{plain} timeout --kill-after=5 {LOOK_S} sh -c {shlex.quote(LOOK)}"
    return f"echo; {limited} </dev/null 2>/dev/null | sed 's/^/{mark} /'"


def read_look(output: str, mark: str) -> Look | None:
    """Read what :func:`look_command` printed. None if that has no boot id or no kernel.

    A login shell, sudo and a host that shuts down print other text too, with -tt on the same channel: only marked lines count.
    """
    lines = [line.rstrip("\r") for line in output.split("\n")]
    told = [line.removeprefix(f"{mark} ").partition("=")[::2] for line in lines if line.startswith(f"{mark} ")]
    found = dict(told)
    boot_id, kernel = found.get("random/boot_id", ""), (found.get("osrelease", ""), found.get("version", ""))
    if not UUID.fullmatch(boot_id) or not all(kernel):
        return None
    started = {STAMPS[name]: _epoch(stamp[1]) for name, value in told if name in STAMPS and (stamp := STAMP.fullmatch(value))}
    journals = [journal for name, value in told if name == "journal" and (journal := _record(value))]
    state = found.get("ActiveState", "")
    ended = state in ("inactive", "failed") and found.get("Job", "0") in ("", "0")
    loader = found.get("bootloader_type", "")
    cold = loader.isdecimal() and int(loader) >> 4 != KEXEC_LOADER
    return Look(boot_id, kernel, started, journals, state if ended else "", cold)


def _record(text: str) -> dict[str, t.Any]:
    """A record that the host wrote; empty if it is incomplete."""
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def journal_of(look: Look, update_id: str) -> dict[str, t.Any]:
    """What the host recorded about this update; empty for nothing. If two records disagree, the one of an undone update counts."""
    found = [journal for journal in look.journals if journal.get("id") == update_id]
    return next((journal for journal in found if journal.get("state") == "aborted"), found[0] if found else {})


def _epoch(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()


class ActionModule(ActionBase):
    """Commit the jump, and wait for the host."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        if self._connection.transport == "local":
            message = "connection local: the jump would end the controller itself; connect to the host over SSH"
            return {**result, "failed": True, "msg": message}
        try:
            until = _window.in_full(str(self._task.args.get("until") or ""))
        except LiveUpdateError as err:
            return {**result, "failed": True, "msg": err.message}
        arguments = {"run": _run.this_run(), **self._task.args, **({"until": until} if until else {})}
        before = None if self._task.check_mode else self._look_until_answered()
        if before is None and not self._task.check_mode:
            message = (
                f"the host did not answer for {ANSWER_S:g} s right before the jump, so it was not told to jump. Its guests continue to run."
                " Make it reachable over SSH, then run the update again"
            )
            return {**result, "failed": True, "lost": True, "msg": message}
        started = time.monotonic()
        try:
            with _sent_once(self._connection):
                result.update(self._execute_module(module_name="kvm.liveupdate.kexec", module_args=arguments, task_vars=task_vars))
        except AnsibleConnectionFailure as err:
            # The host may have committed the update or not.
            message = f"the connection broke while the host was told to jump: {err}. The host may jump by itself; look at its console"
            return {**result, **_failure("lost", message), "lost": True}
        if result.get("failed") and before:
            return {**result, **self._after_a_refusal(before, str(result.get("msg")))}
        if result.get("failed") or self._task.check_mode:
            return result
        update = result["journal"]
        timeout = float(self._task.args.get("timeout", 1800))
        result["boot_id_before"], result["kernel_before"] = update["boot_id"], update["kernel"]["release"]
        result.update(self._wait(update, started, timeout))
        return result

    def _wait(self, update: dict[str, t.Any], started: float, timeout: float) -> dict[str, t.Any]:
        seen, idle, there = "no answer at all", 0, ""
        if self._connection.transport == "ssh":
            given = self._connection.get_option("ssh_extra_args") or ""
            self._connection.set_option("ssh_extra_args", f"{given} {KEEPALIVE}".strip())
        while (left := started + timeout - time.monotonic()) > 0:
            time.sleep(min(PAUSE_S, left))
            try:
                with _limit(max(0.1, min(ATTEMPT_S, started + timeout - time.monotonic()))):
                    look = self._look()
            except _Late:
                idle = 0
                if not there or time.monotonic() < started + timeout:  # else the timeout cut this look short
                    seen, there = "a connection without an answer", ""
                continue
            except (AnsibleError, OSError) as err:
                seen, idle, there = f"no connection: {err}", 0, ""
                continue
            if look is None:
                seen, idle, there = "an answer without a boot ID", 0, ""
                continue
            ended = verdict(update, look, time.monotonic() - started)
            if ended:
                return ended
            state = journal_of(look, update["id"]).get("state", "without a journal")
            idle = idle + 1 if look.idle and state != "jumping" else 0
            if idle >= IDLE_LOOKS:
                return _failure(
                    "stuck",
                    f"the host still runs kernel {look.kernel[0]}: {JUMP_UNIT} is {look.idle}. It ended without a jump and without an undo"
                    f" (update {state}). On the host, 'systemctl status {JUMP_UNIT}' shows why, and 'kvm-liveupdate recover' undoes the"
                    " update",
                )
            seen = there = f"the old kernel {look.kernel[0]}, update {state}"
        if there:  # not "stuck": the host may jump at any moment, so guests that are away must not be brought back to it
            return _failure(
                "gone",
                f"the host did not jump within {timeout:g} s: it answers and still runs {there}. Wait until {JUMP_UNIT} has ended on the"
                f" host: it jumps, or undoes the update. 'journalctl -u {JUMP_UNIT}' shows what it waits for. Then run the update again",
            )
        told = _failure(
            "gone",
            f"the host did not come back within {timeout:g} s; last seen: {seen}. Look at its console. If it runs the staged kernel, the"
            " guests are restored by themselves. After a cold boot they start from their disks",
        )
        return {**told, "lost": True}

    def _after_a_refusal(self, before: Look, why: str) -> dict[str, t.Any]:
        """What to add to a failed commit. Nothing if one more look shows that this boot has committed no update: the failure may be the
        answer to a second try, after the answer to the first one got lost.
        """
        after = self._look_until_answered()
        if after is None:
            seen = "it does not answer any more"
        elif after.boot_id != before.boot_id:
            seen = f"its boot ID is {after.boot_id} now, and was {before.boot_id}"
        elif new := _ids(after) - _ids(before):
            ended = verdict({"id": new.pop(), "boot_id": before.boot_id}, after, 0.0)
            if ended:  # the commit, or the update after it, has failed
                return ended
            seen = "it has the record of a new update"
        else:
            return {}
        message = (
            f"the host refused to jump, but it may have committed the update at an earlier try: {seen}. It said: {why}. The host may still"
            " jump. Look at its console"
        )
        return {**_failure("lost", message), "lost": True}

    def _look_until_answered(self) -> Look | None:
        """One look, repeated for ANSWER_S until there is an answer that can be read; None if there is none."""
        until = time.monotonic() + ANSWER_S
        while True:
            with contextlib.suppress(_Late, AnsibleError, OSError), _limit(ATTEMPT_S):
                if look := self._look():
                    return look
            if time.monotonic() > until:
                return None
            time.sleep(PAUSE_S)

    def _look(self) -> Look | None:
        mark = secrets.token_hex(8)
        self._connection.reset()
        return read_look(self._low_level_execute_command(look_command(mark), sudoable=True).get("stdout", ""), mark)


def _ids(look: Look) -> set[str]:
    return {str(journal.get("id")) for journal in look.journals}


class _Late(BaseException):
    """A look took too long. Not an Exception: the connection would catch that and try again."""


@contextlib.contextmanager
def _sent_once(connection: t.Any) -> t.Iterator[None]:
    """Keep ssh from sending a command of a block again (its option reconnection_retries): it would commit twice, also in the next boot."""
    try:
        retries = connection.get_option("reconnection_retries")
    except KeyError:  # this connection has no such option
        yield
        return
    connection.set_option("reconnection_retries", 0)
    try:
        yield
    finally:
        connection.set_option("reconnection_retries", retries)


@contextlib.contextmanager
def _limit(seconds: float) -> t.Iterator[None]:
    """Raise :class:`_Late` in a block that takes longer. Ansible's own limit uses the same timer; it is restored afterwards."""

    def late(_number: int, _frame: t.Any) -> None:
        raise _Late

    begun, handler = time.monotonic(), signal.signal(signal.SIGALRM, late)
    theirs = signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if theirs:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, theirs - (time.monotonic() - begun)))


def verdict(update: dict[str, t.Any], look: Look, elapsed: float) -> dict[str, t.Any]:
    """What a look says about the update, ``elapsed`` seconds after its commit; empty while it is under way. Pure."""
    journal = journal_of(look, update["id"])
    if journal.get("state") == "aborted":
        why, not_back = journal.get("error") or "no reason recorded", ", ".join(journal.get("not_back") or [])
        if not_back:
            told = f"the update was undone before the jump, but these guests are not back: {not_back}"
            return _failure("half_undone", f"{told}. The host still runs kernel {look.kernel[0]}: {why}")
        return _failure("aborted", f"the update was undone before the jump. The host still runs kernel {look.kernel[0]}: {why}")
    if look.boot_id == update["boot_id"]:
        return {}
    return {**_came_back(update, look, elapsed), "times": {**journal.get("times", {}), **look.started}}


def _failure(outcome: str, message: str) -> dict[str, t.Any]:
    return {"failed": True, "changed": True, "outcome": outcome, "msg": message}


def _came_back(update: dict[str, t.Any], look: Look, elapsed: float) -> dict[str, t.Any]:
    found = {"boot_id_after": look.boot_id, "kernel_after": look.kernel[0], "elapsed": round(elapsed, 3)}
    wanted = update["image"]["release"], update["image"]["version"]
    if look.kernel != wanted or look.cold:
        came, planned = " ".join(look.kernel), " ".join(wanted)
        seen = f"the host came back with kernel {came}"
        seen += f", not {planned}" if look.kernel != wanted else ", but not by the jump"
        message = f"{seen}: it did a cold boot, and its guests' memory is lost. {_told.AFTER_COLD_BOOT}"
        return {**found, **_failure("rebooted", message)}
    return {**found, "outcome": "jumped"}
