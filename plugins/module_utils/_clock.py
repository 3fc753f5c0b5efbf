# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's clock over a jump. PRIVATE to the collection.

A new kernel takes the time from the hardware clock, in whole seconds, so the host's clock steps by up to a second at every jump.
The hardware clock itself runs through: measured against it before and after, the step is known, and stamps of both sides compare.
"""

from __future__ import annotations

import time

__all__ = ("ahead", "step")

_RTC = "/sys/class/rtc/rtc0/since_epoch"  # Documentation/ABI/testing/sysfs-class-rtc
_POLL_S = 0.01


def ahead(path: str = _RTC, limit_s: float = 1.5) -> float | None:
    """How far the system clock is ahead of the hardware clock, in seconds, to 0.01; None without a hardware clock.

    Takes up to a second: it waits for the hardware clock's next second to begin.
    """
    until = time.monotonic() + limit_s
    first = _seconds(path)
    while first is not None and time.monotonic() < until:
        time.sleep(_POLL_S)
        now = _seconds(path)
        if now != first:
            return None if now is None else time.time() - now
    return None


def step(before: float | None, after: float | None) -> float | None:
    """By how much the system clock was set forward in between; to be taken off later stamps. None when it is not known. Pure."""
    return None if before is None or after is None else after - before


def _seconds(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
