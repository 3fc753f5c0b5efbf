# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of this host: who they are, and holding their RAM in a session. PRIVATE to the collection.

A guest's own systemd unit is its holder: PID 1 keeps the session in that unit's fd store, so no process of ours has to
stay alive, and after the jump the unit is handed the session when it starts.
"""

from __future__ import annotations

import json
import os

from . import _host, _luo, _paths, _processes, _qemu, _systemd
from ._errors import LiveUpdateError

__all__ = (
    "FDNAME",
    "META_TOKEN",
    "RAM_TOKEN",
    "find",
    "held",
    "hold",
    "inspect",
    "journal",
    "journal_path",
    "known",
    "release",
    "run_path",
    "session_name",
    "start_early",
    "state_path",
    "strangers",
)

FDNAME = "kvm-liveupdate"
META_TOKEN = 0
RAM_TOKEN = 1
_UNIT_NEEDS = {"FileDescriptorStorePreserve": ("yes",), "NotifyAccess": ("all", "main", "exec"), "IgnoreOnIsolate": ("yes",)}


def session_name(guest_uuid: str) -> str:
    """The name of a guest's session: 36 characters, derived from its UUID, so that it can be found without a list."""
    return "kvm-" + guest_uuid.replace("-", "").lower()


def run_path(name: str, suffix: str = "json") -> str:
    """A file about the guest that is true for this boot only."""
    return os.path.join(_paths.GUESTS_RUN, f"{name}.{suffix}")


def journal_path(name: str) -> str:
    """The guest's durable record."""
    return os.path.join(_paths.GUESTS_STATE, f"{name}.json")


def state_path(name: str) -> str:
    """The guest's device state, there between the pause and the resume only."""
    return os.path.join(_paths.GUESTS_STATE, f"{name}.state")


def journal(name: str) -> dict:
    """What the last update did with this guest; empty when none did."""
    return _paths.read_json(journal_path(name))


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since the boot (proc(5), stat field 22): tells a recycled id apart."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def known() -> dict[str, dict]:
    """The guests that run now, by name: what their wrappers recorded."""
    guests = {}
    try:
        names = sorted(os.listdir(_paths.GUESTS_RUN))
    except FileNotFoundError:
        return {}
    for file in names:
        name, dot, suffix = file.rpartition(".")
        if dot and suffix == "json":
            record = _paths.read_json(run_path(name))
            if record and start_time(record["pid"]) == record["started"]:
                guests[name] = record
    return guests


def find(name: str) -> dict:
    """The running guest ``name``."""
    guests = known()
    if name not in guests:
        raise LiveUpdateError(
            f"guest {name!r}: no such guest runs on this host; it runs: {', '.join(guests) or 'none under our wrapper'}."
            " A guest's name is the first argument of 'kvm-liveupdate run' in its unit"
        )
    return guests[name]


def strangers() -> list[dict]:
    """Virtual machines on this host that no wrapper of ours runs: the jump would end them."""
    ours = {record["pid"] for record in known().values()}
    found = []
    for pid in _processes.pids():
        if pid not in ours and _processes.VM_LINK in _processes.fd_links(pid).values():
            unit = _processes.unit_of(pid) or ""
            name = unit.rpartition(".")[0] or f"pid-{pid}"
            found.append({"name": name, "unit": unit, "pid": pid, "reasons": [_qemu.foreign_reason(pid)]})
    return found


def inspect(record: dict) -> list[dict]:
    """Why the guest cannot be preserved: the provider's reasons, then its unit's."""
    return _qemu.inspect(record) + unit_reasons(record["unit"], _systemd.show(record["unit"], *_UNIT_PROPERTIES))


_UNIT_PROPERTIES = ("MainPID", "FileDescriptorStoreMax", *_UNIT_NEEDS)


def unit_reasons(unit: str, properties: dict[str, str]) -> list[dict]:
    """What a guest's unit lacks to be its holder. Pure."""
    wrong = [f"{key}={properties.get(key, '')}" for key, good in _UNIT_NEEDS.items() if properties.get(key) not in good]
    if int(properties.get("FileDescriptorStoreMax") or 0) < 1:
        wrong.append(f"FileDescriptorStoreMax={properties.get('FileDescriptorStoreMax', '')}")
    if not wrong:
        return []
    return [
        {
            "code": "unit",
            "message": f"its unit {unit} cannot hold a session ({', '.join(wrong)})",
            "remedy": f"list {unit} in hypervisor_setup_guest_units and run the setup playbook again, then restart the guest",
        }
    ]


def held(record: dict) -> dict:
    """The hold on this guest's RAM when it is in force: the same process, the same memory, and the session in the store."""
    hold_record = _paths.read_json(run_path(record["name"], "held"))
    if not hold_record or hold_record["pid"] != record["pid"] or hold_record["started"] != record["started"]:
        return {}
    if hold_record["inode"] != _ram_inode(record) or FDNAME not in _systemd.fdstore(record["unit"]):
        return {}
    return hold_record


def _ram_inode(record: dict) -> int:
    try:
        return os.stat(f"/proc/{record['pid']}/fd/{record['ram']['fd']}").st_ino
    except OSError:
        return 0


def hold(record: dict) -> dict:
    """Preserve the guest's RAM while it runs on, and give the session to its unit's fd store.

    Any failure closes the session, and with that gives up what was preserved: the guest is as before.
    """
    name, unit = record["name"], record["unit"]
    if _paths.read_json(run_path(name, "held")) or FDNAME in _systemd.fdstore(unit):
        release(record)
    hold_record = {
        "hold": _host.random_uuid(),
        "guest": name,
        "session": session_name(record["uuid"]),
        "pid": record["pid"],
        "started": record["started"],
        "inode": _ram_inode(record),
        "size": record["ram"]["size"],
    }
    fds = []
    try:
        fds += _qemu.memory(record)
        fds.append(_note({"hold": hold_record["hold"], "guest": name, "uuid": record["uuid"], "size": record["ram"]["size"]}))
        session = _luo.create_session(hold_record["session"])
        fds.append(session)
        _luo.preserve_fd(session, fds[1], META_TOKEN)
        _luo.preserve_fd(session, fds[0], RAM_TOKEN)
        _systemd.store_fd(unit, record["pid"], FDNAME, session)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}: {err}") from err
    finally:
        for fd in fds:
            os.close(fd)
    _paths.write_json(run_path(name, "held"), hold_record)
    return hold_record


def _note(content: dict) -> int:
    """A memfd that says what the session holds; it ties the memory to the one state file that fits it."""
    fd = os.memfd_create("kvm-liveupdate-note", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(content).encode())
    return fd


def read_note(fd: int) -> dict:
    """What :func:`hold` noted beside the RAM."""
    return dict(json.loads(os.pread(fd, 1 << 16, 0)))


def release(record: dict) -> bool:
    """Give up the hold: PID 1 closes the session, the kernel un-preserves the RAM. Returns whether there was one."""
    stored = FDNAME in _systemd.fdstore(record["unit"])
    if stored:
        _systemd.forget_fd(record["unit"], record["pid"], FDNAME)
    return _paths.remove(run_path(record["name"], "held")) or stored


def start_early(unit: str, wanted: bool) -> None:
    """Have the guest's unit start at the beginning of the next boot, or no longer.

    The guest runs now, so it is to run after the jump whether or not its unit is enabled for an ordinary boot.
    """
    link = f"/etc/systemd/system/sysinit.target.wants/{unit}"
    if not wanted:
        _paths.remove(link)
    elif not os.path.islink(link):
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(f"../{unit}", link)  # only the link's name counts
        _paths.sync_directory(link)
