# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that stand still because of us, and not because their owner wants it. PRIVATE to the collection.

What pauses a guest lets it go on as well. Where that was cut off or failed, the records of this boot still tell who paused it.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, reason
from ..handover import _journal, _return
from ..host import _files, _this_boot
from . import _hold, _providers, _rehearsal

__all__ = ("by", "let_go_on", "reasons", "settle_running", "whole_saves")

_WHAT = {
    "rehearsal": "a rehearsal that has not ended",
    "update": "an update that was undone",
    "restore": "its restore after the jump, which was cut off",
}


def by(record: dict) -> str:
    """What of ours keeps the guest paused: ``rehearsal`` (also while one is under way), ``update`` or ``restore``; empty for none."""
    name = record["name"]
    if os.path.exists(_files.run_path(name, "rehearsal")):
        return "rehearsal"
    restored, undone = _cut_off_restore(name), _hold.owes(record)
    if not (restored or undone):
        return ""
    state = _providers.of(record).status(record)
    under_way = _journal.outcome(_journal.of_update(), _this_boot.boot_id(), "") == "pending"
    if state == "running" and not under_way:  # else it is about to be paused
        _files.remove(_files.run_path(name, "paused"))  # it would pass a later pause of the owner's off as ours
    if state not in ("paused", "postmigrate"):
        return ""
    return "restore" if restored else "update"


def _cut_off_restore(name: str) -> bool:
    """Whether the guest was to run, was about to go on in this boot, and nothing has noted since that it did."""
    on_disk = _journal.recorded(name)
    return on_disk.get("state") == "saved" and bool(on_disk.get("was_running")) and _return.may_have_run(name, on_disk)


def reasons(record: dict) -> list[dict]:
    """That the guest stands still because of us, as a reason against carrying it over so."""
    name = record["name"]
    try:
        cause = by(record)
    except LiveUpdateError as err:
        return [reason("monitor", str(err), "see that its QEMU, or libvirtd, answers")]
    if not cause:
        return []
    message = f"guest {name} was paused by {_WHAT[cause]}"
    remedy = f"let it go on: kvm.liveupdate.guest with state: running, or 'kvm-liveupdate resume {name}' on the host"
    return [reason("left-paused", message, remedy)]


def let_go_on(record: dict) -> str:
    """Let the guest go on where :func:`by` says that we keep it paused, and remove what kept it; returns what that was.

    The caller has the host's lock.
    """
    name, cause = record["name"], by(record)
    if cause == "rehearsal":
        _rehearsal.end(name)
    elif cause:
        _hold.let_go_on(record, True)
        if cause == "update":
            _files.remove(_files.state_path(name))
            _hold.release(record)
        else:
            _return.went_on(name)
            _return.settle_seen(name)
    return cause


def whole_saves(record: dict) -> bool:
    """Have QEMU put the RAM into its saves and migrations again, where an undo could not; returns whether that was to do.

    The caller has the host's lock. Only for a guest in a unit: libvirt's domains are told through virsh.
    """
    if record["provider"] != "qemu":
        return False
    from ..vmm import _monitor, _now

    with _monitor.Monitor(record["monitor"]) as monitor:
        if not _now.ignores_shared(monitor.execute("query-migrate-capabilities")):
            return False
        monitor.ignore_shared(False)
    return True


def settle_running(record: dict) -> None:
    """As :func:`_return.settle_seen`, where the guest's QEMU is there: if it says that the guest runs, then that has gone on."""
    name = record["name"]
    on_disk = _journal.recorded(name)
    unknown = on_disk.get("state") == "saved" and _return.may_have_run(name, on_disk)
    if unknown and _providers.of(record).status(record) == "running":
        _return.went_on(name)
    _return.settle_seen(name)
