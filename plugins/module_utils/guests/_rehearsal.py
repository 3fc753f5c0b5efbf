# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rehearsal of a guest's way over a jump, while there is a way back. PRIVATE to the collection.

The guest is paused and saved as before a jump, what was saved is loaded into another QEMU of the same kind on a private copy of the
memory, and the guest goes on where it was. The other QEMU never runs the guest and has none of its disks and networks. That is done in
a unit, whose end lets the guest go on whatever became of its process.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..handover import _lock
from ..host import _commands, _files, _systemd, _units
from . import _providers

__all__ = ("END_LIMIT_S", "UNIT_LIMIT_S", "end", "end_cut_off", "rehearse", "run")

UNIT_LIMIT_S = _limits.REHEARSAL
END_LIMIT_S = _limits.REHEARSAL_END
LOCK_LIMIT_S = _limits.LOCK


def rehearse(name: str) -> dict:
    """Rehearse in the guest's unit and wait for it; returns ``paused_s``, for how long the guest stood still."""
    unit = _units.REHEARSAL.replace("@", f"@{_units.escape(name)}")
    _files.remove(_files.run_path(name, "rehearsed"))
    try:
        _commands.run("systemctl", "start", unit, timeout=UNIT_LIMIT_S + END_LIMIT_S + 60)
    except LiveUpdateError as err:
        said = _systemd.show(unit, "StatusText").get("StatusText")
        raise LiveUpdateError(said or f"guest {name}: {err}; 'journalctl -u {unit}' says more") from err
    done = _files.read_json(_files.run_path(name, "rehearsed"))
    if not done:  # the same unit served two who asked, and the other one has taken its answer
        raise LiveUpdateError(f"guest {name}: somebody else had it rehearsed at the same time; rehearse it again")
    return done


def run(name: str) -> None:
    """What the unit does. It has the host's lock itself: it may outlive who asked for it."""
    try:
        with _lock.Lock():
            _rehearse(name)
    except (LiveUpdateError, OSError) as err:
        _systemd.notify(f"STATUS={err}")
        raise


def _rehearse(name: str) -> None:
    end(name)  # one that was cut off may have left the guest paused, and that is not what it was
    record = _providers.find(name)
    provider = _providers.of(record)
    state = provider.status(record)
    if state not in ("running", "paused"):
        raise LiveUpdateError(f"guest {name} is {state}; it can be rehearsed when it is running or paused")
    running = state == "running"
    mark = {"running": running, "pid": record["pid"], "started": record["started"]}
    _files.write_json(_files.run_path(name, "rehearsal"), mark)
    try:
        paused = provider.rehearse(record)
    finally:
        end(name)
    _files.write_json(_files.run_path(name, "rehearsed"), {"paused_s": round(time.time() - paused, 3) if running else 0.0})


def end_cut_off(name: str) -> None:
    """As :func:`end`, when no other operation is under way; at once where there is nothing to end."""
    if os.path.exists(_files.run_path(name, "rehearsal")):
        with _lock.Lock(wait_s=LOCK_LIMIT_S):
            end(name)


def end(name: str) -> None:
    """Let the guest go on and remove what the rehearsal made; nothing where none is under way. The caller has the host's lock."""
    path = _files.run_path(name, "rehearsal")
    mark = _files.read_json(path)
    if not mark:
        return
    record = _providers.known().get(name)
    try:
        if record:
            same = all(mark.get(key) == record[key] for key in ("pid", "started"))
            _providers.of(record).end_rehearsal(record, bool(mark["running"] and same))
    except LiveUpdateError as err:
        raise LiveUpdateError(f"{err}; guest {name} may stand still: 'kvm-liveupdate resume {name}' lets it go on") from err
    _files.remove(path)
