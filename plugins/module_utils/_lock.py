# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One operation on this host at a time. PRIVATE to the collection."""

from __future__ import annotations

import fcntl
import os
import time

from . import _paths
from ._errors import LiveUpdateError

__all__ = ("Lock",)


class Lock:
    """One operation on this host at a time."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self._wait_s = wait_s
        self._fd = -1

    def __enter__(self) -> Lock:
        os.makedirs(_paths.RUN, mode=0o700, exist_ok=True)
        self._fd = os.open(_paths.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        limit = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except OSError as err:
                if time.monotonic() >= limit:
                    os.close(self._fd)
                    raise LiveUpdateError(f"{_paths.LOCK}: another live update operation is under way on this host; wait for it") from err
            time.sleep(0.1)

    def __exit__(self, *_exception: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child that hangs may have it open still
        os.close(self._fd)
