# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The run of ``ansible-playbook`` that this process belongs to, as leases name it. PRIVATE to the collection.

The name is that of a process: in which boot and in which space of process ids (a container has its own), its id, and when it started. So
nothing has to be kept on the controller, and another run can find out whether the process still exists.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import typing as t

__all__ = ("by", "ended", "this_run")


def this_run() -> str:
    """The name of this run. To be called where Ansible runs action plugins: in a child of the process of the run."""
    parent = multiprocessing.parent_process()
    pid = (parent.pid if parent else None) or os.getpid()
    return f"{_space()}/{pid}/{_started(pid)}"


def ended(run: str) -> bool:
    """Whether the process of this run has certainly ended. False if that cannot be known here."""
    space, pid, started = [*run.rsplit("/", 2), "", ""][:3]
    if not pid.isdecimal() or not started or space != _space():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # of another user
    now = _started(int(pid))
    return bool(now) and now != started


def by(variables: dict[str, t.Any], environment: t.Mapping[str, str]) -> str:
    """Who started this run, for people. Pure but for the name of the controller."""
    if variables.get("awx_job_id"):
        template = variables.get("awx_job_template_name") or "a template without a name"
        return f"AWX job {variables['awx_job_id']} ({template}), started by {variables.get('awx_user_name') or 'a schedule'}"
    return f"{environment.get('USER') or f'uid {os.geteuid()}'} on {socket.gethostname()}"


def _space() -> str:
    """Where process ids mean the same as here. Without Linux's proc that is unknown: then only the name of the controller."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; empty if that is unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
