# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The watchdog devices of this host, and who feeds them. PRIVATE to the collection.

Source: Documentation/ABI/testing/sysfs-class-watchdog, drivers/watchdog/watchdog_dev.c.
"""

from __future__ import annotations

import glob
import os

from . import _processes

__all__ = ("feeders", "read")

_FIRST = {"watchdog": "watchdog0"}  # the old name of the first device


def read(root: str = "/") -> list[dict]:
    """Each device: ``name``, ``identity``, ``nowayout`` (``1``: nothing can stop it), ``active``, and ``fed_by``: the services
    of the processes that have it open, ``PID 1``, or the process if systemd cannot start it again.

    A kernel without CONFIG_WATCHDOG_SYSFS tells none of this. Then a device counts as active if a process has it open.
    """
    places = sorted(glob.glob(os.path.join(glob.escape(root), "sys/class/watchdog/watchdog*")))
    fed_by = _fed_by(root) if places else {}
    found = []
    for place in places:
        name = os.path.basename(place)
        known = {key: _text(f"{place}/{key}") for key in ("identity", "nowayout", "state")}
        state, feeders = known.pop("state"), fed_by.get(name, [])
        found.append({"name": name, **known, "active": state == "active" if state else bool(feeders), "fed_by": feeders})
    return found


def feeders(seen: list[dict]) -> list[str]:
    """The services that feed an active watchdog of these. Pure."""
    return sorted({feeder for device in seen if device["active"] for feeder in device["fed_by"] if " " not in feeder})


def _fed_by(root: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pid in _processes.pids(root):
        for link in sorted(set(_processes.fd_links(pid, root).values())):
            if link.startswith("/dev/watchdog"):
                name = os.path.basename(link)
                found.setdefault(_FIRST.get(name, name), []).append(_feeder(pid, root))
    return found


def _feeder(pid: int, root: str) -> str:
    unit = _processes.unit_of(pid, root) or ""
    lasts = unit.endswith(".service") and not os.path.exists(os.path.join(root, "run/systemd/transient", unit))
    return "PID 1" if pid == 1 else unit if lasts else f"process {pid}{f' in {unit}' if unit else ''}"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
