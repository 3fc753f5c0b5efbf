# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The records of guests that are away during an update of their host. PRIVATE to the collection.

A record is written before its guest leaves and removed when it is back. So a later run knows which guests to bring back, after the jump or
after a crash:

``guest``, ``provider``, ``uuid``, ``unit``, ``pid`` and ``started`` (of its QEMU), ``bytes`` (of RAM)
    the identity of the guest, from its provider.
``way``
    ``save`` (to disk, with its RAM), ``shutdown`` or ``migrate``.
``state``
    ``leaving`` until the guest has left, then ``away``. It stays ``leaving`` if the guest did not shut down in time: it runs, and may
    still power off.
``limit_s``
    how many seconds the guest had to leave.
``was_running``, ``autostart``
    what to restore: running or paused, and whether it starts with its host (a domain only).
``destination``, ``migrate_uri``, ``back_uri``, ``back``
    for a migrated guest: the destination, the addresses there and back, and whether it comes back.
``boot_id``, ``times``
    the boot of the host in which it left, and when it was ``leaving`` and ``away``, in seconds since the epoch.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from ..host import _files

__all__ = ("ORDER_S", "WHERE", "forget", "may_leave", "read", "records", "write")

ORDER_S = _limits.GUEST_OFF_LATE
# The words for a guest that has left in each way.
WHERE = {"save": "saved", "shutdown": "shut down", "migrate": "migrated"}


def _path(name: str) -> str:
    return os.path.join(_files.AWAY, f"{name}.json")


def read(name: str) -> dict:
    """The record of the guest; empty if it is not away."""
    return _files.read_json(_path(name))


def records() -> list[dict]:
    """The records of all guests that are away, sorted by name."""
    try:
        names = sorted(os.listdir(_files.AWAY))
    except FileNotFoundError:
        return []
    return [_files.read_json(os.path.join(_files.AWAY, name)) for name in names if name.endswith(".json")]


def write(record: dict, state: str) -> dict:
    """Write the record durably, with its new state and the time; returns it."""
    record = {**record, "state": state, "times": {**record.get("times", {}), state: time.time()}}
    _files.write_json(_path(record["guest"]), record)
    return record


def may_leave(away: dict, running: dict, boot_id: str, now: float) -> bool:
    """Whether a guest that runs here may still power off, because it did not shut down in time. Pure.

    ``running`` is its present record. A QEMU or host that started later does not know the request.
    """
    if away["state"] != "leaving" or away["boot_id"] != boot_id:
        return False
    same = (running.get("pid"), running.get("started")) == (away["pid"], away["started"])
    return same and now < away["times"]["leaving"] + away["limit_s"] + ORDER_S


def forget(name: str) -> None:
    """Remove the record of a guest that is back, or did not leave."""
    _files.remove(_path(name))
