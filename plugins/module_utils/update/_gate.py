# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What forbids the jump: the gate before it, and the last look right before it. PRIVATE to the collection."""

from __future__ import annotations

import time

from .. import _limits
from .._errors import LiveUpdateError, told
from ..guests import _hold, _providers
from ..guests import _reasons as _guests_reasons
from ..handover import _journal
from ..host import _processes
from ..kernel import _kexec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from concurrent.futures import Future

__all__ = ("CLUSTERS", "at_once", "check", "gate", "last_look", "look", "others", "spare_others", "unit_problems")

OTHER_VM_S = _limits.OTHER_VM
# Each look at a guest runs a few programs; the guests run on beside them.
_LOOKS_AT_ONCE = 8
# They stop their guests when they are stopped, and other nodes end a host that does not answer them.
CLUSTERS = ("corosync.service", "pacemaker.service", "pacemaker_remote.service", "pve-ha-lrm.service", "sbd.service")
_SUFFIXES = ("automount", "mount", "path", "scope", "service", "slice", "socket", "swap", "target", "timer")


def look() -> dict:
    """What the gate judges by. Each running guest is looked at afresh."""
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
    """What forbids the jump of these guests, in sentences; none when all is in place. ``seen`` is what :func:`look` saw. Pure."""
    problems = []
    if not seen["image"]:
        problems.append("no kernel is staged in this boot; stage one with kvm.liveupdate.kexec_image")
    problems += [f"guest {name} does not run any more; run the update again" for name in names if name not in seen["guests"]]
    problems += [told(reason) for reason in seen["not_back"]]
    for name in seen["guests"]:
        if name not in names:
            problems.append(f"guest {name} runs but is not part of this update and would be lost; run the update again to plan for it")
        elif name not in seen["holds"]:
            problems.append(f"guest {name}: its RAM is not held in a session; preserve it with kvm.liveupdate.guest")
    problems += [
        f"{vm['name']} (process {vm['pid']}) runs a virtual machine that would be lost: {vm['reasons'][0]['message']}"
        for vm in seen["strangers"]
    ]
    return problems


def unit_problems(keep_units: list[str], shown: dict[str, dict[str, str]]) -> list[str]:
    """What of the host's units forbids the jump. ``shown`` has LoadState and ActiveState of these and of :data:`CLUSTERS`. Pure."""
    problems = []
    for unit in keep_units:
        if unit.rpartition(".")[2] not in _SUFFIXES:
            problems.append(f"keep_units: {unit!r} is not the name of a unit; write for example {unit}.service")
        elif shown[unit].get("LoadState") == "not-found":
            problems.append(f"keep_units: there is no unit {unit} on this host; correct the name, or leave it out")
    for unit in CLUSTERS:
        if shown[unit].get("ActiveState") == "active" and unit not in keep_units:
            problems.append(
                f"{unit} runs: its stop would stop the guests that it manages, and other nodes may end this host while it is silent."
                " Put the cluster into maintenance mode and stop its services on this host, or, if it manages no guests and no node fences"
                f" this host, add {unit} to hypervisor_update_keep_units"
            )
    return problems


def check(update: dict) -> dict[str, dict]:
    """The gate once more, and what speaks against each guest by now; returns the guests' records.

    The journal gets them as they were found, without what the providers look up for themselves.
    """
    seen = look()
    problems = gate(update["guests"], seen)
    if seen["image"] != update["image"]:
        problems.append(f"{update['image']['path']} is not what is staged any more; run the update again")
    records = {name: seen["guests"][name] for name in update["guests"] if name in seen["guests"]}
    update["records"] = {name: dict(record) for name, record in records.items()}
    update["holds"] = {name: seen["holds"][name] for name in records if name in seen["holds"]}
    problems = problems or _reasons(list(records.values()))
    if problems:
        raise LiveUpdateError("; ".join(problems))
    return records


def _reasons(records: list[dict]) -> list[str]:
    """Why guests cannot be preserved any more: since they were held a job may have begun, a disk or their QEMU have been replaced."""
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
    """What forbids the jump after all, right before it; in the pause, so each thing is asked once for all guests, and at the same time.

    It costs one start of virsh where there are domains, a short talk with the QEMU of each guest in a unit, and a look at the
    descriptors of the few processes that are left.
    """
    problems = [
        f"guest {name}: its QEMU or its memory is not the one that was saved any more; run the update again"
        for name, record in records.items()
        if not _hold.is_of(update["holds"][name], record)
    ]
    jobs = at_once(lambda asked: asked[0].still_saved(asked[1]), _by_provider(records.values()))
    ours = {record["pid"] for record in records.values()}
    links = others(ours)
    problems += _started_meanwhile(links)
    kept_open = set().union(*links.values())
    problems += [
        f"guest {name}: nothing keeps its session open any more; run the update again"
        for name in records
        if _processes.SESSION_LINK + update["holds"][name]["session"] not in kept_open
    ]
    if not _kexec.loaded() or _kexec.record() != update["image"]:
        problems.append("the kernel that was loaded for the jump is not there any more; run the update again")
    return [problem for job in jobs for problem in job.result()] + problems


def others(ours: set[int]) -> dict[int, set[str]]:
    """What all processes but these have open, by their ids."""
    return {pid: set(_processes.fd_links(pid).values()) for pid in _processes.pids() if pid not in ours}


def _started_meanwhile(links: dict[int, set[str]]) -> list[str]:
    """Which of these processes run a virtual machine, in sentences."""
    return [
        f"process {pid} ({_processes.unit_of(pid) or 'in no unit'}) runs a virtual machine that was started meanwhile and would be lost;"
        " keep others from starting some, and run the update again"
        for pid, seen in links.items()
        if _processes.VM_LINK in seen
    ]


def spare_others(update: dict) -> None:
    """Raise when a virtual machine runs that is none of our guests: asked right before each stop of what it may run in.

    Guests run on meanwhile, so one that is about to begin or to end is waited for: libvirt starts a QEMU for a moment to ask what it can.
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
    """Do a step for all of these, or for ``most``, at the same time, and wait for all of them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(1, min(len(items), most or len(items)))) as pool:
        return [pool.submit(step, item) for item in items]
