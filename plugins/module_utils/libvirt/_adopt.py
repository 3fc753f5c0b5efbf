# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing a running domain onto RAM that can be preserved, without a restart of the guest. PRIVATE to the collection.

It is saved as ever, with all of its RAM, and started again from that. Libvirt keeps the definition in front of the state and leaves room
there for another one (``virsh managedsave-edit``), but does not let the source of the memory be changed that way. QEMU does not mind:
what is loaded goes into whatever RAM there is. So the definition is changed in the file.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, told
from . import _agent, _definition, _guests, _needs, _room, _save_image, _saves, _setup, _virsh

__all__ = ("adopt", "obstacles", "refuse")


def adopt(record: dict) -> dict:
    """Save the domain and start it on RAM in a shared file; returns what became of its clock (:mod:`_agent`).

    Whatever fails, the domain is started again as it was.
    """
    refuse(record)
    name, uuid = record["name"], record["uuid"]
    limit = _room.limit_s(_size(record))
    was_running = _virsh.status(record) == "running"
    start = ("start", uuid, *(() if was_running else ("--paused",)))
    image = os.path.join(_virsh.SAVED, f"{name}.save")
    head, before = f"{image}.head", b""
    otherwise = f"if 'virsh domstate {name}' says shut off it is saved, and 'virsh start {name}' goes on with it"
    try:
        _virsh.virsh("managedsave", uuid, limit=limit)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"domain {name}: {err}; {otherwise}") from err
    try:
        before = _read_head(image)
        _saves.put(head, before)  # should the power fail while the image is written to
        _write_head(image, _save_image.with_xml(before, _definition.with_shared_file))
        _virsh.virsh(*start, limit=limit)
    except (LiveUpdateError, OSError) as err:
        try:
            if before:
                _write_head(image, before)
            _virsh.virsh(*start, limit=limit)
        except (LiveUpdateError, OSError) as worse:
            message = f"domain {name}: {err}; and as it was: {worse}; {otherwise}. {head}, if it is there, is how its image has to begin"
            raise LiveUpdateError(message) from err
        _saves.remove(head)
        raise LiveUpdateError(f"domain {name} runs on as it did: {err}") from err
    _saves.remove(head)
    return _agent.correct_clock(name) if was_running else {}


def refuse(record: dict) -> None:
    """Raise when the domain cannot be adopted."""
    problems = obstacles(_guests.inspect(record), _size(record), _room.free(_virsh.SAVED), _room.free(_setup.RAM_DIRECTORY))
    if problems:
        raise LiveUpdateError(f"domain {record['name']} is left as it runs: {'; '.join(problems)}")


def _size(record: dict) -> int:
    return sum(backend["size"] for backend in record["backends"])


def obstacles(reasons: list[dict], size: int, on_disk: int, in_memory: int) -> list[str]:
    """What keeps a domain's RAM of ``size`` bytes from being saved where ``on_disk`` is free, and loaded where ``in_memory`` is. Pure.

    Reasons against the memory that it has are what is to be mended, and what a boot would not bring is there in this one.
    """
    against = [reason for reason in reasons if not reason["code"].startswith("ram-") and reason["code"] not in _needs.OF_A_BOOT]
    found = [told(reason) for reason in against]
    found += _room.shortage(size, on_disk, _virsh.SAVED)
    if in_memory < size:
        found.append(f"its RAM needs {size >> 20} MiB below {_setup.RAM_DIRECTORY}, which has {in_memory >> 20} - make room there")
    return found


def _read_head(image: str) -> bytes:
    with open(_saves.open_existing(image, os.O_RDONLY), "rb") as file:
        header = file.read(_save_image.HEADER)
        return header + file.read(_save_image.stream_start(header) - len(header))


def _write_head(image: str, head: bytes) -> None:
    """Over the beginning of the image."""
    with open(_saves.open_existing(image, os.O_WRONLY), "wb") as file:
        file.write(head)
        file.flush()
        os.fsync(file.fileno())
