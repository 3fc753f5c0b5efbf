# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``kvm-liveupdate run NAME -- qemu-system-... ARGUMENTS``: the wrapper in a guest's unit. PRIVATE to the collection.

It gives QEMU its RAM as a file without a name and then *becomes* QEMU (exec). After a jump it gets the session from systemd and retrieves
the RAM from it, so that the pages are charged to the guest's own unit. It becomes a QEMU that waits for a state. A child process loads the
state and resumes the guest. This is on the boot path: standard library only, few imports.
"""

from __future__ import annotations

import errno
import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..handover import _early, _journal, _return, _session
from ..host import _commands, _files, _processes, _systemd
from ..kernel import _luo
from ..vmm import _argv, _monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("run",)

HOST_LIMIT_S = _limits.HOST_READY
AGAIN_S = 1.0
_GIVEN_UP = 2
NETWORKS = "/sys/class/net"
_NO_DRIVER = (errno.ENODEV, errno.ENXIO)


def run(name: str, argv: list[str]) -> None:
    """Become the guest's QEMU. Never returns; raises if the guest must not start."""
    try:
        _become(name, argv, time.time())
    except BaseException:
        _early.late(name)
        raise


def _become(name: str, argv: list[str], started: float) -> None:
    journal = _journal.recorded(name)
    if not os.path.isdir(_files.STATE):
        raise LiveUpdateError(
            f"{_files.STATE} does not exist, so guest {name} is not started; mount it, or run the playbook kvm.liveupdate.setup"
        )
    saved = journal.get("state") == "saved"
    # The drop-in lets the unit start before the network, also in an ordinary boot.
    back = journal if saved else {"argv": argv, "interfaces": _argv.bridges(argv)}
    lacking = _wait_for_host(name, back["argv"], back.get("interfaces", []))
    if lacking:
        _systemd.log(f"{name}: after {HOST_LIMIT_S} s the host still has {', '.join(lacking)}")
    session = _session.incoming(journal)
    note = _session.note(session)
    tried, resumed = _return.may_have_run(name, journal), os.path.exists(_files.run_path(name, "resumed"))
    verdict, why = _return.decide(journal, note, resumed, tried)
    _systemd.log(f"{name}: {verdict}: {why}")
    if verdict == "refuse":
        raise LiveUpdateError(f"guest {name}: {why}")
    _files.make_directory(_files.GUESTS_RUN)
    if verdict == "restore" and session is not None:
        needs = (journal.get("paths", []), journal.get("ports", []), journal.get("disks", {}))  # older journals have less
        lacking = lacking or _wait_for_host(name, [], [], *needs, journal.get("devices", {}))
        if lacking:  # QEMU might use something else instead, where this state must not be loaded
            fix = "mount what is missing (writable), load the missing kernel module, or give the right device its old name again (udev)"
            remedy = f"{fix}. The start is repeated automatically, and the guest's memory is kept"
            gone = f"If what is missing never comes back, run 'kvm-liveupdate discard {typed(name)}'. This discards the guest's memory"
            cold = "Then start the guest: it starts from its disks"
            raise LiveUpdateError(f"guest {name}: the host still has {', '.join(lacking)}; {remedy}. {gone}. {cold}", again=True)
        _restore(name, journal, session, started)
    _session.drop(session, note)
    if saved and resumed:
        _settle_or_say(name)
    elif saved:
        _return.lost(journal, why)
    _start(name, argv)


def _settle_or_say(name: str) -> None:
    """Record that the guest was restored before this start. If the disk does not accept it, /run says so for the rest of this boot."""
    try:
        _return.settle_seen(name)
    except (LiveUpdateError, OSError) as err:
        _systemd.log(f"{name}: its restore cannot be recorded: {err}")


def _start(name: str, argv: list[str]) -> None:
    """Start the guest from its disks, on new memory."""
    _early.late(name)
    unit = _processes.unit_of(os.getpid())
    if unit:
        _early.not_early(unit)  # after a power cut before its save, nothing else would undo this
        _be_one_of_many(unit)
    from ..vmm import _argv_reasons
    from . import _ram_file  # neither on the way back

    reason = _argv_reasons.ram_reason(argv)
    ram = None
    if reason is None:
        size = _argv.ram_size(argv)
        ram = {"fd": _ram_file.create(name, size), "size": size}
    _exec(name, argv, ram, reason, incoming=False)


def _exec(name: str, argv: list[str], ram: dict | None, reason: dict | None, incoming: bool) -> None:
    monitor = _files.run_path(name, "qmp")
    command = _argv.command(argv, monitor, ram["fd"] if ram else None, ram["size"] if ram else 0, incoming)
    record = {
        "name": name,
        "provider": "qemu",
        "unit": _processes.unit_of(os.getpid()) or "",
        "uuid": _argv.uuid_of(argv) or _own_uuid(name),
        "pid": os.getpid(),
        "started": _processes.start_time(os.getpid()),
        "monitor": monitor,
        "argv": argv,
        "ram": [ram] if ram else [],
        "reason": reason,
    }
    _files.write_json(_files.run_path(name), record)
    if ram:
        os.set_inheritable(ram["fd"], True)
    os.execvp(command[0], command)


def _own_uuid(name: str) -> str:
    """A UUID for a guest without one. It is the same at each start on this host."""
    import uuid

    with open("/etc/machine-id", encoding="ascii") as file:
        return str(uuid.uuid5(uuid.UUID(file.read().strip()), name))


def _restore(name: str, journal: dict, session: int, started: float) -> None:
    _return.verify(journal, _files.state_path(name))
    if journal.get("devices"):
        from ..vmm import _block  # for guests with block devices only

        _block.verify_devices(name, journal["devices"])
    (ram,) = _session.take(journal, session)
    times = {"start": started, "retrieved": time.time()}
    _return.check_memory(journal, [ram], times)
    main = os.getpid()
    child = os.fork()
    if child == 0:
        if os.fork():
            os._exit(0)  # so that PID 1 is the parent of the loader: QEMU would never reap it
        _see_it_back(name, journal, session, main, times)
    os.waitpid(child, 0)
    os.close(session)
    _exec(name, journal["argv"], {"fd": ram, "size": os.fstat(ram).st_size}, None, incoming=True)


def _wait_for_host(
    name: str,
    argv: list[str],
    interfaces: list[str],
    paths: t.Iterable[str] = (),
    ports: t.Collection[int] = (),
    disks: dict[str, dict] | None = None,
    devices: dict[str, list[str]] | None = None,
) -> list[str]:
    """Wait for what is still missing on a host that boots, because QEMU would not wait for it.

    These are a writable root file system, device nodes, networks, ``paths`` of disks, sockets and the like, a process that listens at
    each of the host's own TCP ``ports`` to which QEMU connects, and the guest's own ``disks`` and block ``devices``: until a mount is
    there, another file may be at the path of one, and until multipathd has made its map, a link leads to another device.

    Ordering the guest after the units that provide these would take longer. Returns what is still missing at the limit, except networks:
    these may have been made by hand, and if QEMU needs one, it reports the error itself.
    """
    until = time.monotonic() + HOST_LIMIT_S
    while True:
        lacking = [f"no {node}" for node in _argv.nodes(argv) if not _works(node)]
        lacking += [f"no {path}" for path in paths if not os.path.exists(path)]
        lacking += [what for what in _other_files(name, disks or {}) if what not in lacking]
        lacking += _other_devices(devices or {})
        lacking += [f"no process that listens at TCP port {port}" for port in _without_listener(ports)]
        if not os.access(_files.STATE, os.W_OK):
            lacking.append(f"{_files.STATE} read-only")
        networks = [interface for interface in interfaces if not os.path.exists(os.path.join(NETWORKS, interface))]
        if not (lacking or networks):
            return []
        if time.monotonic() > until:
            if networks:
                _systemd.log(f"{name}: waited {HOST_LIMIT_S} s for the host's network {', '.join(networks)}, and starts without it")
            return lacking
        _early.late(name)  # the rest of the boot brings what is missing
        time.sleep(0.05)


def _works(node: str) -> bool:
    """Whether a device node has its driver. It may exist before: a boot makes the nodes of all modules, and the first open loads one."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as err:
        return err.errno not in _NO_DRIVER
    return True


def _other_files(name: str, disks: dict[str, dict]) -> list[str]:
    if not disks:
        return []
    from ..vmm import _disk_files  # not for a cold start

    return _disk_files.amiss(disks, tried=os.path.exists(_files.run_path(name)))


def _other_devices(devices: dict[str, list[str]]) -> list[str]:
    if not devices:
        return []
    from ..vmm import _block  # for guests with block devices only

    return _block.changed(devices)


def _without_listener(ports: t.Collection[int]) -> list[int]:
    if not ports:
        return []
    from ..host import _tcp  # for guests with peers on this host only

    served = {port for _address, port, _inode in _tcp.listening()}
    return [port for port in ports if port not in served]


def _be_one_of_many(unit: str) -> None:
    """End the guest's priority over the rest of the boot: it must not take processor time from what other guests wait for."""
    try:
        _commands.run("systemctl", "set-property", "--runtime", unit, "StartupCPUWeight=", "StartupIOWeight=")
    except LiveUpdateError as err:
        _systemd.log(str(err))


def _see_it_back(name: str, journal: dict, session: int, main: int, times: dict) -> None:
    """In a separate process: start another one that loads the state, and complete its work if it fails."""
    started = _processes.start_time(main)
    loader = os.fork()
    if loader == 0:
        _load(name, journal, session, (main, started), times)
    code = os.waitstatus_to_exitcode(os.waitpid(loader, 0)[1])
    if code in (0, _GIVEN_UP):
        os._exit(code)
    if code < 0:
        _systemd.log(f"{name}: the process that loads its state was ended by signal {-code}")
    try:
        marked = any(os.path.exists(_files.run_path(name, mark)) for mark in ("trying", "resumed"))
        if not marked and _runs(name):
            _return.went_on(name)
            marked = True
        if marked:
            _go_on_at_last(name, journal, session, (main, started))
            os._exit(0)
        _give_up(name, (main, started))
    except Exception as err:  # pylint: disable=broad-except  # this process must not continue as the wrapper from which it was forked
        _systemd.log(f"{name}: {err}")
    os._exit(1)


def _runs(name: str) -> bool:
    """Whether QEMU reports that the guest runs: another program may have resumed it at another monitor."""
    try:
        with _monitor.Monitor(_files.run_path(name, "qmp")) as monitor:
            return monitor.status() == "running"
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")
        return False


def _give_up(name: str, main: tuple[int, int]) -> None:
    """End the QEMU of a guest that has not run, so that its unit fails and can be started again."""
    unit = _processes.unit_of(os.getpid()) or "UNIT"
    _systemd.log(f"{name}: its memory and state are kept; run 'systemctl start {typed(unit)}' to try again")
    if _lasts(*main):
        os.kill(main[0], 9)  # SIGKILL; the module that names it is slow to import


def _load(name: str, journal: dict, session: int, main: tuple[int, int], times: dict) -> None:
    """In a separate process: load the state into the QEMU that the main process becomes, and resume the guest.

    ``main`` is the ID and start time of the main process. The limits here only end what hangs: systemd ends this process with QEMU.
    """
    wait = _return.BACK_LIMIT_S
    try:
        with _monitor.Monitor(_files.run_path(name, "qmp"), wait_s=wait, answer_s=wait) as monitor:
            times["qemu"] = time.time()
            _monitor.load(monitor, _files.state_path(name), wait)
            times["loaded"] = time.time()
            # From a try to resume on, the memory may no longer match the state. The mark is in /run, which lasts as long as the memory.
            if not journal["was_running"]:
                _mark(name, main)  # its owner may resume it at any moment
            elif not _monitor.go_on(monitor, lambda: _mark(name, main), lambda: _refused(name)):
                shows = f"'journalctl -b -u {typed(journal['unit'])}' shows why"
                raise LiveUpdateError(f"QEMU did not resume it within {_monitor.GO_ON_LIMIT_S:g} s; {shows}")
            _return.went_on(name)
            times["resumed"] = time.time()
        _let_go(name, session, main)
        _record(_return.restored(journal, times), main)
        os._exit(0)
    except Exception as err:  # pylint: disable=broad-except  # every failure is logged, and the other process does the rest
        _systemd.log(f"{name}: {err}")
        _early.late(name)
        os._exit(1)


def _mark(name: str, main: tuple[int, int]) -> None:
    """Mark, before a try to resume the guest, that from now on it may have run."""
    if not _lasts(*main):
        raise LiveUpdateError("its QEMU has ended; the QEMU that answers is from another start")
    try:
        if os.path.exists(_files.run_path(name, "resumed")):
            raise FileExistsError
        os.close(os.open(_files.run_path(name, "trying"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        unusable = "the guest may already have run on this memory, so its saved state must not be used"
        _systemd.log(f"{name}: {unusable}; this QEMU is ended")
        _give_up(name, main)
        os._exit(_GIVEN_UP)


def _refused(name: str) -> None:
    """QEMU reports that the guest has not run. The rest of the boot does not wait for the next tries: it may bring what they need."""
    os.unlink(_files.run_path(name, "trying"))
    _early.late(name)


def _go_on_at_last(name: str, journal: dict, session: int, main: tuple[int, int]) -> None:
    """Resume a guest that has run or may have run; only its QEMU knows. This neither ends that QEMU nor loads the state again."""
    said = ""
    while not os.path.exists(_files.run_path(name, "resumed")):
        if not _lasts(*main):
            raise LiveUpdateError("its QEMU has ended; the guest may have run, so it is not restored again")
        try:
            with _monitor.Monitor(_files.run_path(name, "qmp"), answer_s=_return.BACK_LIMIT_S) as monitor:
                if monitor.status() != "paused" or not journal["was_running"] or _monitor.go_on(monitor):
                    _return.went_on(name)
                    break
        except LiveUpdateError as err:
            if str(err) != said:
                said = str(err)
                _systemd.log(f"{name}: it is not known yet whether it runs: {said}. This is repeated until its QEMU ends")
        time.sleep(AGAIN_S)
    _let_go(name, session, main)
    seen = _journal.of_guest(name)
    if seen.get("hold") == journal["hold"] and seen.get("state") == "restored":  # else the record is of something newer
        _record(seen, main)


def _lasts(main: int, started: int) -> bool:
    """Whether the process still is the one that started then."""
    return started != 0 and _processes.start_time(main) == started


def _let_go(name: str, session: int, main: tuple[int, int]) -> None:
    """End the session of a running guest. A failure of one step does not prevent the next: the guest runs in any case."""
    try:
        _luo.finish(session)
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")
    try:
        _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_session.FDNAME}", pid=main[0])
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")


def _record(restored: dict, main: tuple[int, int]) -> None:
    """Report that the guest is restored, and undo its priority over the boot."""
    times = restored["times"]
    _systemd.log(f"{restored['guest']}: restored, {times['resumed'] - times['paused']:.3f} s after its pause")
    recorded = _return.settled(restored)
    _be_one_of_many(restored["unit"])
    if not recorded:
        _return.settle_at_last(restored, lambda: _lasts(*main))
