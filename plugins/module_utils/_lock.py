# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One operation on this host at a time, and what became of the last update. PRIVATE to the collection."""

from __future__ import annotations

import fcntl
import os
import time

from . import _host, _paths, _systemd
from ._errors import LiveUpdateError

__all__ = ("JUMP_UNIT", "Lock", "busy", "last", "outcome")

JUMP_UNIT = "kvm-liveupdate-jump.service"


class Lock:
    """One operation on this host at a time, and none but the update itself between its commit and its end."""

    def __init__(self, wait_s: float = 0.0, of_update: bool = False) -> None:
        self._wait_s = wait_s
        self._of_update = of_update
        self._fd = -1

    def __enter__(self) -> Lock:
        os.makedirs(_paths.RUN, mode=0o700, exist_ok=True)
        self._fd = os.open(_paths.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
            if not self._of_update and _under_way():
                raise LiveUpdateError(f"a live update of this host is under way; wait for its end: 'systemctl status {JUMP_UNIT}'")
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def _take(self) -> None:
        limit = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as err:
                if time.monotonic() >= limit:
                    raise LiveUpdateError(f"{_paths.LOCK}: another live update operation is under way on this host; wait for it") from err
            time.sleep(0.1)

    def __exit__(self, *_exception: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child that hangs may have it open still
        os.close(self._fd)


def last() -> dict:
    """The journal of the last update of this host. How it ended is in it also where the disk did not take that any more."""
    update, ended = _paths.read_json(_paths.UPDATE), _paths.read_json(_paths.OUTCOME)
    return {**update, **ended} if ended and ended["id"] == update.get("id") else update


def outcome(update: dict, boot_id: str, release: str) -> str:
    """What became of an update: ``none``, ``pending``, ``aborted``, ``jumped`` or ``rebooted`` (into another kernel). Pure."""
    if not update:
        return "none"
    if update["state"] == "aborted":
        return "aborted"
    if update["boot_id"] == boot_id:
        return "pending"
    return "jumped" if update["state"] == "jumping" and release == update["image"]["release"] else "rebooted"


def busy() -> bool:
    """Whether the unit that carries out an update, or undoes it, has not ended."""
    shown = _systemd.show(JUMP_UNIT, "ActiveState", "Job")
    return shown.get("ActiveState") not in ("inactive", "failed") or shown.get("Job") not in (None, "", "0")


def _under_way() -> bool:
    """Whether an update is committed in this boot and has not ended."""
    return outcome(last(), _host.boot_id(), "") == "pending" and busy()
