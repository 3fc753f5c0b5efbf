# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.kexec: commit on the host, then wait for it and prove what came back."""

from __future__ import annotations

import json
import re
import time
import typing as t
from datetime import datetime, timezone

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# One look: the boot id, the kernel's release and version, its first moments, and the update's journal.
LOOK = (
    "cd /proc/sys/kernel; cat random/boot_id osrelease version;"
    " systemctl show --timestamp=us+utc --property=KernelTimestamp,UserspaceTimestamp,UnitsLoadFinishTimestamp;"
    " cat /var/lib/kvm-liveupdate/update.json"
)
STAMP = re.compile(r"^(\w+)Timestamp=\w+ (\S+ \S+) UTC$", re.MULTILINE)
# When the kernel and PID 1 started, and when that had loaded its units (org.freedesktop.systemd1(5)).
STAMPS = {"Kernel": "kernel", "Userspace": "userspace", "UnitsLoadFinish": "units"}
PAUSE_S = 2.0


class Look(t.NamedTuple):
    """What a host is seen to be: ``kernel`` is its release and version, ``started`` its first moments (:data:`STAMPS`, since the epoch)."""

    boot_id: str
    kernel: tuple[str, str]
    started: dict[str, float]
    journal: dict[str, t.Any]


def read_look(output: str) -> Look | None:
    """What :data:`LOOK` printed; None for anything else.

    A host that is going down prints all kinds of things; only a UUID counts as a boot id.
    """
    lines = output.strip().splitlines()
    if len(lines) < 3 or not UUID.fullmatch(lines[0].strip()):
        return None
    rest = "\n".join(lines[3:])
    started = {STAMPS[stamp[1]]: _epoch(stamp[2]) for stamp in STAMP.finditer(rest) if stamp[1] in STAMPS}
    try:
        journal = json.loads(rest[rest.index("{") :])
    except ValueError:
        journal = {}
    return Look(lines[0].strip(), (lines[1].strip(), lines[2].strip()), started, journal)


def _epoch(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()


class ActionModule(ActionBase):
    """Jump, come back, prove it."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        if self._connection.transport == "local":
            return {**result, "failed": True, "msg": "connection local: the jump would end the controller itself; reach the host over SSH"}
        started = time.monotonic()
        result.update(self._execute_module(module_name="kvm.liveupdate.kexec", task_vars=task_vars))
        if result.get("failed") or self._task.check_mode:
            return result
        update = result["journal"]
        timeout = float(self._task.args.get("timeout", 1800))
        result["boot_id_before"], result["kernel_before"] = update["boot_id"], update["kernel"]["release"]
        result.update(self._wait(update, started, timeout))
        return result

    def _wait(self, update: dict[str, t.Any], started: float, timeout: float) -> dict[str, t.Any]:
        seen = "no answer at all"
        while time.monotonic() - started < timeout:
            time.sleep(PAUSE_S)
            try:
                self._connection.reset()
                look = read_look(self._low_level_execute_command(LOOK, sudoable=True).get("stdout", ""))
            except (AnsibleConnectionFailure, AnsibleError, OSError) as err:
                seen = f"no connection: {err}"
                continue
            if look is None:
                seen = "an answer without a boot id"
                continue
            journal = look.journal if look.journal.get("id") == update["id"] else {}
            if journal.get("state") == "aborted":
                why = journal.get("error", "no reason recorded")
                return _failure("aborted", f"the update was undone before the jump, the guests run on: {why}")
            if look.boot_id != update["boot_id"]:
                return {**_verdict(update, look, time.monotonic() - started), "times": {**journal.get("times", {}), **look.started}}
            seen = f"the old kernel {look.kernel[0]}, update {journal.get('state', 'without a journal')}"
        return _failure(
            "gone",
            f"the host did not come back within {timeout:g} s; last seen: {seen}. Look at its console; guests come back by themselves once"
            " it runs the staged kernel, and a cold boot starts them clean",
        )


def _failure(outcome: str, message: str) -> dict[str, t.Any]:
    return {"failed": True, "changed": True, "outcome": outcome, "msg": message}


def _verdict(update: dict[str, t.Any], look: Look, elapsed: float) -> dict[str, t.Any]:
    found = {"boot_id_after": look.boot_id, "kernel_after": look.kernel[0], "elapsed": round(elapsed, 3)}
    wanted = update["image"]["release"], update["image"]["version"]
    if look.kernel != wanted:
        came, planned = " ".join(look.kernel), " ".join(wanted)
        message = (
            f"the host came back with kernel {came}, not {planned}: it was booted cold, and its guests' memory is gone; its console and"
            " 'journalctl -b -1' may say why. Guests start clean, those with on_loss=stop after 'kvm-liveupdate discard NAME'"
        )
        return {**found, **_failure("rebooted", message)}
    return {**found, "outcome": "jumped"}
