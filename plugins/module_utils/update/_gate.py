# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checks before the jump: the gate, and the last look during the pause. PRIVATE to the collection."""

from __future__ import annotations

import time

from .. import _limits
from .._errors import LiveUpdateError, told
from ..guests import _hold, _providers
from ..guests import _reasons as _guests_reasons
from ..handover import _journal
from ..host import _processes, _units
from ..kernel import _kexec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from concurrent.futures import Future

__all__ = ("CLUSTERS", "at_once", "check", "ended", "gate", "last_look", "look", "others", "spare_others", "started_again", "unit_problems")

OTHER_VM_S = _limits.OTHER_VM
# Each look at a guest runs a few programs beside the running guests.
_LOOKS_AT_ONCE = 8
# Cluster managers. When they stop, they stop their guests, and other nodes fence a host that does not answer.
CLUSTERS = ("corosync.service", "pacemaker.service", "pacemaker_remote.service", "pve-ha-lrm.service", "sbd.service")
_SUFFIXES = ("automount", "mount", "path", "scope", "service", "slice", "socket", "swap", "target", "timer")


def look() -> dict:
    """What the gate checks. Each call looks at all running guests again."""
    found = _providers.records()
    guests = {record["name"]: record for record in found}
    return {
        "image": _kexec.record(),
        "guests": guests,
        "holds": _hold.held_each(list(guests.values())),
        "not_back": _journal.not_back(guests),
        "strangers": _providers.strangers(found),
    }


def gate(names: list[str], seen: dict) -> list[str]:
    """Sentences about what forbids the jump of these guests; none if everything is ready. ``seen`` is from :func:`look`. Pure."""
    problems = []
    if not seen["image"]:
        problems.append("no kernel is staged in this boot; stage one with the module kvm.liveupdate.kexec_image")
    problems += [_no_longer_runs(name) for name in names if name not in seen["guests"]]
    problems += [told(reason) for reason in seen["not_back"]]
    for name in seen["guests"]:
        if name not in names:
            problems.append(f"guest {name} runs but is not part of this update, so it would be lost; run the update again to include it")
        elif name not in seen["holds"]:
            problems.append(f"guest {name}: its RAM is not preserved; preserve it with the module kvm.liveupdate.guest")
    problems += [
        f"{vm['name']} (process {vm['pid']}) is a virtual machine that would be lost: {told(vm['reasons'][0])}" for vm in seen["strangers"]
    ]
    return problems


def _no_longer_runs(name: str) -> str:
    return f"guest {name} no longer runs; run the update again"


def ended(update: dict) -> list[str]:
    """Sentences about the guests that have ended since :func:`check`. It is called right before the isolation, which starts their units."""
    return [_no_longer_runs(name) for name, record in update["records"].items() if not _processes.lives(record)]


def started_again(update: dict) -> list[str]:
    """Sentences about the guests that have ended since :func:`ended`, and that the isolation may therefore have started. A domain is not
    started: its unit only holds its memory."""
    return [
        f"guest {name} ended while services were stopped, and systemd may have started {record['unit']} again, from the guest's disks: make"
        " sure that the guest runs only where its owner wants it, then run the update again"
        for name, record in update["records"].items()
        if record["unit"] != _units.hold(name) and not _processes.lives(record)
    ]


def unit_problems(keep_units: list[str], shown: dict[str, dict[str, str]]) -> list[str]:
    """Sentences about units that forbid the jump. ``shown`` has LoadState and ActiveState of these and of :data:`CLUSTERS`. Pure."""
    problems = []
    for unit in keep_units:
        if unit.rpartition(".")[2] not in _SUFFIXES:
            problems.append(f"keep_units: {unit!r} is not a full unit name; write for example {unit}.service")
        elif shown[unit].get("LoadState") == "not-found":
            problems.append(f"keep_units: unit {unit} does not exist on this host; correct the name, or remove it")
    for unit in CLUSTERS:
        if shown[unit].get("ActiveState") == "active" and unit not in keep_units:
            problems.append(
                f"the cluster manager {unit} runs. The update would stop it, and with it the guests that it manages; and other nodes may"
                " fence this host. Put the cluster into maintenance mode and stop its services on this host. If it manages no guests and no"
                f" node fences this host, you can add {unit} to hypervisor_update_keep_units instead"
            )
    return problems


def check(update: dict) -> dict[str, dict]:
    """Check the gate again, and the reasons against each guest; returns the guests' records.

    The update's journal gets the records as they were found, without what the providers add for themselves, and the ``servers``: services
    to which the guests' QEMUs connect.
    """
    seen = look()
    problems = gate(update["guests"], seen)
    if seen["image"] != update["image"]:
        problems.append(f"kernel {update['image']['path']} is no longer staged as it was committed; run the update again")
    records = {name: seen["guests"][name] for name in update["guests"] if name in seen["guests"]}
    update["records"] = {name: dict(record) for name, record in records.items()}
    update["holds"] = {name: seen["holds"][name] for name in records if name in seen["holds"]}
    problems = problems or _reasons(list(records.values()))
    update["servers"] = sorted({unit for record in records.values() for unit in record.get("servers", ())})
    if problems:
        raise LiveUpdateError("; ".join(problems))
    return records


def _reasons(records: list[dict]) -> list[str]:
    """Reasons why guests can no longer be preserved: since the hold a job may have begun, or a disk or their QEMU was replaced."""
    for provider, its_own in _by_provider(records):
        survey = getattr(provider, "survey", None)
        if survey:
            survey(its_own)
    jobs = at_once(_guests_reasons.inspect, records, _LOOKS_AT_ONCE)
    return [f"guest {record['name']}: {told(reason)}" for record, job in zip(records, jobs) for reason in job.result()]


def _by_provider(records: t.Iterable[dict]) -> list[tuple[t.Any, list[dict]]]:
    found: dict[str, tuple[t.Any, list[dict]]] = {}
    for record in records:
        found.setdefault(record["provider"], (_providers.of(record), []))[1].append(record)
    return list(found.values())


def last_look(update: dict, records: dict[str, dict]) -> list[str]:
    """Sentences about what forbids the jump, right before it. This runs in the pause: it asks each thing once for all guests, in parallel.

    It takes one start of virsh if there are domains, a short exchange with the QEMU of each guest in a unit, and a look at the
    descriptors of the few remaining processes.
    """
    problems = [
        f"guest {name}: its QEMU or its memory is no longer the one that was saved; run the update again"
        for name, record in records.items()
        if not _hold.is_of(update["holds"][name], record)
    ]
    jobs = at_once(lambda asked: asked[0].still_saved(asked[1]), _by_provider(records.values()))
    ours = {record["pid"] for record in records.values()}
    links = others(ours)
    problems += _started_meanwhile(links)
    kept_open = set().union(*links.values())
    problems += [
        f"guest {name}: no process has its session open any more, so its memory would be lost; run the update again"
        for name in records
        if _processes.SESSION_LINK + update["holds"][name]["session"] not in kept_open
    ]
    if not _kexec.loaded() or _kexec.record() != update["image"]:
        problems.append("the kernel for the jump is no longer loaded; run the update again")
    return [problem for job in jobs for problem in job.result()] + problems


def others(ours: set[int]) -> dict[int, set[str]]:
    """What all other processes than these have open, by process ID."""
    return {pid: set(_processes.fd_links(pid).values()) for pid in _processes.pids() if pid not in ours}


def _started_meanwhile(links: dict[int, set[str]]) -> list[str]:
    """Sentences about the processes that are virtual machines."""
    return [
        f"process {pid} ({_processes.unit_of(pid) or 'in no unit'}) is a virtual machine that was started during the update and would be"
        " lost; make sure that no virtual machine is started, and run the update again"
        for pid, seen in links.items()
        if _processes.VM_LINK in seen
    ]


def spare_others(update: dict) -> None:
    """Raise if a virtual machine runs that is not among our guests. This is called right before each stop of units in which one may run.

    Guests still run, so this waits a moment for one that begins or ends: libvirt starts a QEMU for a moment to ask for its features.
    """
    ours = {record["pid"] for record in update["records"].values()}
    until = time.monotonic() + OTHER_VM_S
    while True:
        links = others(ours)
        problems = _started_meanwhile(links)
        if not problems and not any(map(_processes.may_begin_a_vm, links.values())):
            return
        if time.monotonic() >= until:
            break
        time.sleep(0.1)
    if problems:
        raise LiveUpdateError("; ".join(problems))


def at_once(step: t.Callable[[t.Any], t.Any], items: t.Sequence[t.Any], most: int = 0) -> list[Future]:
    """Do a step for all of these items in parallel, at most ``most`` at a time, and wait for all of them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(1, min(len(items), most or len(items)))) as pool:
        return [pool.submit(step, item) for item in items]
