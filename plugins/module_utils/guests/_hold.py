# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hold the RAM of a guest in a session while the guest runs. PRIVATE to the collection.

There are two ways, depending on the host's systemd. From 261 on, PID 1 carries the fd store of a unit over the jump. So the guest's own
unit holds the session, and no process needs to stay alive. From 255 on, the unit kvm-liveupdate-hold@GUEST has the session open and stays
alive through the shutdown (SurviveFinalKillSignal=yes). After the jump it asks the kernel for the session by name.
"""

from __future__ import annotations

import json
import os

from .. import _limits
from .._errors import LiveUpdateError, typed
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
    "preserved_files",
    "process",
    "release",
    "release_ended",
    "serve",
    "was_saved_paused",
)

HOLD_LIMIT_S = _limits.HOLD
_SURVIVES = "user.survive_final_kill_signal"  # an attribute that systemd sets on the cgroup of a unit that survives the final kill


def holder(record: dict) -> str:
    """The unit that holds, or will hold, the guest's session."""
    return _holders([record])[record["name"]]


def _holders(records: list[dict]) -> dict[str, str]:
    """The units that hold these guests' sessions, by guest. The unit of a domain always has a separate process."""
    if not records:
        return {}
    in_store = _systemd.version() >= _systemd.LUO_VERSION
    return {record["name"]: record["unit"] if in_store else _units.hold(record["name"]) for record in records}


def hold(record: dict) -> dict:
    """Preserve the guest's RAM while it runs, in a session that survives the shutdown; :func:`hold_each` for one guest."""
    found, problems = hold_each([record])
    if problems:
        raise problems[record["name"]]
    return found[record["name"]]


def hold_each(records: list[dict]) -> tuple[dict[str, dict], dict[str, LiveUpdateError]]:
    """Preserve the RAM of guests while they run, in sessions that survive the shutdown.

    Returns the holds and the failures, both by guest. A failure closes the guest's session, which releases the memory: the guest is as
    before. This asks systemd about all guests together.
    """
    units = _holders(records)
    stores = _systemd.fdstore_each(list(units.values()))
    problems: dict[str, LiveUpdateError] = {}
    for record in records:
        unit = units[record["name"]]
        try:
            _hold(record, unit, _session.FDNAME in stores[unit])
        except (LiveUpdateError, OSError) as err:
            problems[record["name"]] = _told(record, err)
    begun = [record for record in records if record["name"] not in problems]
    found = held_each(begun)
    for record in (record for record in begun if record["name"] not in found):
        name, unit = record["name"], units[record["name"]]
        problems[name] = LiveUpdateError(f"guest {name}: {unit} did not keep its session; 'journalctl -u {typed(unit)}' may show why")
        try:
            release(record)
        except (LiveUpdateError, OSError) as err:
            problems[name] = _told(record, err)
    return found, problems


def _told(record: dict, err: Exception) -> LiveUpdateError:
    """The failure of one guest. That of a write, for example on a full disk, does not name the guest."""
    return err if isinstance(err, LiveUpdateError) else LiveUpdateError(f"guest {record['name']}: {err}")


def _hold(record: dict, unit: str, stored: bool) -> None:
    """Preserve one guest's RAM and hand its session to the hold unit. ``stored``: an older session exists, which is released first."""
    name = record["name"]
    if _journal.of_guest(name).get("state") == "saved":
        shows = f"'journalctl -b -u {typed(record['unit'])}'"
        raise LiveUpdateError(f"guest {name}: the last update has not restored it yet; wait, or see {shows}")
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
            # Not "start": after a jump the unit may still run to correct the guest's clock, and "start" would do nothing.
            _commands.run("systemctl", "restart", unit, timeout=HOLD_LIMIT_S)
        except LiveUpdateError as err:
            said = _systemd.show(unit, "StatusText").get("StatusText")
            raise LiveUpdateError(said or f"guest {name}: {err}; 'journalctl -u {typed(unit)}' shows more") from err


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
        # Before the session: without a record the memory would stay reserved after a kexec that is not an update.
        _session.record_hold(record)
        session = _luo.create_session(hold_record["session"])
        _luo.preserve_fd(session, fds[-1], _session.META_TOKEN)
        for token, fd in enumerate(fds[:-1], start=_session.RAM_TOKEN):
            _luo.preserve_fd(session, fd, token)
        _files.write_json(_files.run_path(name, "held"), hold_record)
    except (LiveUpdateError, OSError) as err:
        if session >= 0:
            os.close(session)
        raise LiveUpdateError(f"guest {name}: {err}") from err
    finally:
        for fd in fds:
            os.close(fd)
    return session


def serve(name: str) -> None:
    """The process of the hold unit: preserve, notify systemd, and keep the session open until it is told to end."""
    import signal  # slow to import, and other units import this module on the boot path

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        session = _preserve(_providers.find(name), _this_boot.random_uuid())
    except (LiveUpdateError, OSError) as err:
        _systemd.notify(f"STATUS={err}")
        _early.not_early(_units.hold(name))  # a boot after a power cut may have started it without need
        raise
    if _systemd.version() >= _systemd.LUO_VERSION:
        _systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_session.FDNAME}", (session,))
    _systemd.notify("READY=1\nSTATUS=Preserves the guest's memory")
    signal.sigwait((signal.SIGTERM,))
    os.close(session)


def held(record: dict) -> dict:
    """The hold on this guest's RAM if it is valid: the same process, the same memory, and a session that survives the shutdown."""
    return held_each([record]).get(record["name"], {})


def held_each(records: list[dict]) -> dict[str, dict]:
    """The valid holds, by guest. This asks systemd once for all guests, and not at all if no hold is recorded."""
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
    """The record of a hold on the memory that this process has now; empty if it is of another process, or of other memory."""
    hold_record = _files.read_json(_files.run_path(record["name"], "held"))
    return hold_record if hold_record and is_of(hold_record, record) else {}


def is_of(hold_record: dict, record: dict) -> bool:
    """Whether the hold is on the memory of exactly this process, which still runs. It is used in the pause, so it runs no program."""
    return (
        hold_record["pid"] == record["pid"]
        and hold_record["started"] == record["started"] == _processes.start_time(record["pid"])
        and hold_record.get("files") == _ram_files(record)
    )


def _serves(seen: dict[str, str], session: str) -> bool:
    """Whether the process of a unit with these properties has the session open, and survives the final kill."""
    if _processes.SESSION_LINK + session not in _processes.fd_links(int(seen.get("MainPID") or 0)).values():
        return False
    try:
        return os.getxattr("/sys/fs/cgroup" + seen["ControlGroup"], _SURVIVES) == b"1"
    except OSError:
        return False


def _ram_files(record: dict) -> list[list[int]]:
    """The files of the guest's RAM, each as its device and inode; missing files are left out."""
    return [_identity(f"/proc/{record['pid']}/fd/{ram['fd']}") for ram in record["ram"]]


def preserved_files(hold_record: dict, record: dict) -> list[int]:
    """Descriptors of the files that this hold preserves, for reading. The caller closes them. Raises if QEMU has other files now."""
    files: list[int] = []
    try:
        for ram in record["ram"]:
            files.append(_processes.take_fd(record["pid"], ram["fd"]))
        if [[seen.st_dev, seen.st_ino] for seen in map(os.fstat, files)] != hold_record.get("files"):
            raise LiveUpdateError("the RAM files of its QEMU are not the ones that are preserved; run the update again")
    except BaseException:
        for file in files:
            os.close(file)
        raise
    return files


def _identity(path: str) -> list[int]:
    try:
        seen = os.stat(path)
    except OSError:
        return []
    return [seen.st_dev, seen.st_ino]


def _note(content: dict) -> int:
    """A memfd with a note of what the session contains. It ties the memory to the one state file that belongs to it."""
    fd = os.memfd_create("kvm-liveupdate-note", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(content).encode())
    return fd


def release(record: dict) -> bool:
    """Release the hold: its last holder closes the session, and the kernel no longer preserves the RAM. Returns whether there was one."""
    unit, holding = holder(record), _units.hold(record["name"])
    pid = record["pid"]
    found = False
    if unit == holding:
        found = _systemd.show(unit, "ActiveState").get("ActiveState") not in ("inactive", "failed")
        _commands.run("systemctl", "stop", unit)
        pid = 0
    elif not _processes.lives(record):  # the unit may have another main process now, and only that may notify systemd
        pid = int(_systemd.show(unit, "MainPID").get("MainPID") or 0)
    if _session.FDNAME in _systemd.fdstore(unit):
        _systemd.forget_fd(unit, pid, _session.FDNAME)
        found = True
    _files.remove(_files.hold_path(record["name"]))
    return _files.remove(_files.run_path(record["name"], "held")) or found


def outlives(name: str, record: dict | None = None) -> str:
    """The unit of a guest, if a hold of this boot is on record for a QEMU of it that has ended; else empty. ``record`` is of its present
    QEMU, if there is one.

    The memory of a saved guest does not count: the guest may be restored from it.
    """
    held_record, noted = _files.read_json(_files.run_path(name, "held")), _files.read_json(_files.hold_path(name))
    if noted.get("boot_id") != _this_boot.boot_id():
        noted = {}
    if not (held_record or noted) or _journal.of_guest(name).get("state") == "saved":
        return ""
    if record and not (held_record and any(held_record.get(key) != value for key, value in process(record).items())):
        return ""
    return str(held_record.get("unit") or noted.get("unit") or _units.hold(name))


def release_ended(name: str) -> bool:
    """As :func:`release`, for a guest whose QEMU has ended, by its name. Otherwise its memory stays in use until the next reboot."""
    unit = outlives(name)
    return bool(unit) and release({"name": name, "unit": unit, "pid": 0, "started": 0})


def process(record: dict) -> dict:
    """What identifies a guest's QEMU among all processes of this boot."""
    return {"pid": record["pid"], "started": record["started"]}


def owes(record: dict) -> bool:
    """Whether an update paused this guest and has not resumed it since, so that its owner did not pause it."""
    return _is_marked(record, "paused")


def was_saved_paused(record: dict) -> bool:
    """Whether an update that was undone saved this guest while its owner had it paused, and it has not run since: QEMU cannot save it
    again."""
    return _is_marked(record, "saved-paused")


def _is_marked(record: dict, suffix: str) -> bool:
    mark = _files.read_json(_files.run_path(record["name"], suffix))
    if any(mark.get(key) != value for key, value in process(record).items()):
        return False
    return mark.get("guest_time") in (None, _processes.guest_time(record["pid"]))


def note_left_paused(record: dict) -> None:
    """Bind the mark of :func:`owes` to the present pause: if the guest runs after it, a later pause is its owner's."""
    _mark(record, "paused")


def _mark(record: dict, suffix: str) -> None:
    mark = {**process(record), "guest_time": _processes.guest_time(record["pid"])}
    _files.write_json(_files.run_path(record["name"], suffix), mark)


def let_go_on(record: dict, running: bool) -> None:
    """Undo the save of a guest. ``running``: whether it runs afterwards."""
    was_saved = os.path.exists(_files.state_path(record["name"]))
    _providers.of(record).resume(record, running)
    if running:
        _files.remove(_files.run_path(record["name"], "paused"))
    _files.remove(_files.state_path(record["name"]))  # the memory no longer matches it
    if was_saved and not running and _stays_saved(record):
        _mark(record, "saved-paused")


def _stays_saved(record: dict) -> bool:
    """Whether QEMU is as a save leaves it. A save that failed early changed nothing. If QEMU does not answer, a later look asks again."""
    try:
        return not _providers.of(record).still_saved([record])
    except LiveUpdateError:
        return False
