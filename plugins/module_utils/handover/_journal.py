# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The durable records of the last update: its own, and one of each guest. PRIVATE to the collection."""

from __future__ import annotations

import os

from ..host import _files, _this_boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("as_seen", "not_back", "of_guest", "of_guests", "of_update", "outcome", "pause", "record", "recorded")


def of_guest(name: str) -> dict:
    """What the last update did with this guest; empty when none did. A guest that runs again is ``restored``, recorded on disk or not."""
    recorded = _files.read_json(_files.journal_path(name))
    if recorded.get("state") != "saved":
        return recorded
    return as_seen(name, recorded)


def of_guests() -> dict[str, dict]:
    """What the last update did with each guest that it had, by the guest's name."""
    try:
        files = sorted(os.listdir(_files.GUESTS_STATE))
    except FileNotFoundError:
        return {}
    return {name: of_guest(name) for name in (file.removesuffix(".json") for file in files if file.endswith(".json"))}


def pause(update: dict) -> float | None:
    """Seconds from a guest's pause to its resume in the update of this journal; None when that did not bring it back. Pure."""
    times = update.get("times") or {}
    return times["resumed"] - times["paused"] if update.get("state") == "restored" else None


def not_back(running: t.Iterable[str]) -> list[dict]:
    """Which guests an update saved that it has not brought back, as reasons against the next one.

    The session of such a guest may have its memory still, and does not come over another jump.
    """
    return [
        {
            "code": "not-back",
            "message": f"guest {name} was saved by an update and does not run; its memory may still be kept, and would be lost",
            "remedy": f"'systemctl start {saved['unit']}' tries to bring it back, 'kvm-liveupdate discard {name}' gives up what was saved",
        }
        for name, saved in of_guests().items()
        if saved.get("state") == "saved" and name not in running
    ]


def recorded(name: str) -> dict:
    """The guest's journal as it is on disk; :func:`of_guest` is how it counts."""
    return _files.read_json(_files.journal_path(name))


def as_seen(name: str, journal: dict) -> dict:
    """The journal of a guest that was saved, as it counts: one that has gone on in this boot is ``restored``, whatever the disk took.

    The mark is made once the guest has gone on (:func:`_return.went_on`), in /run, which is as lasting as its memory. The mark of a domain
    is made right before. Its image lies there until libvirt takes its start for done.
    """
    try:
        resumed = os.stat(_files.run_path(name, "resumed")).st_mtime
    except FileNotFoundError:
        return journal
    now = _this_boot.boot_id()
    if journal.get("boot_id") == now or not _is_gone(journal.get("image", "")):
        return journal  # the mark is of an update before; or the start of the domain has not ended
    times = {**journal.get("times", {}), "resumed": resumed}
    return {**journal, "state": "restored", "boot_id_after": now, "clock_step": None, "times": times}


def _is_gone(path: str) -> bool:
    """Whether it is certain that nothing is there: a disk that cannot be read tells nothing."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def of_update() -> dict:
    """The journal of the last update of this host. How it ended is in it also where the disk did not take that any more."""
    update, ended = _files.read_json(_files.UPDATE), _files.read_json(_files.OUTCOME)
    return {**update, **ended} if ended and ended["id"] == update.get("id") else update


def outcome(update: dict, boot_id: str, release: str) -> str:
    """What became of an update: ``none``, ``pending``, ``aborted``, ``jumped`` or ``rebooted`` (into another kernel). Pure."""
    if not update:
        return "none"
    if update["state"] == "aborted":
        return "aborted"
    if update["boot_id"] == boot_id:
        return "pending"
    return "jumped" if update["state"] == "jumping" and release == update["image"]["release"] else "rebooted"


def record(update: dict) -> None:
    """Write down what is about to be done, so that :func:`_jump.recover` can take it back when this process is killed meanwhile."""
    _files.write_json(_files.UPDATE, update)
