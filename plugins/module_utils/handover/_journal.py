# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The durable records of the last update: one of the update, and one of each guest. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import LiveUpdateError, reason, typed
from ..host import _files, _this_boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "as_seen",
    "check_s",
    "checked",
    "forget_guest",
    "last_update",
    "not_back",
    "of_guest",
    "of_guests",
    "of_update",
    "outcome",
    "pause",
    "record",
    "record_guest",
    "recorded",
    "settle_end",
)


def of_guest(name: str) -> dict:
    """What the last update did with this guest; empty for none. A guest that runs again is ``restored``, whatever the disk says.

    The digests of its memory are left out: only a restore needs them, from :func:`recorded`.
    """
    recorded = _files.read_json(_files.journal_path(name))
    seen = recorded if recorded.get("state") != "saved" else as_seen(name, recorded)
    return {key: value for key, value in seen.items() if key != "memory"}


def of_guests() -> dict[str, dict]:
    """What the last update did with each of its guests, by the guest's name."""
    try:
        files = sorted(os.listdir(_files.GUESTS_STATE))
    except FileNotFoundError:
        return {}
    return {name: of_guest(name) for name in (file.removesuffix(".json") for file in files if file.endswith(".json"))}


def pause(update: dict) -> float | None:
    """Seconds from a guest's pause to its resume in the update of this journal; None if it was not restored. Pure."""
    times = update.get("times") or {}
    return times["resumed"] - times["paused"] if update.get("state") == "restored" else None


def check_s(update: dict) -> float:
    """How many seconds of the pause of this journal a full check of the memory took; 0 if there was none. Pure."""
    times = update.get("times") or {}
    if pause(update) is None or update.get("memory_check") != "full" or not {"read", "checked"} <= set(times):
        return 0.0
    return float(times["read"] - times["saved"] + times["checked"] - times["retrieved"])


def not_back(running: t.Iterable[str]) -> list[dict]:
    """Reasons against the next update: guests that an update saved and has not restored.

    The session of such a guest may still have its memory, which would not survive another jump.
    """
    return [_not_back(name, saved) for name, saved in of_guests().items() if saved.get("state") == "saved" and name not in running]


def _not_back(name: str, saved: dict) -> dict:
    give_up = f"'kvm-liveupdate discard {typed(name)}'"
    if saved.get("memory_wrong"):
        return reason(
            "memory-wrong",
            f"guest {name} is not restored, because its preserved memory is not the same as before the jump: {saved['memory_wrong']}. Its"
            " memory and state are kept, and another jump would lose them",
            f"look for faults of the host's memory ('journalctl -k'); then run {give_up}, and start the guest from its disks",
        )
    return reason(
        "not-back",
        f"an update saved guest {name} and has not restored it; another jump would lose its preserved memory",
        f"run 'systemctl start {typed(saved['unit'])}' to restore it, or {give_up} to discard its memory and state",
    )


def recorded(name: str) -> dict:
    """The guest's journal as it is on disk. The journal that counts is from :func:`of_guest`."""
    return _files.read_json(_files.journal_path(name))


def as_seen(name: str, journal: dict) -> dict:
    """The journal that counts for a saved guest: it is ``restored`` if the guest was resumed in this boot, whatever the disk says.

    After the resume :func:`_return.went_on` writes a mark into /run, which lasts as long as the memory. The mark of a domain is written
    right before the resume. Its image exists until libvirt regards the start as complete.
    """
    try:
        resumed = os.stat(_files.run_path(name, "resumed")).st_mtime
    except FileNotFoundError:
        return journal
    now = _this_boot.boot_id()
    if journal.get("boot_id") == now or not _is_gone(journal.get("image", "")):
        return journal  # the mark is from an earlier update, or the start of the domain is not complete
    times = {**journal.get("times", {}), "resumed": resumed}
    return {**checked(name, journal), "state": "restored", "boot_id_after": now, "clock_step": None, "times": times}


def checked(name: str, journal: dict) -> dict:
    """The journal of a guest that is back: what was checked of its memory (``memory_verified``) takes the place of the digests.

    The check left its result in /run (:func:`_return.check_memory`). Never raises, because the guest runs.
    """
    try:
        mark = _files.read_json(_files.run_path(name, "checked"))
    except LiveUpdateError:
        mark = {}
    verified = mark.get("verified", "none") if mark.get("hold") == journal.get("hold") else "none"
    return {**{key: value for key, value in journal.items() if key != "memory"}, "memory_verified": verified}


def _is_gone(path: str) -> bool:
    """Whether the file certainly does not exist: an unreadable disk does not show that."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def of_update() -> dict:
    """The journal of the last update of this host, with its end even if the disk did not accept that."""
    update, ended = _files.read_json(_files.UPDATE), _files.read_json(_files.OUTCOME)
    return {**update, **ended} if ended and ended["id"] == update.get("id") else update


def last_update() -> dict:
    """The journal of the last update of this host with its ``outcome``; empty if there was none.

    ``discarded`` are its guests whose journal a discard removed after the jump.
    """
    update = of_update()
    if not update:
        return {}
    ended = outcome(update, _this_boot.boot_id(), _this_boot.kernel()["release"], _this_boot.by_kexec())
    after_jump = update.get("guests", []) if ended == "jumped" else []
    return {**update, "outcome": ended, "discarded": [name for name in after_jump if _is_gone(_files.journal_path(name))]}


def settle_end() -> None:
    """Record the end of the last update in /var if the disk did not accept it before. Never raises. The caller has the host's lock.

    /run does not survive a boot: then the next one would find an update that never ended.
    """
    try:
        update, ended = _files.read_json(_files.UPDATE), _files.read_json(_files.OUTCOME)
        if ended and ended["id"] == update.get("id") and ended["state"] != update["state"]:
            record({**update, **ended})
    except (LiveUpdateError, OSError, KeyError):
        pass  # the next operation tries it again


def outcome(update: dict, boot_id: str, release: str, by_kexec: bool | None = None) -> str:
    """The outcome of an update: ``none``, ``pending``, ``aborted``, ``jumped`` or ``rebooted`` (by a cold boot, or another kernel). Pure.

    ``by_kexec`` says whether a kexec started this kernel, None if that is unknown (:func:`_this_boot.by_kexec`).
    """
    if not update:
        return "none"
    if update["state"] == "aborted":
        return "aborted"
    if update["boot_id"] == boot_id:
        return "pending"
    jumped = update["state"] == "jumping" and release == update["image"]["release"] and by_kexec is not False
    return "jumped" if jumped else "rebooted"


def record(update: dict) -> None:
    """Record what the update does next, so that :func:`_jump.recover` can undo it if this process is killed."""
    _files.write_json(_files.UPDATE, update)


def record_guest(journal: dict) -> None:
    """Record durably what an update, a restore or a discard did with the ``guest`` of this journal."""
    _files.write_json(_files.journal_path(journal["guest"]), journal)


def forget_guest(name: str) -> None:
    """Remove the guest's journal durably, if there is one."""
    _files.remove(_files.journal_path(name))
