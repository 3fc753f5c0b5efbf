# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which run updates this host: a lease that expires. PRIVATE to the collection.

A lease keeps other runs from beginning or committing an update. The host itself never looks at it: the jump, the boot, the restore and the
undo do not depend on it.
"""

from __future__ import annotations

from datetime import datetime

from .._errors import LiveUpdateError
from ..host import _files

__all__ = ("read", "refusal", "refuse_other", "release", "renew", "seen", "take", "told")


def read() -> dict:
    """The lease; empty for none."""
    return _files.read_json(_files.LEASE)


def seen(lease: dict, now: float) -> dict:
    """The lease with the seconds that are ``left`` of it, 0 if it has expired, and ``until`` as a text. Pure.

    A clock that was set back makes a lease at most twice as long.
    """
    if not lease:
        return {}
    age, seconds = now - lease["since"], lease["seconds"]
    until = datetime.fromtimestamp(lease["since"] + seconds).astimezone().isoformat(timespec="seconds")
    return {**lease, "left": seconds - age if abs(age) < seconds else 0.0, "until": until}


def refuse_other(lease: dict, run: str, now: float, ended: str = "") -> dict:
    """Raise if another run has this lease and may still work. Returns the lease that this run takes over; empty for none. Pure.

    ``run`` identifies this run, and ``ended`` a run that has certainly ended.
    """
    found = seen(lease, now)
    if not found or found["run"] == run:
        return {}
    if found["left"] and found["run"] != ended:
        raise LiveUpdateError(refusal(found))
    return found


def refusal(found: dict) -> str:
    """Why a run does not update the host, with the remedy. ``found`` is from :func:`seen`. Pure."""
    return (
        f"another run updates this host: {found['by']} - wait for its end, then repeat the command. If it has ended already, its lease of"
        f" this host expires at {found['until']}. To continue before that, call kvm.liveupdate.update_lease for this host with"
        f" 'ended={found['run']} seconds=1'"
    )


def told(found: dict) -> str:
    """Whose lease this run takes over, and why it may; empty for none. ``found`` is from :func:`refuse_other`. Pure."""
    if not found:
        return ""
    return f"{found['by']}; " + ("its process has ended" if found["left"] else f"it expired at {found['until']}")


def take(run: str, by: str, seconds: float, now: float) -> None:
    """Write the lease of this run. To be called under the lock.

    ``begun`` is when the first lease was taken since a run last gave one back: an update after it may still have to be verified, however
    many runs ended without doing so.
    """
    begun = read().get("begun", now)
    _files.write_json(_files.LEASE, {"run": run, "by": by, "begun": begun, "since": now, "seconds": seconds})


def renew(run: str, now: float) -> None:
    """Refuse if another run has the lease. Let that of this run last its time from now. To be called under the lock."""
    lease = read()
    refuse_other(lease, run, now)
    if lease.get("run") == run:
        take(run, lease["by"], lease["seconds"], now)


def release(run: str) -> None:
    """Give the lease of this run back. To be called under the lock."""
    if read().get("run") == run:
        _files.remove(_files.LEASE)
