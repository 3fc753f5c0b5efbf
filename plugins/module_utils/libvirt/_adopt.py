# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Move a running domain onto RAM that can be preserved, without a restart of the guest. PRIVATE to the collection.

Libvirt saves the domain with all of its RAM and starts it again from that save. A save image begins with the domain's definition, followed
by free space, so that ``virsh managedsave-edit`` can change it. That command does not allow another source of the memory. But QEMU loads
the saved RAM into any kind of RAM. So this changes the definition in the file.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, told, typed
from . import _agent, _definition, _guests, _needs, _room, _save_directory, _save_image, _setup, _virsh

__all__ = ("adopt", "obstacles", "refuse")


def adopt(record: dict) -> dict:
    """Save the domain and start it on RAM in a shared file; returns the result for its clock (:mod:`_agent`).

    After any failure the domain is started again as it was.
    """
    refuse(record)
    name, uuid = record["name"], record["uuid"]
    limit = _room.limit_s(_size(record))
    was_running = _virsh.status(record) == "running"
    start = ("start", uuid, *(() if was_running else ("--paused",)))
    image = os.path.join(_virsh.SAVED, f"{name}.save")
    head, before = f"{image}.head", b""
    otherwise = f"if 'virsh domstate {uuid}' shows 'shut off', the domain is saved; run 'virsh start {uuid}' to continue it"
    try:
        _virsh.virsh("managedsave", uuid, limit=limit)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"domain {name}: {err}; {otherwise}") from err
    try:
        before = _read_head(image)
        _save_directory.put(head, before)  # a copy, in case the power fails while the image is changed
        _write_head(image, _save_image.with_xml(before, _definition.with_shared_file))
        _virsh.virsh(*start, limit=limit)
    except (LiveUpdateError, OSError) as err:
        try:
            if before:
                _write_head(image, before)
            _virsh.virsh(*start, limit=limit)
        except (LiveUpdateError, OSError) as worse:
            message = (
                f"domain {name}: {err}. It does not start on its old RAM either: {worse}; {otherwise}. If that fails and {head} exists,"
                f" run 'dd if={typed(head)} of={typed(image)} conv=notrunc', then start it again"
            )
            raise LiveUpdateError(message) from err
        _save_directory.remove(head)
        raise LiveUpdateError(f"domain {name} is not moved and continues on its old RAM: {err}") from err
    _save_directory.remove(head)
    told_clock = _agent.correct_clock(name) if was_running else {}
    _check_place(name)
    return told_clock


def _check_place(name: str) -> None:
    """Raise if libvirt's daemon put the RAM of the domain elsewhere: one that runs since before qemu.conf was written does."""
    now = next((record for record in _guests.known() if record["name"] == name), None)
    if not now:
        raise LiveUpdateError(f"domain {name} was started from its save, but its QEMU has ended; see /var/log/libvirt/qemu/{name}.log")
    wrong = [why for why in _guests.inspect(now) if why["code"].startswith("ram-")]
    if wrong:
        raise LiveUpdateError(f"domain {name} runs again, but its new RAM cannot be preserved: {'; '.join(map(told, wrong))}")


def refuse(record: dict) -> None:
    """Raise when the domain cannot be adopted."""
    problems = obstacles(_guests.inspect(record), _size(record), _room.free(_virsh.SAVED), _room.free(_setup.RAM_DIRECTORY))
    if _setup.lacks_mount():
        problems.append(f"no tmpfs is mounted on {_setup.RAM_DIRECTORY} - run the playbook kvm.liveupdate.setup")
    if problems:
        raise LiveUpdateError(f"domain {record['name']} is not moved to other RAM: {'; '.join(problems)}")


def _size(record: dict) -> int:
    return sum(backend["size"] for backend in record["backends"])


def obstacles(reasons: list[dict], size: int, on_disk: int, in_memory: int) -> list[str]:
    """Why RAM of ``size`` bytes cannot be saved with ``on_disk`` bytes free, and loaded with ``in_memory`` bytes free. Pure.

    Reasons against its present memory do not count, because they are what this fixes. Nor do reasons about the next boot.
    """
    against = [reason for reason in reasons if not reason["code"].startswith("ram-") and reason["code"] not in _needs.OF_A_BOOT]
    found = [told(reason) for reason in against]
    found += _room.shortage(size, on_disk, _virsh.SAVED)
    if in_memory < size:
        found.append(
            f"its RAM needs {size >> 20} MiB below {_setup.RAM_DIRECTORY}, where {in_memory >> 20} MiB are free - free space there"
        )
    return found


def _read_head(image: str) -> bytes:
    with open(_save_directory.open_existing(image, os.O_RDONLY), "rb") as file:
        header = file.read(_save_image.HEADER)
        return header + file.read(_save_image.stream_start(header) - len(header))


def _write_head(image: str, head: bytes) -> None:
    """Over the beginning of the image."""
    with open(_save_directory.open_existing(image, os.O_WRONLY), "wb") as file:
        file.write(head)
        file.flush()
        os.fsync(file.fileno())
