# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest's start is to be after a jump, and the record of it once it is back. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _files, _systemd, _this_boot
from . import _early, _journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "AGAIN",
    "BACK_LIMIT_S",
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

# The exit code of a start that could not bring its guest back yet. systemd starts the unit again (_texts.py, RestartForceExitStatus=).
# It is even, because a guest can have QEMU end with any odd one (isa-debug-exit).
AGAIN = 100
BACK_LIMIT_S = _limits.BACK
SETTLE_S = _limits.BACK_SETTLE


def decide(journal: dict, note: dict | None, resumed: bool, tried: bool = False) -> tuple[str, str]:
    """What a start of the guest is: ``restore``, ``cold`` or ``refuse``, and why. Pure.

    ``note`` is what the session carries beside the RAM, None without memory from the kernel before; ``resumed`` tells
    that the guest ran on this memory already, ``tried`` that it may have. State is used only with the very memory that it belongs to.
    """
    if journal.get("state") != "saved":
        return "cold", "no update left it to be restored"
    if resumed:
        return "cold", "it was restored already and has run since"
    give_up = f"'kvm-liveupdate discard {journal['guest']}' lets it start clean"
    if tried:  # loaded once more, the state could be older than the memory; and if the guest has not run, that state is all there is of it
        return "refuse", f"its QEMU ended just as the guest was to go on, and nobody knows whether it ran; all of it is kept: {give_up}"
    if note and note.get("hold") == journal["hold"]:
        told = [key for key in ("guest", "uuid", "sizes", "qemu") if key != "qemu" or key in note]  # older holds do not name their QEMU
        wrong = [f"{key} {note.get(key)!r}, not {journal.get(key)!r}" for key in told if note.get(key) != journal.get(key)]
        if wrong:
            return "refuse", f"the memory that came over says that it has {', '.join(wrong)}; it is kept, and not used: {give_up}"
        return "restore", "its memory came over"
    lost_why = "its memory did not come over the reboot" if note is None else "the memory that came over is not its own"
    if journal.get("on_loss") == "stop":
        return "refuse", f"{lost_why}; it stays down as the update asked: {give_up}"
    return "cold", f"{lost_why}; it starts clean"


def lost(journal: dict, why: str) -> None:
    """Record that the guest's memory did not come over: what was saved of it is of no use any more."""
    settle({**journal, "state": "lost", "why": why})


def verify(journal: dict, path: str) -> None:
    """Raise when the file at ``path`` is not the one that was saved with the guest."""
    found: object = "no file"
    if os.path.exists(path):
        found = _files.digest(path)
    if found != journal.get("digest"):
        name = journal["guest"]
        raise LiveUpdateError(
            f"guest {name}: {path} is not what was saved: it is {found}, not {journal.get('digest')}. Nothing is loaded, and its memory is"
            f" kept: 'kvm-liveupdate discard {name}' gives it up and lets the guest start clean"
        )


def may_have_run(name: str, journal: dict) -> bool:
    """Whether nobody knows if a saved guest of a unit has gone on in this boot: a try to let it go on was begun, its outcome not noted.

    The mark ``trying`` in /run is there from right before such a try until QEMU has refused it, or the guest has gone on.
    """
    tried = os.path.exists(_files.run_path(name, "trying"))  # first: it becomes the other mark
    return tried and not os.path.exists(_files.run_path(name, "resumed")) and journal.get("boot_id") != _this_boot.boot_id()


def went_on(name: str) -> None:
    """Mark that the guest has gone on, in place of that it may have. May be repeated."""
    resumed = _files.run_path(name, "resumed")
    try:
        os.rename(_files.run_path(name, "trying"), resumed)
    except FileNotFoundError:
        os.close(os.open(resumed, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def settle(journal: dict) -> None:
    """Make durable that nothing waits to be restored: of a guest that is back, or lost. May be repeated.

    The state goes first: that may make the room on a full disk that the record needs.
    """
    _files.remove(_files.state_path(journal["guest"]))
    _files.write_json(_files.journal_path(journal["guest"]), journal)
    _early.start_early(journal["unit"], False)


def settled(restored: dict) -> bool:
    """Do :func:`settle` for a guest that is back, unless its record tells of something newer; false when the disk does not take it."""
    name = restored["guest"]
    try:
        on_disk = _journal.recorded(name)
        if on_disk.get("hold") == restored["hold"] and on_disk.get("state") in ("saved", "restored"):
            settle(restored)
        return True
    except (LiveUpdateError, OSError) as err:
        _systemd.log(f"{name}: it is back, but that is not recorded: {err}; mend that: it is tried again every {SETTLE_S:g} s")
        return False


def settle_at_last(restored: dict, lasts: t.Callable[[], bool]) -> None:
    """As :func:`settled`, again and again until the disk takes it, while ``lasts`` says so.

    Within this boot :func:`_journal.as_seen` knows of the guest meanwhile. The lock keeps another operation from saving it at that moment.
    """
    from . import _lock  # not on the way back

    while lasts():
        time.sleep(SETTLE_S)
        try:
            with _lock.Lock():
                if settled(restored):
                    _systemd.log(f"{restored['guest']}: it is recorded now")
                    return
        except LiveUpdateError:
            continue  # another operation is under way


def settle_seen(name: str) -> None:
    """Make durable what :func:`_journal.as_seen` tells, where the disk does not say it yet."""
    on_disk = _journal.recorded(name)
    if on_disk.get("state") == "saved":
        seen = _journal.as_seen(name, on_disk)
        if seen["state"] == "restored":
            settle(seen)


def restored(journal: dict, times: dict) -> dict:
    """The guest's record from now on. Its stamps of this boot are set back by the step that the clock made at the jump."""
    step = _this_boot.step(journal.get("clock_ahead"), _this_boot.ahead())
    now = {name: at - (step or 0.0) for name, at in times.items()}
    return {**journal, "state": "restored", "boot_id_after": _this_boot.boot_id(), "clock_step": step, "times": {**journal["times"], **now}}
