# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One update of this host, from the commit to the jump, and its undo. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from .. import _limits
from .._errors import LiveUpdateError, told, typed
from ..guests import _hold, _providers
from ..handover import _digests, _early, _journal, _lock
from ..host import _commands, _files, _processes, _systemd, _this_boot, _units, _watchdogs
from ..kernel import _cmdline, _kexec, _kvm
from . import _gate, _readiness, _rest_of_boot, _services

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("TIMEOUT_S", "commit", "jump", "recover")

# systemd-shutdown would execute this instead of the kexec (src/shutdown/shutdown.c, can_exitrd). It is on a tmpfs.
_EXITRD = "/run/initramfs/shutdown"
_EXITRD_ASIDE = _EXITRD + ".kvm-liveupdate"
GRACE_S = _limits.COMMIT_ANSWER
RECOVER_S = _limits.KEXEC_AFTER_CRASH
DOWN_LIMIT_S = _limits.KEXEC
TIMEOUT_S = _limits.UPDATE
LOCK_LIMIT_S = _limits.LOCK
PAUSE_LIMIT_S = _limits.PAUSE
_MANY_FDS = 4096
# Real-time signal 16: PID 1 does immediately what "systemctl --force kexec" requests (systemd(1)), without a new program. It stops no
# units (src/core/manager.c, objective_table): nothing unpacks an exitrd, and no service gets 90 s to end.
_KEXEC_SIGNAL = 16
_PID_1 = "/proc/1/status"


def commit(
    guests: list[str],
    keep_units: list[str],
    on_loss: str,
    timeout: float = TIMEOUT_S,
    verify_memory: str = "sample",
    reuse_probe: bool = True,
) -> dict:
    """Write the update's journal and start the jump. From here on the host acts alone.

    ``timeout``: seconds for the whole update. ``verify_memory``: how to check the guests' memory (handover/_digests.py). ``reuse_probe``:
    libvirt does not probe QEMU again if KVM gives the same answers under both kernels (libvirt/_probe_cache.py).
    """
    seen = _gate.look()
    problems = _gate.gate(guests, seen)
    problems += _gate.unit_problems(
        keep_units, _systemd.show_each(list(dict.fromkeys((*keep_units, *_gate.CLUSTERS))), "LoadState", "ActiveState")
    )
    problems += map(told, _readiness.watchdogs(keep_units=keep_units))
    if _lock.busy():
        problems.append(f"{_units.JUMP} of the last update still runs; 'systemctl status {_units.JUMP}' shows what it waits for")
    if problems:
        raise LiveUpdateError("the jump is refused, and nothing was stopped: " + "; ".join(problems), problems=problems)
    update = {
        "id": _this_boot.random_uuid(),
        "state": "committed",
        "boot_id": _this_boot.boot_id(),
        "kernel": _this_boot.kernel(),
        "image": seen["image"],
        "guests": sorted(guests),
        "keep_units": keep_units,
        "on_loss": on_loss,
        "verify_memory": verify_memory,
        "reuse_probe": reuse_probe,
        "timeout": timeout,
        "pause_by": time.monotonic() + timeout / 2,
        "times": {"committed": time.time()},
    }
    try:
        _journal.record(update)
        _commands.run("systemctl", "start", "--no-block", _units.JUMP)
    except (LiveUpdateError, OSError) as err:
        why = str(err)
        if isinstance(err, OSError):
            why = f"{_files.UPDATE} cannot be written: {err.strerror} (free space on its file system, or repair it)"
        why = f"the jump is refused, and nothing was stopped: {why}. Correct this, then run the update again"
        if _may_be_recorded(update):
            _end(update, why)  # else it would count as under way until the next boot
        raise LiveUpdateError(why) from err
    return update


def _may_be_recorded(update: dict) -> bool:
    """Whether the host's record may be of this update. If it is of an earlier one, that has its own end."""
    try:
        return bool(_files.read_json(_files.UPDATE).get("id") == update["id"])
    except LiveUpdateError:
        return True


def _advance(update: dict, state: str) -> None:
    update["state"] = state
    update["times"][state] = time.time()
    _journal.record(update)
    _systemd.log(f"update {update['id']}: {state}")


def _end(update: dict, error: str, not_back: t.Sequence[str] = ()) -> None:
    """Record that the update was undone; on a full disk at least in /run, because the controller waits for it. Never raises.

    ``not_back`` are guests that the undo left paused, or whose QEMU has ended. Then the controller does not call the update undone.
    The next operation that takes the lock writes it to the disk then (:func:`_journal.settle_end`).
    """
    ended = {"error": error, "not_back": sorted(not_back)}
    update.update(ended)
    with contextlib.suppress(OSError):
        _files.write_json(_files.OUTCOME, {"id": update["id"], "state": "aborted", **ended})
    try:
        _advance(update, "aborted")
    except OSError as err:
        _systemd.log(f"update {update['id']}: aborted, but {_files.UPDATE} cannot be written: {err}. The next operation tries it again")


def _committed() -> dict:
    update = _journal.of_update()
    if _journal.outcome(update, _this_boot.boot_id(), "") != "pending" or update["state"] != "committed":
        raise LiveUpdateError("no update is committed; the module kvm.liveupdate.kexec commits one")
    return update


def jump() -> int:
    """Carry out the committed update. Returns (1) only if it was aborted and undone."""
    update = _committed()
    with contextlib.ExitStack() as locked:
        try:
            locked.enter_context(_lock.Lock(LOCK_LIMIT_S, of_update=True))
        except LiveUpdateError as err:
            _end(update, f"Nothing was stopped, and the guests continue to run: {err}. Then run the update again")
            return 1
        update = _committed()  # the commit had the lock, and has withdrawn it if PID 1 did not answer in time
        try:
            time.sleep(GRACE_S)
            _carry_out(update)
        except Exception as err:  # pylint: disable=broad-except  # after any failure, no guest may stay paused
            why = str(err) or repr(err)
            _abort(update, f"{why}{_what_next(update, why)}")
            return 1


def _carry_out(update: dict) -> t.NoReturn:
    """Carry out the update up to the jump. Raises if anything is not as it must be."""
    update["units"] = _services.active_units()
    _commands.end_by(update["pause_by"], "half of hypervisor_update_timeout, by which the guests must be paused")
    records = _gate.check(update)
    update["stages"] = _rest_of_boot.plan(list(records.values()))
    _rest_of_boot.load_early()
    update["kvm"] = _kvm.answers() if update.get("reuse_probe") else ""
    update["loaded"] = _to_load(update["image"], bool(update["stages"]))
    _kexec.try_out(update["loaded"])
    # Guests of a later stage are started by that stage: in the first stage they would only take processor time.
    ahead = update["stages"][0]["guests"] if update["stages"] else []
    update["early"] = [record["unit"] for record in records.values()]
    _journal.record(update)  # also if a guest ends before the next step
    for record in records.values():
        _early.start_early(record["unit"], True, ahead=record["name"] in ahead)
    update["feeders"] = _watchdogs.feeders(_watchdogs.read())
    _advance(update, "stopping")
    _services.stop_the_rest(update)
    _refuse_armed_watchdogs(update)  # before the sessions end, which may take longer than a watchdog waits
    _services.end_sessions(update)
    _refuse_armed_watchdogs(update)
    _services.limit_the_shutdown()
    _write_out(max(update["pause_by"] - time.monotonic(), 0.0))
    update["clock_ahead"] = _this_boot.ahead()  # not earlier: a step of the clock in between would count as a part of the pause
    _kexec.load(update["loaded"])
    records = _gate.check(update)
    if not _kexec.loaded():
        raise LiveUpdateError("another program has unloaded the kernel for the jump; run the update again")
    update["running"] = _meant_to_run(records)
    if _late(update):
        raise LiveUpdateError("the host was too slow: it could not pause its guests in time")
    update["times"]["gate"] = time.time()
    _limit_the_pause()
    for name in update["running"]:
        _files.write_json(_files.run_path(name, "paused"), _hold.process(records[name]))
    _advance(update, "saving")
    _save_all(update, records)
    # Until now another kexec would carry over memory without a journal. Left here, they would keep the next boot busy before the guests.
    _files.remove_all([_files.hold_path(name) for name in records])
    _advance(update, "jumping")
    _put_exitrd_aside()
    problems = _gate.last_look(update, records)
    if problems:
        raise LiveUpdateError("; ".join(problems))
    os.kill(1, signal.SIGRTMIN + _KEXEC_SIGNAL)
    time.sleep(DOWN_LIMIT_S)
    if _is_pending():
        raise LiveUpdateError(
            f"PID 1 has not taken the request for the kexec within {DOWN_LIMIT_S:g} s, and nobody can take it back: when PID 1 continues,"
            " it reboots this host, and its guests end. Migrate or shut down the guests now, reboot the host, and run the update again"
        )
    raise LiveUpdateError(
        f"PID 1 got the request for the kexec, but did not carry it out within {DOWN_LIMIT_S:g} s; 'journalctl -b _PID=1' may show why"
    )


def _refuse_armed_watchdogs(update: dict) -> None:
    if update["feeders"]:
        _services.end_feeders(update)
    armed = _readiness.armed(_watchdogs.read())
    if armed:
        raise LiveUpdateError("; ".join(map(told, armed)))


def _is_pending() -> bool:
    """Whether the request for the kexec still waits for PID 1 (proc_pid_status(5), ShdPnd)."""
    try:
        with open(_PID_1, encoding="utf-8") as file:
            pending = next(int(line.split()[1], 16) for line in file if line.startswith("ShdPnd:"))
    except (OSError, StopIteration, ValueError):
        return False
    return bool(pending >> (signal.SIGRTMIN + _KEXEC_SIGNAL - 1) & 1)


def _limit_the_pause() -> None:
    _commands.end_by(time.monotonic() + PAUSE_LIMIT_S, f"the limit of {PAUSE_LIMIT_S:g} s for the pause of the guests")


def _late(update: dict) -> bool:
    return bool(time.monotonic() > update["pause_by"])


def _what_next(update: dict, why: str) -> str:
    """What the operator does after the undo, as a sentence to follow ``why``; empty if ``why`` says it."""
    if "gate" in update["times"] or not _late(update):
        return "" if "run the update again" in why else ". Correct this, then run the update again"
    return (
        f". Half of hypervisor_update_timeout ({update['timeout']:g} s) is over, and no guest was paused: run the update again, or raise"
        " hypervisor_update_timeout"
    )


def _meant_to_run(records: dict[str, dict]) -> list[str]:
    """The guests that run after the jump: those that run now, and those that an undo left paused."""
    states = _gate.at_once(lambda name: _providers.of(records[name]).status(records[name]), list(records))
    return [name for (name, record), state in zip(records.items(), states) if state.result() == "running" or _hold.owes(record)]


def _put_exitrd_aside() -> None:
    """Make the shutdown do the kexec itself. An exitrd would change root and do it, or another kind of reboot, without the sessions."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(_EXITRD, _EXITRD_ASIDE)


def _put_exitrd_back() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(_EXITRD_ASIDE, _EXITRD)


def _to_load(image: dict, guests_first: bool) -> dict:
    """The staged image, with the command line for this jump."""
    return {**image, "cmdline": _cmdline.for_jump(image["cmdline"], guests_first, _this_boot.consoles())}


def _write_out(limit_s: float) -> None:
    """Write all file systems to disk, in a child process: sync(2) has no limit if a file system does not answer."""
    child = os.fork()
    if child == 0:
        os.closerange(3, _MANY_FDS)  # it may outlive this process
        os.sync()
        os._exit(0)
    until = time.monotonic() + limit_s
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            granted = f"within {limit_s:.0f} s" if limit_s >= 1 else "in the remaining time"
            raise LiveUpdateError(f"the file systems were not written to disk {granted}; check whether all of them answer (NFS?)")
        time.sleep(0.01)


def _save_all(update: dict, records: dict[str, dict]) -> None:
    """Pause and save all guests in parallel; those with a fast save last, because they would only wait, paused. Every error counts."""
    slow = [name for name, record in records.items() if _providers.of(record).saves_slowly]
    for names in (slow, [name for name in records if name not in slow]):
        errors = [str(job.exception()) for job in _gate.at_once(lambda name: _save(records[name], update), names) if job.exception()]
        if errors:
            raise LiveUpdateError("; ".join(errors))


def _save(record: dict, update: dict) -> None:
    """Pause and save one guest, as the gate saw it. The state counts only if it is from the QEMU whose memory is held."""
    name = record["name"]
    hold, was_running = update["holds"][name], name in update["running"]
    saved = _providers.of(record).save(record, _files.state_path(name), was_running)
    if not _hold.is_of(hold, record):
        raise LiveUpdateError(f"guest {name}: its QEMU or its memory is no longer the one that is preserved; run the update again")
    journal = {
        **saved,
        **_digests_of(record, hold, update.get("verify_memory", "none"), saved["times"]),
        "state": "saved",
        "guest": name,
        "update_id": update["id"],
        "boot_id": update["boot_id"],
        "clock_ahead": update.get("clock_ahead"),
        "on_loss": update["on_loss"],
        "hold": hold["hold"],
        "qemu": [record["pid"], record["started"]],
        "session": hold["session"],
        "sizes": hold["sizes"],
        "uuid": record["uuid"],
        "unit": record["unit"],
        "was_running": was_running,
    }
    _journal.record_guest(journal)


def _digests_of(record: dict, hold: dict, kind: str, times: dict) -> dict:
    """What a restore needs to check the memory of a guest that is paused and saved: the part of its journal, with its ``times``.

    QEMU no longer writes to the memory, and the kernel carries over exactly these files.
    """
    if kind == "none":
        return {"memory_check": kind}
    files: list[int] = []
    try:
        files += _hold.preserved_files(hold, record)
        noted = _digests.note(kind, files)
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {record['name']}: its memory cannot be read for the check after the jump: {err}") from err
    finally:
        for file in files:
            os.close(file)
    if kind == "full":
        _limit_the_pause()  # the time of a full check is known and wanted, and no command may fail for it
    return {"memory_check": kind, "memory": noted, "times": {**times, "read": time.time()}}


def _abort(update: dict, why: str) -> None:
    """Undo the update, also if single steps fail: first the guests, then the sessions and the image, then what was stopped.

    A guest's journal is removed before the guest is resumed: if a kexec still happens, the new kernel must not find a state that no longer
    matches the memory. A guest that cannot be resumed keeps its state and its session, because they may be all that is left of it.
    """
    _systemd.log(f"update {update['id']}: undoing it: {why}")
    _commands.end_by(None)
    problems = [why]

    def undo(what: str, step: t.Callable[..., object], *arguments: object) -> bool:
        try:
            step(*arguments)
            return True
        except Exception as err:  # pylint: disable=broad-except  # one failed step must not prevent the others
            problems.append(f"the undo could not {what}: {err}")
            return False

    records = dict(update["records"]) if "running" in update else {}  # before the pause guests may end or be replaced
    if not records:
        undo("find the guests", lambda: records.update(_providers.known()))
        records = {name: record for name, record in records.items() if name in update["guests"]}

    # Before that nobody was paused and nothing saved: who paused, migrates or ended a guest then, is its owner.
    saved = [name for name in records if "running" in update]
    not_back: list[str] = []
    guards: set[str] = set()  # guests whose state keeps libvirt from starting them from a saved image that could not be removed
    elsewhere: set[str] = set()  # guests that another program has migrated

    def let_go_on(name: str) -> None:
        try:
            _hold.let_go_on(records[name], name in update.get("running", ()))
        except LiveUpdateError as err:
            if err.details.get("image_stays"):
                guards.add(name)
            if err.details.get("elsewhere"):
                elsewhere.add(name)
            raise

    def run_on(name: str) -> bool:
        undo(f"remove the journal of guest {name}", _journal.forget_guest, name)
        if undo(f"end the save of guest {name}", let_go_on, name):
            return True
        if not _processes.lives(records[name]):
            not_back.append(name)
            rest = "make sure that the guest runs nowhere else, then start it"
            if name in guards:
                rest = f"first run 'kvm-liveupdate discard {typed(name)}'. Then make sure that the guest runs nowhere else, and start it"
            problems.append(f"the QEMU of guest {name} has ended during the update, and its memory with it: {rest}")
            return True
        if name in elsewhere:  # it must not be resumed here, now or later
            undo(f"remove the mark of guest {name}", _files.remove, _files.run_path(name, "paused"))
            return True
        with contextlib.suppress(Exception):  # as in undo
            if _providers.of(records[name]).status(records[name]) == "running":
                return True
        if name not in update["running"]:  # its owner had paused it; what the undo could not do is told
            return False
        not_back.append(name)
        undo(f"note that guest {name} is paused", _hold.note_left_paused, records[name])
        problems.append(
            f"guest {name} is not resumed; its memory is kept. Correct the cause, then run 'kvm-liveupdate resume {typed(name)}' on the"
            f" host. Or, to discard its memory, end its QEMU ({_ends(records[name])}), run 'kvm-liveupdate discard {typed(name)}', and"
            " start the guest: it starts from its disks"
        )
        return False

    left = {name for name, job in zip(saved, _gate.at_once(run_on, saved)) if not job.result()}
    undo("unload the staged kernel", _kexec.unload)
    undo(f"rename {_EXITRD} back", _put_exitrd_back)
    for name, record in records.items():
        if name not in left:
            if name in saved and name not in guards:
                undo(f"remove the saved state of guest {name}", _files.remove, _files.state_path(name))
            undo(f"release the memory of guest {name}", _hold.release, record)
    for unit in update.get("early", ()):
        undo(f"end the early start of {unit} in the next boot", _early.start_early, unit, False)
    for unit in update.get("in_place", ()):
        undo(f"remove the drop-in of {unit}", _files.remove, _services.in_place(unit))
    undo("restore the usual limit of the shutdown", _services.usual_shutdown)
    if "stopping_from" in update:  # else the update stopped nothing
        again = (update.get("units", []), update["stopping_from"], problems, update.get("early", []))
        undo("start the services again", _services.start_again, *again)
    for name in update["guests"]:
        if name not in records:  # it has ended, and its memory would stay in use. Its release needs D-Bus, which the update has stopped.
            undo(f"release the memory of guest {name}", _hold.release_ended, name)
    if update.get("ended"):
        undo("find out which logins and containers have ended", _services.tell_ended, update["ended"], problems)
    _end(update, "; ".join(problems), not_back)


def _ends(record: dict) -> str:
    """The command that ends the QEMU of a guest, for a message."""
    return f"'virsh destroy {record['uuid']}'" if record["provider"] == "libvirt" else f"'systemctl stop {typed(record['unit'])}'"


def recover() -> None:
    """Undo an update whose process ended before the jump, by a kill or a crash. No effect on any other update."""
    with _lock.Lock(LOCK_LIMIT_S, of_update=True):
        update = _journal.of_update()
        if _journal.outcome(update, _this_boot.boot_id(), "") != "pending":
            return
        if update["state"] == "jumping":
            time.sleep(RECOVER_S)
        _abort(update, f"the process that carried out the update ended in the step '{update['state']}'; run the update again")
