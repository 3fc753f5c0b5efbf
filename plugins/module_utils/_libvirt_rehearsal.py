# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rehearsal of a libvirt domain: its saved state, loaded by libvirt into a stand-in. PRIVATE to the collection.

The stand-in is a transient domain with the definition of the original, but for what must not be there twice: name and UUID, disks (empty
files of the same size), networks (interfaces on no bridge), consoles. Its RAM is the original's, mapped privately.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat

from . import (
    _guests,
    _host,
    _libvirt,
    _libvirt_image,
    _libvirt_needs,
    _libvirt_reasons,
    _libvirt_run,
    _libvirt_saves,
    _libvirt_virsh,
    _limits,
    _paths,
    _processes,
)
from ._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t
    from xml.etree.ElementTree import Element

__all__ = ("end", "firmware", "rehearse", "stand_in", "verdict")

LOAD_LIMIT_S = _limits.REHEARSAL_LOAD
LOOK_LIMIT_S = _limits.REHEARSAL_LOOK
# QEMU's user may look into this folder, but not change it, as it may the one named qemu there; virt-aa-helper takes files below it.
_FOLDERS = "/var/lib/libvirt"
_LEAVE_OUT = "leave it out (hypervisor_update_rehearsal_guests)"
# QEMU's own words about a state that it cannot load (migration/savevm.c, migration/migration.c, migration/ram.c).
_DOES_NOT_LOAD = ("load of migration", "loading state", "savevm section", "Missing section", "Failed to load ", "Size mismatch")
# What is no device of the guest: its displays, and input devices of the host.
_LEFT_OUT = (("graphics", "dbus"), ("graphics", "desktop"), ("graphics", "rdp"), ("graphics", "sdl"), ("input", "evdev"))
# Options of QEMU's command line that name something of the host.
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
    *("nic", "parallel", "pflash", "pidfile", "qmp", "qmp-pretty", "s", "serial", "spice", "tpmdev", "virtfs", "vnc"),
)
_OF_A_NETWORK = (
    *("backend", "bandwidth", "coalesce", "downscript", "filterref", "ip", "port", "portForward", "route", "script", "source", "target"),
    *("virtualport", "vlan"),
)


def _name_of_stand_in(record: dict) -> str:
    """A name that no domain of the operator's has: whoever has it is given the original's RAM, and destroyed at the end."""
    return f"kvm-liveupdate-rehearsal-{record['uuid']}"


def rehearse(record: dict) -> float:
    """Pause the domain, load its state into the stand-in; returns when it was paused. :func:`end` has to follow, whatever happens."""
    name, other = record["name"], _name_of_stand_in(record)
    folder = os.path.join(_FOLDERS, other)
    xml, uuid = _libvirt.domain_xml(record), _host.random_uuid()
    try:
        stand_in(xml, other, uuid, folder)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name} cannot be rehearsed: {err}; {_LEAVE_OUT}") from err
    disks = _libvirt.disk_targets(xml)
    _make_folder(folder)
    _make_disks(record, disks, folder)
    for path, copy in firmware(xml):
        _copy_opened(record, path, os.path.join(folder, copy))
    _give_memory(record, other)
    image = os.path.join(folder, "state")
    paused = _libvirt.write_image(record, image, running=False)
    with open(_libvirt_saves.open_existing(image, os.O_RDWR), "r+b") as file:
        saved = file.read()
        file.seek(0)
        file.write(_libvirt_image.with_xml(saved[: _libvirt_image.stream_start(saved)], lambda old: stand_in(old, other, uuid, folder)))
    try:
        _libvirt.virsh("restore", image, "--paused", limit=LOAD_LIMIT_S)
        state = _libvirt.virsh("domstate", other).strip()
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}{verdict(str(err))}") from err
    if state != "paused":
        raise LiveUpdateError(f"guest {name}: what was saved of it loads, but its stand-in is {state} then, not paused")
    return paused


def _make_folder(folder: str) -> None:
    """An empty folder that QEMU's user may enter, and nobody but root may change: it and the one above."""
    above = os.path.dirname(folder)
    seen = os.lstat(above)
    if seen.st_uid != os.geteuid() or seen.st_mode & 0o022 or not stat.S_ISDIR(seen.st_mode):
        raise LiveUpdateError(
            f"no guest is rehearsed: {above} is a link, or somebody else than root may change it (user {seen.st_uid},"
            f" mode {stat.S_IMODE(seen.st_mode):o}); chown root {above} && chmod go-w {above}"
        )
    shutil.rmtree(folder, ignore_errors=True)  # of one that a power cut has ended
    os.mkdir(folder)
    os.chmod(folder, 0o711)  # whatever the umask


def _create(record: dict, path: str) -> int:
    """The descriptor of a new file that is QEMU's user's own, as libvirt would make it."""
    handle = _paths.create(path)
    os.fchown(handle, record["uid"], record["gid"])
    return handle


def _copy_opened(record: dict, path: str, copy: str) -> None:
    """Copy what the domain's QEMU has open at ``path``; nothing when that is not there, or not open.

    QEMU's user may put a link there. Through QEMU's own descriptor root reads nothing that QEMU could not.
    """
    try:
        wanted = _identity(os.stat(path))
    except FileNotFoundError:
        return
    for fd in sorted(_processes.fd_links(record["pid"])):
        try:
            found = _identity(os.stat(f"/proc/{record['pid']}/fd/{fd}"))
            opened = _processes.take_fd(record["pid"], fd) if found == wanted else None
        except (LiveUpdateError, OSError):
            continue  # closed meanwhile
        if opened is None:
            continue
        try:
            if _identity(os.fstat(opened)) == wanted:
                with open(_create(record, copy), "wb") as file:
                    _copy(opened, file)
                return
        except OSError:
            continue  # not open for reading: a number of it that is may follow
        finally:
            os.close(opened)


def _copy(opened: int, file: t.BinaryIO) -> None:
    """All of it, without a move of the place where QEMU reads."""
    at = 0
    while chunk := os.pread(opened, 1 << 20, at):
        file.write(chunk)
        at += len(chunk)


def _identity(seen: os.stat_result) -> tuple[int, int]:
    """A device is known by its number: libvirt makes QEMU nodes of its own for them."""
    return (-1, seen.st_rdev) if stat.S_ISBLK(seen.st_mode) else (seen.st_dev, seen.st_ino)


def _make_disks(record: dict, disks: list[str], folder: str) -> None:
    """Empty files of the sizes of the domain's disks; none for a drive without a medium."""
    for disk, answer in zip(disks, _libvirt_virsh.ask([("domblkinfo", record["uuid"], disk) for disk in disks], LOOK_LIMIT_S)):
        facts = dict(line.split(":", 1) for line in answer.value().splitlines() if ":" in line)
        size = facts.get("Capacity", "-").strip()
        if size.isdigit():
            with open(_create(record, os.path.join(folder, disk)), "wb") as file:
                file.truncate(int(size))


def _give_memory(record: dict, other: str) -> None:
    """Tell libvirt's hook where the stand-in finds the RAM: by its name where it has one, else in a process that keeps it open."""
    paths = [backend["path"] for backend in record["backends"]]
    if all(os.path.isfile(path) and not os.path.islink(path) for path in paths):
        memory = paths
    else:
        _refuse_nameless(record)
        files = [_processes.take_fd(record["pid"], ram["fd"]) for ram in record["ram"]]
        keeper = _libvirt_run.keep_open(record, files)
        memory = [f"/proc/{keeper}/fd/{fd}" for fd in files]
    _paths.write_json(_guests.run_path(other, "stand-in"), {**_libvirt.ram_places(record), "memory": memory})


def _refuse_nameless(record: dict) -> None:
    """AppArmor judges a file by its name. Only memory that came over a jump, and so lies on no file system that is mounted, needs none."""
    if not _libvirt_reasons.is_apparmors(_libvirt.confinement(record["pid"])):
        return
    mounted = os.stat(_libvirt.ram_places(record)["directory"]).st_dev
    if any(os.stat(f"/proc/{record['pid']}/fd/{ram['fd']}").st_dev == mounted for ram in record["ram"]):
        raise LiveUpdateError(
            f"guest {record['name']} cannot be rehearsed: its RAM has no name since it was held for an update that was undone, and AppArmor"
            " gives no other QEMU what has none; restart the domain once, or leave it out (hypervisor_update_rehearsal_guests)"
        )


def end(record: dict, running: bool) -> None:
    """Let the domain go on, then remove the stand-in and all that is its own."""
    other = _name_of_stand_in(record)
    _libvirt.resume(record, running)
    with contextlib.suppress(LiveUpdateError):  # it did not come that far
        _libvirt.virsh("destroy", other)
    _paths.remove(_guests.run_path(other, "stand-in"))
    shutil.rmtree(os.path.join(_FOLDERS, other), ignore_errors=True)


def verdict(said: str) -> str:
    """What libvirt's error about the start of a stand-in means for the guest. Pure."""
    if any(words in said for words in _DOES_NOT_LOAD):
        return f": what was saved of it does not load, nor would it after the jump: {said}"
    return f" cannot be rehearsed: its stand-in did not start, and whether its state loads is not known: {said}; {_LEAVE_OUT}"


def firmware(xml: str) -> list[tuple[str, str]]:
    """The files that firmware writes to, and how the copies of the stand-in are called. Pure."""
    from xml.etree import ElementTree

    return [(path, copy) for path, copy, _change in _firmware(ElementTree.fromstring(xml)) if path]


def _firmware(domain: Element) -> list[tuple[str, str, t.Callable[[str], None]]]:
    """The same, each with how to put another path in its place."""
    found: list[tuple[str, str, t.Callable[[str], None]]] = []
    for loader in domain.findall("os/loader[@type='pflash']"):
        if loader.get("readonly") != "yes":
            found.append(((loader.text or "").strip(), "loader", functools.partial(setattr, loader, "text")))
    for nvram in domain.findall("os/nvram"):
        source = nvram.find("source")
        path = (nvram.text or "").strip() if source is None else source.get("file") or source.get("dev") or ""
        if source is not None and not path:
            raise LiveUpdateError("its firmware keeps its variables at another host (<nvram> with a network source)")
        found.append((path, "nvram", functools.partial(_set_nvram, nvram)))
    for store in domain.findall("os/varstore"):
        found.append((store.get("path", ""), "varstore", functools.partial(store.set, "path")))
    return found


def _set_nvram(nvram: Element, path: str) -> None:
    """A copy of a qcow2 file is one too."""
    kept = nvram.get("format")
    nvram.clear()
    nvram.text = path
    if kept:
        nvram.set("format", kept)


def stand_in(xml: str, name: str, uuid: str, folder: str) -> str:
    """The definition of the stand-in, whose disks and other files are in ``folder``. Pure. Source: libvirt.org/formatdomain.html

    Raises for what cannot be there twice.
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
            found.set(key, "private")  # what is loaded must not get into the memory of the original
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
    """Raise for what a stand-in would share with the original."""
    from xml.etree import ElementTree

    if ElementTree.fromstring(xml).find("devices/tpm/backend[@type='external']") is not None:
        raise LiveUpdateError("its TPM is a process that libvirt does not start (<backend type='external'>)")
    if ElementTree.fromstring(xml).find("devices/disk[@device='lun']/target[@bus='virtio']") is not None:
        raise LiveUpdateError("a virtio disk passes SCSI commands on (device='lun'), which an empty file cannot")
    for word in _libvirt_needs.command_line(xml)[0]:
        if word.lstrip("-") in _OF_THE_HOST or "guest-cid" in word:
            raise LiveUpdateError(f"<qemu:commandline> has {word}, which cannot be there twice")


def _without(parent: Element, *tags: str) -> None:
    for child in [child for child in parent if child.tag in tags]:
        parent.remove(child)


# Open for direct access a file has demands on its file system.
_CACHES = {"none": "writeback", "directsync": "writethrough"}


def _disk(device: Element, folder: str) -> None:
    from xml.etree import ElementTree

    target = device.find("target")
    had_medium = device.find("source") is not None and target is not None
    _without(device, "source", "backingStore", "mirror", "auth", "encryption", "seclabel", "reservations", "transient")
    device.set("type", "file")
    if device.get("device") == "lun":
        device.set("device", "disk")  # only a device of the host can be one; what is saved of both is the same (hw/scsi/scsi-disk.c)
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
        device.set("type", "ethernet")  # a tap on no bridge: the same features, and nothing that the network sees


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
