# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of this host: who they are, what speaks against them, and the records kept about them. PRIVATE to the collection."""

from __future__ import annotations

import os
import re

from . import _luo, _memory, _paths, _processes, _providers, _systemd
from ._errors import LiveUpdateError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "cut_off",
    "describe",
    "find",
    "inspect",
    "journal",
    "journal_path",
    "journals",
    "known",
    "last_pause",
    "memory_limits",
    "name_reasons",
    "not_back",
    "records",
    "run_path",
    "state_path",
    "strangers",
    "survey",
    "warn",
)

_UNIT_NAME_LIMIT = 255  # of systemd (src/basic/unit-def.h, UNIT_NAME_MAX)
_UNIT_NEEDS = {"FileDescriptorStorePreserve": ("yes",), "NotifyAccess": ("all", "main", "exec"), "IgnoreOnIsolate": ("yes",)}


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
    """What the last update did with this guest; empty when none did. A guest that runs again is ``restored``, recorded on disk or not."""
    recorded = _paths.read_json(journal_path(name))
    if recorded.get("state") != "saved":
        return recorded
    from . import _incoming  # for a guest that is, or was, on its way back

    return _incoming.as_seen(name, recorded)


def journals() -> dict[str, dict]:
    """What the last update did with each guest that it had, by the guest's name."""
    try:
        files = sorted(os.listdir(_paths.GUESTS_STATE))
    except FileNotFoundError:
        return {}
    return {name: journal(name) for name in (file.removesuffix(".json") for file in files if file.endswith(".json"))}


def cut_off(name: str) -> dict:
    """As a journal: that the host went down after a domain's state was written and before its journal was; empty for any other guest.

    The state alone keeps every start of the domain away. By its empty ``hold`` the journal fits no memory: it may have run on since.
    """
    update = _paths.read_json(_paths.UPDATE)
    record = (update.get("records") or {}).get(name, {})
    if record.get("provider") != "libvirt" or not os.path.exists(state_path(name)):
        return {}
    from . import _holding, _libvirt  # a domain's business

    known = {**{key: record[key] for key in ("provider", "unit", "uuid")}, "session": _holding.session_name(record["uuid"])}
    asked = {key: update[key] for key in ("boot_id", "on_loss")}
    return {**known, **asked, "state": "saved", "guest": name, "hold": "", "image": _libvirt.image_path(name)}


def last_pause(update: dict) -> float | None:
    """Seconds from a guest's pause to its resume in the update of this journal; None when that did not bring it back. Pure."""
    times = update.get("times") or {}
    return times["resumed"] - times["paused"] if update.get("state") == "restored" else None


def records() -> list[dict]:
    """The guests that run now: a record of each, as its provider wrote or found it.

    ``namesake`` is the unit of another of the same name, where there is one.
    """
    found = [record for provider in _providers.all_of_them() for record in provider.known()]
    for record in found:
        others = [other["unit"] for other in found if other is not record and other["name"] == record["name"]]
        if others:
            record["namesake"] = others[0]
    return found


def known() -> dict[str, dict]:
    """The guests that run now, by name. Of two with one name one is here; both have a reason against them (:func:`name_reasons`)."""
    return {record["name"]: record for record in records()}


def find(name: str, running: dict[str, dict] | None = None) -> dict:
    """The running guest ``name``, of those that :func:`known` has returned or returns now."""
    guests = known() if running is None else running
    if name not in guests:
        raise LiveUpdateError(
            f"guest {name!r}: no such guest runs on this host; it runs: {', '.join(guests) or 'none under our wrapper'}."
            " A guest's name is the first argument of 'kvm-liveupdate run' in its unit, or that of its libvirt domain"
        )
    return guests[name]


def not_back(running: t.Iterable[str]) -> list[dict]:
    """Which guests an update saved that it has not brought back, as reasons against the next one.

    The session of such a guest may have its memory still, and does not come over another jump.
    """
    return [
        {
            "code": "not-back",
            "message": f"guest {name} was saved by an update and does not run; its memory may still be kept, and would be lost",
            "remedy": f"'systemctl start {saved['unit']}' tries to bring it back, 'kvm-liveupdate discard {name}' gives up what was saved",
        }
        for name, saved in journals().items()
        if saved.get("state") == "saved" and name not in running
    ]


def strangers(guests: t.Iterable[dict] | None = None) -> list[dict]:
    """Virtual machines on this host that are none of these guests, by default of all :func:`records`: the jump would end them."""
    ours = {record["pid"] for record in (records() if guests is None else guests)}
    found = []
    for pid in _processes.pids():
        if pid not in ours and _processes.VM_LINK in _processes.fd_links(pid).values():
            unit = _processes.unit_of(pid) or ""
            name = unit.rpartition(".")[0] or f"pid-{pid}"
            found.append({"name": name, "unit": unit, "pid": pid, "reasons": [_providers.foreign_reason(pid)], "warnings": []})
    return found


def survey(records: list[dict]) -> None:
    """Ask at once what a look at each of these guests needs from systemd and from its provider, and keep the answers in the records.

    Without it each look asks for itself. The answers are of now: for a later look take new records.
    """
    records = [record for record in records if record["unit"] and not name_reasons(record)]  # else systemctl answers for nobody
    _ask_systemd(records)
    for provider in _providers.all_of_them():
        provider.survey([record for record in records if _providers.of(record) is provider])


def _ask_systemd(records: list[dict]) -> None:
    """Keep in each record the properties of its unit (``shown``) and the memory limits of that and of its slices (``limits``)."""
    shown = _systemd.show_each(sorted({record["unit"] for record in records}), *_UNIT_PROPERTIES, "Slice", *_memory.LIMITS)
    slices = {unit: _memory.parents(properties.get("Slice", "")) for unit, properties in shown.items()}
    around = _systemd.show_each(sorted({name for names in slices.values() for name in names}), *_memory.LIMITS)
    for record in records:
        unit = record["unit"]
        record["shown"] = shown[unit]
        record["limits"] = _memory.limits({unit: shown[unit], **{name: around[name] for name in slices[unit]}})


def describe(record: dict) -> dict:
    """What a policy may tell guests apart by: ``memory_mib``, ``devices``, ``labels`` and ``ladder`` (_providers.py)."""
    facts: dict = _providers.of(record).describe(record)
    return facts


def inspect(record: dict) -> list[dict]:
    """Why the guest cannot be preserved: the provider's reasons, then its program's, its unit's and those of memory limits."""
    from . import _holding, _paused  # for the modules only

    wrong = name_reasons(record)
    if wrong:
        return wrong  # systemd and the records could not tell which guest is meant
    reasons: list[dict] = _paused.reasons(record) + _providers.of(record).inspect(record)
    if any(why["code"] == "ignore-shared" for why in reasons) and _holding.held(record):
        # A save of an update may be under way. Its undo switches that off.
        reasons = [why for why in reasons if why["code"] != "ignore-shared"]
    if not record["unit"]:
        message = f"its QEMU, process {record['pid']}, is of no unit: nobody starts it after a boot"
        no_unit = reason("unit-gone", message, "let a systemd unit run it, and restart it")
        return [*reasons, no_unit] if record["pid"] or not reasons else reasons
    limits = memory_limits(record)
    shown = _asked(record)["shown"]
    return (
        reasons
        + program_reasons(_processes.replaced_program(record["pid"]))
        + unit_reasons(record["unit"], shown)
        + (_start_and_files(record, shown) if record["provider"] == "qemu" else [])
        + _memory.limit_reasons(sum(ram["size"] for ram in record["ram"]), limits)
    )


def _start_and_files(record: dict, shown: dict[str, str]) -> list[dict]:
    """What would keep a guest that a unit runs from its start after the jump."""
    from .vmm import _files  # not on the boot path

    pid, unit = record["pid"], record["unit"]
    ram = {_processes.file_of(pid, memory["fd"]) for memory in record["ram"]}
    made_again = bool(_programs(shown, "ExecStartPre") or _starters(shown))
    brought = {unit, *" ".join(shown.get(key, "") for key in _BRINGS).split()}
    found = start_reasons(unit, pid, shown) + file_reasons(unit, record["name"], shown)
    if shown.get("NeedDaemonReload") == "yes" and not _is_out_of_order(shown, _processes.started_at(pid)):
        message = f"the file of its unit {unit} was changed, and systemd has not read it since: the boot after the jump does"
        found.append(reason("unit", message, "systemctl daemon-reload, then run this again"))
    return found + rights_reasons(unit, pid) + _files.reasons(pid, record["argv"], ram, made_again, brought)


def name_reasons(record: dict) -> list[dict]:
    """Whether the guest's name makes it one that nobody can tell from another, or is too long for the unit that holds its memory."""
    name = record["name"]
    unit = f"kvm-liveupdate-rehearsal@{_systemd.escape(name)}.service"  # the longest that is made of it (_rehearsal.py, _holding.py)
    found = []
    if len(unit) > _UNIT_NAME_LIMIT:
        message = f"its name makes a unit name of {len(unit)} characters, and systemd takes {_UNIT_NAME_LIMIT}: {name}"
        found.append(reason("name-long", message, "give it a shorter name; letters that are not ASCII count eight times and more"))
    if record.get("namesake"):
        message = f"another guest has its name, {name}: one is of {record['unit']}, the other of {record['namesake']}"
        found.append(reason("name-twice", message, "rename one of the two and restart it"))
    return found


def rights_reasons(unit: str, pid: int) -> list[dict]:
    """Whether QEMU cannot write its state, or its unit's next start cannot ask for its memory: by its user and the files that it sees."""
    lacks = []
    user, inside = _processes.user_of(pid), f"/proc/{pid}/root"
    if user:
        lacks.append(f"it runs as user {user} instead of root (User=, DynamicUser=)")
    if os.path.isdir(_paths.GUESTS_STATE):
        try:
            same = os.path.samefile(_paths.GUESTS_STATE, inside + _paths.GUESTS_STATE)
            if not same or os.statvfs(inside + _paths.GUESTS_STATE).f_flag & os.ST_RDONLY:
                lacks.append(f"it may not write to {_paths.GUESTS_STATE} (ProtectSystem=, ReadOnlyPaths=)")
        except OSError:
            lacks.append(f"it does not see {_paths.GUESTS_STATE} (RootDirectory=, RootImage=, InaccessiblePaths=, TemporaryFileSystem=)")
    if os.path.exists(_luo.DEVICE) and not os.path.exists(inside + _luo.DEVICE):
        lacks.append(f"it does not see {_luo.DEVICE} (PrivateDevices=, RootDirectory=)")
    return [
        reason("unit", f"its QEMU in {unit} lacks what an update needs: {lack}", "remove that setting from the unit and restart the guest")
        for lack in lacks
    ]


def start_warnings(unit: str, properties: dict[str, str]) -> list[dict]:
    """What a unit runs at each start beside QEMU, and so when the guest comes back: a warning that names it."""
    runs = _starters(properties)
    for setting in ("ExecCondition", "ExecStartPre", "ExecStartPost"):
        runs += [f"{setting}={command}" for _path, command in _programs(properties, setting)]
    if not runs:
        return []
    message = f"{unit} runs this again when the guest comes back after the jump: {'; '.join(runs)}"
    return [reason("start-runs-again", message, "see that nothing of it makes a disk, firmware variables or a tap anew")]


def drop_in_warnings(unit: str, properties: dict[str, str]) -> list[dict]:
    """The drop-ins of a unit that are gone after a boot (``systemctl edit --runtime``), our own left out: a warning each. Pure."""
    gone = [path for path in properties.get("DropInPaths", "").split() if path.startswith("/run/") and not path.startswith(_GENERATED)]
    return [
        reason(
            "unit-runtime",
            f"what {path} sets in its unit {unit} is gone after the jump: a boot does not find that file",
            f"if the guest needs it, write the same by 'systemctl edit {unit}'",
        )
        for path in gone
        if os.path.basename(path) not in _OWN_DROP_INS
    ]


def _starters(properties: dict[str, str]) -> list[str]:
    """The programs of ``ExecStart=`` that are not our command, as a script that runs it."""
    started = _programs(properties, "ExecStart")
    return [f"ExecStart={command}" for path, command in started if os.path.basename(path) != "kvm-liveupdate"]


def _programs(properties: dict[str, str], setting: str) -> list[tuple[str, str]]:
    """The path and command of each program that a setting names, as systemctl shows them."""
    return re.findall(r"\{ path=(.*?) ; argv\[\]=(.*?) ; ignore_errors=", properties.get(setting, ""))


def memory_limits(record: dict) -> dict[str, int]:
    """The memory limits in bytes of the unit that takes the guest's RAM back, and of the slices that it lies in. Kept in the record."""
    found: dict[str, int] = _asked(record)["limits"]
    return found


def _asked(record: dict) -> dict:
    """The record with what systemd tells of its unit."""
    if "shown" not in record or "limits" not in record:
        _ask_systemd([record])
    return record


def program_reasons(replaced: str) -> list[dict]:
    """Whether another QEMU would have to load the guest's state than the one that writes it. Pure."""
    if not replaced:
        return []
    return [
        {
            "code": "qemu-replaced",
            "message": f"{replaced} was replaced since it started: another QEMU would have to take its state after the jump, and may fail",
            "remedy": "restart the guest, or migrate it away and back, so that it runs the QEMU that is installed",
        }
    ]


def warn(record: dict) -> list[dict]:
    """What of the guest does not come over as it was; none of it keeps it from being preserved."""
    warnings: list[dict] = _providers.of(record).warn(record)
    if record["provider"] != "qemu" or not record["unit"] or name_reasons(record):
        return warnings
    unit, shown = record["unit"], _asked(record)["shown"]
    return warnings + start_warnings(unit, shown) + drop_in_warnings(unit, shown)


def start_reasons(unit: str, pid: int, properties: dict[str, str]) -> list[dict]:
    """What would keep the unit of a QEMU with this ``pid`` from finding its memory after the jump."""
    if properties.get("MainPID") != str(pid):
        message = f"its QEMU, process {pid}, is not the main process of {unit}, which alone is handed its memory"
        remedy = "let ExecStart= run kvm-liveupdate itself, or what runs it exec it, and restart the guest"
    elif _denied(properties):
        message = f"its unit {unit} may not open {_luo.DEVICE}, where it asks for its memory"
        remedy = f"add DeviceAllow={_luo.DEVICE} rw to it and restart the guest"
    else:
        return []
    return [{"code": "unit", "message": message, "remedy": remedy}]


def file_reasons(unit: str, name: str, properties: dict[str, str]) -> list[dict]:
    """What would have a boot not find the unit of the guest ``name`` as it is, or find it to run something else. Pure."""
    found = []
    file = properties.get("FragmentPath", "")
    if not file or (file.startswith("/run/") and not file.startswith(_GENERATED)):
        message = f"its unit {unit} is gone after a boot: its file is {file or 'not there'}"
        found.append(reason("unit-gone", message, f"write it as /etc/systemd/system/{unit}, and restart the guest"))
    for path, command in _programs(properties, "ExecStart"):
        program, said = os.path.basename(path), command.partition(" ")[2].partition(" -- ")[0]
        if program.startswith("qemu-") or program in ("kvm", "qemu"):
            message = f"its unit {unit} starts QEMU without the wrapper: ExecStart={command}"
            found.append(
                reason("unit-other", message, f"put 'kvm-liveupdate run {name} --' before it, daemon-reload, and restart the guest")
            )
        elif program == "kvm-liveupdate" and re.fullmatch(r"run [\w.:@-]+", said) and said != f"run {name}":
            message = f"its unit {unit} starts another guest: 'kvm-liveupdate {said}', not 'run {name}'"
            found.append(
                reason("unit-other", message, f"write {name} there again and daemon-reload, or restart the guest under the new name")
            )
    return found


def _is_out_of_order(properties: dict[str, str], started: float) -> bool:
    """Whether systemd takes a unit for changed only because ``set-property``, which the wrapper uses, put a drop-in behind later ones.

    The boot sorts them by name (src/core/unit.c, unit_need_daemon_reload). Then a file that is newer than the guest tells a change.
    """
    files = properties.get("DropInPaths", "").split()
    names = [os.path.basename(path) for path in files]
    if names == sorted(names):
        return False
    owned = [path for path in (properties.get("FragmentPath", ""), *files) if "/system.control/" not in path]
    try:
        return all(os.stat(path).st_mtime <= started for path in owned)
    except OSError:
        return False


def _denied(properties: dict[str, str]) -> bool:
    """Whether the unit has a list of devices without the one for live updates (systemd.resource-control(5))."""
    listed = properties.get("DeviceAllow", "").split()
    return (properties.get("DevicePolicy", "auto") != "auto" or bool(listed)) and not {_luo.DEVICE, "char-misc", "char-*"} & set(listed)


_RUN_AT_START = ("ExecStart", "ExecCondition", "ExecStartPre", "ExecStartPost")
_GENERATED = ("/run/systemd/generator/", "/run/systemd/generator.early/", "/run/systemd/generator.late/")  # which each boot makes
# What setup writes, and what systemd writes for the wrapper's set-property: a boot makes them again.
_OWN_DROP_INS = ("40-kvm-liveupdate.conf", "50-StartupCPUWeight.conf", "50-StartupIOWeight.conf")
_BRINGS = ("Requires", "Requisite", "BindsTo", "Wants")
_UNIT_PROPERTIES = (
    *_RUN_AT_START,
    *_BRINGS,
    "MainPID",
    "DevicePolicy",
    "DeviceAllow",
    "DropInPaths",
    "FileDescriptorStoreMax",
    "FragmentPath",
    "NeedDaemonReload",
    *_UNIT_NEEDS,
)


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
