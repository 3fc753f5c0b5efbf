# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pause a guest and save the state of its devices, and undo that. PRIVATE to the collection."""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _files, _processes
from ..vmm import _monitor
from . import _guests

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("discard", "pause_and_write", "resume", "save", "still_saved")

UNDO_LIMIT_S = _limits.UNDO
SETTLE_LIMIT_S = _limits.QEMU_SETTLE
SAVES_SLOWLY = False
_STANDS = ("paused", "postmigrate", "finish-migrate")


def save(record: dict, path: str, running: bool) -> dict:  # pylint: disable=unused-argument  # QEMU's state says it
    """Pause the guest and write its device state (not its RAM) to ``path``, durably. It stays paused, also after a failure.

    Returns the ``times`` when it was ``paused`` and ``saved``, in seconds since the epoch, and what a restore needs.
    """
    from ..vmm import _disk_files  # not on the boot path

    needs = record["needs"]  # what the gate saw, before any guest was paused: a path may not answer, and all guests would wait for it
    try:
        with _monitor.Monitor(record["monitor"]) as monitor:
            paused = pause_and_write(record, monitor, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        digest = _files.digest(path)
        disks = _disk_files.sized(record.get("disks", {}), record["pid"])  # also what the gate saw
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {record['name']} cannot be saved: {err}") from err
    times = {"paused": paused, "saved": time.time()}
    return {"times": times, "argv": record["argv"], **needs, "disks": disks, "digest": digest}


def pause_and_write(record: dict, monitor: _monitor.Monitor, path: str) -> float:
    """:func:`_monitor.write_state`, with a mark that the save is ours, as long as the guest does not run after it."""
    mark = _files.run_path(record["name"], "written")

    def begin() -> None:
        _files.write_json(mark, _pause_of(record))

    if monitor.status() == "running":
        _files.remove(mark)  # of an undo that gave up: if another program migrates the guest now, that is not our save
    return _monitor.write_state(monitor, path, begin)


def _pause_of(record: dict) -> dict:
    """What identifies the present pause of the guest: its QEMU, and how long that has run the guest. Without KVM that is always 0."""
    return {"pid": record["pid"], "started": record["started"], "guest_time": _processes.guest_time(record["pid"])}


def still_saved(records: list[dict]) -> list[str]:
    """Sentences about the guests that are not paused as :func:`save` left them. A guest that ran since and was paused again is "paused"."""
    from concurrent.futures import ThreadPoolExecutor  # not on the boot path

    with ThreadPoolExecutor(max_workers=max(1, len(records))) as pool:
        return [problem for problem in pool.map(_saved_problem, records) if problem]


def _saved_problem(record: dict) -> str:
    try:
        with _monitor.Monitor(record["monitor"]) as monitor:
            limit = time.monotonic() + SETTLE_LIMIT_S
            while monitor.status() == "finish-migrate" and time.monotonic() < limit:
                time.sleep(0.005)  # QEMU needs a moment after the state is written
            state = monitor.status()
    except LiveUpdateError as err:
        return f"guest {record['name']}: it is unknown whether it is still paused: {err}; run the update again"
    if state == "postmigrate":
        return ""
    return (
        f"guest {record['name']} was saved and is {state} now: another program has resumed it. Stop programs that manage this guest, and"
        " run the update again"
    )


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the guest runs, or stays paused, in the QEMU from which it was saved.

    If this gives up, the guest stays paused. So this is repeated for UNDO_LIMIT_S. An error has the detail ``ended`` if QEMU has ended, and
    ``elsewhere`` if another program has migrated the guest: it may run on another host, so it must not run here.
    """
    from ..vmm import _changes  # not on the boot path

    until = time.monotonic() + UNDO_LIMIT_S
    ours = _files.read_json(_files.run_path(record["name"], "written")) == _pause_of(record)
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = ""
        try:
            with _monitor.Monitor(record["monitor"]) as monitor:
                if not whole:
                    whole = not _changes.ignores_shared(monitor.execute("query-migrate-capabilities"))
                    ours = ours or not whole  # only our saves switch it on
                if ours and monitor.status() != "running":  # an interrupted save may still run, and QEMU then refuses the following
                    _tried(problems, monitor.end_migration, SETTLE_LIMIT_S)
                whole = whole or _tried(problems, monitor.ignore_shared, False)
                state = monitor.status()
                if running and (state == "paused" or (ours and state == "postmigrate")):
                    _tried(problems, monitor.execute, "cont")
                    state = monitor.status()
        except LiveUpdateError as err:
            problems.append(str(err))
        stands = not state or state in _STANDS
        elsewhere = running and whole and not ours and state == "postmigrate"
        if (whole and not (running and stands)) or elsewhere or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        raise LiveUpdateError(f"its QEMU, process {record['pid']}, has ended", ended=True)
    if elsewhere:
        raise LiveUpdateError(
            "another program has migrated or saved it, so it may run on another host, and it is not resumed here. If it runs nowhere else,"
            " resume it in its QEMU monitor (cont)",
            elsewhere=True,
        )
    if running and stands:
        raise LiveUpdateError(f"the guest is still {state or 'in an unknown state'} after {UNDO_LIMIT_S:g} s: {why}")
    _files.remove(_files.run_path(record["name"], "written"))  # it runs, or its owner decides when it does
    if not whole:
        raise LiveUpdateError(f"{_guests.ignore_shared_stays(record)}: {why}")


def _tried(problems: list[str], step: t.Callable[..., object], *arguments: object) -> bool:
    """Whether the step was done. A failure is added to ``problems``."""
    try:
        step(*arguments)
    except LiveUpdateError as err:
        problems.append(str(err))
        return False
    return True


def discard(name: str) -> None:  # pylint: disable=unused-argument  # as the other provider has it
    """Nothing to do: QEMU itself keeps nothing of a save."""
