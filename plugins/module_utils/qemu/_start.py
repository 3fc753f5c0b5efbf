# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``kvm-liveupdate run NAME -- qemu-system-... ARGUMENTS``: the exec wrapper of a guest's unit. PRIVATE to the collection.

It gives QEMU its RAM as a file without a name and then *becomes* QEMU. After a jump it finds the session in what systemd hands it,
takes the RAM out of it (so the pages are charged to the guest's own unit), becomes QEMU waiting for a state, and a child
loads the state and lets the guest go on. On the boot path: standard library, few imports.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError
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


def run(name: str, argv: list[str]) -> None:
    """Become the guest's QEMU. Returns never; raises when the guest must not start."""
    try:
        _become(name, argv, time.time())
    except BaseException:
        _early.late(name)
        raise


def _become(name: str, argv: list[str], started: float) -> None:
    journal = _journal.recorded(name)
    if not os.path.isdir(_files.STATE):
        raise LiveUpdateError(f"{_files.STATE} is not there: mount it first, or run the setup playbook; {name} is not started")
    saved = journal.get("state") == "saved"
    back = journal if saved else {"argv": argv}
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
        lacking = lacking or _wait_for_host(name, [], [], journal.get("paths", []), journal.get("ports", []))
        if lacking:  # QEMU might fall back on something else, which is no place for this state
            remedy = "mount what is missing, writable, or load the kernel module: this is tried again by itself"
            raise LiveUpdateError(f"guest {name}: its host still has {', '.join(lacking)}: {remedy}; its memory is kept", again=True)
        _restore(name, journal, session, started)
    _session.drop(session, note)
    if saved and resumed:
        _settle_or_say(name)
    elif saved:
        _return.lost(journal, why)
    _start(name, argv)


def _settle_or_say(name: str) -> None:
    """The guest was back before this start of it; /run says so for the rest of this boot where the disk does not."""
    try:
        _return.settle_seen(name)
    except (LiveUpdateError, OSError) as err:
        _systemd.log(f"{name}: that it was brought back cannot be recorded: {err}")


def _start(name: str, argv: list[str]) -> None:
    """A clean start, on fresh memory."""
    _early.late(name)
    unit = _processes.unit_of(os.getpid())
    if unit:
        _early.not_early(unit)  # where a power cut came before its save, nothing else would take that back
        _be_one_of_many(unit)
    reason = _argv.ram_reason(argv)
    ram = None
    if reason is None:
        from . import _ram_file  # not on the way back

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
    """A UUID for a guest that was given none, the same at each start on this host."""
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
    main = os.getpid()
    child = os.fork()
    if child == 0:
        if os.fork():
            os._exit(0)  # what loads the state belongs to PID 1, not to QEMU, which would never reap it
        _see_it_back(name, journal, session, main, times)
    os.waitpid(child, 0)
    os.close(session)
    _exec(name, journal["argv"], {"fd": ram, "size": os.fstat(ram).st_size}, None, incoming=True)


def _wait_for_host(
    name: str, argv: list[str], interfaces: list[str], paths: t.Iterable[str] = (), ports: t.Collection[int] = ()
) -> list[str]:
    """Wait for what a host that still boots may lack, and QEMU would not wait for.

    That is a root file system to write to, device nodes, networks, ``paths`` of disks, sockets and the like, and somebody who
    listens at each of its own TCP ``ports`` that QEMU connects to.

    Behind the units that see to these a guest would wait longer. Returns what is still amiss at the limit. Networks are not: they may have
    been made by hand, and a QEMU that cannot do without says so.
    """
    wanted, until = [*_argv.nodes(argv), *paths], time.monotonic() + HOST_LIMIT_S
    while True:
        lacking = [f"no {path}" for path in wanted if not os.path.exists(path)]
        lacking += [f"nobody who listens at TCP port {port}" for port in _without_listener(ports)]
        if not os.access(_files.STATE, os.W_OK):
            lacking.append(f"{_files.STATE} read-only")
        networks = [interface for interface in interfaces if not os.path.exists(os.path.join(NETWORKS, interface))]
        if not (lacking or networks):
            return []
        if time.monotonic() > until:
            if networks:
                _systemd.log(f"{name}: goes on after {HOST_LIMIT_S} s without the host's network {', '.join(networks)}")
            return lacking
        _early.late(name)  # what is lacking comes with the rest of the boot
        time.sleep(0.05)


def _without_listener(ports: t.Collection[int]) -> list[int]:
    if not ports:
        return []
    from ..host import _tcp  # for guests with peers on this host only

    served = {port for _address, port, _inode in _tcp.listening()}
    return [port for port in ports if port not in served]


def _be_one_of_many(unit: str) -> None:
    """The guest needs to go ahead of the rest of the boot no more: what others still wait for shall not wait for its processors too."""
    try:
        _commands.run("systemctl", "set-property", "--runtime", unit, "StartupCPUWeight=", "StartupIOWeight=")
    except LiveUpdateError as err:
        _systemd.log(str(err))


def _see_it_back(name: str, journal: dict, session: int, main: int, times: dict) -> None:
    """In a process of its own: have another one load the state, and do what is left where that one does not get to the end."""
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
    except Exception as err:  # pylint: disable=broad-except  # this process must not go on as the wrapper that it was forked from
        _systemd.log(f"{name}: {err}")
    os._exit(1)


def _runs(name: str) -> bool:
    """Whether QEMU says that the guest runs: somebody else may have let it go on, at a monitor of its own."""
    try:
        with _monitor.Monitor(_files.run_path(name, "qmp")) as monitor:
            return monitor.status() == "running"
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")
        return False


def _give_up(name: str, main: tuple[int, int]) -> None:
    """End the QEMU of a guest that has not run, so that its unit counts as failed, and can be started again."""
    _systemd.log(f"{name}: its memory and state are kept; 'systemctl start' of its unit tries again")
    if _lasts(*main):
        os.kill(main[0], 9)  # SIGKILL; the module that names it is slow to import


def _load(name: str, journal: dict, session: int, main: tuple[int, int], times: dict) -> None:
    """In a process of its own: load the state into the QEMU that the main process becomes, and let the guest go on.

    ``main`` is that process: its id and start time. These limits only end what hangs: systemd ends this process with QEMU.
    """
    wait = _return.BACK_LIMIT_S
    try:
        with _monitor.Monitor(_files.run_path(name, "qmp"), wait_s=wait, answer_s=wait) as monitor:
            times["qemu"] = time.time()
            _monitor.load(monitor, _files.state_path(name), wait)
            times["loaded"] = time.time()
            # While a try lasts the memory may be no longer what the state belongs to. This boot's /run is as lasting as the memory.
            if not journal["was_running"]:
                _mark(name, main)  # its owner may let it go on at any moment
            elif not _monitor.go_on(monitor, lambda: _mark(name, main), lambda: _refused(name)):
                raise LiveUpdateError(f"QEMU does not let it run within {_monitor.GO_ON_LIMIT_S:g} s: mend what the line before names")
            _return.went_on(name)
            times["resumed"] = time.time()
        _let_go(name, session, main)
        _record(_return.restored(journal, times), main)
        os._exit(0)
    except Exception as err:  # pylint: disable=broad-except  # whatever it is, it is said, and what is left is the other process's
        _systemd.log(f"{name}: {err}")
        _early.late(name)
        os._exit(1)


def _mark(name: str, main: tuple[int, int]) -> None:
    """Mark, before a try to let the guest go on, that it may have run from here on."""
    if not _lasts(*main):
        raise LiveUpdateError("its QEMU has ended; the one that answers is of another start")
    try:
        if os.path.exists(_files.run_path(name, "resumed")):
            raise FileExistsError
        os.close(os.open(_files.run_path(name, "trying"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        _systemd.log(f"{name}: a state was loaded onto memory that has, or may have, run already; this QEMU is ended")
        _give_up(name, main)
        os._exit(_GIVEN_UP)


def _refused(name: str) -> None:
    """QEMU itself says that the guest has not run. The rest of the boot need not wait for the next tries: it may bring what they need."""
    os.unlink(_files.run_path(name, "trying"))
    _early.late(name)


def _go_on_at_last(name: str, journal: dict, session: int, main: tuple[int, int]) -> None:
    """See that a guest goes on that has, or may have: nobody knows that, but QEMU. Neither is it ended, nor loaded once more."""
    said = ""
    while not os.path.exists(_files.run_path(name, "resumed")):
        if not _lasts(*main):
            raise LiveUpdateError("its QEMU has ended; the guest may have run, and is not brought back once more")
        try:
            with _monitor.Monitor(_files.run_path(name, "qmp"), answer_s=_return.BACK_LIMIT_S) as monitor:
                if monitor.status() != "paused" or not journal["was_running"] or _monitor.go_on(monitor):
                    _return.went_on(name)
                    break
        except LiveUpdateError as err:
            if str(err) != said:
                said = str(err)
                _systemd.log(f"{name}: whether it goes on is not known yet: {said}; this is tried until its QEMU ends")
        time.sleep(AGAIN_S)
    _let_go(name, session, main)
    seen = _journal.of_guest(name)
    if seen.get("hold") == journal["hold"] and seen.get("state") == "restored":  # else it tells of something newer
        _record(seen, main)


def _lasts(main: int, started: int) -> bool:
    """Whether the process still is the one that started then."""
    return started != 0 and _processes.start_time(main) == started


def _let_go(name: str, session: int, main: tuple[int, int]) -> None:
    """End the session of a guest that runs. Each step is for itself: the guest runs, whatever fails."""
    try:
        _luo.finish(session)
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")
    try:
        _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_session.FDNAME}", pid=main[0])
    except LiveUpdateError as err:
        _systemd.log(f"{name}: {err}")


def _record(restored: dict, main: tuple[int, int]) -> None:
    """Tell that the guest is back, and take back what it went ahead with."""
    times = restored["times"]
    _systemd.log(f"{restored['guest']}: back, {times['resumed'] - times['paused']:.3f} s after its pause")
    recorded = _return.settled(restored)
    _be_one_of_many(restored["unit"])
    if not recorded:
        _return.settle_at_last(restored, lambda: _lasts(*main))
