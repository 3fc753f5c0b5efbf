# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hypervisor_info says of a host with many guests, and a policy: made up, for benches that need no host."""

from __future__ import annotations

from typing import Any

GUESTS = 50
POLICY: list[dict[str, Any]] = [
    {"match": "contains(devices, 'hostdev')", "ladder": ["shutdown", "refuse"]},
    {"match": "labels.tier == 'gold'", "ladder": ["preserve", {"migrate": {"to": "qemu+ssh://spare/system"}}, "refuse"]},
    {"match": "memory_mib > `262144`", "ladder": ["preserve", "refuse"]},
    {"match": "reasons[?code == 'qemu-blocker']", "ladder": ["shutdown", "refuse"]},
    {"match": "provider == 'libvirt' && labels.tier != 'bronze'", "ladder": ["preserve", "save", "shutdown", "refuse"]},
]
ANONYMOUS = {
    "code": "ram-anonymous",
    "message": "its RAM is anonymous memory, which no descriptor names",
    "remedy": "set <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking> in its XML and restart it once",
}
HOSTDEV = {
    "code": "hostdev",
    "message": "a device of the host is passed through to it: <hostdev mode='subsystem' type='pci' managed='yes'>",
    "remedy": "detach the device first",
}
GENID = {"code": "genid", "message": "libvirt gives it a new generation id when it comes back", "remedy": "remove <genid/> and restart it"}


def guest(number: int) -> dict[str, Any]:
    """The facts of one guest, as hypervisor_info returns them; every tenth has a device of the host, every seventh anonymous memory."""
    passed_through, anonymous = number % 10 == 9, number % 7 == 6
    return {
        "name": f"guest-{number:03}",
        "unit": f"kvm-liveupdate-hold@guest-{number:03}.service",
        "provider": "qemu" if number % 5 == 4 else "libvirt",
        "uuid": f"5b6c2d1e-8f5a-4a44-9d0e-0000000{number:05}",
        "pid": 2000 + number,
        "held": False,
        "memory_mib": 2048 << number % 4,
        "devices": ["channel:unix", "controller", "disk:virtio", "input", "interface:bridge", "memballoon", "rng", "serial"]
        + ["hostdev"] * passed_through,
        "labels": {"tier": ("gold", "silver", "bronze")[number % 3], "owner": "billing"},
        "ladder": None,
        "fill_mib": 400,
        "last_pause": 9.5 + number / 100,
        "reasons": [HOSTDEV] * passed_through + [ANONYMOUS] * anonymous,
        "warnings": [GENID] if number % 3 == 0 else [],
    }


def host() -> dict[str, Any]:
    """The facts of one host."""
    return {
        "reasons": [],
        "guests": [guest(number) for number in range(GUESTS)],
        "free": {"memory_mib": 65536, "saves_mib": 20000},
        "target": {"path": "/boot/vmlinuz-7.3.4", "release": "7.3.4", "current": False},
    }
