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

from . import (
    _guests,
    _holding,
    _libvirt_image,
    _libvirt_ram,
    _libvirt_reasons,
    _libvirt_saves,
    _libvirt_virsh,
    _limits,
    _paths,
    _processes,
    _systemd,
)
from ._errors import LiveUpdateError
from ._libvirt_reasons import reason
from .vmm import _options

__all__ = (
    "KEPT",
    "SAVED",
    "confinement",
    "describe",
    "disk_targets",
    "domain_xml",
    "end_rehearsal",
    "ignore_shared",
    "ignore_shared_stays",
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
    "still_saved",
    "survey",
    "uuid_of",
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
SAVE_LIMIT_S = _limits.LIBVIRT_SAVE
UNDO_LIMIT_S = _limits.UNDO
UNDO_ANSWER_S = _limits.UNDO_ANSWER
_LAST_ANSWER_S = 10.0  # of a question that is asked right before the end of UNDO_LIMIT_S
START_LIMIT_S = _limits.LIBVIRT_START
_PIDS = "/run/libvirt/qemu"
_DEFINITIONS = "/etc/libvirt/qemu"
SAVED = "/var/lib/libvirt/qemu/save"


def virsh(*words: str, limit: float = _limits.COMMAND) -> str:
    """What ``virsh`` prints for these words. A domain is named by its UUID: see :func:`uuid_of`."""
    return _systemd.run("virsh", "--quiet", "--connect", "qemu:///system", *words, timeout=limit)


def is_defined(name: str) -> bool:
    """Whether libvirt has a domain of this name; false where there is no libvirt."""
    return os.path.exists(os.path.join(_DEFINITIONS, f"{name}.xml"))


def uuid_of(name: str) -> str:
    """The UUID of the domain ``name``, which virsh is to be asked by; for a domain without one its name, when that cannot be mistaken.

    Virsh takes a number for an id, then 36 characters for a UUID, and only then a word for a name (tools/virsh-util.c,
    virshLookupDomainInternal). A domain with the name 1 and another one with the id 1 would be mixed up.
    """
    uuid = _uuid_in(_status_file(name)) or _uuid_in(_read(os.path.join(_DEFINITIONS, f"{name}.xml")))
    if not uuid and (name.strip().lstrip("+").isdigit() or len(name) == 36):
        raise LiveUpdateError(f"domain {name!r}: libvirt does not know it; 'virsh list --all' shows the domains that it knows")
    return uuid or name


def _uuid_in(xml: str) -> str:
    """The UUID, which libvirt writes behind the name and before all that the owner writes; empty when there is none. Pure."""
    uuid = xml.partition("</name>")[2].partition("<uuid>")[2].partition("</uuid>")[0]
    return uuid if len(uuid) == 36 else ""


def _status_file(name: str) -> str:
    """What libvirt keeps of a domain that runs: what it does to it, then its XML; empty for any other."""
    return _read(os.path.join(_PIDS, f"{name}.xml"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _is_busy(name: str) -> bool:
    """Whether libvirt is at a job on the domain (migration, save, backup), by its status file (qemuDomainObjPrivateXMLFormatJob)."""
    job = _status_file(name).partition("<domain ")[0].partition("<job ")[2].partition(">")[0]
    return " async='" in f" {job}" and "async='none'" not in job


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
        argv = _processes.argv_of(pid)
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            ids = {line.split()[0]: int(line.split()[2]) for line in file if line.startswith(("Uid:", "Gid:"))}
    except (OSError, ValueError):
        return {}
    uuid = _uuid_in(_status_file(name)) or next((value for word, value in zip(argv, argv[1:]) if word == "-uuid"), "")
    if not uuid or "-uuid" not in argv:  # no QEMU, or one that counts as a stranger
        return {}
    try:
        backends = memory_backends(argv)
    except (KeyError, ValueError):
        backends = [_UNREAD]
    return {
        "name": name,
        "provider": "libvirt",
        "unit": _holding.resident_unit(name),
        "uuid": uuid,
        "pid": pid,
        "started": _processes.start_time(pid),
        "uid": ids["Uid:"],
        "gid": ids["Gid:"],
        "backends": backends,
        "ram": _ram_files(pid, backends) if all(backend["path"] for backend in backends) else [],
    }


# In place of RAM that cannot be told: a QEMU that was broken into can change its own command line.
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
    """A size as an object of QEMU's has it: bytes, or with one letter behind (util/cutils.c, qemu_strtosz)."""
    shift = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}.get(size[-1:].upper())
    return int(size) if shift is None else int(size[:-1]) << shift


def _ram_files(pid: int, backends: list[dict]) -> list[dict]:
    """Which descriptors of the process are its RAM files, in the order of the backends; empty when they are not all found.

    Only what it has mapped is looked at: another file may be on a storage that does not answer.
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
        named = [(fd, seen) for fd, seen in fitting if _libvirt_ram.is_named(backend["path"], seen)] or fitting
        if not named:
            return []
        fd, seen = named[0]
        candidates = [(other, there) for other, there in candidates if there.st_ino != seen.st_ino]
        files.append({"fd": fd, "size": seen.st_size})
    return files


def survey(records: list[dict]) -> None:
    """Ask libvirt and QEMU about all of these domains at once, in one virsh process; the answers are kept in the records."""
    from . import _libvirt_survey  # not on the boot path

    _libvirt_survey.survey([record for record in records if "seen" not in record], _is_busy)


def _surveyed(record: dict) -> dict:
    """The answers about the domain: ``seen`` of :mod:`_libvirt_survey`."""
    survey([record])
    seen: dict = record["seen"]
    return seen


def inspect(record: dict) -> list[dict]:
    """Why this domain cannot be preserved: reasons with code, message and remedy; none when it can."""
    name = record["name"]
    reasons = _libvirt_reasons.memory_reasons(record["backends"], bool(record["ram"]))
    reasons += _libvirt_reasons.place_reasons(record["backends"], _libvirt_ram.directory())
    reasons += _libvirt_reasons.confinement_reasons(confinement(record["pid"]), os.path.exists(_libvirt_reasons.APPARMOR_RULE))
    reasons += _libvirt_reasons.definition_reasons(name, is_defined(name))
    if os.path.islink(SAVED):
        message = f"{SAVED} is a link, and QEMU's user may make links there: root follows none"
        reasons.append(reason("saves-link", message, f"make it a folder, and mount the place that it led to there (mount --bind, {SAVED})"))
    if any(os.major(os.stat(f"/proc/{record['pid']}/fd/{ram['fd']}").st_dev) for ram in record["ram"]):
        message = "its RAM file lies on a disk, not on the tmpfs that memory_backing_dir in qemu.conf names"
        reasons.append(reason("ram-on-disk", message, "run the setup playbook if that was not done, then restart the domain once"))
    seen = _surveyed(record)
    if "xml" in seen:
        reasons += _libvirt_reasons.xml_reasons(seen["xml"])
        reasons += _start_reasons(record, seen)
    job = _libvirt_reasons.job_reasons(seen["job"]) if "job" in seen else []
    if job:
        return reasons + job  # while it lasts libvirt lets nobody else at the monitor
    from .vmm import _now  # not on the boot path

    if _now.ignores_shared(seen.get("capabilities")):
        reasons.append(_now.left_on(ignore_shared_stays(record)))
    return reasons + _libvirt_reasons.monitor_reasons(seen)


def _start_reasons(record: dict, seen: dict) -> list[dict]:
    """What libvirt and QEMU would miss when they start the domain after a boot."""
    from . import _libvirt_needs  # not on the boot path
    from .vmm import _argv, _files

    wanted = _libvirt_needs.needs(seen["xml"])
    wanted["files"] += _volumes(wanted["volumes"])
    wrong, served = _libvirt_needs.paths(wanted["files"], record["pid"]), _libvirt_needs.sockets(wanted["sockets"])
    record["devices"] = _libvirt_needs.devices(wanted["files"], wrong)
    past_libvirt, _environment = _libvirt_needs.command_line(seen["xml"])
    return [
        *_libvirt_needs.reasons(wanted, seen["host"], wrong, served, record["name"]),
        *_argv.reasons(["qemu", *past_libvirt]),
        *_files.replaced(record["pid"], _processes.argv_of(record["pid"]), opens=False),
    ]


def _volumes(volumes: list[dict]) -> list[dict]:
    """The files and devices of disks that are volumes of pools. Of a pool that does not run now libvirt tells none."""
    if not volumes:
        return []
    questions = [("vol-path", "--pool", disk["pool"], "--", disk["volume"]) for disk in volumes]
    try:
        answers = _libvirt_virsh.ask(questions, _limits.LIBVIRT_ANSWER)
    except LiveUpdateError:
        return []  # a libvirt that does not answer is a reason by itself
    told = [(disk, answer.text.strip()) for disk, answer in zip(volumes, answers) if not answer.error]
    return [{**disk["file"], "path": path} for disk, path in told if path.startswith("/")]


def warn(record: dict) -> list[dict]:
    """What does not come over as it was, though the domain can be preserved."""
    from . import _libvirt_needs  # not on the boot path

    xml = _surveyed(record).get("xml")
    if not xml:
        return []  # which is a reason by itself, for inspect
    return _libvirt_reasons.xml_warnings(xml) + _libvirt_needs.peer_warnings(_libvirt_needs.needs(xml)["sockets"])


def describe(record: dict) -> dict:
    """What a policy may tell domains apart by; when libvirt does not answer only their RAM, which their process tells."""
    from ._libvirt_describe import describe as describe_xml  # for the modules only

    memory = {"memory_mib": sum(backend["size"] for backend in record["backends"]) >> 20 or None}
    xml = _surveyed(record).get("xml")
    told = describe_xml(xml) if xml else {"devices": [], "labels": {}, "ladder": None}  # no XML is a reason by itself, for inspect
    return {**memory, **told}


def domain_xml(record: dict) -> str:
    """The running domain's XML, as it is now."""
    return virsh("dumpxml", record["uuid"])


def confinement(pid: int) -> str:
    """What a security module says of the process (proc(5), attr/current)."""
    try:
        with open(f"/proc/{pid}/attr/current", encoding="utf-8", errors="replace") as label:
            return label.read().strip("\0\n")
    except OSError:
        return ""


def memory(record: dict) -> list[int]:
    """Descriptors of the domain's RAM; its files lose their names, because the kernel preserves only those without."""
    files: list[int] = []
    try:
        for backend, ram in zip(record["backends"], record["ram"]):
            files.append(_processes.take_fd(record["pid"], ram["fd"]))
            _libvirt_ram.unname(backend["path"], files[-1])
    except (LiveUpdateError, OSError) as err:
        for fd in files:
            os.close(fd)
        raise LiveUpdateError(f"its RAM cannot be taken: {err}") from err
    return files


def status(record: dict) -> str:
    """The domain's state: ``running``, ``paused``, or libvirt's other words."""
    return virsh("domstate", record["uuid"]).strip()


def save(record: dict, path: str, running: bool) -> dict:
    """Save the domain without its RAM, as a managed save. ``path`` says so first: libvirt's hook then wants the RAM at its next start."""
    name, image = record["name"], image_path(record["name"])
    devices = record.get("devices", {})  # what inspect saw, before any guest was paused
    hold = _paths.read_json(_guests.run_path(name, "held"))["hold"]
    try:
        _paths.remove(_guests.run_path(name, "resumed"))  # of an update before this one that was undone
        _paths.write_json(path, {"hold": hold, "devices": devices, **ram_places(record)})
        paused = write_image(record, image, running)
        digest = _paths.digest(image)  # only this one is started from
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {name}: save: {err}") from err
    kept = {key: record[key] for key in ("provider", "uid", "gid", "backends")}
    return {"times": {"paused": paused, "saved": time.time()}, "image": image, "digest": digest, "devices": devices, **kept}


def still_saved(records: list[dict]) -> list[str]:
    """Which of these domains are not as their save left them: one virsh for all of them.

    QEMU is in ``postmigrate`` then, also if it was paused before. One that ran since and was paused again is in ``paused``
    (migration/migration.c, migration_iteration_finish; system/cpus.c, do_vm_stop): its old state would go onto newer RAM.
    """
    questions = [("qemu-monitor-command", record["uuid"], json.dumps({"execute": "query-status"})) for record in records]
    listed, *answers = _libvirt_virsh.ask([("list", "--state-paused", "--uuid"), *questions], _limits.COMMAND)
    paused = listed.value().split()
    found = []
    for record, answer in zip(records, answers):
        state = _run_state(answer)
        if record["uuid"] not in paused or state != "postmigrate":
            found.append(
                f"guest {record['name']} was saved and is not paused any more, or ran since (QEMU: {state}): somebody else let it go on;"
                " keep others away from it, and run the update again"
            )
    return found


def _run_state(answer: _libvirt_virsh.Answer) -> str:
    """The run state that QEMU tells through virsh, or why it tells none."""
    try:
        said = json.loads(answer.value())
        return str(said["return"]["status"] if "return" in said else said["error"]["desc"])
    except (LiveUpdateError, KeyError, TypeError, ValueError) as err:
        return f"no answer: {err}"


def ram_places(record: dict) -> dict:
    """Where a QEMU of the domain looks for its RAM: its ``files`` in a directory of its own below ``directory``.

    Root makes files there, and a QEMU can change its own command line: any other place is an error.
    """
    for backend in record["backends"]:
        if not _libvirt_ram.is_in_place(backend["path"], _libvirt_ram.directory()):
            raise LiveUpdateError(f"its RAM file {backend['path']} is not below {_libvirt_ram.directory()}, where libvirt keeps RAM")
    places = [os.path.split(backend["path"]) for backend in record["backends"]]
    return {"directory": os.path.dirname(places[0][0]), "files": [file for _directory, file in places]}


def image_path(name: str) -> str:
    """Where libvirt looks for a domain's managed save."""
    return os.path.join(SAVED, f"{name}.save")


def disk_targets(xml: str) -> list[str]:
    """The names of the domain's disks (``vda``). Pure."""
    from xml.etree import ElementTree  # slow to import

    return [target.get("dev", "") for target in ElementTree.fromstring(xml).findall("devices/disk/target")]


def ignore_shared(uuid: str, state: bool) -> tuple[str, ...]:
    """Virsh's words that have the domain's QEMU leave its RAM out of what it saves, or not. Pure.

    Left on, a later save or migration would lack the RAM.
    """
    capabilities = [{"capability": "x-ignore-shared", "state": state}]
    request = {"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}}
    return ("qemu-monitor-command", uuid, json.dumps(request))


def taken(said: str) -> None:
    """Raise when that is an error as QEMU answers through virsh."""
    answer = json.loads(said)
    if "error" in answer:
        raise LiveUpdateError(f"QEMU: migrate-set-capabilities: {answer['error'].get('desc', answer['error'])}")


def write_image(record: dict, image: str, running: bool) -> float:
    """Suspend the domain and have libvirt write its save image, durably, as one that an ordinary start loads; returns when it was paused.

    It is the memory part of an external snapshot, which is what a managed save writes, but leaves QEMU where it is: to end it takes
    the most of a managed save's time, and would make an undo a start.

    Two virsh processes, and the guest is paused in the second one only. Were it not suspended, libvirt would let it run on from the
    snapshot: that is an error like any other.

    Libvirt follows links: it writes in a folder of root's. Where libvirt looks for managed saves, QEMU's user could put one.
    """
    uuid, written = record["uuid"], os.path.join(_paths.GUESTS_STATE, f"{record['name']}.image")
    _paths.make_directory(_paths.GUESTS_STATE)
    shown, answer = _libvirt_virsh.ask([("dumpxml", uuid), ignore_shared(uuid, True)], SAVE_LIMIT_S)
    disks = disk_targets(shown.value())
    taken(answer.value())
    place = written.replace(",", ",,")  # virsh(1), memspec
    untouched = [word for disk in disks for word in ("--diskspec", f"{disk},snapshot=no")]
    words = ("--no-metadata", "--memspec", f"{place},snapshot=external", *untouched)
    try:
        begin, suspended, saved = _libvirt_virsh.ask(
            [("echo",), ("suspend", uuid), ("snapshot-create-as", uuid, "kvm-liveupdate", *words)], SAVE_LIMIT_S
        )
        try:
            suspended.value()
            saved.value()
        except LiveUpdateError:
            with contextlib.suppress(LiveUpdateError):  # as a rule there is no job any more
                virsh("domjobabort", uuid)
            raise
        with open(written, "rb") as file:
            loadable = _libvirt_image.loadable(file.read(), running)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(written)
    _libvirt_saves.put(image, loadable)
    return begin.ended


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the domain runs on, or stays paused, in the QEMU that it was saved from.

    A domain that is given up stays paused, so each step is repeated for UNDO_LIMIT_S: a job that was told to end may need a moment, and
    QEMU refuses the rest meanwhile; a daemon may be busy or start anew. Whether the domain runs is what libvirt says in the end, and not
    what a command returned. An error has the detail ``ended`` when QEMU has ended: nothing can go on then.
    """
    name, uuid, image = record["name"], record["uuid"], image_path(record["name"])
    until = time.monotonic() + UNDO_LIMIT_S
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = _undo_step(problems, until, "domstate", uuid)
        if state not in (None, "running"):  # a save may have failed before that
            _undo_step([], until, "domjobabort", uuid)  # of one that was cut off; as a rule there is none
        if not whole:
            whole = _is_taken(problems, _undo_step(problems, until, *ignore_shared(uuid, False)))
        if running and state != "running":
            _undo_step(problems, until, "resume", uuid)
            state = _undo_step(problems, until, "domstate", uuid)
        done = whole and (not running or state not in (None, "paused"))
        if done or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    if os.path.exists(_guests.state_path(name)) and os.path.isfile(image):  # else it is not of a save of ours
        _libvirt_saves.remove(image)
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        raise LiveUpdateError(f"its QEMU, process {record['pid']}, has ended", ended=True)
    if running and state != "running":
        raise LiveUpdateError(f"the domain is {state or 'in a state that libvirt does not tell'}, for {UNDO_LIMIT_S:g} s: {why}")
    if not whole:
        raise LiveUpdateError(f"{ignore_shared_stays(record)}: {why}")


def _undo_step(problems: list[str], until: float, *words: str) -> str | None:
    """What virsh prints for these words; None when that failed, which is one more of the ``problems``."""
    try:
        return virsh(*words, limit=min(UNDO_ANSWER_S, max(until - time.monotonic(), _LAST_ANSWER_S))).strip()
    except LiveUpdateError as err:
        problems.append(str(err))
        return None


def _is_taken(problems: list[str], said: str | None) -> bool:
    """Whether QEMU did what it was asked (:func:`taken`); why not is one more of the ``problems``."""
    try:
        if said is not None:
            taken(said)
    except (LiveUpdateError, ValueError) as err:
        problems.append(str(err))
        return False
    return said is not None


def ignore_shared_stays(record: dict) -> str:
    """That QEMU still leaves the domain's RAM out of what it saves, and how to end that."""
    command = f"virsh qemu-monitor-command {record['uuid']} --hmp 'migrate_set_capability x-ignore-shared off'"
    return (
        f"QEMU's migration option x-ignore-shared is still on, and a later save or migration would be without the guest's RAM: switch it"
        f" off with {command}"
    )


def rehearse(record: dict, running: bool) -> float:  # pylint: disable=unused-argument  # suspending what is suspended does no harm
    """Pause the domain and load its state into a stand-in: :mod:`_libvirt_rehearsal`. Returns when it was paused."""
    from . import _libvirt_rehearsal  # not on the boot path

    return _libvirt_rehearsal.rehearse(record)


def end_rehearsal(record: dict, running: bool) -> None:
    """Let the domain go on, and remove what is left of its rehearsal."""
    from . import _libvirt_rehearsal

    _libvirt_rehearsal.end(record, running)
