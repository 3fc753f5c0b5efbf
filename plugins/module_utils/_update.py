# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One update of this host, from the commit to the jump. PRIVATE to the collection.

Ansible commits an update and goes away; the unit kvm-liveupdate-jump.service does the rest alone: stop what is not needed
while the guests run on, then pause and save all guests, then jump. Until the last step every failure is undone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from . import _boot_order, _clock, _guests, _holding, _host, _kexec, _paths, _providers, _systemd
from ._errors import LiveUpdateError
from ._lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from concurrent.futures import Future

__all__ = ("Lock", "commit", "gate", "jump", "outcome", "recover")

JUMP_UNIT = "kvm-liveupdate-jump.service"
JUMP_TARGET = "kvm-liveupdate.target"
_UNITS = "/run/systemd/system"  # drop-ins for this boot only
STOP_LIMIT_S = 180
# The commit's answer has to leave the host before its SSH session is stopped.
GRACE_S = 3.0
# A kexec that was asked for ends every process long before this; only a host that stays recovers.
RECOVER_S = 15.0
DOWN_LIMIT_S = 120.0
# While the guests run on.
SYNC_LIMIT_S = 300.0
_MANY_FDS = 4096
# Real-time signal 16: PID 1 does at once what "systemctl --force kexec" asks it for (systemd(1)), and no program has to be started.
_KEXEC_SIGNAL = 16
# Between the stop of a service and the start of its socket, something may ask for the service once more.
SOCKET_ATTEMPTS = 3
# Each of them stops and starts: all together stay below what systemd grants the unit's ExecStopPost=.
SOCKET_LIMIT_S = 10
# What stops with a unit (systemd.unit(5)).
_NEEDED_BY = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
# And what a unit stops with, the other way round; and what it cannot do without, which isolation leaves where the unit stays.
_STOPS_WITH = ("PartOf", "StopPropagatedFrom")
_NEEDS = ("Requires", "Requisite", "BindsTo")
# What the guests reach the world through keeps working until they are paused.
KEPT = ("remote-fs.target", "systemd-networkd.service", "NetworkManager.service", "networking.service", "openvswitch-switch.service")


def gate(guests: list[str]) -> list[str]:
    """What forbids the jump, in sentences; none when all is in place. Read-only."""
    problems = []
    if not _kexec.record():
        problems.append("no kernel is staged by kvm.liveupdate.kexec_image in this boot (an image loaded otherwise carries no memory over)")
    running = _guests.known()
    problems += [f"guest {name} does not run any more; run the update again" for name in guests if name not in running]
    problems += [f"{reason['message']}: {reason['remedy']}" for reason in _guests.not_back(running)]
    for name, record in running.items():
        if name not in guests:
            problems.append(f"guest {name} runs but is not part of this update and would be lost; run the update again to plan for it")
        elif not _holding.held(record):
            problems.append(f"guest {name}: its RAM is not held in a session; preserve it with kvm.liveupdate.guest")
    problems += [
        f"{vm['name']} (process {vm['pid']}) runs a virtual machine that would be lost: {vm['reasons'][0]['message']}"
        for vm in _guests.strangers()
    ]
    return problems


def commit(guests: list[str], keep_units: list[str], on_loss: str) -> dict:
    """Write the update's journal and start the jump. From here on the host acts alone."""
    problems = gate(guests)
    if _systemd.show(JUMP_UNIT, "ActiveState").get("ActiveState") not in ("inactive", "failed"):
        problems.append(f"{JUMP_UNIT} has not ended since the last update; 'systemctl status {JUMP_UNIT}' shows what it waits for")
    if problems:
        raise LiveUpdateError("the jump is refused, nothing was stopped: " + "; ".join(problems), problems=problems)
    update = {
        "id": _host.random_uuid(),
        "state": "committed",
        "boot_id": _host.boot_id(),
        "kernel": _host.kernel(),
        "image": _kexec.record(),
        "guests": sorted(guests),
        "keep_units": keep_units,
        "on_loss": on_loss,
        "times": {"committed": time.time()},
    }
    _paths.write_json(_paths.UPDATE, update)
    _systemd.run("systemctl", "start", "--no-block", JUMP_UNIT)
    return update


def outcome(update: dict, boot_id: str, release: str) -> str:
    """What became of an update: ``none``, ``pending``, ``aborted``, ``jumped`` or ``rebooted`` (into another kernel). Pure."""
    if not update:
        return "none"
    if update["state"] == "aborted":
        return "aborted"
    if update["boot_id"] == boot_id:
        return "pending"
    return "jumped" if update["state"] == "jumping" and release == update["image"]["release"] else "rebooted"


def _log(text: str) -> None:
    sys.stderr.write(f"kvm-liveupdate: {text}\n")


def _advance(update: dict, state: str) -> None:
    update["state"] = state
    update["times"][state] = time.time()
    _paths.write_json(_paths.UPDATE, update)
    _log(f"update {update['id']}: {state}")


def jump() -> int:
    """Carry out the committed update; returns (1) only when it was aborted and undone."""
    with Lock(wait_s=30):
        update = _paths.read_json(_paths.UPDATE)
        if outcome(update, _host.boot_id(), "") != "pending" or update["state"] != "committed":
            raise LiveUpdateError("no committed update waits for a jump; kvm.liveupdate.kexec commits one")
        update["units"] = _active_units()
        try:
            time.sleep(GRACE_S)
            records = [_guests.find(name) for name in update["guests"]]
            update["stages"] = _boot_order.plan(records)
            update["loaded"] = _stage(update["image"], bool(update["stages"]))
            _check(update)
            # What the next stage needs brings its guests' units: in the first one they would only share its processors.
            ahead = update["stages"][0]["guests"] if update["stages"] else []
            update["early"] = [record["unit"] for record in records]
            _paths.write_json(_paths.UPDATE, update)  # so that these can be taken back, also when a guest ends meanwhile
            for record in records:
                _boot_order.start_early(record["unit"], True, ahead=record["name"] in ahead)
            update["clock_ahead"] = _clock.ahead()
            update["stopping_from"] = time.monotonic()
            _advance(update, "stopping")
            _stop_the_rest(update)
            _write_out(SYNC_LIMIT_S)
            _check(update)
            update["times"]["gate"] = time.time()
            update["records"] = {name: _guests.find(name) for name in update["guests"]}
            update["running"] = [name for name, record in update["records"].items() if _providers.of(record).status(record) == "running"]
            _advance(update, "saving")
            _save_all(update)
            _advance(update, "jumping")
            os.kill(1, signal.SIGRTMIN + _KEXEC_SIGNAL)
            time.sleep(DOWN_LIMIT_S)
            raise LiveUpdateError(f"PID 1 was asked for the kexec and has not ended this process within {DOWN_LIMIT_S:g} s")
        except Exception as err:  # pylint: disable=broad-except  # whatever it is, no guest may stay paused
            _abort(update, str(err) or repr(err))
            return 1


def _stage(image: dict, guests_first: bool) -> dict:
    """Load once more what was staged, for nobody knows what was loaded since; returns its record."""
    words = _boot_order.cmdline(image["cmdline"], guests_first, _boot_order.consoles())
    loaded = _kexec.stage(image["path"], image["initrd"], words)
    if loaded != {**image, "cmdline": words}:
        raise LiveUpdateError(f"{image['path']} changed since it was staged; stage it again")
    return loaded


def _write_out(limit_s: float) -> None:
    """Have the file systems written out: sync(2), which waits for one that does not answer for as long as it likes."""
    child = os.fork()
    if child == 0:
        os.closerange(3, _MANY_FDS)  # it may outlive this process
        os.sync()
        os._exit(0)
    until = time.monotonic() + limit_s
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            raise LiveUpdateError(f"the file systems are not written out within {limit_s:g} s; does one of them (NFS?) not answer?")
        time.sleep(0.01)


def _check(update: dict) -> None:
    problems = gate(update["guests"])
    if _kexec.record() != update["loaded"]:
        problems.append(f"somebody staged something else than {update['loaded']['path']} meanwhile; run the update again")
    if problems:
        raise LiveUpdateError("; ".join(problems))


def _active_units() -> list[str]:
    """What isolation may stop: it leaves mounts and swap alone."""
    text = _systemd.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service,socket,timer,path,target")
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _stop_the_rest(update: dict) -> None:
    """Stop every unit that neither the guests nor the early boot need; the guests run on."""
    guests = [_guests.find(name)["unit"] for name in update["guests"]]
    often = [*KEPT, *(unit for provider in _providers.all_of_them() for unit in provider.KEPT), *update["keep_units"]]
    seen = _systemd.show_each(often, "ActiveState", "TriggeredBy")
    directory = f"{_UNITS}/{JUMP_TARGET}.d"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/kept.conf", "w", encoding="utf-8") as file:
        file.write("[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*guests, *kept(seen, update["units"]))))
    # Not wanted: with that all that it wants itself would be started.
    update["in_place"] = kept(_systemd.show_each(_bound_to(guests), "ActiveState", "TriggeredBy"), update["units"])
    for unit in update["in_place"]:
        path = _in_place(unit)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _paths.write_text(path, "[Unit]\nIgnoreOnIsolate=yes\n", 0o644)
    _systemd.run("systemctl", "daemon-reload")
    _systemd.run("systemctl", "isolate", JUMP_TARGET, timeout=STOP_LIMIT_S)


def _in_place(unit: str) -> str:
    """The drop-in of a unit that isolation passes over, for this boot only."""
    return f"{_UNITS}/{unit}.d/40-kvm-liveupdate.conf"


def _bound_to(units: list[str]) -> list[str]:
    """The units whose stop would stop one of these, or one that they require, although nobody stops that itself."""
    found: list[str] = []
    asked: set[str] = set()
    while units:
        asked.update(units)
        shown = _systemd.show_each(units, *_STOPS_WITH, *_NEEDS)
        found += [unit for properties in shown.values() for name in _STOPS_WITH for unit in properties.get(name, "").split()]
        needed = {unit for properties in shown.values() for name in (*_STOPS_WITH, *_NEEDS) for unit in properties.get(name, "").split()}
        units = sorted(needed - asked)
    return found


def kept(seen: dict[str, dict[str, str]], active: list[str]) -> list[str]:
    """Which units run on beside the guests: of those ``seen`` the active ones (wanting another would start it), and what triggers them.

    A socket that was stopped could not be started again while its service runs. Pure.
    """
    running = [unit for unit, properties in seen.items() if properties.get("ActiveState") == "active"]
    triggers = [trigger for unit in running for trigger in seen[unit].get("TriggeredBy", "").split() if trigger in active]
    return list(dict.fromkeys((*running, *triggers)))


def _save_all(update: dict) -> None:
    """Pause and save all guests at once, but those that are quick to save last: they would only wait, paused. Every error counts."""
    slow = [name for name, record in update["records"].items() if _providers.of(record).SAVES_SLOWLY]
    for names in (slow, [name for name in update["guests"] if name not in slow]):
        errors = [str(job.exception()) for job in _at_once(_save, names, update) if job.exception()]
        if errors:
            raise LiveUpdateError("; ".join(errors))


def _at_once(step: t.Callable[..., t.Any], names: t.Sequence[str], *arguments: object) -> list[Future]:
    """Do a step for all guests at the same time, and wait for all of them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        return [pool.submit(step, name, *arguments) for name in names]


def _save(name: str, update: dict) -> None:
    record = _guests.find(name)
    hold = _paths.read_json(_guests.run_path(name, "held"))
    path, was_running = _guests.state_path(name), name in update["running"]
    journal = {
        **_providers.of(record).save(record, path, was_running),
        "state": "saved",
        "guest": name,
        "update_id": update["id"],
        "boot_id": update["boot_id"],
        "clock_ahead": update.get("clock_ahead"),
        "on_loss": update["on_loss"],
        "hold": hold["hold"],
        "session": hold["session"],
        "sizes": hold["sizes"],
        "uuid": record["uuid"],
        "unit": record["unit"],
        "was_running": was_running,
    }
    _paths.write_json(_guests.journal_path(name), journal)


def _abort(update: dict, why: str) -> None:
    """Undo, whatever else fails: the guests first, then the sessions and the image, then what was stopped.

    A guest's journal goes before the guest runs on: were a kexec under way after all, it must not find a state that the
    memory no longer belongs to. A guest that does not run on keeps its state and its session: its memory may be nowhere else.
    """
    _log(f"update {update['id']}: aborted: {why}")
    problems = [why]

    def undo(what: str, step: t.Callable[..., object], *arguments: object) -> bool:
        try:
            step(*arguments)
            return True
        except Exception as err:  # pylint: disable=broad-except  # one step that fails must not keep the others from being done
            problems.append(f"not undone: {what}: {err}")
            return False

    records = dict(update.get("records") or {})
    if not records:
        undo("search for the guests", lambda: records.update(_guests.known()))
        records = {name: record for name, record in records.items() if name in update["guests"]}

    def run_on(name: str) -> bool:
        undo(f"journal of guest {name}", _paths.remove, _guests.journal_path(name))
        if undo(f"save of guest {name}", _providers.of(records[name]).resume, records[name], name in update.get("running", ())):
            return True
        with contextlib.suppress(Exception):  # as in undo
            if _providers.of(records[name]).status(records[name]) == "running":
                return True
        keeps = "its memory and state are kept: mend that, start it by its own means, then"
        problems.append(f"guest {name} does not run on, {keeps} 'kvm-liveupdate discard {name}'")
        return False

    names = list(records)
    back = {name for name, job in zip(names, _at_once(run_on, names)) if job.result()}
    for name, record in records.items():
        if name in back:
            undo(f"state of guest {name}", _paths.remove, _guests.state_path(name))
            undo(f"session of guest {name}", _holding.release, record)
    for unit in update.get("early", ()):
        undo(f"early start of {unit}", _boot_order.start_early, unit, False)
    for unit in update.get("in_place", ()):
        undo(f"drop-in of {unit}", _paths.remove, _in_place(unit))
    undo("staged kernel", _kexec.unload)
    undo("stopped services", _start_again, update.get("units", []), update.get("stopping_from"))
    update["error"] = "; ".join(problems)
    _advance(update, "aborted")


def recover() -> None:
    """Undo an update whose process ended before the jump, by a kill or a crash. Without effect on any other."""
    with Lock(wait_s=30):
        update = _paths.read_json(_paths.UPDATE)
        if outcome(update, _host.boot_id(), "") != "pending":
            return
        if update["state"] == "jumping":
            time.sleep(RECOVER_S)
        _abort(update, f"the process that carried it out ended while it was {update['state']}")


def _start_again(units: list[str], since: float | None) -> None:
    """Start what isolation stopped: the sockets first, then the rest one by one, so that a unit that is gone does not keep others down."""
    problems = _sockets_again(units, since)
    for unit in ("default.target", *stopped(units, _active_units())):
        try:
            _systemd.run("systemctl", "start", "--no-block", unit)
        except LiveUpdateError as err:
            problems.append(str(err))
    if problems:
        raise LiveUpdateError("; ".join(problems))


def _sockets_again(units: list[str], since: float | None) -> list[str]:
    """Start the sockets that isolation stopped; returns what went wrong.

    systemd refuses the socket of a service that runs. D-Bus or a login may have started one since, so it stops for its socket.
    """
    problem, sockets = "", []
    for _attempt in range(SOCKET_ATTEMPTS):
        try:
            active = _active_units()
            sockets = [unit for unit in stopped(units, active) if unit.endswith(".socket")]
            if not sockets:
                return []
            triggered = {unit for seen in _systemd.show_each(sockets, "Triggers").values() for unit in seen.get("Triggers", "").split()}
            running = _systemd.show_each(sorted(triggered.intersection(active)), "ActiveEnterTimestampMonotonic", *_NEEDED_BY)
            services = dispensable(running, active, since)
            if services:
                _systemd.run("systemctl", "stop", *services, timeout=SOCKET_LIMIT_S)
            _systemd.run("systemctl", "start", *sockets, timeout=SOCKET_LIMIT_S)
            return []
        except LiveUpdateError as err:
            problem = str(err)
    return [f"{problem}; once nothing needs the services of these sockets, stop those and start the sockets: {', '.join(sockets)}"]


def dispensable(seen: dict[str, dict[str, str]], active: list[str], since: float | None) -> list[str]:
    """Which of the services may stop for a moment: started after ``since`` (seconds, CLOCK_MONOTONIC), and nothing that runs stops with it.

    One that ran all the time may be what a guest needs. ``since`` is None when nothing was stopped. Pure.
    """
    return [
        service
        for service, properties in seen.items()
        if since is not None
        and int(properties.get("ActiveEnterTimestampMonotonic") or 0) > since * 1e6
        and not any(unit in active for name in _NEEDED_BY for unit in properties.get(name, "").split())
    ]


def stopped(before: list[str], now: list[str]) -> list[str]:
    """What ran before and is to run again. Not users' sessions, which come with a login, and nothing of the update itself. Pure."""
    return [unit for unit in before if unit not in now and not unit.startswith(("user@", "user-runtime-dir@", "kvm-liveupdate"))]
