# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a libvirt domain on its preserved RAM. PRIVATE to the collection.

The hold unit starts early after the jump. It retrieves the RAM from the session and offers it: a process with QEMU's user and group keeps
it open, so that QEMU can open it through /proc (proc(5), ptrace(2)). Libvirt's hook puts a link to it where QEMU looks for its RAM file.
Then libvirt starts the domain as usual: QEMU loads the managed save, and the guest continues.
"""

from __future__ import annotations

import contextlib
import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..handover import _early, _journal, _return, _session
from ..host import _files, _processes, _systemd, _units
from ..kernel import _luo
from . import _keeper, _save_directory, _virsh

__all__ = ("awaited", "restore")

LIBVIRT_LIMIT_S = _limits.LIBVIRT_SOCKET
STUCK_S = _limits.LIBVIRT_STUCK
RETRY_S = 0.5
COLD_LIMIT_S = _limits.COLD_START
COLD_RETRY_S = 5.0  # nobody is paused any more
POLL_S = 0.1
# The sockets of libvirtd, and of virtqemud on hosts with one daemon for each driver.
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def _offer(record: dict, hold: str, files: list[int]) -> None:
    """Keep the RAM open, and record its location for the hook."""
    keeper = _keeper.keep_open(record, files)
    content = {"pid": keeper, "started": _processes.start_time(keeper), "hold": hold, "fds": files, "disks": record.get("disks", {})}
    _files.write_json(_files.run_path(record["name"], "offer"), content)


def restore(name: str, journal: dict) -> None:
    """What the hold unit does after a jump: restore the domain, or do what on_loss says."""
    try:
        # Memory without huge pages takes long. If systemd stopped the unit here, an operator would have to start it again.
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
    off = _without_image(name, journal) == "shut off"
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + COLD_LIMIT_S))
    stop = f"To stop the repeated start, run 'kvm-liveupdate discard {typed(name)}'"
    repeats = f"If the start from its disks fails, the host repeats it until {at}. {stop}"
    _return.lost(journal, f"{why}. {repeats}" if off else why)
    if off:
        _start_cold(name, journal, repeats)


def _without_image(name: str, journal: dict) -> str:
    """Remove the saved image of a domain whose memory is lost; returns the domain's state. A start from it would destroy the guest's data.

    The guest's state, for which libvirt's hook refuses every start, may go only after this: another program may be starting the domain, and
    may have opened the image already. Libvirt reports such a domain as paused, or as in shutdown after the hook has refused it.
    """
    until = time.monotonic() + LIBVIRT_LIMIT_S
    with contextlib.suppress(LiveUpdateError):  # libvirt may know of no image, or of one that is gone
        _virsh.virsh("managedsave-remove", _domain(journal))
    _save_directory.discard(name, journal["image"])
    while (state := _state(journal)) in ("", "paused", "in shutdown"):
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: its memory is lost, and it is {state or 'in an unknown state'}, so another program may be starting it. The"
                " host tries again automatically. If the guest is off then, the host starts it from its disks",
                again=True,
            )
        time.sleep(RETRY_S)
    return state


def _start_cold(name: str, journal: dict, repeats: str) -> None:
    """Start the domain from its disks. Early in the boot, what it needs may not exist yet: so this tries again, as :func:`_start` does.

    ``repeats`` tells the operator until when, and how to stop that: the domain must not start here once it runs on another host.
    """
    begun, why = time.monotonic(), ""
    paused = () if journal.get("was_running", True) else ("--paused",)
    while True:
        try:
            _virsh.virsh("start", _domain(journal), *paused, limit=_return.BACK_LIMIT_S)
            return
        except LiveUpdateError as err:
            if _state(journal) not in ("", "shut off"):  # another program has started it
                return
            if time.monotonic() - begun > COLD_LIMIT_S:
                raise LiveUpdateError(f"guest {name}: it does not start from its disks: {err}. Correct this, then start it") from err
            if str(err) != why:
                _systemd.log(f"{name}: {err}. {repeats}")
            why = str(err)
        time.sleep(COLD_RETRY_S)


def _domain(journal: dict) -> str:
    """The domain's UUID, for virsh: a name could look like the ID of another domain, or like an option."""
    uuid: str = journal["uuid"]
    return uuid


def _was_back(name: str, journal: dict, session: int | None, state: str) -> None:
    """An earlier run of this unit gave the memory to a QEMU. Find out whether that QEMU runs, and do what is left."""
    if state == "shut off" and os.path.exists(journal["image"]):
        # Libvirt removes the image once the domain runs. If the image exists, it is unknown whether the domain ran for a moment.
        raise LiveUpdateError(
            f"guest {name}: libvirt gave its preserved memory to a QEMU, but ended that QEMU before its start was complete. The guest may"
            f" have run, so it is not restored again. To start it from its disks, run 'kvm-liveupdate discard {typed(name)}', then"
            f" 'virsh start {typed(name)}'"
        )
    if state in ("paused", "in shutdown") and os.path.exists(journal["image"]):
        _start(name, journal)  # the earlier start still goes on in libvirt's daemon, or is being stopped
    _started(journal["image"])
    _let_go(name, session)
    _record(_journal.as_seen(name, journal))


def _bring_back(name: str, journal: dict, session: int, started: float) -> None:
    if not os.path.exists(journal["image"]):
        raise LiveUpdateError(
            f"guest {name}: its saved state {journal['image']} does not exist, so it is not started, and its memory is kept. If the file"
            f" system of {journal['image']} is not mounted, mount it ('findmnt' lists what is mounted). The restore is repeated"
            f" automatically. If somebody removed the file, run 'kvm-liveupdate discard {typed(name)}'. This discards the"
            " memory. Then start the guest: it starts from its disks",
            again=True,
        )
    _return.verify(journal, journal["image"])
    if journal.get("devices"):
        from ..vmm import _block  # for domains with block devices only

        _block.verify_devices(name, journal["devices"])
    if not os.access(_virsh.HOOK, os.X_OK):
        raise LiveUpdateError(
            f"guest {name}: {_virsh.HOOK} is missing or not executable, so libvirt would start it without its memory."
            f" Its memory is kept. Run the playbook kvm.liveupdate.setup, then 'systemctl start {typed(_units.hold(name))}' to try again"
        )
    files = _session.take(journal, session)
    times = {"start": started, "retrieved": time.time()}
    if journal.get("memory_check") == "full":  # it may take long too
        _systemd.notify(f"EXTEND_TIMEOUT_USEC={_return.BACK_LIMIT_S * 1e6:.0f}")
    _return.check_memory(journal, files, times)
    _offer({"name": name, **journal}, journal["hold"], files)
    from . import _probe_cache  # only now, after a jump

    _probe_cache.carry_over()  # libvirt's daemon starts when this unit is ready
    _systemd.notify("READY=1\nSTATUS=Offers the guest's preserved memory to libvirt")
    _wait_for_socket(name)
    times["resumed"] = _start(name, journal)
    try:
        times["libvirt"] = os.stat(_files.run_path(name, "placed")).st_mtime
        times["loaded"] = os.stat(_files.run_path(name, "resumed")).st_mtime
    except OSError as err:
        raise LiveUpdateError(
            f"guest {name}: libvirt started it without its preserved memory ({err}); check that the hook {_virsh.HOOK} is executable"
        ) from err
    _let_go(name, session)
    _record(_return.restored(journal, times))


def _let_go(name: str, session: int | None) -> None:
    """End the session of a restored domain. A failure of one step does not prevent the next: the domain runs in any case."""
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
    """Report that the domain is restored, correct its clock, and record that until the disk accepts it. A new hold ends this."""
    name, times = restored["guest"], restored["times"]
    _systemd.log(f"{name}: restored, {times['resumed'] - times['paused']:.3f} s after its pause")
    recorded = _return.settled(restored)
    if restored["was_running"]:
        restored = _correct_clock(name, restored, recorded)
    from . import _probe_cache  # not before the guest runs

    _probe_cache.forget()
    if not recorded:
        _return.settle_at_last(restored, lambda: True)


def _correct_clock(name: str, restored: dict, recorded: bool) -> dict:
    """Correct the clock of the running guest; nothing waits for this, and a new hold of the domain ends it. Returns the new record."""
    from . import _agent  # not before the guest runs

    outcome = _agent.correct_clock(name)
    restored = {**restored, **outcome}
    if recorded:
        _journal.record_guest(restored)
    _systemd.log(f"{name}: clock: {outcome['clock']}{', file systems thawed' if outcome['thawed'] else ''}")
    return restored


def _start(name: str, journal: dict) -> float:
    """Start the domain, or wait for its autostart if that was faster; returns when it resumed. Its saved image no longer exists then.

    This does not check before whether libvirt answers: virsh waits for the daemon, and each call costs time. So early in the boot, what
    the domain needs may not exist yet (a bridge, storage, its own disk instead of another file). So this tries again until the domain has
    run.
    """
    marker, image = _files.run_path(name, "resumed"), journal["image"]
    begun = time.monotonic()
    why = "its autostart did not finish"
    while True:
        has_run = os.path.exists(marker)
        if not has_run:
            try:
                if journal.get("disks") and not _virsh.has_hooks():  # which may bring a disk at the start itself
                    _verify_disks(name, journal["disks"])
                _virsh.virsh("start", _domain(journal), limit=_return.BACK_LIMIT_S)
                return _started(image)
            except LiveUpdateError as err:
                if str(err) != why:
                    _systemd.log(str(err))
                why = str(err)
        state = _state(journal)
        # Libvirt also reports "paused" while it starts a domain. It removes the image at the end of the start, but not after a failure.
        if state == "running" or (has_run and state not in ("shut off", "") and not os.path.exists(image)):
            return _started(image)
        waited = time.monotonic() - begun
        if (has_run and state == "shut off") or waited > _return.BACK_LIMIT_S:
            raise LiveUpdateError(
                f"guest {name} is {state or 'in an unknown state'}, not running: {why}", again=not (has_run and state == "shut off")
            )
        if has_run and state == "paused" and journal["was_running"] and waited > STUCK_S:
            _go_on(journal)
        if state == "shut off":
            _early.late(name)  # the rest of the boot may bring what it lacks
        time.sleep(RETRY_S)


def _verify_disks(name: str, disks: dict[str, dict]) -> None:
    """Raise if another file is at a path of its disks. Libvirt's hook looks again; without this, each try would cost a start of virsh."""
    from ..vmm import _disk_files  # not for a domain without files

    _disk_files.verify(name, disks, tried=os.path.exists(_files.run_path(name, "placed")))


def _go_on(journal: dict) -> None:
    """Resume a domain whose start is over. If a start still runs, libvirt waits for its end and then refuses this."""
    try:
        _virsh.virsh("resume", _domain(journal))
    except LiveUpdateError as err:
        _systemd.log(str(err))


def _started(image: str) -> float:
    """Remove the image of a restored domain if libvirt has not done so. It lacks the RAM, so no other start may use it."""
    went_on = time.time()
    _save_directory.remove(image)
    return went_on


def _state(journal: dict) -> str:
    """The domain's state as libvirt reports it; empty if libvirt does not answer."""
    try:
        return _virsh.virsh("domstate", _domain(journal)).strip()
    except LiveUpdateError as err:
        _systemd.log(str(err))
        return ""


def _wait_for_answer(name: str, journal: dict) -> str:
    """Wait, with a limit, until libvirt reports the state of the domain."""
    _wait_for_socket(name)
    until = time.monotonic() + LIBVIRT_LIMIT_S
    while True:
        state = _state(journal)
        if state:
            return state
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: libvirt does not report its state within {LIBVIRT_LIMIT_S} s;"
                f" 'journalctl -b -u {typed(journal['unit'])}' shows why. The restore is repeated automatically, and the guest's memory is"
                " kept",
                again=True,
            )
        time.sleep(RETRY_S)


def _wait_for_socket(name: str) -> None:
    """Wait, with a limit, until libvirt's socket listens.

    This runs no program: it has priority over the rest of the boot, and would delay what the daemon needs.
    """
    until = time.monotonic() + LIBVIRT_LIMIT_S
    while not any(map(_listens, SOCKETS)):
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: no process listens at {' or '.join(SOCKETS)} within {LIBVIRT_LIMIT_S} s; start libvirt's daemon. The"
                " restore is repeated automatically, and the guest's memory is kept",
                again=True,
            )
        time.sleep(POLL_S)


def _listens(path: str) -> bool:
    """Whether this socket accepts connections, from the daemon or from systemd, which then starts the daemon."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(RETRY_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def awaited(name: str) -> dict:
    """A journal for a domain whose host went down after the state was written and before the journal was; empty for any other guest.

    While the state exists, the hook refuses every start of the domain. The journal's ``hold`` is empty, so it matches no memory: the guest
    may have run since.
    """
    update = _files.read_json(_files.UPDATE)
    record = (update.get("records") or {}).get(name, {})
    if record.get("provider") != "libvirt" or not os.path.exists(_files.state_path(name)):
        return {}
    known = {**{key: record[key] for key in ("provider", "unit", "uuid")}, "session": _session.name_of(record["uuid"])}
    asked = {**{key: update[key] for key in ("boot_id", "on_loss")}, "was_running": name in update.get("running", [name])}
    return {**known, **asked, "state": "saved", "guest": name, "hold": "", "image": _virsh.image_path(name)}
