# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Discard the memory and state that an update saved of a guest. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import os

from .._errors import LiveUpdateError, told, typed
from ..handover import _early, _journal, _lock, _return, _session
from ..host import _commands, _files, _systemd, _this_boot, _units
from . import _hold, _paused, _providers
from ._contract import Provider

__all__ = ("discard",)


def discard(name: str) -> None:
    """Make the guest start from its disks next time. Refused while an update or another operation runs."""
    with _lock.Lock():
        _discard_locked(name)


def _discard_locked(name: str) -> None:
    update = _journal.of_update()
    if _journal.outcome(update, _this_boot.boot_id(), "") == "pending":
        raise LiveUpdateError(
            f"guest {name}: an update of this host is in the step '{update['state']}'; wait for its end. If {_units.JUMP} no longer"
            " runs, 'kvm-liveupdate recover' undoes the update"
        )
    record = _providers.known().get(name)
    if record:
        _paused.settle_running(record)
    _return.settle_seen(name)  # a restored guest has nothing left to discard
    journal, state = _journal.recorded(name), _files.state_path(name)
    is_saved = journal.get("state") == "saved" or os.path.exists(state)
    # An undo that could not resume a domain keeps no state of it. If its QEMU ended since, only the memory of that QEMU is left.
    if not is_saved and not _hold.outlives(name, record):
        if journal and not record:
            # The record of a guest that is gone for good would keep its update from being finished. Its unit is not touched otherwise: what
            # runs there now is no guest of that update.
            _stop_cold_start(name, journal)
            _journal.forget_guest(name)
            return
        raise LiveUpdateError(f"guest {name!r} has no saved state to discard; 'kvm-liveupdate status' shows the guests")
    if record:
        _refuse(record, journal)
    # Without a saved state, what the VMM has saved is its owner's.
    for provider in _savers(record, journal) if is_saved else ():
        provider.discard(name)
    holder = _units.hold(name)
    unit = journal.get("unit", holder)
    for ended in () if record else (holder, unit):
        with contextlib.suppress(LiveUpdateError):  # there is no such unit, or it did not fail
            _commands.run("systemctl", "stop", "--", ended)
            _commands.run("systemctl", "reset-failed", "--", ended)
        if _session.FDNAME in _systemd.fdstore(ended):
            _systemd.forget_fd(ended, 0, _session.FDNAME)  # else its memory stays in use beside that of its next start
    if record:
        _hold.release(record)
    else:
        _hold.release_ended(name)
    _journal.forget_guest(name)
    _files.remove(state)
    _files.remove(_files.run_path(name, "trying"))
    _early.start_early(unit, False)


def _stop_cold_start(name: str, journal: dict) -> None:
    """Stop the hold unit that repeats the start of a domain whose memory is lost: somebody may start it on another host."""
    holder = _units.hold(name)
    if journal.get("state") == "lost" and _systemd.show(holder, "ActiveState").get("ActiveState") == "active":
        _commands.run("systemctl", "stop", "--", holder)
        if name in _providers.known():  # libvirt goes on with a start that was under way
            raise LiveUpdateError(
                f"guest {name} has just started on this host from its disks. To run it on another host, first stop it here, then"
                f" run 'kvm-liveupdate discard {typed(name)}' again"
            )


def _savers(record: dict | None, journal: dict) -> tuple[Provider, ...]:
    """The providers that may have saved the guest. A host that went down during the save leaves a state and no journal."""
    if record:
        return (_providers.of(record),)
    if not journal:
        return _providers.all_of_them()
    return (_providers.of(journal),) if journal.get("provider") else ()  # QEMU itself keeps nothing of a save


def _refuse(record: dict, journal: dict) -> None:
    """Raise for a guest that is being restored, or is paused: only a running guest does not need what is saved."""
    for why in _paused.reasons(record):
        raise LiveUpdateError(told(why))
    name, state = record["name"], _providers.of(record).status(record)
    if journal.get("state") == "saved":
        destroy = f", 'virsh destroy {record['uuid']}'" if record["provider"] == "libvirt" else ""
        raise LiveUpdateError(
            f"guest {name}: its QEMU runs ({state}) and may be loading the saved state. If the guest is not restored, stop it first"
            f" ('systemctl stop {typed(record['unit'])}'{destroy}), then run 'kvm-liveupdate discard {typed(name)}' again"
        )
    if state != "running":
        raise LiveUpdateError(f"guest {name} is {state}, and may need its saved state; resume or stop the guest first")
