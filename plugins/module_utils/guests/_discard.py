# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Giving up what an update saved of a guest. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import os

from .._errors import LiveUpdateError, told
from ..handover import _early, _journal, _lock, _return, _session
from ..host import _commands, _files, _systemd, _this_boot, _units
from . import _hold, _paused, _providers

__all__ = ("discard",)


def discard(name: str) -> None:
    """Have the next start of the guest be a clean one. Refused while an update or another operation is under way."""
    with _lock.Lock():
        _discard_locked(name)


def _discard_locked(name: str) -> None:
    update = _files.read_json(_files.UPDATE)
    if _journal.outcome(update, _this_boot.boot_id(), "") == "pending":
        raise LiveUpdateError(
            f"guest {name}: an update of this host is {update['state']}; wait until it has ended. If {_units.JUMP} does not run"
            " any more, 'kvm-liveupdate recover' undoes it"
        )
    record = _providers.known().get(name)
    if record:
        _paused.settle_running(record)
    _return.settle_seen(name)  # of one that is back nothing is left to give up
    journal, state = _journal.recorded(name), _files.state_path(name)
    if journal.get("state") != "saved" and not os.path.exists(state):
        raise LiveUpdateError(f"guest {name!r}: nothing is saved for it")
    if record:
        _refuse(record, journal)
    # A host that went down while it saved has left a state and no journal; the hook is what libvirt's domains then wait for.
    elif not journal or journal.get("provider"):
        for provider in (_providers.of(journal),) if journal else _providers.all_of_them():
            provider.discard(name)
    holder = _units.hold(name)
    unit = journal.get("unit", holder)
    for ended in () if record else (holder, unit):
        with contextlib.suppress(LiveUpdateError):  # there is none of its kind, or it did not fail
            _commands.run("systemctl", "stop", "--", ended)
            _commands.run("systemctl", "reset-failed", "--", ended)
        if _session.FDNAME in _systemd.fdstore(ended):
            _systemd.forget_fd(ended, 0, _session.FDNAME)  # else its memory stays taken beside that of its next start
    if record:
        _hold.release(record)
    else:
        _hold.release_ended(name)
    _files.remove(_files.journal_path(name))
    _files.remove(state)
    _files.remove(_files.run_path(name, "trying"))
    _early.start_early(unit, False)


def _refuse(record: dict, journal: dict) -> None:
    """Raise for a guest that is on its way, or stands still with what is saved: only one that runs has no need of that."""
    for why in _paused.reasons(record):
        raise LiveUpdateError(told(why))
    name, state = record["name"], _providers.of(record).status(record)
    if journal.get("state") == "saved":
        raise LiveUpdateError(
            f"guest {name}: its QEMU is there ({state}) and may be about to take in what is saved; if it does not come back,"
            f" stop it first ('systemctl stop {record['unit']}', for a domain also 'virsh destroy'), then discard what is saved"
        )
    if state != "running":
        raise LiveUpdateError(f"guest {name} is {state}, and what is saved may be all there is of it; let it run first, or stop it")
