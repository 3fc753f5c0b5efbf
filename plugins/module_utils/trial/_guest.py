# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The throw-away guest of a trial, and the units of a trial. PRIVATE to the collection.

The guest is an ordinary one in a unit: the wrapper starts it, and an update preserves, saves and restores it like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from .. import _limits, _unit_files
from .._errors import LiveUpdateError, reason
from ..guests import _discard, _hold
from ..handover import _early, _journal, _lock
from ..host import _commands, _files, _processes, _units
from . import _firmware

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("NAME", "exists", "find_qemu", "findings", "is_marked", "look", "remove", "running", "start")

NAME = _units.TRIAL.rpartition(".")[0]
_QEMU = ("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm", "/usr/bin/kvm")
GUEST_LIMIT_S = _limits.TRIAL_GUEST
TICKS_LIMIT_S = _limits.TRIAL_TICKS
POLL_S = 0.2
# Both targets can be the first one of a boot (update/_rest_of_boot.py).
_WANTED_BY = ("sysinit.target", _units.TARGET)


def find_qemu(given: str) -> str:
    """The path of QEMU on this host."""
    places = [given] if given else list(_QEMU)
    for path in places:
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise LiveUpdateError(f"no QEMU at {', '.join(places)}; install QEMU, or set qemu (in the role hypervisor_trial_qemu) to its path")


def running() -> dict:
    """The wrapper's record of the guest; empty if it does not run. Asks no other program, because it is repeated."""
    record = _files.read_json(_files.run_path(NAME))
    return record if record and _processes.lives(record) else {}


def exists() -> bool:
    """Whether anything of a trial is on this host."""
    return any(map(os.path.lexists, (*_paths(), _files.journal_path(NAME), _files.state_path(NAME))))


def start(qemu: str, seed: int, mark: bytes) -> None:
    """Start the guest and mark its memory; write the unit that watches the devices in the next boot."""
    _files.make_directory(_files.STATE)
    _write_firmware(_firmware.firmware(seed))
    command = " ".join((qemu, *_arguments(_machine(_commands.run(qemu, "-machine", "help")))))
    _files.write_text(_unit_path(_units.TRIAL), _unit_files.TRIAL_SERVICE.format(name=NAME, command=command), 0o644)
    _files.write_text(_unit_path(_units.TRIAL_WATCH), _unit_files.TRIAL_WATCH_SERVICE, 0o644)
    for link in _links():
        _early.link(link, True)
    _commands.run("systemctl", "daemon-reload")
    _commands.run("systemctl", "start", _units.TRIAL)
    _wait("has not filled and read its RAM", GUEST_LIMIT_S, lambda status: bool(status["passes"]))
    with open(_ram(running()), "r+b") as ram:
        ram.seek(_firmware.MARK_AT)
        ram.write(mark)


def is_marked(mark: bytes) -> bool:
    """Whether it runs, and its memory has the mark."""
    try:
        with open(_ram(running()), "rb") as ram:
            return _firmware.is_marked(ram, mark)
    except (LiveUpdateError, OSError):
        return False


def look(seed: int, mark: bytes) -> dict:
    """What its memory has now (:func:`_firmware.look`), and whether the guest ``runs`` and its timer ``goes_on``."""
    if not running():
        return {"runs": False, "goes_on": False}
    with open(_ram(running()), "rb") as ram:
        found = _firmware.look(ram, seed, mark)
    try:
        _wait("does not tick", TICKS_LIMIT_S, lambda status: bool(status["ticks"] != found["ticks"]))
    except LiveUpdateError:
        return {**found, "runs": bool(running()), "goes_on": False}
    return {**found, "runs": True, "goes_on": True}


def remove() -> None:
    """End the guest and remove all of the trial from this host, also a guest that was not restored. Can be repeated."""
    with _lock.Lock():
        for verb in ("stop", "reset-failed"):
            for unit in (_units.TRIAL, _units.TRIAL_WATCH):  # not both at once: if one does not exist, systemd 262 stops none
                with contextlib.suppress(LiveUpdateError):
                    _commands.run("systemctl", verb, "--", unit)
    if running():
        raise LiveUpdateError(f"guest {NAME} does not end; end its QEMU, process {running()['pid']}, and repeat this")
    if _journal.of_guest(NAME).get("state") == "saved" or os.path.exists(_files.state_path(NAME)):
        _discard.discard(NAME)  # it takes the lock itself
    with _lock.Lock():
        _hold.release_ended(NAME)
        _early.start_early(_units.TRIAL, False)
        _journal.forget_guest(NAME)
        for path in _paths():
            _files.remove(path)
        _commands.run("systemctl", "daemon-reload")


def _unit_path(unit: str) -> str:
    return f"{_units.FOLDER}/{unit}"


def _links() -> list[str]:
    return [f"{_units.FOLDER}/{target}.wants/{_units.TRIAL_WATCH}" for target in _WANTED_BY]


def _paths() -> tuple[str, ...]:
    """The files of a trial. The record is the last one, so that a removal that is cut off is repeated."""
    return (*_links(), *map(_unit_path, (_units.TRIAL_WATCH, _units.TRIAL)), _files.TRIAL_FIRMWARE, _files.SEEN, _files.TRIAL)


def _machine(listed: str) -> str:
    """The machine type with its version, from ``-machine help``, so that the guest is one that any later QEMU can take over. Pure."""
    found = re.search(r"^q35\s.*\(alias of (\S+)\)", listed, re.MULTILINE)
    return found[1] if found else "q35"


def _arguments(machine: str) -> list[str]:
    """QEMU's arguments. Pure."""
    return [
        *("-name", NAME, "-machine", f"{machine},accel=kvm", "-smp", "1", "-m", str(_firmware.RAM >> 20)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-bios", _files.TRIAL_FIRMWARE),
    ]


def _write_firmware(image: bytes) -> None:
    with open(_files.create(_files.TRIAL_FIRMWARE), "wb") as file:
        file.write(image)
        file.flush()
        os.fsync(file.fileno())
    _files.sync_directory(_files.TRIAL_FIRMWARE)


def _ram(record: dict) -> str:
    if not record or not record["ram"]:
        raise LiveUpdateError(f"guest {NAME} does not run, or its RAM is not a file; 'journalctl -b -u {_units.TRIAL}' shows why")
    return f"/proc/{record['pid']}/fd/{record['ram'][0]['fd']}"


def _wait(what: str, limit_s: float, done: t.Callable[[dict], bool]) -> None:
    """Wait until the guest's status is as it should be."""
    until = time.monotonic() + limit_s
    said = "no QEMU"
    while time.monotonic() < until:
        try:
            with open(_ram(running()), "rb") as ram:
                status = _firmware.status(ram)
        except (LiveUpdateError, OSError) as err:
            said = str(err)
        else:
            if done(status):
                return
            said = ", ".join(f"{count} {name}" for name, count in status.items())
        time.sleep(POLL_S)
    raise LiveUpdateError(
        f"guest {NAME} {what} within {limit_s:g} s; last seen: {said}. 'journalctl -b -u {_units.TRIAL}' may show why. Check that"
        " /dev/kvm exists"
    )


def findings(seen: dict) -> list[dict]:
    """What is wrong with the guest after the jump, from :func:`look`. Pure."""
    shows = f"'journalctl -b -u {_units.TRIAL}' may show why"
    if not seen["runs"]:
        return [
            reason("trial-guest-off", "the throw-away guest does not run after the jump", f"do not update hosts like this one; {shows}")
        ]
    found = []
    if not seen["marked"]:
        message = "the throw-away guest started again: its memory did not come through the jump"
        found.append(reason("trial-memory-lost", message, f"do not update hosts like this one; {shows}"))
    if seen["differ"] or seen["wrong"]:
        message = (
            f"the memory of the throw-away guest is damaged: {seen['differ']} of {seen['pages']} pages differ, and the guest itself found"
            f" {seen['wrong']} wrong ones"
        )
        found.append(reason("trial-memory-wrong", message, "do not update hosts like this one; check the memory of this host"))
    if not seen["goes_on"]:
        message = "the throw-away guest runs after the jump, but its timer does not tick"
        found.append(reason("trial-guest-stuck", message, f"do not update hosts like this one; {shows}"))
    return found
