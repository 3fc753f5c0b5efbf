# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pausing a domain and saving it without its RAM, and the undo. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import json
import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _files, _processes
from . import _batch, _definition, _guests, _ram, _save_image, _saves, _virsh

__all__ = ("discard", "ignore_shared", "ram_places", "resume", "save", "still_saved", "write_image")

SAVES_SLOWLY = True  # several calls of virsh
SAVE_LIMIT_S = _limits.LIBVIRT_SAVE
UNDO_LIMIT_S = _limits.UNDO
UNDO_ANSWER_S = _limits.UNDO_ANSWER
_LAST_ANSWER_S = 10.0  # of a question that is asked right before the end of UNDO_LIMIT_S


def save(record: dict, path: str, running: bool) -> dict:
    """Save the domain without its RAM, as a managed save. ``path`` says so first: libvirt's hook then wants the RAM at its next start."""
    name, image = record["name"], _virsh.image_path(record["name"])
    devices = record.get("devices", {})  # what inspect saw, before any guest was paused
    hold = _files.read_json(_files.run_path(name, "held"))["hold"]
    try:
        _files.remove(_files.run_path(name, "resumed"))  # of an update before this one that was undone
        _files.write_json(path, {"hold": hold, "devices": devices, **ram_places(record)})
        paused = write_image(record, image, running)
        digest = _files.digest(image)  # only this one is started from
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {name}: save: {err}") from err
    kept = {key: record[key] for key in ("provider", "uid", "gid", "backends")}
    return {"times": {"paused": paused, "saved": time.time()}, "image": image, "digest": digest, "devices": devices, **kept}


def still_saved(records: list[dict]) -> list[str]:
    """Which of these domains are not as their save left them: one virsh for all of them.

    QEMU is in ``postmigrate`` then, also if it was paused before. One that ran since and was paused again is in ``paused``
    (migration/migration.c, migration_iteration_finish; system/cpus.c, do_vm_stop): its old state would go onto newer RAM.
    """
    questions = [("qemu-monitor-command", record["uuid"], json.dumps({"execute": "query-status"})) for record in records]
    listed, *answers = _batch.ask([("list", "--state-paused", "--uuid"), *questions], _limits.COMMAND)
    paused = listed.value().split()
    found = []
    for record, answer in zip(records, answers):
        state = _run_state(answer)
        if record["uuid"] not in paused or state != "postmigrate":
            found.append(
                f"guest {record['name']} was saved and is not paused any more, or ran since (QEMU: {state}): somebody else let it go on;"
                " keep others away from it, and run the update again"
            )
    return found


def _run_state(answer: _batch.Answer) -> str:
    """The run state that QEMU tells through virsh, or why it tells none."""
    try:
        said = json.loads(answer.value())
        return str(said["return"]["status"] if "return" in said else said["error"]["desc"])
    except (LiveUpdateError, KeyError, TypeError, ValueError) as err:
        return f"no answer: {err}"


def ram_places(record: dict) -> dict:
    """Where a QEMU of the domain looks for its RAM: its ``files`` in a directory of its own below ``directory``.

    Root makes files there, and a QEMU can change its own command line: any other place is an error.
    """
    for backend in record["backends"]:
        if not _ram.is_in_place(backend["path"], _ram.directory()):
            raise LiveUpdateError(f"its RAM file {backend['path']} is not below {_ram.directory()}, where libvirt keeps RAM")
    places = [os.path.split(backend["path"]) for backend in record["backends"]]
    return {"directory": os.path.dirname(places[0][0]), "files": [file for _directory, file in places]}


def ignore_shared(uuid: str, state: bool) -> tuple[str, ...]:
    """Virsh's words that have the domain's QEMU leave its RAM out of what it saves, or not. Pure.

    Left on, a later save or migration would lack the RAM.
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
    """Suspend the domain and have libvirt write its save image, durably, as one that an ordinary start loads; returns when it was paused.

    It is the memory part of an external snapshot, which is what a managed save writes, but leaves QEMU where it is: to end it takes
    the most of a managed save's time, and would make an undo a start.

    Two virsh processes, and the guest is paused in the second one only. Were it not suspended, libvirt would let it run on from the
    snapshot: that is an error like any other.

    Libvirt follows links: it writes in a folder of root's. Where libvirt looks for managed saves, QEMU's user could put one.
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
    _saves.put(image, loadable)
    return begin.ended


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the domain runs on, or stays paused, in the QEMU that it was saved from.

    A domain that is given up stays paused, so each step is repeated for UNDO_LIMIT_S: a job that was told to end may need a moment, and
    QEMU refuses the rest meanwhile; a daemon may be busy or start anew. Whether the domain runs is what libvirt says in the end, and not
    what a command returned. An error has the detail ``ended`` when QEMU has ended: nothing can go on then.
    """
    name, uuid, image = record["name"], record["uuid"], _virsh.image_path(record["name"])
    until = time.monotonic() + UNDO_LIMIT_S
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = _undo_step(problems, until, "domstate", uuid)
        if state not in (None, "running"):  # a save may have failed before that
            _undo_step([], until, "domjobabort", uuid)  # of one that was cut off; as a rule there is none
        if not whole:
            whole = _is_taken(problems, _undo_step(problems, until, *ignore_shared(uuid, False)))
        if running and state != "running":
            _undo_step(problems, until, "resume", uuid)
            state = _undo_step(problems, until, "domstate", uuid)
        done = whole and (not running or state not in (None, "paused"))
        if done or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    if os.path.exists(_files.state_path(name)) and os.path.isfile(image):  # else it is not of a save of ours
        _saves.remove(image)
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        raise LiveUpdateError(f"its QEMU, process {record['pid']}, has ended", ended=True)
    if running and state != "running":
        raise LiveUpdateError(f"the domain is {state or 'in a state that libvirt does not tell'}, for {UNDO_LIMIT_S:g} s: {why}")
    if not whole:
        raise LiveUpdateError(f"{_guests.ignore_shared_stays(record)}: {why}")


def _undo_step(problems: list[str], until: float, *words: str) -> str | None:
    """What virsh prints for these words; None when that failed, which is one more of the ``problems``."""
    try:
        return _virsh.virsh(*words, limit=min(UNDO_ANSWER_S, max(until - time.monotonic(), _LAST_ANSWER_S))).strip()
    except LiveUpdateError as err:
        problems.append(str(err))
        return None


def _is_taken(problems: list[str], said: str | None) -> bool:
    """Whether QEMU did what it was asked (:func:`taken`); why not is one more of the ``problems``."""
    try:
        if said is not None:
            taken(said)
    except (LiveUpdateError, ValueError) as err:
        problems.append(str(err))
        return False
    return said is not None


def discard(name: str) -> None:
    """Remove the managed save of a domain that is shut off. Without its RAM no start may find it."""
    if _virsh.is_defined(name):
        _virsh.virsh("managedsave-remove", _virsh.uuid_of(name))
