# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definition of a domain's stand-in, which loads the domain's state and never runs. Pure. PRIVATE to the collection."""

from __future__ import annotations

import functools
import os

from .._errors import LiveUpdateError
from . import _needs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from xml.etree.ElementTree import Element

__all__ = ("LEAVE_OUT", "firmware", "stand_in", "verdict")

LEAVE_OUT = "leave it out (hypervisor_update_rehearsal_guests)"
# What QEMU prints about a state that it cannot load (migration/savevm.c, migration/migration.c, migration/ram.c).
_DOES_NOT_LOAD = ("load of migration", "loading state", "savevm section", "Missing section", "Failed to load ", "Size mismatch")
# Elements that are not devices of the guest: displays, and input devices of the host.
_LEFT_OUT = (("graphics", "dbus"), ("graphics", "desktop"), ("graphics", "rdp"), ("graphics", "sdl"), ("input", "evdev"))
# Options of QEMU's command line that use something of the host.
_OF_THE_HOST = (
    *(
        "D",
        "blockdev",
        "cdrom",
        "chardev",
        "drive",
        "fsdev",
        "gdb",
        "hda",
        "hdb",
        "hdc",
        "hdd",
        "incoming",
        "mon",
        "monitor",
        "net",
        "netdev",
    ),
    *("nic", "parallel", "pflash", "pidfile", "qmp", "qmp-pretty", "realtime", "s", "serial", "spice", "tpmdev", "virtfs", "vnc"),
)
_OF_A_NETWORK = (
    *("backend", "bandwidth", "coalesce", "downscript", "filterref", "ip", "port", "portForward", "route", "script", "source", "target"),
    *("virtualport", "vlan"),
)


def verdict(said: str) -> str:
    """What libvirt's error about the start of a stand-in means for the guest. Pure."""
    if any(words in said for words in _DOES_NOT_LOAD):
        return f": its saved state does not load, so it would not load after the jump either: {said}"
    return f" cannot be rehearsed: its stand-in did not start, so it is unknown whether its state loads: {said}; {LEAVE_OUT}"


def firmware(xml: str) -> list[tuple[str, str]]:
    """The files that the firmware writes to, and the names of the stand-in's copies. Pure."""
    from xml.etree import ElementTree

    return [(path, copy) for path, copy, _change in _firmware(ElementTree.fromstring(xml)) if path]


def _firmware(domain: Element) -> list[tuple[str, str, t.Callable[[str], None]]]:
    """The same files, each with a function that sets another path."""
    found: list[tuple[str, str, t.Callable[[str], None]]] = []
    for loader in domain.findall("os/loader[@type='pflash']"):
        if loader.get("readonly") != "yes":
            found.append(((loader.text or "").strip(), "loader", functools.partial(setattr, loader, "text")))
    for nvram in domain.findall("os/nvram"):
        source = nvram.find("source")
        path = (nvram.text or "").strip() if source is None else source.get("file") or source.get("dev") or ""
        if source is not None and not path:
            raise LiveUpdateError("its firmware variables are on another host (<nvram> with a network source)")
        found.append((path, "nvram", functools.partial(_set_nvram, nvram)))
    for store in domain.findall("os/varstore"):
        found.append((store.get("path", ""), "varstore", functools.partial(store.set, "path")))
    return found


def _set_nvram(nvram: Element, path: str) -> None:
    """A copy of a qcow2 file is also a qcow2 file."""
    kept = nvram.get("format")
    nvram.clear()
    nvram.text = path
    if kept:
        nvram.set("format", kept)


def stand_in(xml: str, name: str, uuid: str, folder: str) -> str:
    """The definition of the stand-in, whose disks and other files are in ``folder``. Pure. Source: libvirt.org/formatdomain.html

    Raises for what cannot exist twice.
    """
    from xml.etree import ElementTree

    domain = ElementTree.fromstring(xml)
    _refuse(xml)
    domain.attrib.pop("id", None)
    for path, value in (("name", name), ("uuid", uuid), ("sysinfo/system/entry[@name='uuid']", uuid)):
        found = domain.find(path)
        if found is not None:
            found.text = value
    _without(domain, "metadata", "seclabel")
    for path, key in (("memoryBacking/access", "mode"), ("cpu/numa/cell[@memAccess]", "memAccess")):
        for found in domain.findall(path):
            found.set(key, "private")  # the load must not change the memory of the original
    for backing in domain.findall("memoryBacking"):
        _without(backing, "allocation", "locked")  # each would allocate all memory a second time
    for path, copy, change in _firmware(domain):
        if path:
            change(os.path.join(folder, copy))
    for parent in domain.findall("devices"):
        for device in list(parent):
            if (device.tag, device.get("type")) in _LEFT_OUT:
                parent.remove(device)
            else:
                _DEVICES.get(device.tag, lambda _device, _folder: None)(device, folder)
    return ElementTree.tostring(domain, encoding="unicode")


def _refuse(xml: str) -> None:
    """Raise for anything that a stand-in would share with the original."""
    from xml.etree import ElementTree

    if ElementTree.fromstring(xml).find("devices/tpm/backend[@type='external']") is not None:
        raise LiveUpdateError("another program runs its TPM (<backend type='external'>)")
    if ElementTree.fromstring(xml).find("devices/disk[@device='lun']/target[@bus='virtio']") is not None:
        raise LiveUpdateError("a virtio disk passes SCSI commands through (device='lun'), which a file cannot replace")
    for word in _needs.command_line(xml)[0]:
        if word.lstrip("-") in _OF_THE_HOST or "guest-cid" in word or "mem-lock" in word:
            raise LiveUpdateError(f"<qemu:commandline> has {word}, which cannot be used twice at the same time")


def _without(parent: Element, *tags: str) -> None:
    for child in [child for child in parent if child.tag in tags]:
        parent.remove(child)


# Not every file system supports direct access.
_CACHES = {"none": "writeback", "directsync": "writethrough"}


def _disk(device: Element, folder: str) -> None:
    from xml.etree import ElementTree

    target = device.find("target")
    had_medium = device.find("source") is not None and target is not None
    _without(device, "source", "backingStore", "mirror", "auth", "encryption", "seclabel", "reservations", "transient")
    device.set("type", "file")
    if device.get("device") == "lun":
        device.set("device", "disk")  # only a device of the host can be a lun; the saved state of both is the same (hw/scsi/scsi-disk.c)
    for key in ("rawio", "sgio"):
        device.attrib.pop(key, None)
    driver = device.find("driver")
    if driver is not None:
        driver.set("type", "raw")
        driver.set("cache", _CACHES.get(driver.get("cache", ""), driver.get("cache", "default")))
        for key in ("io", "discard", "detect_zeroes", "discard_no_unref", "copy_on_read"):
            driver.attrib.pop(key, None)
        _without(driver, "metadata_cache")
    if had_medium and target is not None:
        device.insert(0, ElementTree.Element("source", file=os.path.join(folder, target.get("dev", ""))))


def _interface(device: Element, _folder_: str) -> None:
    _without(device, *_OF_A_NETWORK)
    if device.get("type") != "user":
        device.set("type", "ethernet")  # a tap on no bridge: it has the same features and no connection


def _character(device: Element, _folder_: str) -> None:
    if device.get("mode") in ("host", "host-certificates"):
        return  # a smart card of the host has no character device
    device.set("type", "null")
    device.attrib.pop("tty", None)
    _without(device, "source", "protocol", "log")


def _graphics(device: Element, _folder_: str) -> None:
    kind = device.get("type", "")
    if kind in ("vnc", "spice"):
        device.clear()
        device.attrib.update(type=kind, autoport="yes")


def _rng(device: Element, _folder_: str) -> None:
    for backend in device.findall("backend"):
        backend.clear()
        backend.set("model", "random")
        backend.text = "/dev/urandom"


def _audio(device: Element, _folder_: str) -> None:
    number = device.get("id", "1")
    device.clear()
    device.attrib.update(id=number, type="none")


def _tpm(device: Element, _folder_: str) -> None:
    for backend in device.findall("backend"):
        backend.attrib.pop("persistent_state", None)
        _without(backend, "source")


def _vsock(device: Element, _folder_: str) -> None:
    for cid in device.findall("cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")


_DEVICES = {
    "disk": _disk,
    "interface": _interface,
    "serial": _character,
    "parallel": _character,
    "console": _character,
    "channel": _character,
    "redirdev": _character,
    "smartcard": _character,
    "audio": _audio,
    "graphics": _graphics,
    "rng": _rng,
    "tpm": _tpm,
    "vsock": _vsock,
}
