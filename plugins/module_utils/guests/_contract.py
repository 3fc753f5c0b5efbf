# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The functions of a provider, the only code that knows its VMM. PRIVATE to the collection.

``record`` is one of those that ``known`` returns. Errors are LiveUpdateError unless stated otherwise. How a provider restores a guest
after the jump is not here: each unit calls the ``_start`` of its provider.
"""

from __future__ import annotations

import typing as t

__all__ = ("Away", "Provider")


class Away(t.Protocol):
    """How guests leave this host and come back: the file ``_away`` of a provider. ``away`` is a record of guests/_away.py."""

    def about(self, record: dict) -> dict:
        """What the provider adds to the record of a running guest: ``bytes``, ``was_running``, ``autostart``, and what it needs itself."""

    def limit_s(self, away: dict) -> float:
        """The default limit in seconds to leave or to come back."""

    def obstacles(self, away: dict) -> list[str]:
        """Why the running guest cannot leave in the way of its record; each with its remedy."""

    def leave(self, away: dict, limit: float) -> None:
        """Send it away. After an error it is here; with the detail ``settled=False`` it may still leave later."""

    def settle(self, away: dict) -> None:
        """See that a guest that does not run here has left as its record says, and finish what a process that was killed left undone."""

    def stay(self, away: dict) -> None:
        """The guest runs here: see that nothing is left of what its departure changed of it."""

    def is_back(self, away: dict) -> bool:
        """Whether it is here again as it was."""

    def come_back(self, away: dict, limit: float) -> str:
        """Bring it back, or wait for it if the boot was faster. Returns what was lost, in words; usually nothing."""


class Provider(t.NamedTuple):
    """A provider: one way to run guests."""

    known: t.Callable[[], list[dict]]
    """A record of each running guest: ``name``, ``provider``, ``uuid``, ``pid`` and ``started`` of its QEMU, ``unit`` (which restores the
    guest after the jump) and ``ram`` (a list of ``fd`` in QEMU and ``size`` in bytes)."""
    survey: t.Callable[[list[dict]], None]
    """Ask, for all these guests together, what ``inspect``, ``warn`` and ``describe`` need, and store the answers in the records. Without
    answers in a record these three ask themselves. This raises nothing: a question without an answer is a reason of ``inspect``."""
    inspect: t.Callable[[dict], list[dict]]
    """Why the guest cannot be preserved: reasons with ``code``, ``message`` and ``remedy``."""
    warn: t.Callable[[dict], list[dict]]
    """Warnings with the same keys: what the operator must know although the guest can be preserved."""
    unit_properties: tuple[str, ...]
    """The properties of its unit that the next two need, by systemd's names."""
    unit_reasons: t.Callable[[dict, dict[str, str]], list[dict]]
    """Why its unit, with these properties, could not restore it: reasons as of ``inspect``."""
    unit_warnings: t.Callable[[dict, dict[str, str]], list[dict]]
    """Warnings about its unit, as of ``warn``."""
    describe: t.Callable[[dict], dict]
    """The facts for a policy: ``memory_mib`` (None if unknown), ``devices`` (words such as ``disk:virtio``, ``interface:bridge``,
    ``hostdev``, ``tpm``), ``labels`` by name, ``ladder`` (the ways that its owner wants, or None), and whether it
    is ``paused``, as ``inspect`` saw it."""
    memory: t.Callable[[dict], list[int]]
    """Descriptors of its RAM files, in the order of ``record["ram"]``. The caller closes them."""
    status: t.Callable[[dict], str]
    """Its run state: ``running``, ``paused`` or another state of QEMU."""
    save: t.Callable[[dict, str, bool], dict]
    """Pause it and write its device state to a path, durably. The last argument is whether it runs after the jump. Returns ``times``
    (``paused``, ``saved``, seconds since the epoch) and what the provider needs to restore it. All of it goes into the guest's journal."""
    still_saved: t.Callable[[list[dict]], list[str]]
    """Right before the jump, for all its saved guests together and fast: a sentence for each guest that is not paused as ``save`` left
    it. Also after an undo, for a guest that stays paused."""
    resume: t.Callable[[dict, bool], None]
    """Undo ``save``, also one that failed in the middle. The last argument is whether the guest runs afterwards."""
    discard: t.Callable[[str], None]
    """Remove what ``save`` left in the VMM for a guest that does not run, by its name."""
    rehearse: t.Callable[[dict], float]
    """Pause it and load its saved state into another QEMU that never runs; returns when it was paused. It never changes the memory."""
    end_rehearsal: t.Callable[[dict, bool], None]
    """Resume it and remove everything that is left of ``rehearse``, also of one that failed in the middle."""
    saves_slowly: bool
    """Whether ``save`` takes seconds. Guests with a fast ``save`` are paused after these."""
    kept: tuple[str, ...]
    """Units that keep running until the guests are saved."""
    daemons: tuple[str, ...]
    """Units of the services that restore its guests. Only those that run on the host count."""
    away: Away
    """How its guests leave this host for an update, and come back."""
