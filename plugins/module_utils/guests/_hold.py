# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Holding the RAM of a guest in a session while the guest runs on. PRIVATE to the collection.

Two ways, chosen by the host's systemd. From 261 on PID 1 carries the fd store of a unit over the jump, so a guest's own unit is
its holder and no process has to stay alive. From 255 on the unit kvm-liveupdate-hold@GUEST stays alive through the shutdown
(SurviveFinalKillSignal=yes) with the session open, and the new kernel is asked for it by its name.
"""

from __future__ import annotations

import json
import os

from .. import _limits
from .._errors import LiveUpdateError
from ..handover import _early, _journal, _session
from ..host import _commands, _files, _processes, _systemd, _this_boot, _units
from ..kernel import _luo
from . import _providers

__all__ = (
    "HOLD_LIMIT_S",
    "held",
    "held_each",
    "hold",
    "hold_each",
    "is_of",
    "let_go_on",
    "note_left_paused",
    "outlives",
    "owes",
    "process",
    "release",
    "release_ended",
    "serve",
)

HOLD_LIMIT_S = _limits.HOLD
_SURVIVES = "user.survive_final_kill_signal"  # what systemd sets on the cgroup of a unit that lives through the final kill


def holder(record: dict) -> str:
    """The unit that holds, or is to hold, the guest's session."""
    return _holders([record])[record["name"]]


def _holders(records: list[dict]) -> dict[str, str]:
    """The units that hold these guests' sessions, by guest. That of a domain has a process of its own in any case."""
    if not records:
        return {}
    in_store = _systemd.version() >= _systemd.LUO_VERSION
    return {record["name"]: record["unit"] if in_store else _units.hold(record["name"]) for record in records}


def hold(record: dict) -> dict:
    """Preserve the guest's RAM while it runs on, and see that its session outlives the shutdown; :func:`hold_each` for one guest."""
    found, problems = hold_each([record])
    if problems:
        raise problems[record["name"]]
    return found[record["name"]]


def hold_each(records: list[dict]) -> tuple[dict[str, dict], dict[str, LiveUpdateError]]:
    """Preserve the RAM of guests while they run on, and see that their sessions outlive the shutdown.

    Returns the holds, and for whom it failed, both by guest. A failure closes that guest's session, and with that gives up what was
    preserved: the guest is as before. Systemd is asked about all of them at once.
    """
    units = _holders(records)
    stores = _systemd.fdstore_each(list(units.values()))
    problems: dict[str, LiveUpdateError] = {}
    for record in records:
        unit = units[record["name"]]
        try:
            _hold(record, unit, _session.FDNAME in stores[unit])
        except LiveUpdateError as err:
            problems[record["name"]] = err
    begun = [record for record in records if record["name"] not in problems]
    found = held_each(begun)
    for record in (record for record in begun if record["name"] not in found):
        name, unit = record["name"], units[record["name"]]
        problems[name] = LiveUpdateError(f"guest {name}: {unit} does not hold its session; 'journalctl -u {unit}' may say why")
        try:
            release(record)
        except LiveUpdateError as err:
            problems[name] = err
    return found, problems


def _hold(record: dict, unit: str, stored: bool) -> None:
    """Preserve one guest's RAM and hand its session to the holder; ``stored``: there is an older one, which goes first."""
    name = record["name"]
    if _journal.of_guest(name).get("state") == "saved":
        raise LiveUpdateError(
            f"guest {name}: the last update has not brought it back yet; wait for that, or see 'journalctl -b -u {record['unit']}'"
        )
    if stored or _files.read_json(_files.run_path(name, "held")):
        release(record)
    if unit != _units.hold(name):
        session = _preserve(record, _this_boot.random_uuid())
        try:
            _systemd.give_fd(record["pid"], _session.FDNAME, session)
        finally:
            os.close(session)
    else:
        try:
            # Not "start": after a jump the unit may still be busy with the guest's clock, and would go on with that.
            _commands.run("systemctl", "restart", unit, timeout=HOLD_LIMIT_S)
        except LiveUpdateError as err:
            said = _systemd.show(unit, "StatusText").get("StatusText")
            raise LiveUpdateError(said or f"guest {name}: {err}; 'journalctl -u {unit}' says more") from err


def _preserve(record: dict, hold_id: str) -> int:
    """Create the guest's session with its RAM and a note, and record it; returns the session's descriptor."""
    name = record["name"]
    identity = {
        "hold": hold_id,
        "guest": name,
        "uuid": record["uuid"],
        "sizes": [ram["size"] for ram in record["ram"]],
        "qemu": [record["pid"], record["started"]],
    }
    hold_record = {
        **identity,
        "session": _session.name_of(record["uuid"]),
        "pid": record["pid"],
        "started": record["started"],
        "files": _ram_files(record),
        "unit": record["unit"],
    }
    fds: list[int] = []
    session = -1
    try:
        fds += _providers.of(record).memory(record)
        fds.append(_note(identity))
        # Before the session: one that nobody knows of stays reserved after somebody else's kexec.
        _session.record_hold(record)
        session = _luo.create_session(hold_record["session"])
        _luo.preserve_fd(session, fds[-1], _session.META_TOKEN)
        for token, fd in enumerate(fds[:-1], start=_session.RAM_TOKEN):
            _luo.preserve_fd(session, fd, token)
        _files.write_json(_files.run_path(name, "held"), hold_record)
    except LiveUpdateError as err:
        if session >= 0:
            os.close(session)
        raise LiveUpdateError(f"guest {name}: {err}") from err
    finally:
        for fd in fds:
            os.close(fd)
    return session


def serve(name: str) -> None:
    """The process of the holding unit: preserve, tell systemd, and keep the session open until told to end."""
    import signal  # slow to import, and the boot path of other units runs through this module too

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        session = _preserve(_providers.find(name), _this_boot.random_uuid())
    except (LiveUpdateError, OSError) as err:
        _systemd.notify(f"STATUS={err}")
        _early.not_early(_units.hold(name))  # a boot after a power cut may have started it, with nothing to hold
        raise
    if _systemd.version() >= _systemd.LUO_VERSION:
        _systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_session.FDNAME}", (session,))
    _systemd.notify("READY=1\nSTATUS=holds the guest's memory")
    signal.sigwait((signal.SIGTERM,))
    os.close(session)


def held(record: dict) -> dict:
    """The hold on this guest's RAM when it is in force: the same process, the same memory, and its session where it lasts."""
    return held_each([record]).get(record["name"], {})


def held_each(records: list[dict]) -> dict[str, dict]:
    """The holds that are in force, by guest. Systemd is asked once for all, and not at all where no hold is noted."""
    noted = {record["name"]: hold_record for record in records if (hold_record := _noted(record))}
    units = _holders([record for record in records if record["name"] in noted])
    serving = {name: unit for name, unit in units.items() if unit == _units.hold(name)}
    stored = {name: unit for name, unit in units.items() if name not in serving}
    stores = _systemd.fdstore_each(list(stored.values())) if stored else {}
    seen = _systemd.show_each(list(serving.values()), "MainPID", "ControlGroup") if serving else {}
    lasting = {name for name, unit in stored.items() if _session.FDNAME in stores[unit]}
    lasting |= {name for name, unit in serving.items() if _serves(seen[unit], noted[name]["session"])}
    return {name: hold_record for name, hold_record in noted.items() if name in lasting}


def _noted(record: dict) -> dict:
    """What was noted of a hold on the memory that this process has now; empty when it was another process, or other memory."""
    hold_record = _files.read_json(_files.run_path(record["name"], "held"))
    return hold_record if hold_record and is_of(hold_record, record) else {}


def is_of(hold_record: dict, record: dict) -> bool:
    """Whether the hold is on the memory of this very process, which still runs. No program is run for it: it is asked in the pause too."""
    return (
        hold_record["pid"] == record["pid"]
        and hold_record["started"] == record["started"] == _processes.start_time(record["pid"])
        and hold_record.get("files") == _ram_files(record)
    )


def _serves(seen: dict[str, str], session: str) -> bool:
    """Whether the process of a unit with these properties has the session open and systemd will let it live through the final kill."""
    if _processes.SESSION_LINK + session not in _processes.fd_links(int(seen.get("MainPID") or 0)).values():
        return False
    try:
        return os.getxattr("/sys/fs/cgroup" + seen["ControlGroup"], _SURVIVES) == b"1"
    except OSError:
        return False


def _ram_files(record: dict) -> list[list[int]]:
    """Which files back the guest's RAM, each as its device and inode; nothing for one that is gone."""
    return [_identity(f"/proc/{record['pid']}/fd/{ram['fd']}") for ram in record["ram"]]


def _identity(path: str) -> list[int]:
    try:
        seen = os.stat(path)
    except OSError:
        return []
    return [seen.st_dev, seen.st_ino]


def _note(content: dict) -> int:
    """A memfd that says what the session holds; it ties the memory to the one state file that fits it."""
    fd = os.memfd_create("kvm-liveupdate-note", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(content).encode())
    return fd


def release(record: dict) -> bool:
    """Give up the hold: its last holder closes the session, the kernel un-preserves the RAM. Returns whether there was one."""
    unit, holding = holder(record), _units.hold(record["name"])
    pid = record["pid"]
    found = False
    if unit == holding:
        found = _systemd.show(unit, "ActiveState").get("ActiveState") not in ("inactive", "failed")
        _commands.run("systemctl", "stop", unit)
        pid = 0
    elif not _processes.lives(record):  # another process may be the unit's by now, and alone may speak for it
        pid = int(_systemd.show(unit, "MainPID").get("MainPID") or 0)
    if _session.FDNAME in _systemd.fdstore(unit):
        _systemd.forget_fd(unit, pid, _session.FDNAME)
        found = True
    _files.remove(_files.hold_path(record["name"]))
    return _files.remove(_files.run_path(record["name"], "held")) or found


def outlives(name: str) -> str:
    """The unit of a guest that does not run, when a hold of this boot is on record for it; else empty.

    What an update saved is no such hold: the guest may come back from that.
    """
    held_record, noted = _files.read_json(_files.run_path(name, "held")), _files.read_json(_files.hold_path(name))
    if noted.get("boot_id") != _this_boot.boot_id():
        noted = {}
    if not (held_record or noted) or _journal.of_guest(name).get("state") == "saved":
        return ""
    return str(held_record.get("unit") or noted.get("unit") or _units.hold(name))


def release_ended(name: str) -> bool:
    """As :func:`release`, of a guest whose QEMU has ended, by its name. Its memory would stay taken until the next reboot."""
    unit = outlives(name)
    return bool(unit) and release({"name": name, "unit": unit, "pid": 0, "started": 0})


def process(record: dict) -> dict:
    """What tells a guest's QEMU from any other process of this boot."""
    return {"pid": record["pid"], "started": record["started"]}


def owes(record: dict) -> bool:
    """Whether we paused this guest, and have not let it run on since. Nobody else's wish keeps it paused."""
    mark = _files.read_json(_files.run_path(record["name"], "paused"))
    if any(mark.get(key) != value for key, value in process(record).items()):
        return False
    return mark.get("guest_time") in (None, _processes.guest_time(record["pid"]))


def note_left_paused(record: dict) -> None:
    """Bind the mark of :func:`owes` to the pause of now: a guest that has run since then was paused again by its owner."""
    mark = {**process(record), "guest_time": _processes.guest_time(record["pid"])}
    _files.write_json(_files.run_path(record["name"], "paused"), mark)


def let_go_on(record: dict, running: bool) -> None:
    """Undo what was saved of a guest; ``running``: it is to run on."""
    _providers.of(record).resume(record, running)
    if running:
        _files.remove(_files.run_path(record["name"], "paused"))
    _files.remove(_files.state_path(record["name"]))  # the memory goes on without it
