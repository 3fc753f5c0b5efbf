# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rehearsal of a libvirt domain: libvirt loads its saved state into a stand-in. PRIVATE to the collection.

The stand-in is a transient domain with the definition of the original, except for what must not exist twice. It has another name and UUID,
empty files of the same size as disks, network interfaces on no bridge, and no consoles. Its RAM is a private mapping of the original's RAM.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _files, _processes, _this_boot
from . import _batch, _definition, _guests, _keeper, _reasons, _save, _save_directory, _save_image, _stand_in, _virsh

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("end", "rehearse")

LOAD_LIMIT_S = _limits.REHEARSAL_LOAD
LOOK_LIMIT_S = _limits.REHEARSAL_LOOK
# QEMU's user can read this folder but not change it, unlike the folder "qemu" in it. virt-aa-helper allows files below it.
_FOLDERS = "/var/lib/libvirt"


def _name_of_stand_in(record: dict) -> str:
    """A name that no domain of the operator has: the domain with this name gets the original's RAM, and is destroyed at the end."""
    return f"kvm-liveupdate-rehearsal-{record['uuid']}"


def rehearse(record: dict) -> float:
    """Pause the domain and load its state into the stand-in; returns when it was paused. :func:`end` must follow, also after a failure."""
    name, other = record["name"], _name_of_stand_in(record)
    folder = os.path.join(_FOLDERS, other)
    xml, uuid = _virsh.domain_xml(record), _this_boot.random_uuid()
    try:
        _stand_in.stand_in(xml, other, uuid, folder)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name} cannot be rehearsed: {err}; {_stand_in.LEAVE_OUT}") from err
    disks = _definition.disk_targets(xml)
    _make_folder(folder)
    _make_disks(record, disks, folder)
    for path, copy in _stand_in.firmware(xml):
        _copy_opened(record, path, os.path.join(folder, copy))
    _give_memory(record, other)
    image = os.path.join(folder, "state")
    paused = _save.write_image(record, image, running=False)
    with open(_save_directory.open_existing(image, os.O_RDWR), "r+b") as file:
        saved = file.read()
        file.seek(0)
        file.write(_save_image.with_xml(saved[: _save_image.stream_start(saved)], lambda old: _stand_in.stand_in(old, other, uuid, folder)))
    try:
        _virsh.virsh("restore", image, "--paused", limit=LOAD_LIMIT_S)
        state = _virsh.virsh("domstate", other).strip()
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}{_stand_in.verdict(str(err))}") from err
    if state != "paused":
        raise LiveUpdateError(
            f"guest {name}: its saved state loads, but its stand-in is then {state}, not paused; see /var/log/libvirt/qemu/{other}.log, or"
            f" {_stand_in.LEAVE_OUT}"
        )
    return paused


def _make_folder(folder: str) -> None:
    """An empty folder that QEMU's user can enter. Only root can change it and the folder above."""
    above = os.path.dirname(folder)
    seen = os.lstat(above)
    if seen.st_uid != os.geteuid() or seen.st_mode & 0o022 or not stat.S_ISDIR(seen.st_mode):
        raise LiveUpdateError(
            f"no guest is rehearsed: {above} is a symbolic link, or not only root may write to it (user {seen.st_uid},"
            f" mode {stat.S_IMODE(seen.st_mode):o}); run chown root {above} && chmod go-w {above}"
        )
    shutil.rmtree(folder, ignore_errors=True)  # of a rehearsal that a power cut ended
    os.mkdir(folder)
    os.chmod(folder, 0o711)  # whatever the umask


def _create(record: dict, path: str) -> int:
    """The descriptor of a new file that QEMU's user owns, as libvirt would create it."""
    handle = _files.create(path)
    os.fchown(handle, record["uid"], record["gid"])
    return handle


def _copy_opened(record: dict, path: str, copy: str) -> None:
    """Copy the file that the domain's QEMU has open at ``path``; nothing if it does not exist or is not open.

    QEMU's user may put a link there. Through QEMU's own descriptor root reads only what QEMU can read.
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
            continue  # not open for reading; another descriptor of the same file may be
        finally:
            os.close(opened)


def _copy(opened: int, file: t.BinaryIO) -> None:
    """The whole file, without a change of the position at which QEMU reads."""
    at = 0
    while chunk := os.pread(opened, 1 << 20, at):
        file.write(chunk)
        at += len(chunk)


def _identity(seen: os.stat_result) -> tuple[int, int]:
    """A device is identified by its number, because libvirt makes separate device nodes for QEMU."""
    return (-1, seen.st_rdev) if stat.S_ISBLK(seen.st_mode) else (seen.st_dev, seen.st_ino)


def _make_disks(record: dict, disks: list[str], folder: str) -> None:
    """Empty files of the sizes of the domain's disks; none for a drive without a medium."""
    for disk, answer in zip(disks, _batch.ask([("domblkinfo", record["uuid"], disk) for disk in disks], LOOK_LIMIT_S)):
        facts = dict(line.split(":", 1) for line in answer.value().splitlines() if ":" in line)
        size = facts.get("Capacity", "-").strip()
        if size.isdigit():
            with open(_create(record, os.path.join(folder, disk)), "wb") as file:
                file.truncate(int(size))


def _give_memory(record: dict, other: str) -> None:
    """Tell libvirt's hook where the stand-in finds the RAM: at its name if it has one, else in a process that keeps it open."""
    paths = [backend["path"] for backend in record["backends"]]
    if all(os.path.isfile(path) and not os.path.islink(path) for path in paths):
        memory = paths
    else:
        _refuse_nameless(record)
        files = [_processes.take_fd(record["pid"], ram["fd"]) for ram in record["ram"]]
        keeper = _keeper.keep_open(record, files)
        memory = [f"/proc/{keeper}/fd/{fd}" for fd in files]
    _files.write_json(_files.run_path(other, "stand-in"), {**_save.ram_places(record), "memory": memory})


def _refuse_nameless(record: dict) -> None:
    """AppArmor checks the name of a file. Only memory that came over a jump needs no name, because it is on no mounted file system."""
    if not _reasons.is_apparmors(_guests.confinement(record["pid"])):
        return
    mounted = os.stat(_save.ram_places(record)["directory"]).st_dev
    if any(os.stat(f"/proc/{record['pid']}/fd/{ram['fd']}").st_dev == mounted for ram in record["ram"]):
        raise LiveUpdateError(
            f"guest {record['name']} cannot be rehearsed: its RAM file has no name since it was preserved for an update that was undone,"
            " and AppArmor forbids another QEMU to open such a file; restart the domain, or leave it out"
            " (hypervisor_update_rehearsal_guests)"
        )


def end(record: dict, running: bool) -> None:
    """Resume the domain, then remove the stand-in and its files, also if the domain has ended."""
    other = _name_of_stand_in(record)
    try:
        _save.resume(record, running)
    except LiveUpdateError as err:
        if not err.details.get("ended"):
            raise
    with contextlib.suppress(LiveUpdateError):  # the rehearsal failed before that
        _virsh.virsh("destroy", other)
    _files.remove(_files.run_path(other, "stand-in"))
    shutil.rmtree(os.path.join(_FOLDERS, other), ignore_errors=True)
