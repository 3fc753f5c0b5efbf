# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that this collection has paused, and not their owner. PRIVATE to the collection.

The code that pauses a guest also resumes it. If that was interrupted or failed, records in /run still say what paused the guest.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, reason, typed
from ..handover import _journal, _return
from ..host import _files, _this_boot
from . import _hold, _providers, _rehearsal

__all__ = ("by", "let_go_on", "reasons", "settle_running", "whole_saves")

_WHAT = {
    "rehearsal": "a rehearsal that did not finish",
    "update": "an update that was undone",
    "restore": "its restore after the jump, which was interrupted",
}


def by(record: dict) -> str:
    """What keeps the guest paused: ``rehearsal`` (also one that still runs), ``update`` or ``restore``; empty for none of these."""
    name = record["name"]
    if os.path.exists(_files.run_path(name, "rehearsal")):
        return "rehearsal"
    restored, undone = _cut_off_restore(name), _hold.owes(record)
    if not (restored or undone):
        return ""
    state = _providers.of(record).status(record)
    under_way = _journal.outcome(_journal.of_update(), _this_boot.boot_id(), "") == "pending"
    if state == "running" and not under_way:  # else it will be paused
        for mark in ("paused", "written"):  # else a later pause by its owner, or a save by another program, would look like ours
            _files.remove(_files.run_path(name, mark))
    if state not in ("paused", "postmigrate"):
        return ""
    return "restore" if restored else "update"


def _cut_off_restore(name: str) -> bool:
    """Whether a try to resume the guest began in this boot and its result was not noted."""
    on_disk = _journal.recorded(name)
    return on_disk.get("state") == "saved" and bool(on_disk.get("was_running")) and _return.may_have_run(name, on_disk)


def reasons(record: dict) -> list[dict]:
    """A reason against preserving the guest: it is paused because of us."""
    name = record["name"]
    try:
        cause = by(record)
    except LiveUpdateError as err:
        return [reason("monitor", str(err), "make sure that its QEMU, or libvirtd, answers")]
    if not cause:
        return []
    message = f"guest {name} was paused by {_WHAT[cause]}"
    remedy = f"resume it with kvm.liveupdate.guest, state: running, or with 'kvm-liveupdate resume {typed(name)}' on the host"
    return [reason("left-paused", message, remedy)]


def let_go_on(record: dict) -> str:
    """Resume the guest if :func:`by` says that we keep it paused, and remove the cause; returns the cause.

    The caller has the host's lock.
    """
    name, cause = record["name"], by(record)
    if cause == "rehearsal":
        _rehearsal.end(name)
    elif cause:
        try:
            _hold.let_go_on(record, True)
        except LiveUpdateError as err:
            if err.details.get("elsewhere"):  # else each look would advise to resume it here
                _files.remove(_files.run_path(name, "paused"))
            raise
        if cause == "update":
            _files.remove(_files.state_path(name))
            _hold.release(record)
        else:
            _return.went_on(name)
            _return.settle_seen(name)
    return cause


def whole_saves(record: dict) -> bool:
    """Make QEMU's saves and migrations contain the RAM again, if an undo could not; returns whether this was necessary.

    The caller has the host's lock. Only for a guest in a unit: for a domain this needs virsh.
    """
    if record["provider"] != "qemu":
        return False
    from ..vmm import _changes, _monitor

    with _monitor.Monitor(record["monitor"]) as monitor:
        if not _changes.ignores_shared(monitor.execute("query-migrate-capabilities")):
            return False
        monitor.ignore_shared(False)
    return True


def settle_running(record: dict) -> None:
    """As :func:`_return.settle_seen`, for a guest with a QEMU: if QEMU reports that the guest runs, it is restored."""
    name = record["name"]
    on_disk = _journal.recorded(name)
    unknown = on_disk.get("state") == "saved" and _return.may_have_run(name, on_disk)
    if unknown and _providers.of(record).status(record) == "running":
        _return.went_on(name)
    _return.settle_seen(name)
