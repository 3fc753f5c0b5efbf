# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The provider ``libvirt``: domains of an unpatched libvirt and QEMU. PRIVATE to the collection.

This uses virsh: every libvirt host has it, and it always fits the daemon. A Python binding would have to fit the daemon and the
interpreter. The list of running domains comes from the QEMU processes themselves, without the daemon.

A domain's RAM is a file on a tmpfs (``memory_backing_dir`` in qemu.conf). The domain's unit is its hold unit. After the jump this unit
offers the RAM to the QEMU that libvirt starts: :mod:`_start`.
"""

from __future__ import annotations

import json
import os
import stat

from .. import _limits
from .._errors import LiveUpdateError, reason
from ..host import _processes, _slow_paths, _units
from ..vmm import _options
from . import _batch, _ram, _reasons, _setup, _virsh

__all__ = ("KEPT", "confinement", "describe", "ignore_shared_stays", "inspect", "known", "memory", "of_unit", "survey", "warn")

# Before it starts a domain, libvirt waits for a lock of logind's.
DAEMONS = ("libvirtd.service", "systemd-logind.service", "virtqemud.service")
KEPT = (
    "dbus.service",
    "dbus.socket",
    "libvirt-guests.service",  # its stop would save or shut down the guests
    "libvirtd.service",
    "libvirtd.socket",
    "systemd-machined.service",
    "virtlockd.service",
    "virtlogd.service",
    "virtqemud.service",
    "virtqemud.socket",
)


def known() -> list[dict]:
    """The domains that run."""
    try:
        names = sorted(file[: -len(".pid")] for file in os.listdir(_virsh.PIDS) if file.endswith(".pid"))
    except FileNotFoundError:
        return []
    return [record for record in map(_record, names) if record]


def _record(name: str) -> dict:
    """One domain, from its QEMU process; empty when that is gone."""
    try:
        with open(os.path.join(_virsh.PIDS, f"{name}.pid"), encoding="ascii") as file:
            pid = int(file.read())
        argv = _processes.argv_of(pid)
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            ids = {line.split()[0]: int(line.split()[2]) for line in file if line.startswith(("Uid:", "Gid:"))}
    except (OSError, ValueError):
        return {}
    uuid = _virsh.uuid_in(_virsh.status_file(name)) or next((value for word, value in zip(argv, argv[1:]) if word == "-uuid"), "")
    if not uuid or "-uuid" not in argv:  # not a QEMU, or a QEMU that no provider knows
        return {}
    try:
        backends = memory_backends(argv)
    except (KeyError, ValueError):
        backends = [_UNREAD]
    return {
        "name": name,
        "provider": "libvirt",
        "unit": _units.hold(name),
        "uuid": uuid,
        "pid": pid,
        "started": _processes.start_time(pid),
        "uid": ids["Uid:"],
        "gid": ids["Gid:"],
        "backends": backends,
        "ram": _ram_files(pid, backends) if all(backend["path"] for backend in backends) else [],
    }


# The kind of RAM if the command line cannot be read: a compromised QEMU can change its own command line.
_UNREAD = {"kind": "command line that cannot be read", "id": "its RAM", "size": 0, "path": ""}


def memory_backends(argv: list[str]) -> list[dict]:
    """The RAM of a QEMU by its command line, in either dialect: ``kind`` of object, ``id``, ``size``, ``path`` or empty. Pure.

    Raises KeyError or ValueError for what libvirt does not write.
    """
    options, unread = _options.read(argv, opens=False)
    if any(text.startswith("-object ") for text in unread):
        raise ValueError(unread[0])
    found = []
    for option in options:
        kind = option.get("qom-type")
        if option.name == "object" and kind.startswith("memory-backend-"):
            path = option.get("mem-path") if option.is_on("share") and not option.is_on("discard-data") else ""
            if path.startswith(("/dev/hugepages", "/hugepages")) or "/hugepages" in path:
                path = ""
            found.append({"kind": kind, "id": option.keys["id"], "size": _bytes(option.keys["size"]), "path": path})
    return found


def _bytes(size: str) -> int:
    """A size in a QEMU object: bytes, or a number with one letter after it (util/cutils.c, qemu_strtosz)."""
    shift = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}.get(size[-1:].upper())
    return int(size) if shift is None else int(size[:-1]) << shift


def _ram_files(pid: int, backends: list[dict]) -> list[dict]:
    """Which descriptors of the process are its RAM files, in the order of the backends; empty when they are not all found.

    This looks only at files that the process has mapped: another file may be on storage that does not answer.
    """
    mapped, names = set(), set()
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                addresses, mode, _offset, _device, inode, *name = line.rstrip("\n").split(None, 5)
                if mode.endswith("s") and int(inode):
                    low, high = (int(part, 16) for part in addresses.split("-"))
                    mapped.add((high - low, int(inode)))
                    names.update(name)
    except OSError:
        return []
    files: list[dict] = []
    candidates = []
    for fd, link in sorted(_processes.fd_links(pid).items()):
        if link not in names:
            continue
        try:
            seen = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode) and (seen.st_size, seen.st_ino) in mapped:
            candidates.append((fd, seen))
    for backend in backends:
        fitting = [(fd, seen) for fd, seen in candidates if seen.st_size == backend["size"]]
        named = [(fd, seen) for fd, seen in fitting if _ram.is_named(backend["path"], seen)] or fitting
        if not named:
            return []
        fd, seen = named[0]
        candidates = [(other, there) for other, there in candidates if there.st_ino != seen.st_ino]
        files.append({"fd": fd, "size": seen.st_size})
    return files


def survey(records: list[dict]) -> None:
    """Ask libvirt and QEMU about all of these domains at once, in one virsh process; the answers are kept in the records."""
    from . import _survey  # not on the boot path

    _survey.survey([record for record in records if "seen" not in record], _virsh.is_busy)


def _surveyed(record: dict) -> dict:
    """The answers about the domain: ``seen`` of :mod:`_survey`."""
    survey([record])
    seen: dict = record["seen"]
    return seen


def inspect(record: dict) -> list[dict]:
    """Why this domain cannot be preserved: reasons with code, message and remedy; none when it can."""
    name = record["name"]
    reasons = _reasons.memory_reasons(record["backends"], bool(record["ram"]))
    reasons += _reasons.place_reasons(record["backends"], _ram.directory())
    reasons += _reasons.format_reasons(_ram.configured("snapshot_image_format"))
    reasons += _reasons.confinement_reasons(confinement(record["pid"]), os.path.exists(_setup.APPARMOR_RULE))
    reasons += _reasons.definition_reasons(name, record["uuid"], _virsh.is_defined(name))
    if os.path.islink(_virsh.SAVED):
        message = f"{_virsh.SAVED} is a symbolic link, which QEMU's user may change, so root does not follow it"
        reasons.append(
            reason(
                "saves-link",
                message,
                f"replace the link with a directory, and mount the old target on it: add the line 'TARGET {_virsh.SAVED} none bind' to"
                f" /etc/fstab, then run 'mount {_virsh.SAVED}'",
            )
        )
    if any(os.major(os.stat(f"/proc/{record['pid']}/fd/{ram['fd']}").st_dev) for ram in record["ram"]):
        message = "its RAM file is on a disk, not on the tmpfs that memory_backing_dir in qemu.conf names"
        reasons.append(reason("ram-on-disk", message, f"run the playbook kvm.liveupdate.setup, {_reasons.RESTART}"))
    seen = _surveyed(record)
    if "xml" in seen:
        reasons += _reasons.xml_reasons(seen["xml"])
        reasons += _start_reasons(record, seen)
    job = _reasons.job_reasons(seen["job"], record["uuid"]) if "job" in seen else []
    if job:
        return reasons + job  # while a job runs, libvirt allows no other monitor commands
    from ..vmm import _changes  # not on the boot path

    if _changes.ignores_shared(seen.get("capabilities")):
        reasons.append(_changes.left_on(ignore_shared_stays(record)))
    return reasons + _reasons.monitor_reasons(seen, record["uuid"])


def _start_reasons(record: dict, seen: dict) -> list[dict]:
    """Reasons for what libvirt and QEMU would not find when they start the domain after a boot."""
    from ..vmm import _after_boot, _argv_reasons, _reopened
    from . import _needs  # not on the boot path

    wanted = _needs.needs(seen["xml"])
    volumes = _volumes(wanted["volumes"])
    wanted["files"] += volumes
    wrong, served = _after_boot.paths(wanted["files"], record["pid"]), _after_boot.sockets(wanted["sockets"])
    record["devices"] = _needs.devices(wanted["files"], wrong)
    record["servers"] = _after_boot.servers(wanted["sockets"])
    past_libvirt, _environment = _needs.command_line(seen["xml"])
    argv = _processes.argv_of(record["pid"])
    silent: list[dict] = []
    try:
        record["disks"] = _needs.disks(wanted["files"], wrong, past_libvirt)
    except _slow_paths.Silent as err:
        silent = [_reopened.silent(err)]
    return [
        *silent,
        *_needs.reasons(wanted, seen["host"], wrong, served, record["uuid"]),
        *_argv_reasons.reasons(["qemu", *past_libvirt]),
        *_reopened.replaced(record["pid"], [*argv, *_needs.cards_since(seen["xml"], argv)], opens=False),
        *_changed(record, seen, argv, volumes),
    ]


def _changed(record: dict, seen: dict, argv: list[str], volumes: list[dict]) -> list[dict]:
    """Reasons for what was changed without libvirt since the start of QEMU."""
    from . import _differences  # not on the boot path

    if not set(_differences.QUESTIONS) <= set(seen):
        return []  # that is a reason already
    names = _differences.unlisted(seen, argv)  # most domains have none
    requests = [{"execute": "qom-get", "arguments": {"path": f"/machine/peripheral/{name}", "property": "hotplugged"}} for name in names]
    questions = [("qemu-monitor-command", record["uuid"], json.dumps(request)) for request in requests]
    plugged = []
    for name, answer in zip(names, _batch.ask(questions, _limits.LIBVIRT_ANSWER)):
        try:
            said = json.loads(answer.value())
            if "error" in said:
                raise LiveUpdateError(str(said["error"].get("desc", said["error"])))
            plugged += [name] if said["return"] else []
        except (KeyError, LiveUpdateError, ValueError) as err:
            message = f"QEMU does not tell whether {name} was plugged in after its start: {err}"
            return [reason("monitor", message, "make sure that 'virsh list' answers, then run this again")]
    return _differences.reasons(seen, argv, volumes, record["uuid"], plugged)


def _volumes(volumes: list[dict]) -> list[dict]:
    """The files and devices of disks that are volumes of pools. Libvirt knows these only for running pools."""
    if not volumes:
        return []
    questions = [("vol-path", "--pool", disk["pool"], "--", disk["volume"]) for disk in volumes]
    try:
        answers = _batch.ask(questions, _limits.LIBVIRT_ANSWER)
    except LiveUpdateError:
        return []  # a libvirt that does not answer is a reason by itself
    told = [(disk, answer.text.strip()) for disk, answer in zip(volumes, answers) if not answer.error]
    return [{**disk["file"], "path": path} for disk, path in told if path.startswith("/")]


def warn(record: dict) -> list[dict]:
    """Warnings: what does not survive the jump unchanged, although the domain can be preserved."""
    from ..vmm import _after_boot, _argv_reasons
    from . import _needs  # not on the boot path

    xml = _surveyed(record).get("xml")
    if not xml:
        return []  # which is a reason by itself, for inspect
    wanted = _needs.needs(xml)
    return [
        *_reasons.xml_warnings(xml),
        *_argv_reasons.warnings(["qemu", *_needs.command_line(xml)[0]], whole=False),
        *_argv_reasons.name_warnings(file["path"] for file in wanted["files"]),
        *_after_boot.peer_warnings(wanted["sockets"]),
        *_after_boot.link_warnings(_needs.links(xml)),
        *_reasons.hook_warnings(_virsh.other_hooks()),
    ]


def of_unit(record: dict, shown: dict[str, str]) -> list[dict]:  # pylint: disable=unused-argument  # the contract's
    """Nothing: the unit of a domain is the hold unit, whose text is ours (_unit_files.py)."""
    return []


def describe(record: dict) -> dict:
    """The facts for a policy. If libvirt does not answer, only the RAM, which comes from the process."""
    from . import _definition  # for the modules only

    memory = {"memory_mib": sum(backend["size"] for backend in record["backends"]) >> 20 or None}
    xml = _surveyed(record).get("xml")
    told = _definition.describe(xml) if xml else {"devices": [], "labels": {}, "ladder": None}  # no XML is a reason by itself, for inspect
    return {**memory, **told, "paused": _surveyed(record).get("state") == "paused"}


def confinement(pid: int) -> str:
    """The security label of the process (proc(5), attr/current)."""
    try:
        with open(f"/proc/{pid}/attr/current", encoding="utf-8", errors="replace") as label:
            return label.read().strip("\0\n")
    except OSError:
        return ""


def memory(record: dict) -> list[int]:
    """Descriptors of the domain's RAM. This removes the names of its files, because the kernel preserves only files without a name."""
    files: list[int] = []
    try:
        for backend, ram in zip(record["backends"], record["ram"]):
            files.append(_processes.take_fd(record["pid"], ram["fd"]))
            _ram.unname(backend["path"], files[-1])
    except (LiveUpdateError, OSError) as err:
        for fd in files:
            os.close(fd)
        raise LiveUpdateError(f"its RAM cannot be opened: {err}") from err
    return files


def ignore_shared_stays(record: dict) -> str:
    """The message that QEMU still leaves the domain's RAM out of its saves, with the remedy."""
    command = f"virsh qemu-monitor-command {record['uuid']} --hmp 'migrate_set_capability x-ignore-shared off'"
    return (
        f"QEMU's migration option x-ignore-shared is still on, so a later save or migration would not contain the guest's RAM: switch it"
        f" off with {command}"
    )
