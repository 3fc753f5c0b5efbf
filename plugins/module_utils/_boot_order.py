# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order in which a host boots after a jump: its guests first, then the rest. PRIVATE to the collection.

Weights alone do not put a guest first: PID 1 loads every unit of the boot, and starts its sockets and mounts, before it starts a service.
So the kernel that is jumped into is told to boot a target of its own (systemd.unit=, kernel-command-line(7)), which wants the guests and
little else. A service beside them starts default.target as soon as they run, or are late. An ordinary boot knows nothing of this.
"""

from __future__ import annotations

import os
import sys
import time

from . import _guests, _kexec, _paths, _systemd

__all__ = ("REST_UNIT", "TARGET", "alone", "cmdline", "consoles", "first", "late", "start_early", "start_rest")

TARGET = _kexec.GUESTS_FIRST.partition("=")[2]
REST_UNIT = "kvm-liveupdate-boot.service"
# What the target has beside the guests (_runtime.py).
BASE = ("systemd-journald.socket", "systemd-modules-load.service", "systemd-remount-fs.service")
UNITS = "/etc/systemd/system"
# For guests that neither run nor are late.
LIMIT_S = 20.0


def first(records: list[dict]) -> list[dict]:
    """Which of these guests can come back before the rest of the boot."""
    from . import _providers  # on the way there, not on the way back

    able = [record for record in records if _providers.of(record).NEEDS_NO_BOOT]
    seen = _systemd.show_each([record["unit"] for record in able], "After")
    return [record for record in able if alone(seen[record["unit"]].get("After", "").split())]


def alone(after: list[str]) -> bool:
    """Whether a unit that comes after these waits for nothing of the boot but :data:`BASE`, the root file system and slices. Pure."""
    return all(unit in BASE or unit == "-.mount" or unit.endswith(".slice") for unit in after)


def cmdline(given: str, guests_first: bool, consoles: str) -> str:
    """The command line for the jump: the one given, and what makes this boot quick unless that says something else. Pure.

    ``consoles`` are the kernel's, as /sys/class/tty/console/active has them. From the last of them, /dev/console, PID 1 wants to know what
    kind of terminal it is and how large, and waits a second for answers that a serial line does not give (src/basic/terminal-util.c).
    """
    words = given.split()
    added = []
    if guests_first and not any(word.startswith("systemd.unit=") for word in words):
        added.append(_kexec.GUESTS_FIRST)
    virtual = not consoles or consoles.split()[-1].removeprefix("tty").isdigit()
    if not virtual and not any(word.startswith(("systemd.tty.", "TERM=")) for word in words):
        added += _kexec.CONSOLE
    return " ".join((given, *added))


def consoles() -> str:
    """The kernel's consoles, the last of which is /dev/console; empty where there is none."""
    try:
        with open("/sys/class/tty/console/active", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_early(unit: str, wanted: bool, ahead: bool = False) -> None:
    """Have the guest's unit start at the beginning of the next boot, or no longer; ``ahead``: of the rest of a boot of guests first.

    The guest runs now, so it is to run after the jump whether or not its unit is enabled for an ordinary boot.
    """
    for target, wants in (("sysinit.target", wanted), (TARGET, wanted and ahead)):
        link = f"{UNITS}/{target}.wants/{unit}"
        if not wants:
            _paths.remove(link)
        elif not os.path.islink(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(f"../{unit}", link)  # only the link's name counts
            _paths.sync_directory(link)


def late(name: str) -> None:
    """Note that the rest of the boot need not wait for this guest: it waits for that itself, or does not come back.

    Never raises: what the guest itself needs goes on, and the rest of the boot starts at the limit.
    """
    try:
        os.makedirs(_paths.GUESTS_RUN, mode=0o700, exist_ok=True)
        os.close(os.open(_guests.run_path(name, "late"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as err:
        sys.stderr.write(f"kvm-liveupdate: {name}: the rest of the boot waits for it for {LIMIT_S:g} s at most: {err}\n")


def start_rest() -> None:
    """Wait for the guests that come first, then start the rest of the boot. Should this fail, its unit's OnFailure= starts it."""
    # Whoever took over the command line of this boot for another one has no guest to wait for.
    names = [name for name in _paths.read_json(_paths.UPDATE).get("first", []) if _guests.journal(name).get("state") == "saved"]
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and not all(map(_settled, names)):
        time.sleep(0.05)
    _systemd.run("systemctl", "start", "--no-block", "default.target")


def _settled(name: str) -> bool:
    return any(os.path.exists(_guests.run_path(name, mark)) for mark in ("resumed", "late"))
