# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger of the lab's updates: one line before an update of a host, one line after it.

The first line is on disk before the update begins. So an update whose end nobody saw counts as a loss of the host and all its guests.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import cache
from . import lines

# The collection: what is measured is what runs on hosts.
COLLECTION = Path(__file__).parents[4]
RUNTIME = ("plugins/action", "plugins/module_utils", "plugins/modules")
CONFIDENCE = 0.95
# How an update can end. An update that was undone before the jump, or never began, is no update: it says nothing about the jump.
JUMPED, STAYED, INTERRUPTED, UNKNOWN = "jumped", "stayed", "interrupted", ""


@dataclass(frozen=True)
class Update:
    """One update of a host.

    ``at``       when it began, in seconds since the epoch
    ``runtime``  the digest of the code that runs on the host
    ``kind``     the kind of the host
    ``guests``   by name: why the guest is lost, empty if it is not
    ``fault``    what the test does to the update, empty for nothing
    ``ended``    one of the values above
    """

    id: str
    at: float
    runtime: str
    kind: str
    guests: dict[str, str]
    fault: str = ""
    ended: str = UNKNOWN

    @property
    def lost(self) -> list[str]:
        """The names of the guests that are lost: all, if nobody saw the end."""
        return [name for name, why in self.guests.items() if why or self.ended == UNKNOWN]


@dataclass(frozen=True)
class Figures:
    """Updates of hosts and guests in them, and how many of each were lost. A host is lost if nobody saw the end of its update."""

    updates: int
    lost_updates: int
    guests: int
    lost_guests: int


def path() -> Path:
    """The ledger of this machine."""
    return cache.root() / "updates.jsonl"


def runtime() -> str:
    """The digest of the code that runs on hosts. Comments do not count."""
    files = sorted(str(file) for folder in RUNTIME for file in (COLLECTION / folder).rglob("*.py"))
    return cache.recipe(*files)[:12]


def begin(ledger: Path, kind: str, guests: Iterable[str], fault: str = "") -> Update:
    """Record, durably, that an update begins."""
    update = Update(str(uuid.uuid4()), round(time.time(), 1), runtime(), kind, dict.fromkeys(guests, ""), fault)
    lines.append(ledger, update)
    return update


def end(ledger: Path, update: Update, ended: str, guests: Mapping[str, str] | None = None) -> None:
    """Record how it ended, and for each guest why it is lost: empty if it is not."""
    lines.append(ledger, Update(**{**asdict(update), "ended": ended, "guests": dict(update.guests if guests is None else guests)}))


def read(*ledgers: Path) -> list[Update]:
    """The updates in these ledgers, by their begin. The later line of an update counts. A last line that is cut off does not."""
    found: dict[str, Update] = {}
    for update in lines.read(Update, *ledgers):
        if update.id not in found or found[update.id].ended == UNKNOWN:
            found[update.id] = update
    return sorted(found.values(), key=lambda update: update.at)


def write(ledger: Path, updates: Iterable[Update]) -> None:
    """Write a ledger with one line for each update."""
    lines.write(ledger, updates)


def counted(updates: Iterable[Update]) -> list[Update]:
    """Those that say how often an update fails: no fault was injected, and the host jumped, or nobody saw the end. Pure.

    A guest that is lost in an update that was undone counts too.
    """
    return [
        update
        for update in updates
        if not update.fault and (update.ended in (JUMPED, UNKNOWN) or (update.ended == STAYED and any(update.guests.values())))
    ]


def figures(updates: Collection[Update]) -> Figures:
    """Count the updates and their losses. Pure."""
    return Figures(
        len(updates),
        sum(1 for update in updates if update.lost),
        sum(len(update.guests) for update in updates),
        sum(len(update.lost) for update in updates),
    )


def upper_bound(lost: int, total: int) -> float:
    """The one-sided upper bound of the rate at which ``lost`` of ``total`` independent tries fail (Clopper and Pearson, 1934). Pure."""
    if lost >= total:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        if _at_most(lost, total, rate) > 1 - CONFIDENCE:
            low = rate
        else:
            high = rate
    return high


def _at_most(lost: int, total: int, rate: float) -> float:
    """How probable it is that at most so many of the tries fail. Pure."""
    chance = term = (1 - rate) ** total
    for number in range(1, lost + 1):
        term *= (total - number + 1) / number * rate / (1 - rate)
        chance += term
    return chance
