# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What came over a jump for a guest, and what its start is to be. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os
import sys

from . import _boot_order, _guests, _holding, _host, _luo, _paths, _systemd
from ._errors import LiveUpdateError

__all__ = ("decide", "drop", "log", "lost", "memory", "note_of", "session_of")


def log(text: str) -> None:
    """One line in the unit's journal."""
    sys.stderr.write(f"kvm-liveupdate: {text}\n")


def decide(journal: dict, note: dict | None, resumed: bool) -> tuple[str, str]:
    """What a start of the guest is: ``restore``, ``cold`` or ``refuse``, and why. Pure.

    ``note`` is what the session carries beside the RAM, None without memory from the kernel before; ``resumed`` tells
    that the guest ran on this memory already. State is used only with the very memory that it belongs to.
    """
    if journal.get("state") != "saved":
        return "cold", "no update left it to be restored"
    if resumed:
        return "cold", "it was restored already and has run since"
    if note and note.get("hold") == journal["hold"] and note.get("qemu") in (None, journal.get("qemu")):
        return "restore", "its memory came over"
    lost_why = "its memory did not come over the reboot" if note is None else "the memory that came over is not its own"
    if journal.get("on_loss") == "stop":
        return "refuse", f"{lost_why}; it stays down as the update asked: 'kvm-liveupdate discard {journal['guest']}' lets it start clean"
    return "cold", f"{lost_why}; it starts clean"


def session_of(journal: dict) -> int | None:
    """The incoming or outgoing session of this guest: handed over by systemd, else asked for by its name; None when there is none.

    Raises where that cannot be told: a guest must not start clean because nobody could look for its memory.
    """
    session = _systemd.listen_fds().get(_holding.FDNAME)
    if session is not None or journal.get("state") != "saved" or journal.get("boot_id") == _host.boot_id():
        return session
    try:
        session = _luo.retrieve_session(journal["session"])
    except LiveUpdateError as err:
        log(str(err))
        if not _luo.is_gone(err):
            again = f"mend that, then 'systemctl start {journal['unit']}' tries again; its memory is kept"
            raise LiveUpdateError(f"guest {journal['guest']}: {err}: {again}") from err
        return None
    _systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_holding.FDNAME}", (session,))  # a crash from here on loses nothing
    return session


def note_of(session: int | None) -> dict | None:
    """What a session from the kernel before says it holds; None for any other."""
    if session is None:
        return None
    try:
        fd = _luo.retrieve_fd(session, _holding.META_TOKEN)
    except LiveUpdateError as err:
        if err.details.get("errno") == "EINVAL":
            return None  # outgoing: preserved for a jump that has not come
        raise
    try:
        return _holding.read_note(fd)
    finally:
        os.close(fd)


def memory(journal: dict, session: int) -> list[int]:
    """The guest's memory files, taken out of the session, in order. They are charged to the caller's cgroup."""
    files = [_luo.retrieve_fd(session, _holding.RAM_TOKEN + index) for index in range(len(journal["sizes"]))]
    sizes = [os.fstat(fd).st_size for fd in files]
    if sizes != journal["sizes"]:
        raise LiveUpdateError(
            f"guest {journal['guest']}: the memory that came over has {sizes} bytes, not {journal['sizes']};"
            f" 'kvm-liveupdate discard {journal['guest']}' lets it start clean"
        )
    return files


def drop(session: int | None, note: dict | None) -> None:
    """Give up a session that is of no use for a clean start."""
    if session is None:
        return
    if note is not None:
        _luo.finish(session)
    os.close(session)
    _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_holding.FDNAME}")


def lost(journal: dict, why: str) -> None:
    """Record that the guest's memory did not come over: what was saved of it is of no use any more."""
    _paths.write_json(_guests.journal_path(journal["guest"]), {**journal, "state": "lost", "why": why})
    _paths.remove(_guests.state_path(journal["guest"]))
    _boot_order.start_early(journal["unit"], False)
