# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests that are away while their host is updated, and how each left. PRIVATE to the collection.

A record is written before its guest leaves and removed once it is back, so that whoever comes next, after the jump or after a crash,
knows whom to bring back:

``guest``, ``provider``, ``uuid``, ``unit``, ``pid`` and ``started`` (of its QEMU), ``bytes`` (of RAM)
    who it is, as its provider told.
``way``
    ``save`` (to disk, with its RAM), ``shutdown`` or ``migrate``.
``state``
    ``leaving`` until it has left, then ``away``. It stays ``leaving`` while an order to leave stands that was not followed in time:
    the guest runs, and may yet go off.
``limit_s``
    how many seconds it was given to leave.
``was_running``, ``autostart``
    what it is to be again: running or paused, and whether it starts with its host (a domain only).
``destination``, ``migrate_uri``, ``back_uri``, ``back``
    of one that is migrated: where to, over which addresses there and back, and whether it is to come back.
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
# What a guest is that has left by that way.
WHERE = {"save": "saved", "shutdown": "shut down", "migrate": "migrated"}


def _path(name: str) -> str:
    return os.path.join(_files.AWAY, f"{name}.json")


def read(name: str) -> dict:
    """The record of the guest; empty when it is not away."""
    return _files.read_json(_path(name))


def records() -> list[dict]:
    """Of every guest that is away, by name."""
    try:
        names = sorted(os.listdir(_files.AWAY))
    except FileNotFoundError:
        return []
    return [_files.read_json(os.path.join(_files.AWAY, name)) for name in names if name.endswith(".json")]


def write(record: dict, state: str) -> dict:
    """Keep the record, durably, with its new state and the time; returns it."""
    record = {**record, "state": state, "times": {**record.get("times", {}), state: time.time()}}
    _files.write_json(_path(record["guest"]), record)
    return record


def may_leave(away: dict, running: dict, boot_id: str, now: float) -> bool:
    """Whether a guest that runs here may yet leave, because it was asked to and did not in time. Pure.

    ``running`` is its record now. A QEMU or a host that started since knows nothing of the order.
    """
    if away["state"] != "leaving" or away["boot_id"] != boot_id:
        return False
    same = (running.get("pid"), running.get("started")) == (away["pid"], away["started"])
    return same and now < away["times"]["leaving"] + away["limit_s"] + ORDER_S


def forget(name: str) -> None:
    """The guest is back, or never left."""
    _files.remove(_path(name))
