# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the present disks and devices of a domain's QEMU differ from what libvirt knows about them. PRIVATE to the collection.

Libvirt does not notice what goes past it (``virsh qemu-monitor-command``). After a jump it starts QEMU from its live XML, which the save
image contains. A disk that is another one then is read and written below the memory of a running guest.

What libvirt itself does is in the live XML: devices that it plugged in or out, media, snapshots, block jobs. If a device goes past
libvirt, libvirt takes it out of the XML, so one that is plugged in again is not in it. A network card cannot get another backend without
getting another device, so its backend is not looked at.

Source: libvirt's qemu_alias.c and qemu_block.c (names of devices and block nodes), QEMU's qapi/block-core.json and qapi/qom.json.
"""

from __future__ import annotations

import os

from .._errors import reason
from ..vmm import _changes, _options
from . import _needs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from xml.etree.ElementTree import Element

    from ..vmm._options import Option

__all__ = ("QUESTIONS", "reasons", "unlisted")

# The keys in ``seen`` of a survey that this needs.
QUESTIONS = ("xml", "blocks", "devices", "nameless")
# Keys of a device that is the front of something. Libvirt always has such a device in its XML, and names it there (<alias>).
_BACKENDS = ("chardev", "cryptodev", "drive", "fsdev", "host", "memdev", "netdev", "rng", "sysfsdev", "tpmdev")
_DESCRIPTORS = "/dev/fdset/"
_BY_MONITOR = "undo the change with 'virsh qemu-monitor-command {}'"
_DISK_REMEDY = (
    f"{_BY_MONITOR} (block-commit merges a live snapshot; blockdev-change-medium changes the medium back); or write its present disks into"
    " its definition (virsh edit {}), shut it down and start it"
)
_UNPLUG = "remove each added device ('virsh qemu-monitor-command {uuid} --hmp device_del ID')"
_RESTART = "shut the guest down and start it (to keep the change, write it into its definition before: virsh edit {uuid})"


def reasons(seen: dict, argv: list[str], volumes: list[dict], uuid: str, plugged: t.Collection[str] = ()) -> list[dict]:
    """Reasons why libvirt would not start the domain again as it is now. Pure.

    ``seen`` has the answers to QUESTIONS. ``argv`` is QEMU's command line, which libvirt made. ``volumes`` are the files of disks that are
    volumes of pools. ``plugged`` are those of :func:`unlisted` that were not there at the start of QEMU.
    """
    from xml.etree import ElementTree  # slow to import

    domain = ElementTree.fromstring(seen["xml"])
    started = _options.read(argv, opens=False)[0]
    past = _options.read(["qemu", *_needs.command_line(seen["xml"])[0]])[0]
    found = []
    disks = _disks(domain, seen["blocks"], started, past, volumes)
    if disks:
        message = f"its disks differ from its XML: {'; '.join(disks)}"
        found.append(reason("disk-changed", message, _DISK_REMEDY.format(uuid, uuid)))
    added, gone = _devices(domain, seen, started, past, plugged)
    if added or gone:
        told = (("added without libvirt", added), ("removed", gone))
        words = [f"{what}: {', '.join(which)}" for what, which in told if which]
        message = f"its devices differ from its XML; {'; '.join(words)}"
        remedy = _RESTART if gone else f"{_UNPLUG}, or {_RESTART}"
        found.append(reason("device-changed", message, remedy.format(uuid=uuid)))
    if domain.find("devices/disk/driver[@cache='unsafe']") is None:  # else that is a reason already
        found += _changes.unsafe(seen["blocks"])
    return found


def unlisted(seen: dict, argv: list[str]) -> list[str]:
    """The names of the devices that QEMU has, that are on its command line, and that are not in the XML. Pure.

    Libvirt made them for something else in the XML (a sound card's codec, VMGenID), or they are in <qemu:commandline>. Or somebody has
    unplugged the device and plugged it in again without libvirt. QEMU tells these apart: then it was not there at the start.
    """
    from xml.etree import ElementTree  # slow to import

    listed = {alias.get("name", "") for alias in ElementTree.fromstring(seen["xml"]).findall("devices//alias")}
    started = {option.get("id") for option in _options.read(argv, opens=False)[0] if option.name == "device"}
    return [name for name, _kind in _changes.children(seen["devices"]) if name in started - listed]


def _disks(domain: Element, blocks: list[dict], started: list[Option], past: list[Option], volumes: list[dict]) -> list[str]:
    """What is not as in the XML, in words. A block device that is no disk of the XML is firmware, or in <qemu:commandline>."""
    by_alias = {_alias(disk): disk for disk in domain.findall("devices/disk") if _alias(disk)}
    found, others = [], []
    for block in blocks:
        owners = (block.get("qdev", "").split("/"), [block.get("device", "").partition("drive-")[2]])
        disk = next((by_alias[part] for parts in owners for part in parts if part in by_alias), None)
        if disk is not None:
            found += _disk(disk, block, volumes)
        elif block.get("inserted"):
            others.append(block["inserted"]["file"])
    images = _changes.images(started)
    found += [f"it also has {file}" for file in others if not any(_changes.is_image(file, image) for image in images)]
    found += [
        f"it no longer has {image[2]}" for image in _changes.images(past) if not any(_changes.is_image(file, image) for file in others)
    ]
    return found


def _alias(device: Element) -> str:
    """The name of the device in QEMU."""
    alias = device.find("alias")
    return "" if alias is None else alias.get("name", "")


def _disk(disk: Element, block: dict, volumes: list[dict]) -> list[str]:
    target, source = disk.find("target"), disk.find("source")
    name, is_open = ("", False) if target is None else (target.get("dev", ""), target.get("tray") == "open")
    named = [_needs.path_of(element) for element in disk.iter("source") if element not in list(disk.iterfind("mirror//source"))]
    in_pools = [volume["path"] for volume in volumes if volume["what"] == f"disk {name}"]
    wanted = [os.path.normpath(path) for path in (*named, *in_pools) if path]
    has_medium = source is not None and bool(set(source.keys()) - {"index", "startupPolicy"})
    inserted = block.get("inserted")
    if not inserted:
        return [f"{name} is empty instead of {', '.join(wanted) or 'its medium'}"] if has_medium and not is_open else []
    if source is None or not has_medium:
        return [f"{name} has {inserted['file']} instead of nothing"]
    chain = [path for image in _chain(inserted["image"]) for path in _local(image)]
    there = [os.path.normpath(path) for path in (*_local(inserted["file"]), *chain)]
    if source.get("fdgroup") or not (there and wanted):
        # Not files of this host. Libvirt names the block nodes that it makes, from the index in the XML. An old one writes no index.
        same = inserted.get("node-name", "").startswith("libvirt-") or not (source.get("index") or wanted)
    else:
        tops = [path for path in (_needs.path_of(source), *in_pools) if path]
        same = set(there) <= set(wanted) and (not tops or there[0] in map(os.path.normpath, tops))
    return [] if same else [f"{name} has {', '.join(dict.fromkeys(there)) or inserted['file']} instead of {', '.join(wanted) or 'its own'}"]


def _chain(image: dict) -> list[str]:
    """The names of an image and of those below it."""
    return [image["filename"], *(_chain(image["backing-image"]) if "backing-image" in image else [])]


def _local(name: str) -> list[str]:
    """The files of this host in QEMU's name of an image: first that of the image itself, then those below it."""
    if not name.startswith("json:"):
        return [name] if name.startswith("/") and not name.startswith(_DESCRIPTORS) else []
    try:
        keys = _options.keys_of("blockdev", name[len("json:") :])
    except ValueError:
        return []
    paths = [(key.split("."), path) for key, value in keys.items() for path in _local_path(key, value)]
    return [path for _key, path in sorted(paths, key=lambda found: not set(found[0][:-1]) <= {"file"})]


def _local_path(key: str, value: str) -> list[str]:
    """A path in QEMU's name of an image. An external data file is named by the image; before version 10.10 libvirt does not know it."""
    parts = key.split(".")
    is_path = parts[-1] in ("dir", "filename") and value.startswith("/") and not value.startswith(_DESCRIPTORS)
    return [value] if is_path and "data-file" not in parts else []


def _devices(
    domain: Element, seen: dict, started: list[Option], past: list[Option], plugged: t.Collection[str]
) -> tuple[list[str], list[str]]:
    """What was added and what was removed, in words.

    Beside the devices in the XML, libvirt makes some that only have a name on QEMU's command line, or none at all (a sound card's codec,
    VMGenID, vmcoreinfo).
    """
    now, nameless = dict(_changes.children(seen["devices"])), _changes.children(seen["nameless"])
    made = {option.get("id"): option for option in started if option.name == "device" and option.get("id")}
    known = {alias.get("name", "") for alias in domain.findall("devices//alias")}
    known |= {option.get("id") for option in past if option.name == "device"}
    known |= {f"vcpu{cpu.get('id')}" for cpu in domain.findall("vcpus/vcpu[@enabled='yes']")}
    known |= {
        name
        for name, option in made.items()
        if not any(option.get(key) for key in _BACKENDS) and _changes.is_type(now.get(name, ""), option.get("driver"))
    }
    known -= set(plugged)
    added = [f"{name} ({kind})" for name, kind in now.items() if name not in known]
    without = [option.get("driver") for option in started if option.name == "device" and not option.get("id")]
    without += ["virtio-blk" for option in past if option.name == "drive" and option.get("if") in ("", "virtio")]
    for _name, kind in nameless:
        match = next((driver for driver in without if _changes.is_type(kind, driver)), None)
        if match is None:
            added.append(kind)
        else:
            without.remove(match)
    gone = [
        f"{name} (<{device.tag}>)"
        for device in domain.findall("devices/*")
        for name in [_alias(device)]
        if name and name not in now and (name in made or _is_always_a_device(device))
    ]
    return added, gone


def _is_always_a_device(device: Element) -> bool:
    """Whether QEMU has this element as a device with its name, on every machine."""
    target, model = device.find("target"), device.find("model")
    if device.tag == "disk":
        return target is not None and target.get("bus") in ("sata", "scsi", "usb", "virtio")
    return device.tag == "interface" and model is not None and model.get("type", "").startswith("virtio")
