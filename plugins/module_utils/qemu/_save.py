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

__all__ = ("discard", "resume", "save", "still_saved")

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
            paused = _monitor.write_state(monitor, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        digest = _files.digest(path)
        disks = _disk_files.sized(record.get("disks", {}), record["pid"])  # also what the gate saw
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {record['name']} cannot be saved: {err}") from err
    times = {"paused": paused, "saved": time.time()}
    return {"times": times, "argv": record["argv"], **needs, "disks": disks, "digest": digest}


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

    If this gives up, the guest stays paused. So this is repeated for UNDO_LIMIT_S. An error has the detail ``ended`` if QEMU has ended.
    """
    until = time.monotonic() + UNDO_LIMIT_S
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = ""
        try:
            with _monitor.Monitor(record["monitor"]) as monitor:
                if monitor.status() != "running":  # an interrupted save may still run, and QEMU then refuses the following
                    _tried(problems, monitor.end_migration, SETTLE_LIMIT_S)
                whole = whole or _tried(problems, monitor.ignore_shared, False)
                if running and monitor.status() in ("paused", "postmigrate"):
                    _tried(problems, monitor.execute, "cont")
                state = monitor.status()
        except LiveUpdateError as err:
            problems.append(str(err))
        stands = not state or state in _STANDS
        if (whole and not (running and stands)) or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        raise LiveUpdateError(f"its QEMU, process {record['pid']}, has ended", ended=True)
    if running and stands:
        raise LiveUpdateError(f"the guest is still {state or 'in an unknown state'} after {UNDO_LIMIT_S:g} s: {why}")
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
