# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether all that must hold after a fault does hold. Pure: facts in, problems out.

The facts come from two sides. The ticks of a guest prove what it ran on. The host's records and processes are what an operator sees, and
must not contradict the ticks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from kvmlab import limits
from kvmlab.watch.heartbeat import Tick, verdict
from kvmlab.watch.records import Records
from kvmlab.watch.report import Boot

KEPT, RESTARTED, STILL, OFF = "kept its memory", "started from its disks", "stands still", "is off"


@dataclass(frozen=True)
class Life:
    """What a guest ticked in one of its boots. wrong: why its memory was not its own; proven: it has read all of it since its pause."""

    boot_id: str
    first: int
    last: int
    wrong: str = ""
    proven: bool = False


@dataclass(frozen=True)
class Guest:
    """A guest after a fault.

    ``lives``      since the story began, in order; the first one is the boot in which it was then
    ``silent_s``   since its last tick; None if there is none
    ``processes``  how many QEMUs of it run
    ``journal``    its record, as "kvm-liveupdate status" shows it
    ``running``    whether that says it runs
    ``told``       what the host says about it: the end of the journal of its unit
    ``cries``      what it said besides ticks: an error of its own
    """

    name: str
    lives: tuple[Life, ...] = ()
    silent_s: float | None = None
    processes: int = 1
    journal: Mapping[str, Any] = field(default_factory=dict)
    running: bool = True
    told: str = ""
    cries: str = ""


@dataclass(frozen=True)
class Facts:
    """A host after a fault.

    ``before``, ``after``  its boot when the story began, and now
    ``update``           the record of its last update, empty if this story made none
    ``target``           the kernel that the update goes to
    ``by_kexec``         whether a kexec started the boot of now, and no boot loader did
    ``reported``         the report of the run for this host, empty if it wrote none
    ``kexec_loaded``     whether an image is loaded: then every reboot is a kexec
    """

    before: Boot
    after: Boot
    guests: tuple[Guest, ...]
    update: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""
    by_kexec: bool = False
    reported: Mapping[str, Any] = field(default_factory=dict)
    kexec_loaded: bool = False


@dataclass(frozen=True)
class Allowed:
    """What the fault itself does. The update must do nothing more than this.

    ``ended``     guests whose memory the fault destroys: they may start from their disks
    ``held``      guests that may stay off or paused until the action, if the host says why
    ``outcomes``  how the run may report the host; empty for any way
    """

    ended: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    outcomes: frozenset[str] = frozenset()


def lives(ticks: Sequence[Tick], since: float) -> tuple[Life, ...]:
    """What a guest ran on since a moment, by its ticks. The last tick before it belongs to the first life."""
    start = next((number for number, tick in enumerate(ticks) if tick.arrived >= since), len(ticks))
    window = ticks[max(0, start - 1) :]
    found: list[Life] = []
    for boot_id, group in groupby(window, key=lambda tick: tick.boot_id):
        some = list(group)
        # What the guest had read before the story is evidence too.
        earlier = [tick for tick in ticks[: max(0, start - 1)] if tick.boot_id == boot_id] if not found else []
        seen = verdict([*earlier, *some], since=some[0].arrived)
        open_question = seen.reason.startswith(("not proven", "silent"))
        wrong = "" if seen.survived or open_question else seen.reason
        proven = seen.survived
        if found and not proven and not wrong:
            # The longest gap of a boot may be in its first seconds, before the guest has read anything: only what came later counts then.
            read = [tick for tick in some if tick.turn > 0]
            proven = bool(read) and verdict(read, since=read[0].arrived).survived
        found.append(Life(boot_id, some[0].number, some[-1].number, wrong, proven))
    return tuple(found)


def fate(guest: Guest) -> str:
    """What became of a guest."""
    if guest.silent_s is not None and guest.silent_s <= limits.SILENCE and guest.lives:
        return KEPT if len(guest.lives) == 1 else RESTARTED
    return STILL if guest.processes else OFF


def judge(facts: Facts, allowed: Allowed) -> list[str]:
    """What does not hold, as sentences; none if all does."""
    problems = [problem for guest in facts.guests for problem in (*_memory(guest), *_whereabouts(guest, facts, allowed))]
    problems += _update(facts)
    outcome = str(facts.reported.get("outcome", ""))
    if allowed.outcomes and outcome not in allowed.outcomes:
        problems.append(f"the run reports the host as {outcome or 'nothing'}, not as {' or '.join(sorted(allowed.outcomes))}")
    if facts.kexec_loaded:
        problems.append("a kernel is still loaded, so an ordinary reboot would be a kexec")
    return problems


def _memory(guest: Guest) -> Iterable[str]:
    """It never ran on memory that was not its own, and never twice."""
    for life in guest.lives:
        if life.wrong:
            yield f"{guest.name} ran on wrong memory: {life.wrong}"
    boots = [life.boot_id for life in guest.lives]
    if len(set(boots)) != len(boots):
        yield f"{guest.name} ran twice: ticks of an earlier boot came again after ticks of another boot"
    if guest.processes > 1:
        yield f"{guest.name} runs twice: {guest.processes} QEMUs"
    if guest.cries:
        yield f"{guest.name} found an error: {guest.cries}"


def _whereabouts(guest: Guest, facts: Facts, allowed: Allowed) -> Iterable[str]:
    """It is alive on its memory, or the host names it with a reason. What the host says of it is true."""
    name, end, state = guest.name, fate(guest), guest.journal.get("state", "")
    why = guest.journal.get("why") or ""
    of_this = bool(facts.update) and guest.journal.get("update_id") == facts.update.get("id")
    if end == RESTARTED:
        if state == "restored" and of_this and name not in allowed.ended:
            yield f"{name} started from its disks, but its record says that it was restored"
        elif name not in allowed.ended and not (state == "lost" and why):
            yield f"{name} lost its memory, and neither the fault nor its record explains it"
        if state == "saved":
            yield f"{name} started from its disks, but its record says that it is saved"
    elif end == KEPT:
        if state == "lost" and of_this:
            yield f"{name} kept its memory, but its record says that it is lost"
        if state == "saved":
            yield f"{name} runs, but its record says that it is saved"
        if not guest.running:
            yield f"{name} runs, but the host says that it does not"
    else:
        if name not in allowed.held:
            yield f"{name} {end}: {guest.told.strip() or 'the host says nothing about it'}"
        elif not (why or guest.told.strip()):
            yield f"{name} {end}, and the host does not say why"
        if state == "restored" and of_this:
            yield f"{name} {end}, but its record says that it was restored"
        if guest.running and not guest.processes:
            yield f"{name} {end}, but the host says that it runs"


def _update(facts: Facts) -> Iterable[str]:
    """The record of the update says what happened to the host."""
    state, stayed = facts.update.get("state", ""), facts.before.boot_id == facts.after.boot_id
    if state == "aborted" and not facts.update.get("error"):
        yield "the update was undone, and its record does not say why"
    if stayed and state == "jumping":
        yield "the record says that the host jumps, but it stayed"
    outcome = facts.reported.get("outcome", "")
    if outcome == "updated" and (stayed or (facts.target and facts.after.kernel != facts.target)):
        yield f"the run reports an update to {facts.target}, but the host runs {facts.after.kernel}"
    if outcome == "updated" and not facts.by_kexec:
        yield "the run reports an update, but a boot loader started the host's kernel"
    if outcome == "updated":
        for guest in facts.guests:
            if fate(guest) != KEPT:
                yield f"the run reports an update without a loss, but {guest.name} {fate(guest)}"
    if outcome in ("undone", "refused") and not stayed and facts.update.get("boot_id") != facts.before.boot_id:
        yield f"the run reports the host as {outcome}, but it has booted since"


def disk_problems(name: str, found: Records, synced: int, boots: Iterable[str]) -> list[str]:
    """What is wrong with the records on a guest's disk. synced is how many the guest had told of; boots are those that may have written."""
    problems = [f"the disk of {name}: {found.fault}"] if found.fault else []
    if found.count < synced:
        problems.append(f"the disk of {name} has {found.count} records, but the guest had flushed {synced}")
    others = set(found.boot_ids) - set(boots)
    if others:
        problems.append(f"the disk of {name} has records of boots that never ticked: {', '.join(sorted(others))}")
    return problems


def told(facts: Facts) -> str:
    """What was seen, as a sentence for the page."""
    update = str(facts.update.get("state", ""))
    if facts.before.boot_id == facts.after.boot_id:
        host = "the update was undone" if update == "aborted" else "the host stayed"
    elif facts.by_kexec and facts.after.kernel == facts.target and update == "jumping":
        host = "the host jumped"
    else:
        host = "the host booted"
    groups: dict[str, list[str]] = {}
    for guest in facts.guests:
        groups.setdefault(_fate_in_words(guest), []).append(guest.name)
    return "; ".join([host, *(f"{', '.join(names)}{' each' if len(names) > 1 else ''} {end}" for end, names in groups.items())])


def _fate_in_words(guest: Guest) -> str:
    end, state = fate(guest), guest.journal.get("state", "")
    return f"{end} ({state})" if end in (STILL, OFF, RESTARTED) and state in ("saved", "lost") else end
