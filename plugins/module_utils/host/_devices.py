# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's devices, their drivers and links, from sysfs alone. PRIVATE to the collection.

A device is known by what stays the same in another boot: its PCI address, a disk's own number. Names such as eth0 and sda may change.

Source: Documentation/ABI/testing/{sysfs-bus-pci,sysfs-class-net,sysfs-class-net-queues,sysfs-block,sysfs-block-dm} and
Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

import os

__all__ = ("read", "seen")

# Disks without a device, and drives whose medium changes.
_NO_DISKS = ("fd", "loop", "nbd", "ram", "sr", "zram")
# Buses on which the name of a device is its place. Those of other buses are numbered in the order in which they are found.
_PLACES = ("ccw", "pci", "usb", "vmbus")
_SECTOR = 512


def read(root: str = "/") -> dict:
    """The devices of this host: ``processors`` (online), ``pci``, ``interfaces`` (network) and ``disks``.

    The last three have the devices by their keys. What is unknown is None.
    """
    return {
        "processors": _count(_text(root, "sys/devices/system/cpu/online")),
        "pci": {address: _pci(path) for address, path in _pci_paths(root).items()},
        "interfaces": {key: _interface(path) for key, path in _interface_paths(root).items()},
        "disks": {key: _disk(paths) for key, paths in _disk_paths(root).items()},
    }


def seen(root: str = "/") -> set[str]:
    """What is there now, as words such as ``pci 0000:01:00.0``. A part of :func:`read` that is quick enough to be repeated."""
    found = {f"disk {key}" for key in _disk_paths(root)}
    for address, path in _pci_paths(root).items():
        found.add(f"pci {address}")
        if _driver(path):
            found.add(f"driver {address}")
    for key, path in _interface_paths(root).items():
        found.add(f"interface {key}")
        if _text(path, "carrier") == "1":
            found.add(f"link {key}")
    return found


def _pci_paths(root: str) -> dict[str, str]:
    folder = os.path.join(root, "sys/bus/pci/devices")
    return {address: os.path.join(folder, address) for address in _names(folder)}


def _pci(path: str) -> dict:
    return {
        "id": f"{_text(path, 'vendor')[2:]}:{_text(path, 'device')[2:]}",
        "class": _text(path, "class"),
        "driver": _driver(path),
        "numa_node": _number(_text(path, "numa_node")),
        "iommu": os.path.exists(os.path.join(path, "iommu_group")),
        "speed": _float(_text(path, "current_link_speed").partition(" ")[0]),
        "width": _number(_text(path, "current_link_width")) or None,
        "vfs": _number(_text(path, "sriov_numvfs")),
        "vfs_max": _number(_text(path, "sriov_totalvfs")),
        "is_vf": os.path.exists(os.path.join(path, "physfn")),
    }


def _interface_paths(root: str) -> dict[str, str]:
    """The network interfaces that have a device, by its place and the port there. Those of software (bridges, taps) have none."""
    folder = os.path.join(root, "sys/class/net")
    paths = [os.path.join(folder, name) for name in _names(folder)]
    paths = [path for path in paths if os.path.exists(os.path.join(path, "device"))]
    found: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (_number(_text(path, "ifindex")) or 0, path)):
        port = _number(_text(path, "dev_port")) or 0
        key = _place(root, os.path.join(path, "device")) + (f" port {port}" if port else "")
        again = 2
        while key in found:
            key, again = f"{key.partition(' number ')[0]} number {again}", again + 1
        found[key] = path
    return found


def _interface(path: str) -> dict:
    carrier, speed = _text(path, "carrier"), _number(_text(path, "speed"))
    queues = _names(os.path.join(path, "queues"))
    return {
        "name": os.path.basename(path),
        "driver": _driver(os.path.join(path, "device")),
        "mac": _text(path, "address"),
        "carrier": carrier == "1" if carrier else None,  # it cannot be read while the interface is down
        "state": _text(path, "operstate"),
        "speed": speed if speed and speed > 0 else None,
        "duplex": _text(path, "duplex"),
        "rx_queues": sum(name.startswith("rx-") for name in queues),
        "tx_queues": sum(name.startswith("tx-") for name in queues),
    }


def _disk_paths(root: str) -> dict[str, list[str]]:
    """The disks. Several block devices with the number of one disk are the paths to it."""
    folder = os.path.join(root, "sys/block")
    found: dict[str, list[str]] = {}
    for name in _names(folder):
        path = os.path.join(folder, name)
        if not name.startswith(_NO_DISKS) and _number(_text(path, "size")):
            found.setdefault(_disk_key(root, path), []).append(path)
    return found


def _disk_key(root: str, path: str) -> str:
    for kind in ("dm", "md"):
        if os.path.isdir(os.path.join(path, kind)):
            return f"{kind} {_text(path, kind, 'uuid') or _text(path, kind, 'name') or os.path.basename(path)}"
    for place in (("wwid",), ("device", "wwid"), ("serial",), ("device", "serial")):
        number = " ".join(_text(path, *place).split())
        if number:
            return number
    # A SCSI address without the number of the host, which depends on the order in which hosts are found.
    device = os.path.join(path, "device") if os.path.exists(os.path.join(path, "device")) else path
    where = os.path.basename(os.path.realpath(device)).partition(":")[2]
    return _place(root, device) + (f" {where}" if where.count(":") == 2 else "")


def _disk(paths: list[str]) -> dict:
    path = paths[0]
    return {
        "names": [os.path.basename(path) for path in paths],
        "model": " ".join((_text(path, "device", "model") or _text(path, "dm", "name")).split()),
        "size": (_number(_text(path, "size")) or 0) * _SECTOR,
        "read_only": _text(path, "ro") == "1",
        "queues": len(_names(os.path.join(path, "mq"))),
    }


def _place(root: str, path: str) -> str:
    """Where a device is: the address of it or of the nearest device above it on a bus with addresses. Else its own name."""
    path = own = os.path.realpath(path)
    top = os.path.realpath(os.path.join(root, "sys/devices"))
    while path.startswith(top + os.sep):
        if os.path.basename(os.path.realpath(os.path.join(path, "subsystem"))) in _PLACES:
            return os.path.basename(path)
        path = os.path.dirname(path)
    return os.path.basename(own)


def _driver(path: str) -> str:
    try:
        return os.path.basename(os.readlink(os.path.join(path, "driver")))
    except OSError:
        return ""


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(*place: str) -> str:
    """The content of a file. Empty if it does not exist or cannot be read: some have no value in some states."""
    try:
        with open(os.path.join(*place), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _count(listed: str) -> int:
    """How many numbers a list such as 0-3,8 has."""
    ranges = [part.split("-") for part in listed.split(",") if part]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)
