# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pause a domain and save it without its RAM, and undo that. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import json
import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..host import _files, _processes
from ..vmm import _disk_files
from . import _batch, _definition, _guests, _ram, _save_directory, _save_image, _virsh

__all__ = ("discard", "ignore_shared", "ram_places", "resume", "save", "still_saved", "write_image")

SAVES_SLOWLY = True  # several calls of virsh
SAVE_LIMIT_S = _limits.LIBVIRT_SAVE
UNDO_LIMIT_S = _limits.UNDO
UNDO_ANSWER_S = _limits.UNDO_ANSWER
_CAPABILITIES = {"execute": "query-migrate-capabilities"}
_LAST_ANSWER_S = _limits.UNDO_LAST_ANSWER


def save(record: dict, path: str, running: bool) -> dict:
    """Save the domain without its RAM, as a managed save. It writes ``path`` first: then libvirt's hook requires the RAM at a start."""
    name, image = record["name"], _virsh.image_path(record["name"])
    devices = record.get("devices", {})  # what inspect saw, before any guest was paused
    hold = _files.read_json(_files.run_path(name, "held"))["hold"]
    try:
        _files.remove(_files.run_path(name, "resumed"))  # of an update before this one that was undone
        _files.write_json(path, {"hold": hold, "devices": devices, "image": image, **ram_places(record)})
        paused = write_image(record, image, running)
        digest = _files.digest(image)  # a restore accepts only this image
        disks = _disk_files.sized(record.get("disks", {}))
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {name} cannot be saved: {err}") from err
    kept = {key: record[key] for key in ("provider", "uid", "gid", "backends")}
    found = {"digest": digest, "devices": devices, "disks": disks}
    return {"times": {"paused": paused, "saved": time.time()}, "image": image, **found, **kept}


def still_saved(records: list[dict]) -> list[str]:
    """Sentences about the domains that are not as their save left them. One virsh process asks about all of them.

    After a save QEMU is in ``postmigrate``, also if it was paused before. A QEMU that ran since and was paused again is in ``paused``
    (migration/migration.c, migration_iteration_finish; system/cpus.c, do_vm_stop). Its old state would be loaded onto newer RAM.
    """
    questions = [("qemu-monitor-command", record["uuid"], json.dumps({"execute": "query-status"})) for record in records]
    listed, *answers = _batch.ask([("list", "--state-paused", "--uuid"), *questions], _limits.COMMAND)
    paused = listed.value().split()
    found = []
    for record, answer in zip(records, answers):
        state = _run_state(answer)
        if record["uuid"] not in paused or state != "postmigrate":
            found.append(
                f"guest {record['name']} was saved, but another program has resumed it since (QEMU: {state}). Stop programs that manage"
                " this guest, and run the update again"
            )
    return found


def _run_state(answer: _batch.Answer) -> str:
    """The run state that QEMU reports through virsh, or why it reports none."""
    try:
        said = json.loads(answer.value())
        return str(said["return"]["status"] if "return" in said else said["error"]["desc"])
    except (LiveUpdateError, KeyError, TypeError, ValueError) as err:
        return f"no answer: {err}"


def ram_places(record: dict) -> dict:
    """Where a QEMU of the domain looks for its RAM: its ``files`` in its own directory below ``directory``.

    Any other place is an error: root makes files there, and a compromised QEMU can change its own command line.
    """
    for backend in record["backends"]:
        if not _ram.is_in_place(backend["path"], _ram.directory()):
            raise LiveUpdateError(
                f"its RAM file {backend['path']} is not below {_ram.directory()} (memory_backing_dir in qemu.conf); restart the domain"
            )
    places = [os.path.split(backend["path"]) for backend in record["backends"]]
    return {"directory": os.path.dirname(places[0][0]), "files": [file for _directory, file in places]}


def ignore_shared(uuid: str, state: bool) -> tuple[str, ...]:
    """The virsh command that lets the domain's QEMU leave its RAM out of its saves, or not. Pure.

    If this stays on, a later save or migration does not contain the RAM.
    """
    capabilities = [{"capability": "x-ignore-shared", "state": state}]
    request = {"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}}
    return ("qemu-monitor-command", uuid, json.dumps(request))


def taken(said: str) -> None:
    """Raise when that is an error as QEMU answers through virsh."""
    answer = json.loads(said)
    if "error" in answer:
        raise LiveUpdateError(f"QEMU: migrate-set-capabilities: {answer['error'].get('desc', answer['error'])}")


def write_image(record: dict, image: str, running: bool) -> float:
    """Suspend the domain and let libvirt write its save image, durably, so that an ordinary start loads it; returns when it was paused.

    The image is the memory part of an external snapshot. A managed save writes the same, but also ends QEMU. That takes most of the time
    of a managed save, and an undo would then need a start.

    This uses two virsh processes, and only the second one pauses the guest. If the domain is not suspended, libvirt resumes it after the
    snapshot, which is an error here.

    Libvirt follows links, and QEMU's user can create links in the folder of managed saves. So libvirt writes into a folder of root.
    """
    uuid, written = record["uuid"], os.path.join(_files.GUESTS_STATE, f"{record['name']}.image")
    _files.make_directory(_files.GUESTS_STATE)
    shown, answer = _batch.ask([("dumpxml", uuid), ignore_shared(uuid, True)], SAVE_LIMIT_S)
    disks = _definition.disk_targets(shown.value())
    taken(answer.value())
    place = written.replace(",", ",,")  # virsh(1), memspec
    untouched = [word for disk in disks for word in ("--diskspec", f"{disk},snapshot=no")]
    words = ("--no-metadata", "--memspec", f"{place},snapshot=external", *untouched)
    try:
        begin, suspended, saved = _batch.ask(
            [("echo",), ("suspend", uuid), ("snapshot-create-as", uuid, "kvm-liveupdate", *words)], SAVE_LIMIT_S
        )
        try:
            suspended.value()
            saved.value()
        except LiveUpdateError:
            with contextlib.suppress(LiveUpdateError):  # as a rule there is no job any more
                _virsh.virsh("domjobabort", uuid)
            raise
        with open(written, "rb") as file:
            loadable = _save_image.loadable(file.read(), running)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(written)
    _save_directory.put(image, loadable)
    return begin.ended


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the domain runs, or stays paused, in the QEMU from which it was saved.

    If this gives up, the domain stays paused. So each step is repeated for UNDO_LIMIT_S: a cancelled job may need a moment to end, and QEMU
    refuses other commands until then; the daemon may be busy or restart. What counts is what libvirt and QEMU report in the end, not what
    a command returned: a daemon that hung may carry out the last request of the save after ours. An error has the detail ``ended`` if QEMU
    has ended: then nothing can be resumed. It has ``image_stays`` if the saved image or the state cannot be removed: then the state stays.
    Otherwise the state is removed too, whatever becomes of the domain.
    """
    name, uuid, image = record["name"], record["uuid"], _virsh.image_path(record["name"])
    until = time.monotonic() + UNDO_LIMIT_S
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = _undo_step(problems, until, "domstate", uuid)
        if state not in (None, "running"):  # a save may have failed before that
            _undo_step([], until, "domjobabort", uuid)  # of a save that was interrupted; usually there is none
        if not whole:
            whole = _is_taken(problems, _undo_step(problems, until, *ignore_shared(uuid, False)))
        if running and state != "running":
            _undo_step(problems, until, "resume", uuid)
            state = _undo_step(problems, until, "domstate", uuid)
        done = whole and (not running or state not in (None, "paused"))
        if done:  # as it seems: ask once more
            whole = _is_off(problems, _undo_step(problems, until, "qemu-monitor-command", uuid, json.dumps(_CAPABILITIES)))
            state = _undo_step(problems, until, "domstate", uuid)
            done = whole and (not running or state not in (None, "paused"))
        if done or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    image_stays = _image_stays(name, image)
    details = {"image_stays": True} if image_stays else {}
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        ended = f"its QEMU, process {record['pid']}, has ended"
        raise LiveUpdateError("; ".join((ended, *image_stays)), ended=True, **details)
    left = [] if whole else [_guests.ignore_shared_stays(record)]
    if running and state != "running":
        left.insert(0, f"the domain is still {state or 'in an unknown state'} after {UNDO_LIMIT_S:g} s")
    if left or image_stays:
        raise LiveUpdateError("; ".join((*([f"{'; '.join(left)}: {why}"] if left else ()), *image_stays)), **details)


def _image_stays(name: str, image: str) -> list[str]:
    """Remove the image of an undone save, and then the guest's state; returns what to tell if the image stays. It lacks the RAM.

    As long as the state is there, libvirt's hook refuses to start the domain from the image. Without the image it would only refuse to
    start the domain from a later save of its owner's.
    """
    state = _files.state_path(name)
    if not os.path.exists(state):
        return []  # another program saved it
    stays = f"the saved image {image}, which lacks the RAM, cannot be removed"
    try:
        with contextlib.suppress(IsADirectoryError):  # QEMU's user may make one, and libvirt cannot start a domain from it
            _save_directory.remove(image)
        stays = f"the saved state {state} cannot be removed, so libvirt's hook refuses to start the guest"
        _files.remove(state)
    except OSError as err:
        return [f"guest {name}: {stays} ({err}); correct this, then run 'kvm-liveupdate discard {typed(name)}'"]
    return []


def _undo_step(problems: list[str], until: float, *words: str) -> str | None:
    """What virsh prints for these words; None after a failure, which is added to ``problems``."""
    try:
        return _virsh.virsh(*words, limit=min(UNDO_ANSWER_S, max(until - time.monotonic(), _LAST_ANSWER_S))).strip()
    except LiveUpdateError as err:
        problems.append(str(err))
        return None


def _is_taken(problems: list[str], said: str | None) -> bool:
    """Whether QEMU carried out the command (:func:`taken`). A failure is added to ``problems``."""
    try:
        if said is not None:
            taken(said)
    except (LiveUpdateError, ValueError) as err:
        problems.append(str(err))
        return False
    return said is not None


def _is_off(problems: list[str], said: str | None) -> bool:
    """Whether QEMU's saves have the RAM, by its answer to _CAPABILITIES. If not, or if it is unknown, ``problems`` gets the reason."""
    from ..vmm import _changes  # a restore does not need it

    try:
        capabilities = json.loads(said or "null")["return"]
    except (KeyError, TypeError, ValueError):
        problems.append(f"QEMU: query-migrate-capabilities: {said or 'no answer'}")
        return False
    if _changes.ignores_shared(capabilities):
        problems.append("QEMU: query-migrate-capabilities: x-ignore-shared is on")
        return False
    return True


def discard(name: str) -> None:
    """Remove the image that :func:`save` wrote. It lacks the RAM, so no start may use it."""
    if _belongs_to_a_unit(_files.state_path(name)):
        return
    uuid = _virsh.uuid_of(name) if _virsh.is_defined(name) else ""
    if uuid:
        with contextlib.suppress(LiveUpdateError):  # libvirt may know of no image, or of one that is gone
            _virsh.virsh("managedsave-remove", uuid)
    _save_directory.discard(name, _virsh.image_path(name))
    state = _virsh.virsh("domstate", uuid).strip() if uuid else ""
    if state in ("paused", "in shutdown"):  # it may have opened the image, and only the guest's state keeps it from running
        raise LiveUpdateError(
            f"guest {name} is {state}, so another program may be starting it; wait for the end of this start, then run 'kvm-liveupdate"
            f" discard {typed(name)}' again"
        )


def _belongs_to_a_unit(state: str) -> bool:
    """Whether the state is QEMU's own, so that a domain with this name is another guest. That of a domain is JSON."""
    try:
        with open(state, "rb") as file:
            return file.read(1) != b"{"
    except FileNotFoundError:
        return False
