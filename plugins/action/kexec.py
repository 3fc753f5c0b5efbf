# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.kexec: commit on the host, then wait for it and prove what came back."""

from __future__ import annotations

import json
import re
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# One look: the boot id, the kernel's release and version, and the update's journal, each on lines of their own.
LOOK = "cd /proc/sys/kernel; cat random/boot_id osrelease version /var/lib/kvm-liveupdate/update.json"
PAUSE_S = 2.0


def read_look(output: str) -> tuple[str, tuple[str, str], dict[str, t.Any]] | None:
    """Boot id, kernel (release, version) and journal from what :data:`LOOK` printed; None for anything else.

    A host that is going down prints all kinds of things; only a UUID counts as a boot id.
    """
    lines = output.strip().splitlines()
    if len(lines) < 3 or not UUID.fullmatch(lines[0].strip()):
        return None
    try:
        journal = json.loads("\n".join(lines[3:]) or "{}")
    except ValueError:
        journal = {}
    return lines[0].strip(), (lines[1].strip(), lines[2].strip()), journal


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
        timeout = float(self._task.args.get("timeout", 900))
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
            boot_id, kernel, journal = look
            if journal.get("id") == update["id"] and journal.get("state") == "aborted":
                return _failure(f"the update was undone before the jump, the guests run on: {journal.get('error', 'no reason recorded')}")
            if boot_id != update["boot_id"]:
                return _verdict(update, boot_id, kernel, time.monotonic() - started)
            seen = f"the old kernel {kernel[0]}, update {journal.get('state', 'without a journal')}"
        return _failure(
            f"the host did not come back within {timeout:g} s; last seen: {seen}. Look at its console; guests come back by themselves once"
            " it runs the staged kernel, and a cold boot starts them clean"
        )


def _failure(message: str) -> dict[str, t.Any]:
    return {"failed": True, "changed": True, "msg": message}


def _verdict(update: dict[str, t.Any], boot_id: str, kernel: tuple[str, str], elapsed: float) -> dict[str, t.Any]:
    found = {"boot_id_after": boot_id, "kernel_after": kernel[0], "elapsed": round(elapsed, 3)}
    wanted = update["image"]["release"], update["image"]["version"]
    if kernel != wanted:
        message = (
            f"the host came back with kernel {' '.join(kernel)}, not {' '.join(wanted)}: it was booted cold, and its guests' memory is gone"
        )
        return {**found, **_failure(message)}
    return found
