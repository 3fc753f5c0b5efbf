# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a guest cannot be preserved, and what its operator has to know when it can. PRIVATE to the collection."""

from __future__ import annotations

from .._errors import reason
from ..host import _processes, _systemd, _units
from ..qemu import _unit
from . import _memory, _providers

__all__ = ("describe", "inspect", "memory_limits", "name_reasons", "survey", "warn")

_UNIT_NAME_LIMIT = 255  # of systemd (src/basic/unit-def.h, UNIT_NAME_MAX)
_UNIT_ACTIONS = ("FailureAction", "StartLimitAction")
_UNIT_NEEDS = {"FileDescriptorStorePreserve": ("yes",), "NotifyAccess": ("all", "main", "exec"), "IgnoreOnIsolate": ("yes",)}


def survey(records: list[dict]) -> None:
    """Ask at once what a look at each of these guests needs from systemd and from its provider, and keep the answers in the records.

    Without it each look asks for itself. The answers are of now: for a later look take new records.
    """
    records = [record for record in records if record["unit"] and not name_reasons(record)]  # else systemctl answers for nobody
    _ask_systemd(records)
    for provider in _providers.all_of_them():
        provider.survey([record for record in records if _providers.of(record) == provider])


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
    """What a policy may tell guests apart by: ``memory_mib``, ``devices``, ``labels`` and ``ladder`` (guests/_providers.py)."""
    facts: dict = _providers.of(record).describe(record)
    return facts


def inspect(record: dict) -> list[dict]:
    """Why the guest cannot be preserved: the provider's reasons, then its program's, its unit's and those of memory limits."""
    from . import _hold, _paused  # for the modules only

    wrong = name_reasons(record)
    if wrong:
        return wrong  # systemd and the records could not tell which guest is meant
    reasons: list[dict] = _paused.reasons(record) + _providers.of(record).inspect(record)
    if any(why["code"] == "ignore-shared" for why in reasons) and _hold.held(record):
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
        + (_unit.reasons(record, shown) if record["provider"] == "qemu" else [])
        + _memory.limit_reasons(sum(ram["size"] for ram in record["ram"]), limits)
    )


def name_reasons(record: dict) -> list[dict]:
    """Whether the guest's name makes it one that nobody can tell from another, or is too long for the unit that holds its memory."""
    name = record["name"]
    unit = (
        f"kvm-liveupdate-rehearsal@{_units.escape(name)}.service"  # the longest that is made of it (guests/_rehearsal.py, guests/_hold.py)
    )
    found = []
    if len(unit) > _UNIT_NAME_LIMIT:
        message = f"its name makes a unit name of {len(unit)} characters, and systemd takes {_UNIT_NAME_LIMIT}: {name}"
        found.append(reason("name-long", message, "give it a shorter name; letters that are not ASCII count eight times and more"))
    if record.get("namesake"):
        message = f"another guest has its name, {name}: one is of {record['unit']}, the other of {record['namesake']}"
        found.append(reason("name-twice", message, "rename one of the two and restart it"))
    return found


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
    return warnings + _unit.start_warnings(unit, shown) + _unit.drop_in_warnings(unit, shown)


_UNIT_PROPERTIES = (
    *_unit.RUN_AT_START,
    *_unit.BRINGS,
    "MainPID",
    "DevicePolicy",
    "DeviceAllow",
    "DropInPaths",
    "FileDescriptorStoreMax",
    "FragmentPath",
    "NeedDaemonReload",
    *_UNIT_NEEDS,
    *_UNIT_ACTIONS,
)


def unit_reasons(unit: str, properties: dict[str, str]) -> list[dict]:
    """What a guest's unit lacks to be its holder, and what it does that would cost other guests. Pure."""
    actions = {setting: properties.get(setting, "none") for setting in _UNIT_ACTIONS}
    found = [
        reason(
            "unit-action",
            f"its unit {unit} has {setting}={action}: a start that fails after the jump would end the host, and all guests' memory with it",
            f"remove {setting}= from {unit} and run systemctl daemon-reload",
        )
        for setting, action in actions.items()
        if action not in ("", "none")
    ]
    wrong = [f"{key}={properties.get(key, '')}" for key, good in _UNIT_NEEDS.items() if properties.get(key) not in good]
    if int(properties.get("FileDescriptorStoreMax") or 0) < 1:
        wrong.append(f"FileDescriptorStoreMax={properties.get('FileDescriptorStoreMax', '')}")
    if wrong:
        message = f"its unit {unit} cannot hold a session ({', '.join(wrong)})"
        remedy = f"list {unit} in hypervisor_setup_guest_units and run the setup playbook again, then restart the guest"
        found.append(reason("unit", message, remedy))
    return found
