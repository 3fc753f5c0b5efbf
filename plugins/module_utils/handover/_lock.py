# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One operation on this host at a time. PRIVATE to the collection."""

from __future__ import annotations

import fcntl
import os
import time

from .._errors import LiveUpdateError
from ..host import _files, _systemd, _this_boot, _units
from . import _journal

__all__ = ("Lock", "busy")


class Lock:
    """One operation on this host at a time, and none but the update itself between its commit and its end."""

    def __init__(self, wait_s: float = 0.0, of_update: bool = False) -> None:
        self._wait_s = wait_s
        self._of_update = of_update
        self._fd = -1

    def __enter__(self) -> Lock:
        os.makedirs(_files.RUN, mode=0o700, exist_ok=True)
        self._fd = os.open(_files.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
            _journal.settle_end()
            if not self._of_update and _under_way():
                raise LiveUpdateError(f"a live update of this host is running; wait for its end ('systemctl status {_units.JUMP}')")
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
                    raise LiveUpdateError(
                        f"another live update operation runs on this host ({_files.LOCK} is locked); wait for its end"
                    ) from err
            time.sleep(0.1)

    def __exit__(self, *_exception: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child that hangs may still have it open
        os.close(self._fd)


def busy() -> bool:
    """Whether the unit that carries out or undoes an update still runs."""
    shown = _systemd.show(_units.JUMP, "ActiveState", "Job")
    return shown.get("ActiveState") not in ("inactive", "failed") or shown.get("Job") not in (None, "", "0")


def _under_way() -> bool:
    """Whether an update is committed in this boot and not over."""
    return _journal.outcome(_journal.of_update(), _this_boot.boot_id(), "") == "pending" and busy()
