# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is worse after a jump than before. Pure. PRIVATE to the collection.

``before`` and ``after`` are from :func:`_devices.read`. A finding is a reason (:func:`_errors.reason`). What is new is only noted.
"""

from __future__ import annotations

from .._errors import reason

__all__ = ("findings", "late", "notes", "times")

_SHOWN = 5
_AGAIN = (
    "'dmesg' on the host shows what its driver says; unbind and bind the driver, or reboot the host, and see whether that brings it back"
)
_DRIVER = "load the driver's module with modprobe; if the new kernel does not have it, use a kernel that does"


def findings(before: dict, after: dict) -> list[dict]:
    """All that is missing or worse; none if the jump did no harm."""
    return [
        *_processors(before, after),
        *_pci(before, after),
        *_all_devices(before["pci"], after["pci"]),
        *_interfaces(before, after),
        *_disks(before["disks"], after["disks"]),
    ]


def late(before: dict, watched: dict, slow: float) -> list[dict]:
    """Findings about what came back later than ``slow`` seconds after the start of the new kernel. ``watched`` is from trial/_watch."""
    found = []
    for key, name in _named(before).items():
        at = (watched.get("seen") or {}).get(key)
        if at is not None and at > max(slow, watched["from"]) and not key.startswith(("driver ", "pci ")):
            message = f"{name} is back only {at:.1f} s after the start of the new kernel, and {slow:g} s are allowed"
            remedy = "check that guests and clusters can wait that long; if they can, raise hypervisor_trial_slow"
            found.append(reason("late", message, remedy))
    return found


def times(before: dict, watched: dict) -> list[dict]:
    """When each device was back: ``device``, and ``seconds`` since the start of the new kernel, None if nobody saw it.

    ``at_most``: it was there already at the first look.
    """
    seen = watched.get("seen") or {}
    return [
        {"device": name, "seconds": seen.get(key), "at_most": key in seen and seen[key] <= watched["from"]}
        for key, name in _named(before).items()
    ]


def notes(before: dict, after: dict) -> list[str]:
    """Sentences about what is new, and about disks with another name."""
    words = {"pci": "PCI device", "interfaces": "network interface", "disks": "disk"}
    found = []
    for kind, word in words.items():
        for key in after[kind]:
            if key not in before[kind]:
                names = after[kind][key].get("names") or [after[kind][key].get("name", "")]
                found.append(f"new {word} {' '.join(filter(None, [', '.join(names), f'({key})']))}")
    for key, disk in after["disks"].items():
        old = before["disks"].get(key)
        if old and old["names"] != disk["names"]:
            found.append(f"disk {key} is called {', '.join(disk['names'])} now, before {', '.join(old['names'])}")
    return found


def _named(devices: dict) -> dict[str, str]:
    """What :func:`_devices.seen` finds of these devices, each with a name for people."""
    found = {}
    for address, pci in devices["pci"].items():
        found[f"pci {address}"] = f"PCI device {address}"
        if pci["driver"]:
            found[f"driver {address}"] = f"driver {pci['driver']} of PCI device {address}"
    for key, interface in devices["interfaces"].items():
        found[f"interface {key}"] = f"network interface {interface['name']}"
        if interface["carrier"]:
            found[f"link {key}"] = f"link of {interface['name']}"
    for key, disk in devices["disks"].items():
        found[f"disk {key}"] = f"disk {', '.join(disk['names'])}"
    return found


def _processors(before: dict, after: dict) -> list[dict]:
    if after["processors"] >= before["processors"]:
        return []
    message = f"{after['processors']} processors are online, {before['processors']} before"
    return [reason("processors-fewer", message, "'dmesg' on the host shows why a processor did not start; compare with a reboot")]


def _pci(before: dict, after: dict) -> list[dict]:
    found = []
    for address, old in before["pci"].items():
        new, name = after["pci"].get(address), f"PCI device {address} ({_what(address, old, before)})"
        if new is None:
            if not old["is_vf"] or not _has_fewer_vfs(before, after):  # else its card is a finding
                found.append(reason("pci-gone", f"{name} is gone", "reboot the host and see whether that brings it back"))
            continue
        if new["id"] != old["id"]:
            found.append(reason("pci-other", f"{name} is another device now: {new['id']}", "reboot the host, and run the trial again"))
            continue
        if old["driver"] and not new["driver"]:
            found.append(reason("driver-gone", f"{name} has no driver now", f"{_DRIVER}; {_AGAIN}"))
        elif old["driver"] and new["driver"] != old["driver"]:
            message = f"{name} has another driver now: {new['driver']}"
            found.append(reason("driver-changed", message, "choose the driver in /etc/modprobe.d, or with driverctl, for each boot"))
        for what, unit in (("speed", " GT/s"), ("width", " lanes")):
            if _less(new[what], old[what]):
                message = f"{name}: the {what} of its PCI Express link is {_of(new[what], unit)} now, {_of(old[what], unit)} before"
                found.append(reason("pci-slower", message, "compare with a reboot; an idle card may lower its speed to save power"))
        for what, words in (("vfs", "virtual functions"), ("vfs_max", "possible virtual functions")):
            if _less(new[what], old[what]):
                message = f"{name} has {new[what] or 0} {words} now, {old[what]} before"
                found.append(reason("vfs-fewer", message, "create them in each boot, with a rule of udev or a unit"))
    return found


def _what(address: str, pci: dict, devices: dict) -> str:
    """A PCI device in words: its number, driver and network interfaces."""
    driver = f"driver {pci['driver']}" if pci["driver"] else "no driver"
    names = [interface["name"] for key, interface in devices["interfaces"].items() if _address_of(key) == address]
    return ", ".join([pci["id"], driver, *([f"network interface {' '.join(names)}"] if names else [])])


def _address_of(key: str) -> str:
    """The PCI address of a network interface; another word for one that is on no PCI device."""
    return key.partition(" ")[0]


def _has_fewer_vfs(before: dict, after: dict) -> bool:
    return any(old["vfs"] and _less(after["pci"].get(address, {}).get("vfs"), old["vfs"]) for address, old in before["pci"].items())


def _all_devices(before: dict, after: dict) -> list[dict]:
    """What usually concerns all devices is one finding."""
    both = [(address, old, after[address]) for address, old in before.items() if address in after]
    found = []
    bare = [address for address, old, new in both if old["iommu"] and not new["iommu"]]
    if bare:
        message = f"PCI devices without an IOMMU group now: {_few(bare)}"
        found.append(reason("iommu-gone", message, "check the kernel's build options and command line (intel_iommu=on)"))
    moved = [
        f"{address} {old['numa_node']} -> {new['numa_node']}"
        for address, old, new in both
        if old["numa_node"] not in (None, -1) and new["numa_node"] != old["numa_node"]
    ]
    if moved:
        found.append(reason("numa-changed", f"PCI devices with another NUMA node now: {_few(moved)}", "compare with a reboot"))
    return found


def _interfaces(before: dict, after: dict) -> list[dict]:
    found = []
    for key, old in before["interfaces"].items():
        new, name = after["interfaces"].get(key), f"network interface {old['name']} ({key})"
        if new is None:
            if not _pci_is_a_finding(_address_of(key), before, after):
                found.append(reason("interface-gone", f"{name}, driver {old['driver']}, is gone", _AGAIN))
            continue
        if new["name"] != old["name"]:
            message = f"{name} has another name now: {new['name']}"
            found.append(reason("interface-renamed", message, "name it by its address in a .link file (systemd.link(5))"))
        if new["driver"] != old["driver"] and not _pci_is_a_finding(_address_of(key), before, after):
            message = f"{name} has the driver {new['driver'] or 'none'} now, {old['driver'] or 'none'} before"
            found.append(reason("driver-changed", message, "choose the driver in /etc/modprobe.d, or with driverctl, for each boot"))
        found += _link(name, old, new)
        for what in ("rx_queues", "tx_queues"):
            if new[what] < old[what]:
                message = f"{name} has {new[what]} {what[:2]} queues now, {old[what]} before"
                found.append(reason("queues-fewer", message, "set them with ethtool -L; if that fails, 'dmesg' on the host may say why"))
    return found


def _link(name: str, old: dict, new: dict) -> list[dict]:
    if not old["carrier"]:
        return []
    if not new["carrier"]:
        message = f"{name} has no link now (state {new['state'] or 'unknown'}), and had one before"
        return [reason("link-down", message, f"check that the network configuration sets it up; {_AGAIN}")]
    found = []
    if _less(new["speed"], old["speed"]):
        message = f"{name}: the speed of its link is {_of(new['speed'], ' Mb/s')} now, {_of(old['speed'], ' Mb/s')} before"
        found.append(reason("link-slower", message, "take the link down and up again, and compare with a reboot"))
    if old["duplex"] == "full" and new["duplex"] == "half":
        found.append(reason("link-slower", f"{name}: its link has half duplex now, full before", "take the link down and up again"))
    return found


def _pci_is_a_finding(address: str, before: dict, after: dict) -> bool:
    """Whether what is wrong with an interface follows from its PCI device, which is a finding already."""
    old, new = before["pci"].get(address), after["pci"].get(address)
    return old is not None and (new is None or new["id"] != old["id"] or new["driver"] != old["driver"])


def _disks(before: dict, after: dict) -> list[dict]:
    found = []
    for key, old in before.items():
        new = after.get(key)
        name = f"disk {', '.join(old['names'])} ({' '.join(filter(None, [old['model'], key]))})"
        if new is None:
            found.append(reason("disk-gone", f"{name} is gone", _AGAIN))
            continue
        if new["size"] != old["size"]:
            message = f"{name} has {new['size']} bytes now, {old['size']} before"
            found.append(reason("disk-size", message, "do not use it before you know why; compare with a reboot"))
        if new["read_only"] and not old["read_only"]:
            found.append(reason("disk-read-only", f"{name} is read-only now", _AGAIN))
        if len(new["names"]) < len(old["names"]):
            message = f"{name} has {len(new['names'])} paths now, {len(old['names'])} before"
            found.append(reason("disk-paths", message, f"look at the links of its adapters; {_AGAIN}"))
        if new["queues"] < old["queues"]:
            message = f"{name} has {new['queues']} queues now, {old['queues']} before"
            found.append(reason("queues-fewer", message, "'dmesg' on the host may say why; compare with a reboot"))
    return found


def _less(new: float | None, old: float | None) -> bool:
    """Whether a number is smaller than before. One that cannot be read any more is, one that could not be read before is not."""
    return old is not None and (new is None or new < old)


def _of(number: float | None, unit: str) -> str:
    return "unknown" if number is None else f"{number:g}{unit}"


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
