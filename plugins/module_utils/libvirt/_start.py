# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing a libvirt domain back onto its RAM, and libvirt's hook. PRIVATE to the collection.

The holder's unit starts early after the jump, takes the RAM out of the session and offers it: a process with exactly QEMU's user and
group keeps it open, so that QEMU may open it through /proc (proc(5), ptrace(2)). Libvirt's hook puts a link to it where QEMU looks
for its RAM file. Then the domain is started as ever: its managed save is loaded, and the guest goes on.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..handover import _early, _journal, _return, _session
from ..host import _files, _processes, _systemd, _units
from ..kernel import _luo
from . import _keeper, _saves, _virsh

__all__ = ("awaited", "restore")

LIBVIRT_LIMIT_S = _limits.LIBVIRT_SOCKET
STUCK_S = _limits.LIBVIRT_STUCK
RETRY_S = 0.5
POLL_S = 0.1
# Of libvirtd, and of the daemon that hosts without it have for QEMU.
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def _offer(record: dict, hold: str, files: list[int]) -> None:
    """Keep the RAM open, and record for the hook where it is."""
    keeper = _keeper.keep_open(record, files)
    content = {"pid": keeper, "started": _processes.start_time(keeper), "hold": hold, "fds": files}
    _files.write_json(_files.run_path(record["name"], "offer"), content)


def restore(name: str, journal: dict) -> None:
    """What the holder's unit does after a jump: bring the domain back, or let it go as the update asked."""
    try:
        # Memory that is not on huge pages takes its time; a unit that is cut off here would have to be started by hand.
        _systemd.notify(f"EXTEND_TIMEOUT_USEC={_return.BACK_LIMIT_S * 1e6:.0f}")
        _restore(name, journal, time.time())
    except BaseException:
        _early.late(name)
        raise


def _restore(name: str, journal: dict, started: float) -> None:
    session = _session.incoming(journal)
    note = _session.note(session)
    ran = os.path.exists(_files.run_path(name, "resumed"))
    verdict, why = _return.decide(journal, note, ran)
    _systemd.log(f"{name}: {verdict}: {why}")
    if verdict == "restore" and session is not None:
        _bring_back(name, journal, session, started)
        return
    _early.late(name)
    _systemd.notify("READY=1")
    if verdict == "refuse":
        raise LiveUpdateError(f"guest {name}: {why}")
    state = _wait_for_answer(name, journal)
    if ran:
        _was_back(name, journal, session, state)
        return
    _session.drop(session, note)
    if state == "shut off":
        # Without its RAM the image is of no use, and a start from it would be a disaster.
        _virsh.virsh("managedsave-remove", _domain(journal))
        _return.lost(journal, why)
        _virsh.virsh("start", _domain(journal), limit=_return.BACK_LIMIT_S)
    else:
        _return.lost(journal, why)


def _domain(journal: dict) -> str:
    """The domain as virsh is told of it: a name may look like the number of another domain, or like an option."""
    uuid: str = journal["uuid"]
    return uuid


def _was_back(name: str, journal: dict, session: int | None, state: str) -> None:
    """The memory was given to a QEMU before this unit ended, and was not started again since: see what became of it."""
    if state == "shut off" and os.path.exists(journal["image"]):
        # Libvirt takes the image away once the domain runs. Where it could not, nobody knows whether it ran for a moment.
        raise LiveUpdateError(
            f"guest {name}: its memory came over and was given to a QEMU that libvirt ended before it counted as started; neither is it"
            f" brought back from it again nor started clean. 'kvm-liveupdate discard {name}' gives its memory up"
        )
    if state in ("paused", "in shutdown") and os.path.exists(journal["image"]):
        _start(name, journal)  # the start of before goes on in libvirt's daemon, or is being ended
    _started(journal["image"])
    _let_go(name, session)
    _record(_journal.as_seen(name, journal))


def _bring_back(name: str, journal: dict, session: int, started: float) -> None:
    _return.verify(journal, journal["image"])
    if journal.get("devices"):
        from ..vmm import _block  # for domains with block devices only

        _block.verify_devices(name, journal["devices"])
    if not os.access(_virsh.HOOK, os.X_OK):
        raise LiveUpdateError(
            f"guest {name}: {_virsh.HOOK} is not there or not executable, so libvirt would start it without its memory."
            f" Its memory is kept. Run the setup playbook, then 'systemctl start {_units.hold(name)}' tries again"
        )
    files = _session.take(journal, session)
    times = {"start": started, "retrieved": time.time()}
    _offer({"name": name, **journal}, journal["hold"], files)
    _systemd.notify("READY=1\nSTATUS=offers the guest's memory")
    _wait_for_socket(name)
    times["resumed"] = _start(name, journal)
    try:
        times["libvirt"] = os.stat(_files.run_path(name, "placed")).st_mtime
        times["loaded"] = os.stat(_files.run_path(name, "resumed")).st_mtime
    except OSError as err:
        raise LiveUpdateError(
            f"guest {name}: libvirt started it without asking for its memory; is the hook {_virsh.HOOK} executable? ({err})"
        ) from err
    _let_go(name, session)
    _record(_return.restored(journal, times))


def _let_go(name: str, session: int | None) -> None:
    """End the session of a domain that is back. Each step is for itself: the domain runs, whatever fails."""
    for step in (
        *(() if session is None else (lambda: _luo.finish(session),)),
        lambda: _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_session.FDNAME}"),
        lambda: _files.remove(_files.run_path(name, "offer")),
    ):
        try:
            step()
        except (LiveUpdateError, OSError) as err:
            _systemd.log(f"{name}: {err}")


def _record(restored: dict) -> None:
    """Tell that the domain is back, correct its clock, and do not end before the disk has taken it. A new hold of the domain ends this."""
    name, times = restored["guest"], restored["times"]
    _systemd.log(f"{name}: back, {times['resumed'] - times['paused']:.3f} s after its pause")
    recorded = _return.settled(restored)
    if restored["was_running"]:
        restored = _correct_clock(name, restored, recorded)
    if not recorded:
        _return.settle_at_last(restored, lambda: True)


def _correct_clock(name: str, restored: dict, recorded: bool) -> dict:
    """The guest runs and its journal says so: nobody waits for this, and a new hold of the domain ends it. Returns its new record."""
    from . import _agent  # not before the guest runs

    outcome = _agent.correct_clock(name)
    restored = {**restored, **outcome}
    if recorded:
        _files.write_json(_files.journal_path(name), restored)
    _systemd.log(f"{name}: clock: {outcome['clock']}{', thawed' if outcome['thawed'] else ''}")
    return restored


def _start(name: str, journal: dict) -> float:
    """Start the domain, or wait for its autostart where that was quicker; returns when it went on. Its saved image is gone then.

    Nobody asks before whether libvirt is there: virsh waits until the daemon answers, and each call takes its time.
    What the domain needs may not be there yet so early in the boot (a bridge, a storage): until it has run, try again.
    """
    marker, image = _files.run_path(name, "resumed"), journal["image"]
    begun = time.monotonic()
    why = "its autostart did not end"
    while True:
        has_run = os.path.exists(marker)
        if not has_run:
            try:
                _virsh.virsh("start", _domain(journal), limit=_return.BACK_LIMIT_S)
                return _started(image)
            except LiveUpdateError as err:
                why = str(err)
                _systemd.log(why)
        state = _state(journal)
        # Libvirt says "paused" of one that it is still starting. It takes the image away when the start is over, and not if it fails.
        if state == "running" or (has_run and state not in ("shut off", "") and not os.path.exists(image)):
            return _started(image)
        waited = time.monotonic() - begun
        if has_run and state == "paused" and journal["was_running"] and waited > STUCK_S:
            _go_on(journal)
        elif (has_run and state == "shut off") or waited > _return.BACK_LIMIT_S:
            raise LiveUpdateError(
                f"guest {name}: it is {state or 'not known to libvirt'}; {why}", again=not (has_run and state == "shut off")
            )
        if state == "shut off":
            _early.late(name)  # what it lacks may come with the rest of the boot
        time.sleep(RETRY_S)


def _go_on(journal: dict) -> None:
    """Let a domain go on that nobody starts any more. While somebody does, libvirt waits for that, and refuses this in the end."""
    try:
        _virsh.virsh("resume", _domain(journal))
    except LiveUpdateError as err:
        _systemd.log(str(err))


def _started(image: str) -> float:
    """Remove the image of a domain that is back if libvirt did not, or not yet: without its RAM no other start may find it."""
    went_on = time.time()
    _saves.remove(image)
    return went_on


def _state(journal: dict) -> str:
    """The domain's state in libvirt's words; empty when libvirt does not answer."""
    try:
        return _virsh.virsh("domstate", _domain(journal)).strip()
    except LiveUpdateError as err:
        _systemd.log(str(err))
        return ""


def _wait_for_answer(name: str, journal: dict) -> str:
    """Wait until libvirt says in which state the domain is, with a limit."""
    _wait_for_socket(name)
    until = time.monotonic() + LIBVIRT_LIMIT_S
    while True:
        state = _state(journal)
        if state:
            return state
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: libvirt does not say its state within {LIBVIRT_LIMIT_S} s; the lines before tell why: mend that;"
                " it is tried again by itself, its memory is kept",
                again=True,
            )
        time.sleep(RETRY_S)


def _wait_for_socket(name: str) -> None:
    """Wait until libvirt's socket listens, with a limit.

    Nothing is run before: what polls here is ahead of the rest of the boot, which the daemon has to wait for.
    """
    until = time.monotonic() + LIBVIRT_LIMIT_S
    while not any(map(_listens, SOCKETS)):
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: nothing listens at {' or '.join(SOCKETS)} within {LIBVIRT_LIMIT_S} s; start libvirt's daemon:"
                " it is tried again by itself, its memory is kept",
                again=True,
            )
        time.sleep(POLL_S)


def _listens(path: str) -> bool:
    """Whether somebody takes connections there: the daemon, or systemd, which starts it then."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(RETRY_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def awaited(name: str) -> dict:
    """As a journal: that the host went down after a domain's state was written and before its journal was; empty for any other guest.

    The state alone keeps every start of the domain away. By its empty ``hold`` the journal fits no memory: it may have run on since.
    """
    update = _files.read_json(_files.UPDATE)
    record = (update.get("records") or {}).get(name, {})
    if record.get("provider") != "libvirt" or not os.path.exists(_files.state_path(name)):
        return {}
    known = {**{key: record[key] for key in ("provider", "unit", "uuid")}, "session": _session.name_of(record["uuid"])}
    asked = {key: update[key] for key in ("boot_id", "on_loss")}
    return {**known, **asked, "state": "saved", "guest": name, "hold": "", "image": _virsh.image_path(name)}
