# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of this host: who they are, what speaks against them, and the records kept about them. PRIVATE to the collection."""

from __future__ import annotations

import os

from . import _luo, _memory, _paths, _processes, _providers, _systemd
from ._errors import LiveUpdateError

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
    "not_back",
    "run_path",
    "state_path",
    "strangers",
    "warn",
)

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


def known() -> dict[str, dict]:
    """The guests that run now, by name: a record of each, as its provider wrote or found it."""
    return {record["name"]: record for provider in _providers.all_of_them() for record in provider.known()}


def find(name: str) -> dict:
    """The running guest ``name``."""
    guests = known()
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


def strangers() -> list[dict]:
    """Virtual machines on this host that no wrapper of ours runs: the jump would end them."""
    ours = {record["pid"] for record in known().values()}
    found = []
    for pid in _processes.pids():
        if pid not in ours and _processes.VM_LINK in _processes.fd_links(pid).values():
            unit = _processes.unit_of(pid) or ""
            name = unit.rpartition(".")[0] or f"pid-{pid}"
            found.append({"name": name, "unit": unit, "pid": pid, "reasons": [_providers.foreign_reason(pid)], "warnings": []})
    return found


def describe(record: dict) -> dict:
    """What a policy may tell guests apart by: ``memory_mib``, ``devices``, ``labels`` and ``ladder`` (_providers.py)."""
    facts: dict = _providers.of(record).describe(record)
    return facts


def inspect(record: dict) -> list[dict]:
    """Why the guest cannot be preserved: the provider's reasons, then its program's, its unit's and those of memory limits."""
    from . import _paused  # for the modules only

    reasons: list[dict] = _paused.reasons(record) + _providers.of(record).inspect(record)
    shown = _systemd.show(record["unit"], *_UNIT_PROPERTIES)
    return (
        reasons
        + program_reasons(_processes.replaced_program(record["pid"]))
        + unit_reasons(record["unit"], shown)
        + (start_reasons(record["unit"], record["pid"], shown) if record["provider"] == "qemu" else [])
        + _memory.limit_reasons(sum(ram["size"] for ram in record["ram"]), memory_limits(record))
    )


def memory_limits(record: dict) -> dict[str, int]:
    """The memory limits in bytes of the unit that takes the guest's RAM back, and of the slices that it lies in. Kept in the record."""
    if "limits" not in record:
        unit = record["unit"]
        shown = _systemd.show(unit, "Slice", *_memory.LIMITS)
        slices = _memory.parents(shown.get("Slice", ""))
        record["limits"] = _memory.limits({unit: shown, **_systemd.show_each(slices, *_memory.LIMITS)})
    found: dict[str, int] = record["limits"]
    return found


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
    return warnings


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


def _denied(properties: dict[str, str]) -> bool:
    """Whether the unit has a list of devices without the one for live updates (systemd.resource-control(5))."""
    listed = properties.get("DeviceAllow", "").split()
    return (properties.get("DevicePolicy", "auto") != "auto" or bool(listed)) and not {_luo.DEVICE, "char-misc", "char-*"} & set(listed)


_UNIT_PROPERTIES = ("MainPID", "DevicePolicy", "DeviceAllow", "FileDescriptorStoreMax", *_UNIT_NEEDS)


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
