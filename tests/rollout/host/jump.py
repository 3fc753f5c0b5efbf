# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A STUB of update/_jump.py: the commit writes the journal, and the host jumps when its supervisor (conftest.py) sees the mark."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time

from ..handover import _journal
from ..host import _this_boot

TIMEOUT_S = 1800


def commit(guests: list, keep_units: list, on_loss: str, timeout: float, verify_memory: str, reuse_probe: bool) -> dict:
    """Write the journal, and have the host jump. If the test has planned to cut it, the answer gets lost with the session of SSH."""
    image = {"release": "7.3.4", "version": "#1", "path": "/boot/vmlinuz-7.3.4", "sha256": "cafe"}
    update = {
        "id": _this_boot.random_uuid(),
        "state": "committed",
        "boot_id": _this_boot.boot_id(),
        "kernel": {"release": "7.2.13", "version": "#1", "cmdline": ""},
        "image": image,
        "guests": guests,
        "timeout": timeout,
        "times": {"committed": time.time()},
    }
    _journal.record(update)
    # Locked until this module has ended: its answer must leave the host before the host jumps.
    mark = os.open(f"{os.environ['STAGE']}/{os.environ['HOST']}/jump", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(mark, fcntl.LOCK_EX)
    with open(f"{os.environ['STAGE']}/log", "a", encoding="utf-8") as log:
        log.write(f"{os.environ['HOST']} kexec\n")
    with open(f"{os.environ['STAGE']}/{os.environ['HOST']}/acts", encoding="utf-8") as acts:
        if json.load(acts).get("kexec") == "cut":
            os.kill(session(os.getpid()), signal.SIGKILL)
    return update


def session(pid: int) -> int:
    """The sshd that serves this process: the one that the first sshd, which is process 1 of this host, has started."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        parent = int(stat.read().rpartition(")")[2].split()[1])
    return pid if parent == 1 else session(parent)
