# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The provider ``libvirt``: domains of an unpatched libvirt and QEMU. PRIVATE to the collection.

Libvirt is spoken to through virsh: it is on every host that has libvirt and fits its daemon, where a Python binding would have to
fit both the daemon and the interpreter. Who runs is read from the QEMU processes themselves, without the daemon.

A domain's RAM is a file on a tmpfs (``memory_backing_dir`` in qemu.conf). Its unit is its holder, which after the jump offers the RAM
to the QEMU that libvirt starts: :mod:`_libvirt_run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time

from . import _guests, _holding, _libvirt_image, _libvirt_reasons, _paths, _processes, _systemd
from ._errors import LiveUpdateError
from ._libvirt_reasons import reason

__all__ = (
    "KEPT",
    "SAVED",
    "confinement",
    "describe",
    "disk_targets",
    "domain_xml",
    "end_rehearsal",
    "ignore_shared",
    "image_path",
    "inspect",
    "is_defined",
    "known",
    "memory",
    "ram_places",
    "rehearse",
    "resume",
    "save",
    "status",
    "virsh",
    "warn",
    "write_image",
)

SAVES_SLOWLY = True  # several calls of virsh
# Before it starts a domain, libvirt waits for a lock of logind's.
DAEMONS = ("libvirtd.service", "systemd-logind.service", "virtqemud.service")
KEPT = (
    "dbus.service",
    "dbus.socket",
    "libvirt-guests.service",  # stopping it would save or shut down the guests
    "libvirtd.service",
    "libvirtd.socket",
    "systemd-machined.service",
    "virtlockd.service",
    "virtlogd.service",
    "virtqemud.service",
    "virtqemud.socket",
)
SAVE_LIMIT_S = 120.0
UNDO_LIMIT_S = 30.0
START_LIMIT_S = 300.0
_PIDS = "/run/libvirt/qemu"
SAVED = "/var/lib/libvirt/qemu/save"


def virsh(*words: str, limit: float = 60.0) -> str:
    """What ``virsh`` prints for these words."""
    return _systemd.run("virsh", "--quiet", "--connect", "qemu:///system", *words, timeout=limit)


def is_defined(name: str) -> bool:
    """Whether libvirt has a domain of this name; false where there is no libvirt."""
    return os.path.exists(f"/etc/libvirt/qemu/{name}.xml")


def known() -> list[dict]:
    """The domains that run."""
    try:
        names = sorted(file[: -len(".pid")] for file in os.listdir(_PIDS) if file.endswith(".pid"))
    except FileNotFoundError:
        return []
    return [record for record in map(_record, names) if record]


def _record(name: str) -> dict:
    """One domain, from its QEMU process; empty when that is gone."""
    try:
        with open(os.path.join(_PIDS, f"{name}.pid"), encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            argv = file.read().split("\0")
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            ids = {line.split()[0]: int(line.split()[2]) for line in file if line.startswith(("Uid:", "Gid:"))}
    except (OSError, ValueError):
        return {}
    if "-uuid" not in argv:
        return {}
    backends = memory_backends(argv)
    return {
        "name": name,
        "provider": "libvirt",
        "unit": _holding.resident_unit(name),
        "uuid": argv[argv.index("-uuid") + 1],
        "pid": pid,
        "started": _processes.start_time(pid),
        "uid": ids["Uid:"],
        "gid": ids["Gid:"],
        "backends": backends,
        "ram": _ram_files(pid, backends) if all(backend["path"] for backend in backends) else [],
    }


def memory_backends(argv: list[str]) -> list[dict]:
    """The RAM of a QEMU as libvirt writes it on the command line: ``kind`` of object, ``id``, ``size``, ``path`` or empty. Pure."""
    found = []
    for word, value in zip(argv, argv[1:]):
        if word == "-object" and value.startswith("{") and '"memory-backend-' in value:
            given = json.loads(value)
            path = given.get("mem-path", "") if given.get("share") and not given.get("discard-data") else ""
            if path.startswith(("/dev/hugepages", "/hugepages")) or "/hugepages" in path:
                path = ""
            found.append({"kind": given["qom-type"], "id": given["id"], "size": given["size"], "path": path})
    return found


def _ram_files(pid: int, backends: list[dict]) -> list[dict]:
    """Which descriptors of the process are its RAM files, in the order of the backends; empty when they are not all found."""
    mapped = set()
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                low, high, mode, inode = *(int(part, 16) for part in line.split()[0].split("-")), line.split()[1], int(line.split()[4])
                if mode.endswith("s") and inode:
                    mapped.add((high - low, inode))
    except OSError:
        return []
    files: list[dict] = []
    candidates = []
    for fd in sorted(_processes.fd_links(pid)):
        try:
            seen = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode) and (seen.st_size, seen.st_ino) in mapped:
            candidates.append((fd, seen))
    for backend in backends:
        fitting = [(fd, seen) for fd, seen in candidates if seen.st_size == backend["size"]]
        named = [(fd, seen) for fd, seen in fitting if _same_file(backend["path"], seen)] or fitting
        if not named:
            return []
        fd, seen = named[0]
        candidates = [(other, there) for other, there in candidates if there.st_ino != seen.st_ino]
        files.append({"fd": fd, "size": seen.st_size})
    return files


def _same_file(path: str, seen: os.stat_result) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (seen.st_dev, seen.st_ino)


def inspect(record: dict) -> list[dict]:
    """Why this domain cannot be preserved: reasons with code, message and remedy; none when it can."""
    name = record["name"]
    reasons = _libvirt_reasons.memory_reasons(record["backends"], bool(record["ram"]))
    reasons += _libvirt_reasons.confinement_reasons(confinement(record["pid"]), os.path.exists(_libvirt_reasons.APPARMOR_RULE))
    reasons += _libvirt_reasons.definition_reasons(name, is_defined(name))
    if any(os.major(os.stat(f"/proc/{record['pid']}/fd/{ram['fd']}").st_dev) for ram in record["ram"]):
        message = "its RAM file lies on a disk, not on the tmpfs that memory_backing_dir in qemu.conf names"
        reasons.append(reason("ram-on-disk", message, "run the setup playbook if that was not done, then restart the domain once"))
    try:
        reasons += _libvirt_reasons.xml_reasons(domain_xml(record))
        job = _libvirt_reasons.job_reasons(virsh("domjobinfo", name))
        if job:
            return reasons + job  # while it lasts libvirt lets nobody else at the monitor
        answer = qmp(name, "query-migrate")
        jobs = qmp(name, "query-block-jobs")
        state = status(record)
    except LiveUpdateError as err:
        return [*reasons, reason("monitor", str(err), "see that libvirtd answers")]
    blockers = answer.get("blocked-reasons", [])
    reasons += [reason("qemu-blocker", f"QEMU says: {text}", "remove the device or feature that it names") for text in blockers]
    if jobs:
        reasons.append(reason("block-job", "a block job is running (backup, mirror, commit)", "let it finish, or cancel it"))
    if state not in ("running", "paused"):
        reasons.append(reason("run-state", f"the domain is {state}", "bring it to running or paused first"))
    return reasons


def warn(record: dict) -> list[dict]:
    """What does not come over as it was, though the domain can be preserved."""
    try:
        return _libvirt_reasons.xml_warnings(domain_xml(record))
    except LiveUpdateError:
        return []  # a reason by itself, for inspect


def describe(record: dict) -> dict:
    """What a policy may tell domains apart by; when libvirt does not answer only their RAM, which their process tells."""
    from ._libvirt_describe import describe as describe_xml  # for the modules only

    memory = {"memory_mib": sum(backend["size"] for backend in record["backends"]) >> 20 or None}
    try:
        return {**memory, **describe_xml(domain_xml(record))}
    except LiveUpdateError:
        return {**memory, "devices": [], "labels": {}, "ladder": None}  # a reason by itself, for inspect


def domain_xml(record: dict) -> str:
    """The running domain's XML. It is kept in the record: virsh takes its time, and each who asks has a record of his own."""
    if "xml" not in record:
        record["xml"] = virsh("dumpxml", record["name"])
    shown: str = record["xml"]
    return shown


def confinement(pid: int) -> str:
    """What a security module says of the process (proc(5), attr/current)."""
    try:
        with open(f"/proc/{pid}/attr/current", encoding="utf-8", errors="replace") as label:
            return label.read().strip("\0\n")
    except OSError:
        return ""


def qmp(name: str, command: str, **arguments: object) -> dict:
    """Run a QMP command through libvirt."""
    request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
    answer = json.loads(virsh("qemu-monitor-command", name, request))
    if "error" in answer:
        raise LiveUpdateError(f"guest {name}: {command}: {answer['error'].get('desc', answer['error'])}")
    result: dict = answer["return"]
    return result


def memory(record: dict) -> list[int]:
    """Descriptors of the domain's RAM; its files lose their names, because the kernel preserves only those without."""
    files = [_processes.take_fd(record["pid"], ram["fd"]) for ram in record["ram"]]
    for backend, fd in zip(record["backends"], files):
        if _same_file(backend["path"], os.fstat(fd)) and not os.path.islink(backend["path"]):
            os.unlink(backend["path"])
    return files


def status(record: dict) -> str:
    """The domain's state: ``running``, ``paused``, or libvirt's other words."""
    return virsh("domstate", record["name"]).strip()


def save(record: dict, path: str, running: bool) -> dict:
    """Save the domain without its RAM, as a managed save. ``path`` says so first: libvirt's hook then wants the RAM at its next start."""
    name, image = record["name"], image_path(record["name"])
    hold = _paths.read_json(_guests.run_path(name, "held"))["hold"]
    try:
        _paths.remove(_guests.run_path(name, "resumed"))  # of an update before this one that was undone
        _paths.write_json(path, {"hold": hold, **ram_places(record)})
        disks = disk_targets(domain_xml(record))
        ignore_shared(name, True)
        paused = time.time()
        virsh("suspend", name)
        write_image(name, disks, image, running)
        digest = _paths.digest(image)  # only this one is started from
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {name}: save: {err}") from err
    kept = {key: record[key] for key in ("provider", "uid", "gid", "backends")}
    return {"times": {"paused": paused, "saved": time.time()}, "image": image, "digest": digest, **kept}


def ram_places(record: dict) -> dict:
    """Where a QEMU of the domain looks for its RAM: its ``files`` in a directory of its own below ``directory``."""
    places = [os.path.split(backend["path"]) for backend in record["backends"]]
    return {"directory": os.path.dirname(places[0][0]), "files": [file for _directory, file in places]}


def image_path(name: str) -> str:
    """Where libvirt looks for a domain's managed save."""
    return os.path.join(SAVED, f"{name}.save")


def disk_targets(xml: str) -> list[str]:
    """The names of the domain's disks (``vda``). Pure."""
    from xml.etree import ElementTree  # slow to import

    return [target.get("dev", "") for target in ElementTree.fromstring(xml).findall("devices/disk/target")]


def ignore_shared(name: str, state: bool) -> None:
    """Have the domain's QEMU leave its RAM out of what it saves, or not: left on, a later save or migration would lack the RAM."""
    qmp(name, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": state}])


def write_image(name: str, disks: list[str], image: str, running: bool) -> None:
    """Have libvirt write the suspended domain's save image, durably, as one that an ordinary start loads.

    It is the memory part of an external snapshot, which is what a managed save writes, but leaves QEMU where it is: to end it takes
    the most of a managed save's time, and would make an undo a start.
    """
    place = image.replace(",", ",,")  # virsh(1), memspec
    untouched = [word for disk in disks for word in ("--diskspec", f"{disk},snapshot=no")]
    words = ("--no-metadata", "--memspec", f"{place},snapshot=external", *untouched)
    try:
        virsh("snapshot-create-as", name, "kvm-liveupdate", *words, limit=SAVE_LIMIT_S)
    except LiveUpdateError:
        with contextlib.suppress(LiveUpdateError):  # as a rule there is no job any more
            virsh("domjobabort", name)
        raise
    with open(image, "r+b") as file:
        loadable = _libvirt_image.loadable(file.read(), running)
        file.seek(0)
        file.write(loadable)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    _paths.sync_directory(image)


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the domain runs on, or stays paused, in the QEMU that it was saved from."""
    name, image = record["name"], image_path(record["name"])
    suspended = status(record) != "running"  # a save may have failed before that
    if suspended:
        with contextlib.suppress(LiveUpdateError):  # a save that was cut off may be under way: QEMU refuses the following meanwhile
            virsh("domjobabort", name)
    try:
        _save_with_ram_again(name)
    finally:
        if running and suspended:
            virsh("resume", name)
        if os.path.exists(_guests.state_path(name)) and os.path.isfile(image):  # else it is not of a save of ours
            _paths.remove(image)


def _save_with_ram_again(name: str) -> None:
    """Have later saves of the domain include its RAM. A job that was told to end may need a moment, and QEMU refuses this meanwhile."""
    until = time.monotonic() + UNDO_LIMIT_S
    while True:
        try:
            ignore_shared(name, False)
            return
        except LiveUpdateError:
            if time.monotonic() > until:
                raise
        time.sleep(0.5)


def rehearse(record: dict, running: bool) -> float:  # pylint: disable=unused-argument  # suspending what is suspended does no harm
    """Pause the domain and load its state into a stand-in: :mod:`_libvirt_rehearsal`. Returns when it was paused."""
    from . import _libvirt_rehearsal  # not on the boot path

    return _libvirt_rehearsal.rehearse(record)


def end_rehearsal(record: dict, running: bool) -> None:
    """Let the domain go on, and remove what is left of its rehearsal."""
    from . import _libvirt_rehearsal

    _libvirt_rehearsal.end(record, running)
