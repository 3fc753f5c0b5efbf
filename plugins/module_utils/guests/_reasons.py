# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons why a guest cannot be preserved, and warnings if it can. PRIVATE to the collection."""

from __future__ import annotations

from .._errors import reason
from ..host import _processes, _systemd, _units
from . import _memory, _providers

__all__ = ("describe", "inspect", "memory_limits", "name_reasons", "survey", "warn")

_UNIT_NAME_LIMIT = 255  # systemd's limit (src/basic/unit-def.h, UNIT_NAME_MAX)
_UNIT_ACTIONS = ("FailureAction", "StartLimitAction")
_UNIT_NEEDS = {"FileDescriptorStorePreserve": ("yes",), "NotifyAccess": ("all", "main", "exec"), "IgnoreOnIsolate": ("yes",)}
_BRINGS = ("Requires", "Requisite", "BindsTo", "Wants")
_UNIT_PROPERTIES = (*_UNIT_NEEDS, *_UNIT_ACTIONS, "FileDescriptorStoreMax")


def survey(records: list[dict]) -> None:
    """Ask systemd and the providers about all these guests together, and store the answers in the records.

    Without this each look asks separately. The answers are a snapshot: for a later look use new records.
    """
    records = [record for record in records if record["unit"] and not name_reasons(record)]  # else systemctl fails for all of them
    _ask_systemd(records)
    for provider in _providers.all_of_them():
        provider.survey([record for record in records if _providers.of(record) == provider])


def _ask_systemd(records: list[dict]) -> None:
    """Store in each record the properties of its unit (``shown``), those of the services that start with it, if its provider asks for
    properties (``brought``, by name), and the memory limits of the unit and its slices (``limits``)."""
    wanted = {*_UNIT_PROPERTIES, "Slice", *_memory.LIMITS, *(key for record in records for key in _providers.of(record).unit_properties)}
    shown = _systemd.show_each(sorted({record["unit"] for record in records}), *sorted(wanted))
    slices = {unit: _memory.parents(properties.get("Slice", "")) for unit, properties in shown.items()}
    around = _systemd.show_each(sorted({name for names in slices.values() for name in names}), *_memory.LIMITS)
    brought = _brought(
        {record["unit"]: shown[record["unit"]] for record in records if _providers.of(record).unit_properties}, sorted(wanted)
    )
    for record in records:
        unit = record["unit"]
        record["shown"], record["brought"] = shown[unit], brought.get(unit, {})
        record["limits"] = _memory.limits({unit: shown[unit], **{name: around[name] for name in slices[unit]}})


def _brought(shown: dict[str, dict[str, str]], properties: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """For each of these units, the services that it starts, and those that these start, each with its properties.

    Neither systemd's own services nor ours belong to a guest. This asks about all services of one distance together.
    """
    known = dict(shown)
    new = list(shown)
    while new:
        named = {name for unit in new for name in _starts(known[unit])}
        new = sorted(named - set(known))
        known.update(_systemd.show_each(new, *properties) if new else {})
    found: dict[str, dict[str, dict[str, str]]] = {}
    for unit in shown:
        names = _starts(known[unit])
        for name in names:  # which grows
            names += [other for other in _starts(known[name]) if other not in (unit, *names)]
        found[unit] = {name: known[name] for name in names}
    return found


def _starts(properties: dict[str, str]) -> list[str]:
    named = dict.fromkeys(" ".join(properties.get(key, "") for key in _BRINGS if key in properties).split())
    return [name for name in named if name.endswith(".service") and not name.startswith(("kvm-liveupdate", "systemd-"))]


def describe(record: dict) -> dict:
    """The facts for a policy: ``memory_mib``, ``devices``, ``labels``, ``ladder`` and ``paused`` (guests/_contract.py)."""
    facts: dict = _providers.of(record).describe(record)
    return facts


def inspect(record: dict) -> list[dict]:
    """Reasons why the guest cannot be preserved: from its provider, its program, its unit and memory limits."""
    from . import _hold, _paused  # for the modules only

    wrong = name_reasons(record)
    if wrong:
        return wrong  # systemd and the records cannot identify the guest
    provider = _providers.of(record)
    reasons: list[dict] = _paused.reasons(record) + provider.inspect(record)
    codes = {why["code"] for why in reasons}
    if "left-paused" in codes:  # what resumes the guest also makes its QEMU able to save it again
        reasons = [why for why in reasons if why["code"] != "run-state"]
    if "ignore-shared" in codes and _hold.held(record):
        # An update may be saving the guest now. Its undo switches the option off.
        reasons = [why for why in reasons if why["code"] != "ignore-shared"]
    if not record["unit"]:
        message = f"its QEMU, process {record['pid']}, runs in no systemd unit, so a boot does not start it"
        no_unit = reason("unit-gone", message, "run it in a systemd unit, and restart the guest")
        return [*reasons, no_unit] if record["pid"] or not reasons else reasons
    limits = memory_limits(record)
    shown = _asked(record)["shown"]
    return (
        reasons
        + program_reasons(_processes.replaced_program(record["pid"]))
        + unit_reasons(record["unit"], shown)
        + provider.unit_reasons(record, shown)
        + _memory.limit_reasons(sum(ram["size"] for ram in record["ram"]), limits)
    )


def name_reasons(record: dict) -> list[dict]:
    """Whether another guest has the same name, or the name is too long for the unit names that are made from it."""
    name = record["name"]
    unit = (
        f"kvm-liveupdate-rehearsal@{_units.escape(name)}.service"  # the longest name made from it (guests/_rehearsal.py, guests/_hold.py)
    )
    found = []
    if len(unit) > _UNIT_NAME_LIMIT:
        message = f"its name is too long: it makes a unit name of {len(unit)} characters, and systemd allows {_UNIT_NAME_LIMIT}: {name}"
        found.append(reason("name-long", message, "use a shorter name; a letter outside ASCII counts as eight characters or more"))
    if record.get("namesake"):
        message = f"two guests have the name {name}: one in {record['unit']}, one in {record['namesake']}"
        found.append(reason("name-twice", message, "rename one of them and restart it"))
    return found


def memory_limits(record: dict) -> dict[str, int]:
    """The memory limits in bytes of the unit that restores the guest, and of its slices. Stored in the record."""
    found: dict[str, int] = _asked(record)["limits"]
    return found


def _asked(record: dict) -> dict:
    """The record, with the properties of its unit."""
    if "shown" not in record or "limits" not in record:
        _ask_systemd([record])
    return record


def program_reasons(replaced: str) -> list[dict]:
    """A reason if another QEMU program would load the guest's state than the one that writes it. Pure."""
    if not replaced:
        return []
    return [
        reason(
            "qemu-replaced",
            f"{replaced} was replaced since the guest started: after the jump another QEMU would load its state, and may fail",
            "restart the guest, or migrate it away and back, so that it runs the installed QEMU",
        )
    ]


def warn(record: dict) -> list[dict]:
    """Warnings: what does not survive the jump unchanged."""
    provider = _providers.of(record)
    warnings: list[dict] = provider.warn(record)
    if not record["unit"] or name_reasons(record):
        return warnings
    return warnings + provider.unit_warnings(record, _asked(record)["shown"])


def unit_reasons(unit: str, properties: dict[str, str]) -> list[dict]:
    """Reasons about a guest's unit: what it lacks to hold a session, and settings that endanger other guests. Pure."""
    actions = {setting: properties.get(setting, "none") for setting in _UNIT_ACTIONS}
    found = [
        reason(
            "unit-action",
            f"its unit {unit} has {setting}={action}: if its start fails after the jump, this ends the host, and all guests' memory is"
            " lost",
            f"remove {setting}= from {unit} and run 'systemctl daemon-reload'",
        )
        for setting, action in actions.items()
        if action not in ("", "none")
    ]
    wrong = [f"{key}={properties.get(key, '')}" for key, good in _UNIT_NEEDS.items() if properties.get(key) not in good]
    if int(properties.get("FileDescriptorStoreMax") or 0) < 1:
        wrong.append(f"FileDescriptorStoreMax={properties.get('FileDescriptorStoreMax', '')}")
    if wrong:
        message = f"its unit {unit} cannot keep a session ({', '.join(wrong)})"
        remedy = f"add {unit} to hypervisor_setup_guest_units, run the playbook kvm.liveupdate.setup, then restart the guest"
        found.append(reason("unit", message, remedy))
    return found
