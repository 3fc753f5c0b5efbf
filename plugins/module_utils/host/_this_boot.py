# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts about this boot: its ID, kernel, command line, consoles, and the offset of its clock. PRIVATE to the collection."""

from __future__ import annotations

import os
import time

__all__ = ("ahead", "boot_id", "by_kexec", "consoles", "current_cmdline", "kernel", "line", "random_uuid", "step")

_RTC = "/sys/class/rtc/rtc0/since_epoch"  # Documentation/ABI/testing/sysfs-class-rtc
_POLL_S = 0.01

# What a boot loader calls itself to an x86 kernel, in the upper bits (Documentation/arch/x86/boot.rst, type_of_loader). A kexec is 0xD
# (arch/x86/kernel/kexec-bzimage64.c).
_LOADER = "proc/sys/kernel/bootloader_type"
_KEXEC = 0xD

_CONSOLES = "/sys/class/tty/console/active"


def ahead(path: str = _RTC, limit_s: float = 1.5) -> float | None:
    """How far the system clock is ahead of the hardware clock, in seconds, to 0.01; None without a hardware clock.

    Takes up to a second: it waits for the hardware clock's next second to begin.
    """
    until = time.monotonic() + limit_s
    first = _seconds(path)
    while first is not None and time.monotonic() < until:
        time.sleep(_POLL_S)
        now = _seconds(path)
        if now != first:
            return None if now is None else time.time() - now
    return None


def step(before: float | None, after: float | None) -> float | None:
    """By how many seconds the system clock stepped in between, to correct later times. None if unknown. Pure."""
    return None if before is None or after is None else after - before


def _seconds(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def consoles() -> str:
    """The kernel's consoles, the last of which is /dev/console; empty if there is none."""
    try:
        with open(_CONSOLES, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def line(root: str, path: str) -> str:
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read().strip()


def boot_id(root: str = "/") -> str:
    """This boot's id, a UUID (random(4))."""
    return line(root, "proc/sys/kernel/random/boot_id")


def by_kexec(root: str = "/") -> bool | None:
    """Whether a kexec started this kernel, and no boot loader did; None if that is unknown."""
    try:
        return int(line(root, _LOADER)) >> 4 == _KEXEC
    except (OSError, ValueError):
        return None


def random_uuid() -> str:
    """A fresh random UUID, from the kernel."""
    return line("/", "proc/sys/kernel/random/uuid")


def kernel(root: str = "/") -> dict[str, str]:
    """The running kernel: ``release`` and ``version`` as uname -r and -v give them, and ``cmdline``."""
    return {
        "release": line(root, "proc/sys/kernel/osrelease"),
        "version": line(root, "proc/sys/kernel/version"),
        "cmdline": current_cmdline(root),
    }


def current_cmdline(root: str = "/") -> str:
    """The running kernel's command line. A boot loader may put any bytes into it."""
    with open(os.path.join(root, "proc/cmdline"), encoding="utf-8", errors="surrogateescape") as file:
        return file.read().strip()
