# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rehearse the update of a guest, without a jump. PRIVATE to the collection.

The guest is paused and saved as before a jump. A second QEMU of the same kind loads the state on a private copy of the memory. Then the
guest is resumed. The second QEMU never runs the guest and has none of its disks and networks. This happens in a systemd unit. The end of
the unit resumes the guest, whatever happens to the process.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..handover import _lock
from ..host import _commands, _files, _systemd, _units
from . import _providers

__all__ = ("END_LIMIT_S", "UNIT_LIMIT_S", "end", "end_cut_off", "refuse", "rehearse", "run")

UNIT_LIMIT_S = _limits.REHEARSAL
END_LIMIT_S = _limits.REHEARSAL_END
LOCK_LIMIT_S = _limits.LOCK


def rehearse(name: str) -> dict:
    """Rehearse in the rehearsal unit and wait for it; returns ``paused_s``, for how long the guest was paused."""
    unit = _units.REHEARSAL.replace("@", f"@{_units.escape(name)}")
    _files.remove(_files.run_path(name, "rehearsed"))
    try:
        _commands.run("systemctl", "start", unit, timeout=UNIT_LIMIT_S + END_LIMIT_S + 60)
    except LiveUpdateError as err:
        said = _systemd.show(unit, "StatusText").get("StatusText")
        raise LiveUpdateError(said or f"guest {name}: {err}; 'journalctl -u {typed(unit)}' shows more") from err
    done = _files.read_json(_files.run_path(name, "rehearsed"))
    if not done:  # two callers asked the same unit, and the other one got the answer
        raise LiveUpdateError(f"guest {name}: another rehearsal of it ran at the same time; rehearse it again")
    return done


def run(name: str) -> None:
    """What the unit does. It takes the host's lock itself, because it may run longer than its caller."""
    try:
        with _lock.Lock():
            _rehearse(name)
    except (LiveUpdateError, OSError) as err:
        _systemd.notify(f"STATUS={err}")
        raise


def _rehearse(name: str) -> None:
    end(name)  # an interrupted rehearsal may have left the guest paused, and the state below must be the guest's own
    record = _providers.find(name)
    provider = _providers.of(record)
    refuse(record)
    _files.write_json(_files.run_path(name, "rehearsal"), {"running": True, **record})
    try:
        paused = provider.rehearse(record)
    finally:
        end(name)
    _files.write_json(_files.run_path(name, "rehearsed"), {"paused_s": round(time.time() - paused, 3)})


def refuse(record: dict) -> None:
    """Raise if the guest does not run. A paused one could not be saved again for the update."""
    name, state = record["name"], _providers.of(record).status(record)
    leave_out = "or leave it out (hypervisor_update_rehearsal_guests)"
    if state == "paused":
        raise LiveUpdateError(
            f"guest {name} is paused; a paused guest can be saved only once, so it is not rehearsed. Resume it, {leave_out}"
        )
    if state != "running":
        raise LiveUpdateError(f"guest {name} is {state}; only a running guest can be rehearsed. Make it running, {leave_out}")


def end_cut_off(name: str) -> None:
    """As :func:`end`, after any other operation has ended; immediately if there is nothing to end."""
    if os.path.exists(_files.run_path(name, "rehearsal")):
        with _lock.Lock(wait_s=LOCK_LIMIT_S):
            end(name)


def end(name: str) -> None:
    """Resume the guest and remove what the rehearsal made, if there is one, also if the guest has ended. The caller has the lock."""
    path = _files.run_path(name, "rehearsal")
    mark = _files.read_json(path)
    if not mark:
        return
    record = _providers.known().get(name) or mark
    try:
        if "provider" in record:  # a mark of an older version has no record
            same = all(mark.get(key) == record[key] for key in ("pid", "started"))
            _providers.of(record).end_rehearsal(record, bool(mark["running"] and same))
    except LiveUpdateError as err:
        if err.details.get("elsewhere"):
            _files.remove(path)
            raise LiveUpdateError(f"guest {name}: {err}") from err
        raise LiveUpdateError(f"{err}; guest {name} may still be paused: run 'kvm-liveupdate resume {typed(name)}' to resume it") from err
    _files.remove(path)
