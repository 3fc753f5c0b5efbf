# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The stamps of an update: how long each guest paused, and what took the time. Pure. PRIVATE to the collection.

``host`` is the result of one host (:func:`_result.result`). Its ``times`` and those of its guests are seconds since the epoch, by step.
"""

from __future__ import annotations

import typing as t

__all__ = ("PARTS", "blackout", "host_times", "parts", "stamps")

_INITRD = "initial RAM disk"
# The parts of a guest's pause, in order: the name, where its first and its last stamp are (host or guest), and the stamps.
PARTS = (
    ("save the state", ("guest", "paused"), ("guest", "saved")),
    ("read the memory", ("guest", "saved"), ("guest", "read")),
    ("stop the old system", ("guest", "saved"), ("host", "kernel")),
    ("start the new kernel", ("host", "kernel"), ("host", "initrd")),
    (_INITRD, ("host", "initrd"), ("host", "userspace")),
    ("systemd loads its units", ("host", "userspace"), ("host", "units")),
    ("start the restore", ("host", "units"), ("guest", "start")),
    ("retrieve the memory", ("guest", "start"), ("guest", "retrieved")),
    ("check the memory", ("guest", "retrieved"), ("guest", "checked")),
    ("wait for libvirt", ("guest", "retrieved"), ("guest", "libvirt")),
    ("start QEMU", ("guest", "retrieved"), ("guest", "qemu")),
    ("load the state", ("guest", "qemu"), ("guest", "loaded")),
    ("resume", ("guest", "loaded"), ("guest", "resumed")),
)


# Not every guest has these: only domains wait for libvirt, and the memory is read only if it is checked.
_OPTIONAL = ("libvirt", "read", "checked")


def blackout(guest: dict[str, t.Any]) -> float | None:
    """Seconds from a guest's pause to its resume, by the host's clock. None if it did not stay in memory."""
    times: dict[str, float] = guest.get("times") or {}
    return times["resumed"] - times["paused"] if "paused" in times and "resumed" in times else None


def host_times(host: dict[str, t.Any]) -> dict[str, float]:
    """The stamps of the host. Those of the new kernel lose the step of the clock that its guests measured (host/_this_boot.py)."""
    step = next((guest["clock_step"] for guest in host["guests"].values() if guest.get("clock_step") is not None), 0.0)
    times = host.get("times") or {}
    return {name: at - step if name in ("kernel", "initrd", "userspace", "units") else at for name, at in times.items()}


def stamps(host: dict[str, t.Any]) -> list[float]:
    """All stamps of a host and its guests."""
    return [*(host.get("times") or {}).values(), *(at for guest in host["guests"].values() for at in (guest.get("times") or {}).values())]


def parts(host: dict[str, t.Any], guest: dict[str, t.Any]) -> list[tuple[str, float]]:
    """The parts of a guest's pause in seconds, in order. They sum up to the pause. Where a stamp is missing, two parts become one."""
    known = {"host": host_times(host), "guest": guest.get("times") or {}}
    if blackout(guest) is None:
        return []
    found: list[tuple[str, float]] = []
    begun, names = known["guest"]["paused"], []
    for name, _first, (where, stamp) in PARTS:
        if stamp in _OPTIONAL and stamp not in known[where]:
            continue
        if "initrd" not in known["host"]:  # there is none, or one without systemd, whose time is the new kernel's
            if name == _INITRD:
                continue
            stamp = "userspace" if stamp == "initrd" else stamp
        names.append(name)
        if stamp in known[where]:
            found.append((" + ".join(names), known[where][stamp] - begun))
            begun, names = known[where][stamp], []
    return found
