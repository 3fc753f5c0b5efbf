# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt's hook: give a domain its preserved RAM when libvirt starts it. It runs during the pause. PRIVATE to the collection."""

from __future__ import annotations

import os
import stat
import sys

from .._errors import LiveUpdateError, typed
from ..host import _files, _processes, _units

__all__ = ("hook",)


def hook(name: str) -> None:
    """Libvirt calls this before it starts a domain: give the domain its RAM, or raise. After an error libvirt does not start it."""
    stand_in = _files.read_json(_files.run_path(name, "stand-in"))
    state = _files.read_json(_files.state_path(name))
    if stand_in:
        _place(name, stand_in, stand_in["memory"])
    elif state:
        memory = _offered(name, state)
        _has_image(name, state)
        _place(name, state, memory)
        _files.write_json(_files.run_path(name, "placed"), {})  # the time of this file is when QEMU started


def _offered(name: str, state: dict) -> list[str]:
    """The location of the RAM that belongs to the saved state."""
    offered = _files.read_json(_files.run_path(name, "offer"))
    alive = offered and _processes.start_time(offered["pid"]) == offered["started"]
    if not alive or offered["hold"] != state["hold"] or os.path.exists(_files.run_path(name, "resumed")):
        raise LiveUpdateError(
            f"guest {name} is not started, because its preserved memory is not available now;"
            f" 'systemctl status {typed(_units.hold(name))}' shows why. To start it from its disks, run 'kvm-liveupdate discard"
            f" {typed(name)}' first, which discards its saved state"
        )
    if state.get("devices"):  # some appear only after the hold unit has looked
        from ..vmm import _block

        _block.verify_devices(name, state["devices"])
    if offered.get("disks"):
        from ..vmm import _disk_files

        _disk_files.verify(name, offered["disks"], tried=os.path.exists(_files.run_path(name, "placed")))
    return [f"/proc/{offered['pid']}/fd/{fd}" for fd in offered["fds"]]


def _has_image(name: str, state: dict) -> None:
    """Raise if the saved image was removed: libvirt would boot the domain from its disks in the memory of a guest that runs no more.

    Libvirt removes the image only at the end of a start from it (qemu_driver.c, qemuDomainObjStart), but at once for ``--force-boot``.
    """
    image = state.get("image")  # older states do not name it
    if image and not os.path.exists(image):
        raise LiveUpdateError(
            f"guest {name} is not started: its saved state {image} was removed, so only its preserved memory is left. To start it from its"
            f" disks, run 'kvm-liveupdate discard {typed(name)}' first"
        )


def _place(name: str, places: dict, memory: list[str]) -> None:
    """Put the RAM where the QEMU that libvirt starts now looks for it.

    QEMU's user owns the directories below memory_backing_dir. So this follows no link in them, and resolves no path twice.
    """
    directory = _ram_directory(name, places["directory"], sys.stdin.read())
    try:
        for file, there in zip(places["files"], memory):
            if there.startswith("/proc/"):
                os.symlink(there, file, dir_fd=directory)
            else:
                _link(name, there, file, directory)  # AppArmor checks the path, and this path belongs to the domain
    finally:
        os.close(directory)


def _link(name: str, there: str, file: str, directory: int) -> None:
    """Give the file at ``there`` another name. It must be the file that was checked, even if another process changes the path."""
    above = _open_directory(os.path.dirname(there))
    try:
        fd = os.open(os.path.basename(there), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LiveUpdateError(
                f"guest {name}: {there} is not a regular file, so it cannot be its RAM; check memory_backing_dir in qemu.conf"
            )
        os.link(f"/proc/self/fd/{fd}", file, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(fd)


def _open_directory(path: str) -> int:
    """The descriptor of a directory of domains' RAM. No link is followed below the one that qemu.conf names (memory_backing_dir), where
    libvirt makes ``libvirt/qemu/DOMAIN`` (qemu_conf.c, qemuGetMemoryBackingBasePath).
    """
    parts = path.split("/")
    depth = next((index for index in range(len(parts) - 1, 0, -1) if parts[index : index + 2] == ["libvirt", "qemu"]), len(parts))
    fd = os.open("/".join(parts[:depth]) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts[depth:]:
        above = fd
        try:
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return fd


def _ram_directory(name: str, base: str, xml: str) -> int:
    """The directory that libvirt has just made for the domain's RAM files, open: its number, a dash, and a form of its name."""
    # <domain type='kvm' id='7'>, as libvirt writes it; an XML parser takes longer to import than the rest of the hook runs.
    number = xml.partition("<domain")[2].partition(">")[0].partition(" id='")[2].partition("'")[0]
    above = _open_directory(base)
    try:
        found = [entry for entry in os.listdir(above) if number and entry.startswith(f"{number}-")]
        if len(found) != 1:
            raise LiveUpdateError(
                f"guest {name}: libvirt made no directory for its RAM below {base} (domain ID {number!r}, found {found}); check"
                " memory_backing_dir in qemu.conf"
            )
        return os.open(found[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
