# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that runs as QEMU's user and keeps a domain's RAM open, so that QEMU can open it through /proc. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import LiveUpdateError
from ..host import _processes

__all__ = ("keep_open",)

_PR_SET_DUMPABLE = 4


def keep_open(record: dict, files: list[int]) -> int:
    """Keep the RAM open in a process that QEMU may look into, until this unit ends; returns its id."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _keep(record, tell, files)
    os.close(tell)
    with os.fdopen(ready, "rb") as answer:
        if answer.read() != b"ready":
            raise LiveUpdateError(
                f"guest {record['name']}: no process with user {record['uid']} can keep its RAM open; 'journalctl -b' may show why"
            )
    return child


def _keep(record: dict, tell: int, files: list[int]) -> None:
    """The process that keeps the RAM open. It ends with its unit."""
    import contextlib
    import ctypes
    import signal

    try:
        for fd in _processes.fd_links(os.getpid()):
            if fd > 2 and fd not in (tell, *files):
                with contextlib.suppress(OSError):
                    os.close(fd)  # above all the session, which QEMU must not have
        os.setgroups([])
        os.setresgid(record["gid"], record["gid"], record["gid"])
        os.setresuid(record["uid"], record["uid"], record["uid"])
        if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0:
            os.write(tell, b"ready")
        os.close(tell)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        while True:
            signal.pause()
    finally:
        os._exit(1)
