# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured on this machine itself, without emulation: the programs of user space that take part in a pause."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmlab.parts.packages import HOST_SUITES

from .rooms import Rooms

MIB = (128, 2048)
COUNTS = (1, 4, 8)
# A guest takes this besides its RAM.
OVERHEAD_MIB = 128


@dataclass(frozen=True)
class Native:
    """A measurement of one Debian suite. kind: programs, daemon, boot, qemu or domain; words: the arguments of its program."""

    suite: str
    kind: str
    what: str = ""
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in forky/qemu-4x128."""
        return f"{self.suite}/{self.kind}" + (f"-{self.what}" if self.what else "")

    @property
    def memory_mib(self) -> int:
        """What its guests take."""
        count, mib = (int(number) for number in self.words[:2]) if self.kind in ("qemu", "domain") else (1, 0)
        return count * (mib + OVERHEAD_MIB)

    def measure(self, rooms: Rooms) -> dict[str, float]:
        """Seconds by what they are."""
        if self.kind == "boot":
            guest, memory = self.words
            return parts_of(rooms.boot(self.suite, guest, memory == "cold"))
        return rooms.run(self.suite, self.kind, *self.words)


def parts_of(stamps: dict[str, float]) -> dict[str, float]:
    """The parts of a pause in the stamps of a boot and a shutdown. Pure."""
    found = {
        "part: stop the old system": stamps["ended"] - stamps["down"],
        "part: systemd loads its units": stamps["units"] - stamps["userspace"],
        "part: start the restore": stamps["start"] - stamps["units"],
    }
    return {**found, **({"start of libvirt's daemon": stamps["daemon"] - stamps["start"]} if stamps["daemon"] else {})}


def of_suite(suite: str) -> list[Native]:
    """All measurements of a suite."""
    sizes = [(count, mib) for mib in MIB for count in COUNTS]
    return [
        Native(suite, "programs"),
        Native(suite, "daemon"),
        *(Native(suite, "boot", guest, (guest, "cold")) for guest in ("unit", "domain")),
        *(Native(suite, "boot", f"{guest}-warm", (guest, "warm")) for guest in ("unit", "domain")),
        *(Native(suite, "qemu", f"{count}x{mib}", (str(count), str(mib), "cold")) for count, mib in sizes),
        Native(suite, "qemu", "1x128-warm", ("1", "128", "warm")),
        *(Native(suite, "domain", f"{count}x{mib}", (str(count), str(mib), "cold", "cached")) for count, mib in sizes),
        Native(suite, "domain", "1x128-probe", ("1", "128", "cold", "probe")),
        Native(suite, "domain", "1x128-warm", ("1", "128", "warm", "cached")),
    ]


NATIVE = [measurement for suite in HOST_SUITES for measurement in of_suite(suite)]


def that_fit(measurements: Sequence[Native], free_mib: int) -> tuple[list[Native], list[Native]]:
    """Those for whose guests the memory suffices, with a tenth to spare, and the others. Pure."""
    fit = [measurement for measurement in measurements if measurement.memory_mib * 10 // 9 <= free_mib]
    return fit, [measurement for measurement in measurements if measurement not in fit]


def free_mib(meminfo: str | None = None) -> int:
    """How much memory is available on this machine."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo or Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0
