# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order in which a host boots after a jump: its guests first, then the rest. PRIVATE to the collection.

Weights alone do not put a guest first: PID 1 loads every unit of the boot, and starts its sockets and mounts, before it starts a service.
So the kernel that is jumped into is told to boot a target of its own (systemd.unit=, kernel-command-line(7)), which wants the guests and
little else. A service beside them starts what the next guests need (libvirt's daemon for its domains) and in the end default.target, each
as soon as the guests before it run, or are late. An ordinary boot knows nothing of this.
"""

from __future__ import annotations

import os
import sys
import time

from . import _cmdline, _guests, _limits, _paths, _systemd

__all__ = (
    "DAEMONS_TARGET",
    "REST_UNIT",
    "TARGET",
    "UNCLAIMED_UNIT",
    "alone",
    "cmdline",
    "consoles",
    "late",
    "not_early",
    "plan",
    "start_early",
    "start_rest",
)

TARGET = _cmdline.GUESTS_FIRST.partition("=")[2]
DAEMONS_TARGET = "kvm-liveupdate-daemons.target"
REST_UNIT = "kvm-liveupdate-boot.service"
# Before every guest, and only where a hold was not followed by an update (_unclaimed.py): no boot after a jump runs it.
UNCLAIMED_UNIT = "kvm-liveupdate-unclaimed.service"
# What the first target has beside the guests (_runtime.py).
BASE = ("systemd-journald.socket", "systemd-modules-load.service", "systemd-remount-fs.service")
UNITS = "/etc/systemd/system"
_CONSOLES = "/sys/class/tty/console/active"
LIMIT_S = _limits.BOOT_WAITS
POLL_S = 0.1


def plan(records: list[dict]) -> list[dict]:
    """The stages of the boot after the jump, and what they need in place; none for guests that all need the ordinary boot.

    Of each stage ``guests`` are waited for, then ``start`` is started.
    """
    units, domains = _ahead(records)
    daemons = _daemons(domains)
    stages = []
    if units:
        stages.append({"guests": [record["name"] for record in units], "start": DAEMONS_TARGET if daemons else "default.target"})
    if daemons:
        stages.append({"guests": [record["name"] for record in domains], "start": "default.target"})
        dropin = f"{UNITS}/{DAEMONS_TARGET}.d/wants.conf"
        os.makedirs(os.path.dirname(dropin), exist_ok=True)
        _paths.write_text(dropin, "[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*_before(daemons), *daemons)), 0o644)
    # Where no guest comes before them, nobody has to be told.
    _link(f"{UNITS}/{TARGET}.wants/{DAEMONS_TARGET}", bool(daemons) and not units)
    return stages


def _ahead(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Which of these guests can come back before the rest of the boot: those that need nothing of it, and those that need daemons."""
    from . import _providers  # on the way there, not on the way back

    seen = _systemd.show_each([record["unit"] for record in records], "After")
    able = [record for record in records if alone(seen[record["unit"]].get("After", "").split())]
    needing = [bool(_providers.of(record).DAEMONS) for record in able]
    return [record for record, needs in zip(able, needing) if not needs], [record for record, needs in zip(able, needing) if needs]


def _daemons(records: list[dict]) -> list[str]:
    """The units of the daemons that these guests need, of which those are in use that run."""
    from . import _providers

    known = sorted({unit for record in records for unit in _providers.of(record).DAEMONS})
    return [unit for unit, seen in _systemd.show_each(known, "ActiveState").items() if seen.get("ActiveState") == "active"]


def _before(daemons: list[str]) -> list[str]:
    """What an ordinary boot starts before these: they are to find the same as ever."""
    called = _systemd.show_each(["default.target", *daemons], "Id")  # by another name: default.target is one of a target
    target, *ordered = (called[unit].get("Id") or unit for unit in called)
    starts, after = _systemd.graph()
    return sorted((reached(after, ordered) & reached(starts, [target])) - {*daemons, *ordered})


def reached(dependencies: dict[str, list[str]], units: list[str]) -> set[str]:
    """These units and all that their dependencies lead to. Pure."""
    found: set[str] = set()
    left = list(units)
    while left:
        unit = left.pop()
        if unit not in found:
            found.add(unit)
            left += dependencies.get(unit, [])
    return found


def alone(after: list[str]) -> bool:
    """Whether a unit that comes after these waits for nothing of the boot but :data:`BASE`, the root file system and slices. Pure."""
    return all(unit in (*BASE, UNCLAIMED_UNIT, "-.mount") or unit.endswith(".slice") for unit in after)


def cmdline(given: str, guests_first: bool, consoles: str) -> str:
    """The command line for the jump: the one given, and what makes this boot quick unless that says something else. Pure.

    ``consoles`` are the kernel's, as /sys/class/tty/console/active has them. From the last of them, /dev/console, PID 1 wants to know what
    kind of terminal it is and how large, and waits a second for answers that a serial line does not give (src/basic/terminal-util.c).
    """
    names = [name for name, _value in _cmdline.words(given)]
    added = []
    if guests_first and "systemd.unit" not in names:
        added.append(_cmdline.GUESTS_FIRST)
    virtual = not consoles or consoles.split()[-1].removeprefix("tty").isdigit()
    if not virtual and not any(name == "TERM" or name.startswith("systemd.tty.") for name in names):
        added += _cmdline.CONSOLE
    return _cmdline.added(given, added)


def consoles() -> str:
    """The kernel's consoles, the last of which is /dev/console; empty where there is none."""
    try:
        with open(_CONSOLES, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_early(unit: str, wanted: bool, ahead: bool = False) -> None:
    """Have the guest's unit start at the beginning of the next boot, or no longer; ``ahead``: of the rest of a boot of guests first.

    The guest runs now, so it is to run after the jump whether or not its unit is enabled for an ordinary boot.
    """
    _link(f"{UNITS}/sysinit.target.wants/{unit}", wanted)
    _link(f"{UNITS}/{TARGET}.wants/{unit}", wanted and ahead)


def not_early(unit: str) -> None:
    """As :func:`start_early` with ``wanted`` false, in passing: a root file system that is read-only is no matter."""
    try:
        start_early(unit, False)
    except OSError as err:
        sys.stderr.write(f"kvm-liveupdate: {unit} is started early by the next boot too: {err}\n")


def _link(path: str, wanted: bool) -> None:
    """Have a target want a unit, or no longer."""
    if not wanted:
        _paths.remove(path)
    elif not os.path.islink(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../{os.path.basename(path)}", path)  # only the link's name counts
        _paths.sync_directory(path)


def late(name: str) -> None:
    """Note that the rest of the boot need not wait for this guest: it waits for that itself, or does not come back.

    Never raises: what the guest itself needs goes on, and the rest of the boot starts at the limit.
    """
    try:
        _paths.make_directory(_paths.GUESTS_RUN)
        os.close(os.open(_guests.run_path(name, "late"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as err:
        sys.stderr.write(f"kvm-liveupdate: {name}: the rest of the boot waits for it for {LIMIT_S:g} s at most: {err}\n")


def start_rest() -> None:
    """Carry out the stages of :func:`plan`. Should this fail, its unit's OnFailure= starts the rest of the boot."""
    until = time.monotonic() + LIMIT_S
    # Whoever took over the command line of this boot for another one may have an update without stages, or none.
    for stage in _paths.read_json(_paths.UPDATE).get("stages") or [{"guests": [], "start": "default.target"}]:
        while time.monotonic() < until and not all(map(_settled, stage["guests"])):
            time.sleep(POLL_S)
        _systemd.run("systemctl", "start", "--no-block", stage["start"])


def _settled(name: str) -> bool:
    """Whether the guest runs again, is late, or was not saved: whoever took over the command line for another boot waits for nobody."""
    return os.path.exists(_guests.run_path(name, "late")) or _guests.journal(name).get("state") != "saved"
