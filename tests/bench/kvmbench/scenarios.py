# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmlab.errors import LabError

from .results import Measurement

# How a host gets its new kernel: by a live update of units or libvirt domains, or in a way that needs no live update.
WAYS = {
    "qemu": "live update, QEMU in a unit",
    "libvirt": "live update, libvirt",
    "save-reboot": "managed save, reboot, restore",
    "save-kexec": "managed save, systemctl kexec, restore",
    "shutdown-reboot": "shutdown, reboot, boot",
    "preserve": "the call PRESERVE alone",
}


@dataclass(frozen=True)
class Scenario:
    """One row: a way, and what the host runs meanwhile.

    thp: whether transparent huge pages back memory files. preserve takes one file of ram MiB and no guest.
    """

    name: str
    way: str
    guests: int = 1
    ram: int = 128
    thp: bool = False

    @property
    def has_domains(self) -> bool:
        """Whether its guests are libvirt's."""
        return self.way not in ("qemu", "preserve")

    @property
    def words(self) -> str:
        """What it is, for a table."""
        pages = ", huge pages" if self.thp else ""
        if self.way == "preserve":
            return f"{WAYS[self.way]}, {self.ram} MiB{pages}"
        return f"{WAYS[self.way]}, {self.guests} x {self.ram} MiB{pages}"


SCENARIOS = (
    Scenario("ours-qemu", "qemu"),
    Scenario("ours-libvirt", "libvirt"),
    Scenario("save-reboot", "save-reboot"),
    Scenario("save-kexec", "save-kexec"),
    Scenario("shutdown-reboot", "shutdown-reboot"),
    Scenario("ours-qemu-4", "qemu", guests=4),
    Scenario("ours-qemu-8", "qemu", guests=8),
    Scenario("ours-libvirt-4", "libvirt", guests=4),
    Scenario("ours-qemu-512m", "qemu", ram=512),
    Scenario("ours-qemu-2g", "qemu", ram=2048),
    Scenario("ours-qemu-2g-thp", "qemu", ram=2048, thp=True),
    Scenario("save-reboot-2g", "save-reboot", ram=2048),
    Scenario("preserve-1g", "preserve", guests=0, ram=1024),
    Scenario("preserve-1g-thp", "preserve", guests=0, ram=1024, thp=True),
)


def chosen(names: str, among: Sequence[Measurement]) -> list[Measurement]:
    """Those of these names, separated by commas; all for an empty text."""
    known = {measurement.name: measurement for measurement in among}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise LabError(f"--only: there is no scenario {name!r}; there is {', '.join(known)}")
    return [measurement for measurement in among if not wanted or measurement.name in wanted]
