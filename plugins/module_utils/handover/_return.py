# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide how a guest starts after a jump, and record its restore. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..host import _files, _systemd, _this_boot
from . import _early, _journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "AGAIN",
    "BACK_LIMIT_S",
    "check_memory",
    "decide",
    "lost",
    "may_have_run",
    "restored",
    "settle",
    "settle_at_last",
    "settle_seen",
    "settled",
    "verify",
    "went_on",
)

# The exit code of a start that could not restore its guest yet. systemd then starts the unit again (_unit_files.py,
# RestartForceExitStatus=). It is even, because a guest can make QEMU exit with any odd code (isa-debug-exit).
AGAIN = 100
BACK_LIMIT_S = _limits.BACK
SETTLE_S = _limits.BACK_SETTLE


def decide(journal: dict, note: dict | None, resumed: bool, tried: bool = False) -> tuple[str, str]:
    """How the guest starts: ``restore``, ``cold`` (from its disks) or ``refuse``, and why. Pure.

    ``note`` is the note in the session beside the RAM, None without memory from the previous kernel. ``resumed`` means that the guest
    has already run on this memory, ``tried`` that it may have. A state is only loaded with exactly the memory that belongs to it.
    """
    if journal.get("state") != "saved":
        return "cold", "no update has saved it"
    if resumed:
        return "cold", "it is already restored and has run since"
    give_up = f"to start it from its disks, run 'kvm-liveupdate discard {typed(journal['guest'])}', then start it"
    if tried:  # if the guest ran, the state is older than the memory; if it did not run, the state must not be lost
        unknown = "its QEMU ended while it resumed the guest, so it is unknown whether the guest ran; memory and state are kept"
        return "refuse", f"{unknown}: {give_up}"
    if note and note.get("hold") == journal["hold"]:
        told = [key for key in ("guest", "uuid", "sizes", "qemu") if key != "qemu" or key in note]  # older notes do not name their QEMU
        wrong = [f"{key} {note.get(key)!r}, expected {journal.get(key)!r}" for key in told if note.get(key) != journal.get(key)]
        if wrong:
            other = f"its preserved memory does not belong to this save ({', '.join(wrong)})"
            return "refuse", f"{other}; the memory is kept and not used: {give_up}"
        return "restore", "its memory is preserved"
    lost_why = "its memory did not survive the reboot" if note is None else "the preserved memory belongs to another save"
    if journal.get("on_loss") == "stop":
        return "refuse", f"{lost_why}; it stays off, as on_loss=stop says: {give_up}"
    return "cold", f"{lost_why}; it starts from its disks"


def lost(journal: dict, why: str) -> None:
    """Record that the guest's memory is lost, so that its saved state is useless."""
    settle({**{key: value for key, value in journal.items() if key != "memory"}, "state": "lost", "why": why})


def verify(journal: dict, path: str) -> None:
    """Raise if the file at ``path`` is not the state that was saved for the guest."""
    found: object = "no file"
    if os.path.exists(path):
        found = _files.digest(path)
    if found != journal.get("digest"):
        name = journal["guest"]
        raise LiveUpdateError(
            f"guest {name}: {path} is not the state that was saved: its digest is {found}, not {journal.get('digest')}. It is not loaded,"
            f" and the memory is kept. To start the guest from its disks, run 'kvm-liveupdate discard {typed(name)}', then start it"
        )


def check_memory(journal: dict, files: list[int], times: dict) -> None:
    """Raise if the memory that came back is not the same as before the jump; before a QEMU has it.

    This compares once in each boot: later a QEMU that failed may have written to the memory, and a fault may not show every time. The
    result is in /run, which lasts as long as the memory. Of memory that is wrong, the journal says so too. ``times`` gets when it was
    ``checked``.
    """
    if journal.get("memory_check", "none") == "none":
        return
    name, path = journal["guest"], _files.run_path(journal["guest"], "checked")
    mark = _files.read_json(path)
    if mark.get("hold") != journal["hold"]:
        mark = {"hold": journal["hold"], "wrong": journal.get("memory_wrong") or "", "verified": "none"}
        if not mark["wrong"]:
            mark.update(_compared(journal, files))
        _noted(name, _files.write_json, path, mark)
    if not mark["wrong"]:
        times["checked"] = time.time()
        return
    if not journal.get("memory_wrong"):
        _noted(name, _journal.record_guest, {**journal, "memory_wrong": mark["wrong"]})
    raise LiveUpdateError(
        f"guest {name}: its preserved memory is not the same as before the jump: {mark['wrong']}. The guest is not started, and its memory"
        " and state are kept. Look for faults of the host's memory ('journalctl -k'). To start the guest from its disks, run"
        f" 'kvm-liveupdate discard {typed(name)}', then start it"
    )


def _compared(journal: dict, files: list[int]) -> dict[str, str]:
    """What is ``wrong`` with the memory, empty for nothing, and what was ``verified``: without usable digests nothing is known."""
    from . import _digests  # for guests whose memory is checked only

    name, noted = journal["guest"], journal.get("memory") or {}
    try:
        differ, count = _digests.wrong(noted, files)
    except ValueError as err:
        _systemd.log(f"{name}: WARNING: its memory is not checked, although hypervisor_update_verify_memory asks for it: {err}")
        return {"verified": "none"}
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(
            f"guest {name}: its preserved memory cannot be read: {err}. The guest is not started, and its memory and state are kept."
            f" Look for faults of the host's memory ('journalctl -k'), then run 'systemctl start {typed(journal['unit'])}' to try again"
        ) from err
    if differ:
        return {"wrong": _digests.told(differ, count)}
    _systemd.log(f"{name}: its memory is the same as before the jump ({count} places read, {noted['kind']})")
    return {"verified": noted["kind"]}


def _noted(name: str, write: t.Callable[..., None], *arguments: object) -> None:
    """Write a record. A failure is only logged: what follows does not depend on it."""
    try:
        write(*arguments)
    except OSError as err:
        _systemd.log(f"{name}: the result of the check of its memory cannot be written: {err}")


def may_have_run(name: str, journal: dict) -> bool:
    """Whether it is unknown if a saved guest in a unit has run in this boot: a try to resume it began, and its result was not noted.

    The mark ``trying`` in /run exists from right before such a try until QEMU refuses it, or the guest runs.
    """
    tried = os.path.exists(_files.run_path(name, "trying"))  # check this mark first, because it becomes the other one
    return tried and not os.path.exists(_files.run_path(name, "resumed")) and journal.get("boot_id") != _this_boot.boot_id()


def went_on(name: str) -> None:
    """Replace the mark that the guest may have run by the mark that it runs. Can be repeated."""
    resumed = _files.run_path(name, "resumed")
    try:
        os.rename(_files.run_path(name, "trying"), resumed)
    except FileNotFoundError:
        os.close(os.open(resumed, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def settle(journal: dict) -> None:
    """Record durably that a guest is restored or lost, and remove its state. Can be repeated.

    The state is removed first: on a full disk this may free the space that the record needs. That the unit still starts early in the next
    boot does not make the record wrong.
    """
    _files.remove(_files.state_path(journal["guest"]))
    _journal.record_guest(journal)
    _early.not_early(journal["unit"])


def settled(restored: dict) -> bool:
    """Do :func:`settle` for a restored guest, unless its record is of something newer. False if the disk does not accept it."""
    name = restored["guest"]
    try:
        on_disk = _journal.recorded(name)
        if on_disk.get("hold") == restored["hold"] and on_disk.get("state") in ("saved", "restored"):
            settle(restored)
        return True
    except (LiveUpdateError, OSError) as err:
        again = f"Correct this; the host tries again every {SETTLE_S:g} s"
        _systemd.log(f"{name}: the guest is restored. Its record cannot be written: {err}. {again}")
        return False


def settle_at_last(restored: dict, lasts: t.Callable[[], bool]) -> None:
    """Repeat :func:`settled` until the disk accepts it, as long as ``lasts`` returns true.

    Until then :func:`_journal.as_seen` knows that the guest is restored. The lock prevents that another operation saves it at that moment.
    """
    from . import _lock  # not on the restore path

    while lasts():
        time.sleep(SETTLE_S)
        try:
            with _lock.Lock():
                if settled(restored):
                    _systemd.log(f"{restored['guest']}: the restore is now recorded")
                    return
        except LiveUpdateError:
            continue  # another operation runs


def settle_seen(name: str) -> None:
    """Record durably what :func:`_journal.as_seen` says, if the disk does not say it yet."""
    on_disk = _journal.recorded(name)
    if on_disk.get("state") == "saved":
        seen = _journal.as_seen(name, on_disk)
        if seen["state"] == "restored":
            settle(seen)


def restored(journal: dict, times: dict) -> dict:
    """The new record of the guest. The clock steps at the jump, so this corrects the times of this boot by that step."""
    step = _this_boot.step(journal.get("clock_ahead"), _this_boot.ahead())
    now = {name: at - (step or 0.0) for name, at in times.items()}
    after = {"state": "restored", "boot_id_after": _this_boot.boot_id(), "clock_step": step, "times": {**journal["times"], **now}}
    return {**_journal.checked(journal["guest"], journal), **after}
