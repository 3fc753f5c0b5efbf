# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Release memory that was carried over a kexec that was not an update, and that no guest uses. PRIVATE to the collection.

The kernel carries held memory over every kexec, also one by an operator, or on a host where every reboot is a kexec (kexec-tools,
LOAD_KEXEC). Then no guest was saved, so each guest starts from its disks on new memory, and the old memory stays reserved until the next
reboot. So each hold has a record on disk, and the beginning of the next boot releases what is recorded. An update removes the records right
before it saves the guests.
"""

from __future__ import annotations

import os

from .. import _limits
from .._errors import LiveUpdateError
from ..handover import _journal, _session
from ..host import _files, _systemd, _this_boot, _units
from ..kernel import _luo

__all__ = ("give_up",)


def give_up() -> None:
    """Release the memory that earlier kernels hold for guests that no update saved. A failure for one guest does not affect the others."""
    for name in _session.recorded_holds():
        try:
            _give_up(name)
        except (LiveUpdateError, OSError, KeyError) as err:
            _systemd.log(
                f"{name}: memory that an earlier kernel preserved for this guest may still be reserved: {err!r}. An ordinary reboot"
                " frees it"
            )


def _give_up(name: str) -> None:
    path = _files.hold_path(name)
    hold = _files.read_json(path)
    if hold["boot_id"] == _this_boot.boot_id():
        return
    if hold["session"] in _saved_sessions() or os.path.exists(_files.state_path(name)):
        return  # the guest's own start uses or releases the memory
    units = sorted({_units.hold(name), hold["unit"]})
    kept = [unit for unit, store in _systemd.fdstore_each(units).items() if _session.FDNAME in store]
    if kept:  # PID 1 has retrieved the session
        _systemd.wait_for_the_bus(_limits.SYSTEM_BUS)
    for unit in kept:
        _systemd.forget_fd(unit, 0, _session.FDNAME)
    if kept or _finish(hold["session"]):
        _systemd.log(
            f"{name}: the host was rebooted by a kexec that was not a live update; the memory that was preserved for the guest is released"
        )
    _files.remove(path)


def _saved_sessions() -> set[str]:
    """The sessions that saved guests need. The session of a guest that was renamed since has another name."""
    return {saved["session"] for saved in map(_journal.recorded, _journal.of_guests()) if saved.get("state") == "saved"}


def _finish(session_name: str) -> bool:
    """End an incoming session; false if there is none."""
    try:
        session = _luo.retrieve_session(session_name)
    except LiveUpdateError as err:
        if _luo.is_gone(err):
            return False
        raise
    try:
        _luo.finish(session)
    finally:
        os.close(session)
    return True
