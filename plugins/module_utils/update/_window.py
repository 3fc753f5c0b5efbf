# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a maintenance window, after which no update is committed. PRIVATE to the collection."""

from __future__ import annotations

from datetime import datetime

from .._errors import LiveUpdateError

__all__ = ("closes", "in_full", "refuse_after")


def closes(until: str) -> float:
    """When the window closes, in seconds since the epoch. Pure."""
    return _moment(until).timestamp()


def in_full(until: str) -> str:
    """The same moment in the form that every Python reads, with its offset; empty for no end. Pure.

    Python 3.11 and later read forms such as 20261201T0400+0100 that the older Python of a host refuses. So the controller rewrites them.
    """
    return _moment(until).isoformat() if until else ""


def _moment(until: str) -> datetime:
    text = until.strip()
    moment: datetime | None
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise LiveUpdateError(
            f"hypervisor_update_until (until of the module kexec) is {until!r}; write a date and a time with the offset from UTC, e.g."
            " 2026-12-01T04:00+01:00"
        )
    return moment


def refuse_after(until: str, now: float) -> None:
    """Raise if the window has closed. Empty means that there is none."""
    if until and now >= closes(until):
        clock = datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds")
        raise LiveUpdateError(
            f"the jump is refused, and nothing was stopped: the time of hypervisor_update_until (until of the module kexec), {until}, has"
            f" passed. The clock of this host shows {clock}. Run the update again in the next window"
        )
