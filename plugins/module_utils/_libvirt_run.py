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
import stat
import sys
import time

from . import (
    _boot_order,
    _clock,
    _guests,
    _holding,
    _host,
    _incoming,
    _libvirt,
    _libvirt_saves,
    _limits,
    _luo,
    _paths,
    _processes,
    _systemd,
)
from ._errors import LiveUpdateError

__all__ = ("HOOK", "hook", "keep_open", "restore")

LIBVIRT_LIMIT_S = _limits.LIBVIRT_SOCKET
STUCK_S = _limits.LIBVIRT_STUCK
RETRY_S = 0.5
POLL_S = 0.1
# Of libvirtd, and of the daemon that hosts without it have for QEMU.
SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
_PR_SET_DUMPABLE = 4


def keep_open(record: dict, files: list[int]) -> int:
    """Keep the RAM open in a process that QEMU may look into, until this unit ends; returns its id."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _keep(record, tell, files)
    os.close(tell)
    with os.fdopen(ready, "rb") as answer:
        if answer.read() != b"ready":
            raise LiveUpdateError(f"guest {record['name']}: no process with user {record['uid']} can keep its RAM open")
    return child


def _offer(record: dict, hold: str, files: list[int]) -> None:
    """Keep the RAM open, and record for the hook where it is."""
    keeper = keep_open(record, files)
    content = {"pid": keeper, "started": _processes.start_time(keeper), "hold": hold, "fds": files}
    _paths.write_json(_guests.run_path(record["name"], "offer"), content)


def _keep(record: dict, tell: int, files: list[int]) -> None:
    """The process that keeps the RAM open. It ends with its unit."""
    import contextlib
    import ctypes
    import signal

    try:
        for fd in _processes.fd_links(os.getpid()):
            if fd > 2 and fd not in (tell, *files):
                with contextlib.suppress(OSError):
                    os.close(fd)  # above all the session, which is not QEMU's business
        os.setgroups([])
        os.setresgid(record["gid"], record["gid"], record["gid"])
        os.setresuid(record["uid"], record["uid"], record["uid"])
        if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0:
            os.write(tell, b"ready")
        os.close(tell)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        while True:
            signal.pause()
    finally:
        os._exit(1)


def restore(name: str, journal: dict) -> None:
    """What the holder's unit does after a jump: bring the domain back, or let it go as the update asked."""
    try:
        # Memory that is not on huge pages takes its time; a unit that is cut off here would have to be started by hand.
        _systemd.notify(f"EXTEND_TIMEOUT_USEC={_incoming.BACK_LIMIT_S * 1e6:.0f}")
        _restore(name, journal, time.time())
    except BaseException:
        _boot_order.late(name)
        raise


def _restore(name: str, journal: dict, started: float) -> None:
    session = _incoming.session_of(journal)
    note = _incoming.note_of(session)
    ran = os.path.exists(_guests.run_path(name, "resumed"))
    verdict, why = _incoming.decide(journal, note, ran)
    _incoming.log(f"{name}: {verdict}: {why}")
    if verdict == "restore" and session is not None:
        _bring_back(name, journal, session, started)
        return
    _boot_order.late(name)
    _systemd.notify("READY=1")
    if verdict == "refuse":
        raise LiveUpdateError(f"guest {name}: {why}")
    state = _wait_for_answer(name, journal)
    if ran:
        _was_back(name, journal, session, state)
        return
    _incoming.drop(session, note)
    if state == "shut off":
        # Without its RAM the image is of no use, and a start from it would be a disaster.
        _libvirt.virsh("managedsave-remove", _domain(journal))
        _incoming.lost(journal, why)
        _libvirt.virsh("start", _domain(journal), limit=_incoming.BACK_LIMIT_S)
    else:
        _incoming.lost(journal, why)


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
    if state == "paused" and os.path.exists(journal["image"]):
        _start(name, journal)  # the start of before goes on in libvirt's daemon
    _started(journal["image"])
    _let_go(name, session)
    _record(_incoming.as_seen(name, journal))


def _bring_back(name: str, journal: dict, session: int, started: float) -> None:
    _incoming.verify(journal, journal["image"])
    _incoming.verify_devices(name, journal.get("devices", {}))
    if not os.access(HOOK, os.X_OK):
        raise LiveUpdateError(
            f"guest {name}: {HOOK} is not there or not executable, so libvirt would start it without its memory."
            f" Its memory is kept. Run the setup playbook, then 'systemctl start {_holding.resident_unit(name)}' tries again"
        )
    files = _incoming.memory(journal, session)
    times = {"start": started, "retrieved": time.time()}
    _offer({"name": name, **journal}, journal["hold"], files)
    _systemd.notify("READY=1\nSTATUS=offers the guest's memory")
    _wait_for_socket(name)
    times["resumed"] = _start(name, journal)
    try:
        times["libvirt"] = os.stat(_guests.run_path(name, "placed")).st_mtime
        times["loaded"] = os.stat(_guests.run_path(name, "resumed")).st_mtime
    except OSError as err:
        raise LiveUpdateError(
            f"guest {name}: libvirt started it without asking for its memory; is the hook {HOOK} executable? ({err})"
        ) from err
    _let_go(name, session)
    step = _clock.step(journal.get("clock_ahead"), _clock.ahead())
    stamps = {**journal["times"], **{stamp: at - (step or 0.0) for stamp, at in times.items()}}
    _record({**journal, "state": "restored", "boot_id_after": _host.boot_id(), "clock_step": step, "times": stamps})


def _let_go(name: str, session: int | None) -> None:
    """End the session of a domain that is back. Each step is for itself: the domain runs, whatever fails."""
    for step in (
        *(() if session is None else (lambda: _luo.finish(session),)),
        lambda: _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_holding.FDNAME}"),
        lambda: _paths.remove(_guests.run_path(name, "offer")),
    ):
        try:
            step()
        except (LiveUpdateError, OSError) as err:
            _incoming.log(f"{name}: {err}")


def _record(restored: dict) -> None:
    """Tell that the domain is back, correct its clock, and do not end before the disk has taken it. A new hold of the domain ends this."""
    name, times = restored["guest"], restored["times"]
    _incoming.log(f"{name}: back, {times['resumed'] - times['paused']:.3f} s after its pause")
    recorded = _incoming.settled(restored)
    if restored["was_running"]:
        restored = _correct_clock(name, restored, recorded)
    if not recorded:
        _incoming.settle_at_last(restored, lambda: True)


def _correct_clock(name: str, restored: dict, recorded: bool) -> dict:
    """The guest runs and its journal says so: nobody waits for this, and a new hold of the domain ends it. Returns its new record."""
    from . import _libvirt_agent  # not before the guest runs

    outcome = _libvirt_agent.correct_clock(name)
    restored = {**restored, **outcome}
    if recorded:
        _paths.write_json(_guests.journal_path(name), restored)
    _incoming.log(f"{name}: clock: {outcome['clock']}{', thawed' if outcome['thawed'] else ''}")
    return restored


def _start(name: str, journal: dict) -> float:
    """Start the domain, or wait for its autostart where that was quicker; returns when it went on. Its saved image is gone then.

    Nobody asks before whether libvirt is there: virsh waits until the daemon answers, and each call takes its time.
    What the domain needs may not be there yet so early in the boot (a bridge, a storage): until it has run, try again.
    """
    marker, image = _guests.run_path(name, "resumed"), journal["image"]
    begun = time.monotonic()
    why = "its autostart did not end"
    while True:
        has_run = os.path.exists(marker)
        if not has_run:
            try:
                _libvirt.virsh("start", _domain(journal), limit=_incoming.BACK_LIMIT_S)
                return _started(image)
            except LiveUpdateError as err:
                why = str(err)
                _incoming.log(why)
        state = _state(journal)
        # Libvirt says "paused" of one that it is still starting. It takes the image away when the start is over, and not if it fails.
        if state == "running" or (has_run and state not in ("shut off", "") and not os.path.exists(image)):
            return _started(image)
        waited = time.monotonic() - begun
        if has_run and state == "paused" and journal["was_running"] and waited > STUCK_S:
            _go_on(journal)
        elif (has_run and state == "shut off") or waited > _incoming.BACK_LIMIT_S:
            raise LiveUpdateError(
                f"guest {name}: it is {state or 'not known to libvirt'}; {why}", again=not (has_run and state == "shut off")
            )
        if state == "shut off":
            _boot_order.late(name)  # what it lacks may come with the rest of the boot
        time.sleep(RETRY_S)


def _go_on(journal: dict) -> None:
    """Let a domain go on that nobody starts any more. While somebody does, libvirt waits for that, and refuses this in the end."""
    try:
        _libvirt.virsh("resume", _domain(journal))
    except LiveUpdateError as err:
        _incoming.log(str(err))


def _started(image: str) -> float:
    """Remove the image of a domain that is back if libvirt did not, or not yet: without its RAM no other start may find it."""
    went_on = time.time()
    _libvirt_saves.remove(image)
    return went_on


def _state(journal: dict) -> str:
    """The domain's state in libvirt's words; empty when libvirt does not answer."""
    try:
        return _libvirt.virsh("domstate", _domain(journal)).strip()
    except LiveUpdateError as err:
        _incoming.log(str(err))
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


HOOK = "/etc/libvirt/hooks/qemu.d/kvm-liveupdate"


def hook(name: str) -> None:
    """Libvirt asks before it starts the domain: give it its RAM, or refuse. Its answer to an error is not to start the domain."""
    stand_in = _paths.read_json(_guests.run_path(name, "stand-in"))
    state = _paths.read_json(_guests.state_path(name))
    if stand_in:
        _place(name, stand_in, stand_in["memory"])
    elif state:
        _place(name, state, _offered(name, state))
        _paths.write_json(_guests.run_path(name, "placed"), {})  # its time is when QEMU started


def _offered(name: str, state: dict) -> list[str]:
    """Where the RAM is that the saved state belongs to."""
    offered = _paths.read_json(_guests.run_path(name, "offer"))
    alive = offered and _processes.start_time(offered["pid"]) == offered["started"]
    if not alive or offered["hold"] != state["hold"] or os.path.exists(_guests.run_path(name, "resumed")):
        raise LiveUpdateError(
            f"guest {name}: it is not started: its saved state belongs to memory that is not offered now; 'systemctl status"
            f" {_holding.resident_unit(name)}' says why. 'kvm-liveupdate discard {name}' gives that state up; then it can be started"
        )
    _incoming.verify_devices(name, state.get("devices", {}))  # some come only after the holder has looked
    return [f"/proc/{offered['pid']}/fd/{fd}" for fd in offered["fds"]]


def _place(name: str, places: dict, memory: list[str]) -> None:
    """Put the RAM where the QEMU that is started now looks for it.

    Libvirt gives QEMU's user the directories below memory_backing_dir, so no link in them is followed, and no path is used twice.
    """
    directory = _ram_directory(name, places["directory"], sys.stdin.read())
    try:
        for file, there in zip(places["files"], memory):
            if there.startswith("/proc/"):
                os.symlink(there, file, dir_fd=directory)
            else:
                _link(name, there, file, directory)  # AppArmor judges by the path, and this one is the domain's own
    finally:
        os.close(directory)


def _link(name: str, there: str, file: str, directory: int) -> None:
    """Give the file at ``there`` another name: the very file that was looked at, whatever the path is made to mean meanwhile."""
    above = _open_directory(os.path.dirname(there))
    try:
        fd = os.open(os.path.basename(there), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LiveUpdateError(f"guest {name}: {there} is not a file, so it cannot be its RAM")
        os.link(f"/proc/self/fd/{fd}", file, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(fd)


def _open_directory(path: str) -> int:
    """The descriptor of a directory of domains' RAM. No link is followed below the one that qemu.conf names (memory_backing_dir), where
    libvirt makes ``libvirt/qemu/DOMAIN`` (qemu_conf.c, qemuGetMemoryBackingBasePath).
    """
    parts = path.split("/")
    depth = next((index for index in range(len(parts) - 1, 0, -1) if parts[index : index + 2] == ["libvirt", "qemu"]), len(parts))
    fd = os.open("/".join(parts[:depth]) or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts[depth:]:
        above = fd
        try:
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return fd


def _ram_directory(name: str, base: str, xml: str) -> int:
    """The directory that libvirt has just made for the domain's RAM files, open: its number, a dash, and a form of its name."""
    # <domain type='kvm' id='7'>, as libvirt writes it; an XML parser takes longer to import than the rest of the hook runs.
    number = xml.partition("<domain")[2].partition(">")[0].partition(" id='")[2].partition("'")[0]
    above = _open_directory(base)
    try:
        found = [entry for entry in os.listdir(above) if number and entry.startswith(f"{number}-")]
        if len(found) != 1:
            raise LiveUpdateError(f"guest {name}: no directory for its RAM below {base} (domain number {number!r}, found {found})")
        return os.open(found[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
