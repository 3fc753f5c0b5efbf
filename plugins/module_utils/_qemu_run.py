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
import zlib

from . import _boot_order, _clock, _guests, _holding, _host, _incoming, _luo, _paths, _processes, _qemu, _systemd
from ._errors import LiveUpdateError
from ._qmp import Qmp
from .vmm import _argv

__all__ = ("run",)


HOST_LIMIT_S = 60
NETWORKS = "/sys/class/net"


def run(name: str, argv: list[str]) -> None:
    """Become the guest's QEMU. Returns never; raises when the guest must not start."""
    try:
        _become(name, argv, time.time())
    except BaseException:
        _boot_order.late(name)
        raise


def _become(name: str, argv: list[str], started: float) -> None:
    journal = _guests.journal(name)
    if not os.path.isdir(_paths.STATE):
        raise LiveUpdateError(f"{_paths.STATE} is not there: mount it first, or run the setup playbook; {name} is not started")
    back = journal if journal.get("state") == "saved" else {"argv": argv}
    lacking = _wait_for_host(name, back["argv"], back.get("interfaces", []))
    if lacking:
        _incoming.log(f"{name}: after {HOST_LIMIT_S} s the host still has {', '.join(lacking)}")
    session = _incoming.session_of(journal)
    note = _incoming.note_of(session)
    marker = _guests.run_path(name, "resumed")
    verdict, why = _incoming.decide(journal, note, os.path.exists(marker))
    _incoming.log(f"{name}: {verdict}: {why}")
    if verdict == "refuse":
        raise LiveUpdateError(f"guest {name}: {why}")
    os.makedirs(_paths.GUESTS_RUN, mode=0o700, exist_ok=True)
    if verdict == "restore" and session is not None:
        if lacking:  # QEMU might fall back on something else, which is no place for this state
            remedy = "mount it writable or load the kernel module, then start the unit again"
            raise LiveUpdateError(f"guest {name}: its host still has {', '.join(lacking)}: {remedy}; its memory is kept")
        _restore(name, journal, session, started)
    _incoming.drop(session, note)
    if journal.get("state") == "saved":
        _incoming.lost(journal, why)
    _start(name, argv)


def _start(name: str, argv: list[str]) -> None:
    """A clean start, on fresh memory."""
    _boot_order.late(name)
    unit = _processes.unit_of(os.getpid())
    if unit:
        _boot_order.not_early(unit)  # where a power cut came before its save, nothing else would take that back
        _be_one_of_many(unit)
    reason = _argv.ram_reason(argv)
    ram = None
    if reason is None:
        from . import _ram_file  # not on the way back

        size = _argv.ram_size(argv)
        ram = {"fd": _ram_file.create(name, size), "size": size}
    _exec(name, argv, ram, reason, incoming=False)


def _exec(name: str, argv: list[str], ram: dict | None, reason: dict | None, incoming: bool) -> None:
    monitor = _guests.run_path(name, "qmp")
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
    _paths.write_json(_guests.run_path(name), record)
    if ram:
        os.set_inheritable(ram["fd"], True)
    os.execvp(command[0], command)


def _own_uuid(name: str) -> str:
    """A UUID for a guest that was given none, the same at each start on this host."""
    import uuid

    with open("/etc/machine-id", encoding="ascii") as file:
        return str(uuid.uuid5(uuid.UUID(file.read().strip()), name))


def _restore(name: str, journal: dict, session: int, started: float) -> None:
    state = _guests.state_path(name)
    with open(state, "rb") as file:
        if zlib.crc32(file.read()) != journal["state_crc32"]:
            raise LiveUpdateError(f"guest {name}: {state} is not what was saved: 'kvm-liveupdate discard {name}' lets it start clean")
    (ram,) = _incoming.memory(journal, session)
    times = {"start": started, "retrieved": time.time()}
    main = os.getpid()
    child = os.fork()
    if child == 0:
        if os.fork():
            os._exit(0)  # the loader belongs to PID 1, not to QEMU, which would never reap it
        _load(name, journal, session, main, times)
    os.waitpid(child, 0)
    os.close(session)
    _exec(name, journal["argv"], {"fd": ram, "size": os.fstat(ram).st_size}, None, incoming=True)


def _wait_for_host(name: str, argv: list[str], interfaces: list[str]) -> list[str]:
    """Wait for what a host that still boots may lack, and QEMU would not wait for: a root file system to write to, device nodes, networks.

    Behind the units that see to these a guest would wait longer. Returns what is still amiss at the limit. Networks are not: they may have
    been made by hand, and a QEMU that cannot do without says so.
    """
    nodes, until = _argv.nodes(argv), time.monotonic() + HOST_LIMIT_S
    while True:
        lacking = [f"no {node}" for node in nodes if not os.path.exists(node)]
        if not os.access(_paths.STATE, os.W_OK):
            lacking.append(f"{_paths.STATE} read-only")
        networks = [interface for interface in interfaces if not os.path.exists(os.path.join(NETWORKS, interface))]
        if not (lacking or networks):
            return []
        if time.monotonic() > until:
            if networks:
                _incoming.log(f"{name}: goes on after {HOST_LIMIT_S} s without the host's network {', '.join(networks)}")
            return lacking
        _boot_order.late(name)  # what is lacking comes with the rest of the boot
        time.sleep(0.05)


def _restored(journal: dict, times: dict) -> dict:
    """The guest's record from now on. Its stamps of this boot are set back by the step that the clock made at the jump."""
    step = _clock.step(journal.get("clock_ahead"), _clock.ahead())
    now = {name: at - (step or 0.0) for name, at in times.items()}
    return {**journal, "state": "restored", "boot_id_after": _host.boot_id(), "clock_step": step, "times": {**journal["times"], **now}}


def _be_one_of_many(unit: str) -> None:
    """The guest needs to go ahead of the rest of the boot no more: what others still wait for shall not wait for its processors too."""
    try:
        _systemd.run("systemctl", "set-property", "--runtime", unit, "StartupCPUWeight=", "StartupIOWeight=")
    except LiveUpdateError as err:
        _incoming.log(str(err))


def _load(name: str, journal: dict, session: int, main: int, times: dict) -> None:
    """In a process of its own: load the state into the QEMU that the main process becomes, and let the guest go on."""
    marker = _guests.run_path(name, "resumed")
    resumed = False
    try:
        with Qmp(_guests.run_path(name, "qmp"), wait_s=_qemu.START_LIMIT_S) as monitor:
            times["qemu"] = time.time()
            _qemu.load(monitor, _guests.state_path(name))
            times["loaded"] = time.time()
            # From here on the memory may be no longer what the state belongs to. This boot's /run is as lasting as the memory.
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            resumed = True
            if journal["was_running"] and not _qemu.go_on(monitor):
                _paths.remove(marker)
                resumed = False
                raise LiveUpdateError(f"QEMU does not let it run within {_qemu.GO_ON_LIMIT_S:g} s: mend what the line before names")
            times["resumed"] = time.time()
            status = monitor.status()
        _luo.finish(session)
        _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={_holding.FDNAME}", pid=main)
        restored = _restored(journal, times)
        _paths.write_json(_guests.journal_path(name), restored)
        _paths.remove(_guests.state_path(name))
        _boot_order.start_early(journal["unit"], False)
        _be_one_of_many(journal["unit"])
        _incoming.log(f"{name}: {status}, {restored['times']['resumed'] - restored['times']['paused']:.3f} s after its pause")
        os._exit(0)
    except Exception as err:  # pylint: disable=broad-except  # whatever it is, the unit must end as failed, not hang
        _incoming.log(f"{name}: {err}")
        _boot_order.late(name)
        if not resumed:
            _incoming.log(f"{name}: its memory and state are kept; 'systemctl start' of its unit tries again")
            os.kill(main, 9)  # SIGKILL; the module that names it is slow to import
        os._exit(1)
