# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What came over a jump for a guest, and what its start is to be. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os
import sys
import time

from . import _boot_order, _guests, _holding, _host, _limits, _luo, _paths, _systemd
from ._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "AGAIN",
    "BACK_LIMIT_S",
    "as_seen",
    "decide",
    "drop",
    "log",
    "lost",
    "may_have_run",
    "memory",
    "note_of",
    "recorded",
    "session_of",
    "settle",
    "settle_at_last",
    "settle_running",
    "settle_seen",
    "settled",
    "verify",
    "verify_devices",
    "went_on",
)

# The exit code of a start that could not bring its guest back yet. systemd starts the unit again (_runtime.py, RestartForceExitStatus=).
# It is even, because a guest can have QEMU end with any odd one (isa-debug-exit).
AGAIN = 100
BACK_LIMIT_S = _limits.BACK
SETTLE_S = _limits.BACK_SETTLE


def log(text: str) -> None:
    """One line in the unit's journal."""
    sys.stderr.write(f"kvm-liveupdate: {text}\n")


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
            busy = err.details.get("errno") == "EBUSY"
            remedy = "this is tried again by itself" if busy else f"mend that, then 'systemctl start {journal['unit']}' tries again"
            raise LiveUpdateError(f"guest {journal['guest']}: {err}: {remedy}; its memory is kept", again=busy) from err
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
        if err.details.get("errno") in ("EINVAL", "ENOENT"):
            return None  # outgoing: preserved for a jump that has not come; or finished, and so of no use any more
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
    settle({**journal, "state": "lost", "why": why})


def verify(journal: dict, path: str) -> None:
    """Raise when the file at ``path`` is not the one that was saved with the guest."""
    found: object = "no file"
    if os.path.exists(path):
        found = _paths.digest(path)
    if found != journal.get("digest"):
        name = journal["guest"]
        raise LiveUpdateError(
            f"guest {name}: {path} is not what was saved: it is {found}, not {journal.get('digest')}. Nothing is loaded, and its memory is"
            f" kept: 'kvm-liveupdate discard {name}' gives it up and lets the guest start clean"
        )


def verify_devices(name: str, devices: dict[str, list[str]]) -> None:
    """Raise when the name of a block device is another one's after the jump: names like /dev/sdb follow the order of a boot."""
    if not devices:
        return
    from .vmm import _block  # for guests with block devices only

    wrong = _block.changed(devices)
    if wrong:
        raise LiveUpdateError(
            f"guest {name}: {'; '.join(wrong)}. Nothing is loaded, and its memory is kept: give the device its name back (udev), then"
            f" 'systemctl start' of its unit tries again; 'kvm-liveupdate discard {name}' gives the memory up"
        )


def recorded(name: str) -> dict:
    """The guest's journal as it is on disk; :func:`_guests.journal` is how it counts."""
    return _paths.read_json(_guests.journal_path(name))


def as_seen(name: str, journal: dict) -> dict:
    """The journal of a guest that was saved, as it counts: one that has gone on in this boot is ``restored``, whatever the disk took.

    The mark is made once the guest has gone on (:func:`went_on`), in /run, which is as lasting as its memory. That of a domain is made
    right before; its image lies there until libvirt takes its start for done.
    """
    try:
        resumed = os.stat(_guests.run_path(name, "resumed")).st_mtime
    except FileNotFoundError:
        return journal
    now = _host.boot_id()
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
        return False
    return False


def may_have_run(name: str, journal: dict) -> bool:
    """Whether nobody knows if a saved guest of a unit has gone on in this boot: a try to let it go on was begun, its outcome not noted.

    The mark ``trying`` in /run is there from right before such a try until QEMU has refused it, or the guest has gone on.
    """
    tried = os.path.exists(_guests.run_path(name, "trying"))  # first: it becomes the other mark
    return tried and not os.path.exists(_guests.run_path(name, "resumed")) and journal.get("boot_id") != _host.boot_id()


def went_on(name: str) -> None:
    """Mark that the guest has gone on, in place of that it may have. May be repeated."""
    resumed = _guests.run_path(name, "resumed")
    try:
        os.rename(_guests.run_path(name, "trying"), resumed)
    except FileNotFoundError:
        os.close(os.open(resumed, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def settle(journal: dict) -> None:
    """Make durable that nothing waits to be restored: of a guest that is back, or lost. May be repeated.

    The state goes first: that may make the room on a full disk that the record needs.
    """
    _paths.remove(_guests.state_path(journal["guest"]))
    _paths.write_json(_guests.journal_path(journal["guest"]), journal)
    _boot_order.start_early(journal["unit"], False)


def settled(restored: dict) -> bool:
    """Do :func:`settle` for a guest that is back, unless its record tells of something newer; false when the disk does not take it."""
    name = restored["guest"]
    try:
        on_disk = recorded(name)
        if on_disk.get("hold") == restored["hold"] and on_disk.get("state") in ("saved", "restored"):
            settle(restored)
        return True
    except (LiveUpdateError, OSError) as err:
        log(f"{name}: it is back, but that is not recorded: {err}; mend that: it is tried again every {SETTLE_S:g} s")
        return False


def settle_at_last(restored: dict, lasts: t.Callable[[], bool]) -> None:
    """As :func:`settled`, again and again until the disk takes it, while ``lasts`` says so.

    Within this boot :func:`as_seen` knows of the guest meanwhile. Another operation may save the guest once more: not at the same time.
    """
    from ._lock import Lock  # not on the way back

    while lasts():
        time.sleep(SETTLE_S)
        try:
            with Lock():
                if settled(restored):
                    log(f"{restored['guest']}: it is recorded now")
                    return
        except LiveUpdateError:
            continue  # another operation is under way


def settle_running(record: dict) -> None:
    """As :func:`settle_seen`, where the guest's QEMU is there: if it says that the guest runs, then that has gone on."""
    from . import _providers  # not on the way back

    name = record["name"]
    on_disk = recorded(name)
    unknown = on_disk.get("state") == "saved" and may_have_run(name, on_disk)
    if unknown and _providers.of(record).status(record) == "running":
        went_on(name)
    settle_seen(name)


def settle_seen(name: str) -> None:
    """Make durable what :func:`as_seen` tells, where the disk does not say it yet."""
    on_disk = recorded(name)
    if on_disk.get("state") == "saved":
        seen = as_seen(name, on_disk)
        if seen["state"] == "restored":
            settle(seen)
