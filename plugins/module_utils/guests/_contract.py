# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a provider offers: the only code that knows its VMM. PRIVATE to the collection.

``record`` is one of those that ``known`` returns. Errors are LiveUpdateError unless said otherwise.
"""

from __future__ import annotations

import typing as t

__all__ = ("Provider",)


class Provider(t.NamedTuple):
    """One way to run guests."""

    known: t.Callable[[], list[dict]]
    """A record of each guest that runs: ``name``, ``provider``, ``uuid``, ``pid`` and ``started`` of its QEMU, ``unit`` (which brings the
    guest back after the jump) and ``ram`` (a list of ``fd`` in QEMU and ``size`` in bytes)."""
    survey: t.Callable[[list[dict]], None]
    """Ask at once, for all these guests of its own, what ``inspect``, ``warn`` and ``describe`` need, and keep the answers in the records.
    These three ask for themselves where a record has none. It raises nothing: a question without an answer is a reason of ``inspect``."""
    inspect: t.Callable[[dict], list[dict]]
    """Why the guest cannot be preserved: reasons with ``code``, ``message`` and ``remedy``."""
    warn: t.Callable[[dict], list[dict]]
    """What the operator has to know though the guest can be preserved, in the same shape. It keeps no guest from an update."""
    describe: t.Callable[[dict], dict]
    """What a policy may tell guests apart by: ``memory_mib`` (None when not known), ``devices`` (words such as ``disk:virtio``,
    ``interface:bridge``, ``hostdev``, ``tpm``), ``labels`` by name, and ``ladder`` (the ways that its owner wants, or None)."""
    memory: t.Callable[[dict], list[int]]
    """Descriptors of its RAM files, in the order of ``record["ram"]``. The caller closes them."""
    status: t.Callable[[dict], str]
    """Its run state: ``running``, ``paused`` or another word of QEMU's."""
    save: t.Callable[[dict, str, bool], dict]
    """Pause it and write its device state to a path, durably; the last argument is whether it is to run after the jump. Returns ``times``
    (``paused``, ``saved``, seconds since the epoch) and what the provider needs to bring it back: all of it goes into its journal."""
    still_saved: t.Callable[[list[dict]], list[str]]
    """Right before the jump, for all of its saved guests at once and at little cost: a sentence for each that does not stand still as
    ``save`` left it."""
    resume: t.Callable[[dict, bool], None]
    """The undo of ``save``, also of one that failed half-way; the last argument is whether it is to run."""
    discard: t.Callable[[str], None]
    """Remove what ``save`` left with the VMM of a guest that does not run, by its name; nothing where it left nothing."""
    rehearse: t.Callable[[dict], float]
    """Pause it and load what is saved of it into another QEMU that never runs; returns when it was paused. It never changes the memory."""
    end_rehearsal: t.Callable[[dict, bool], None]
    """Let it go on and remove all that is left of ``rehearse``, also of one that failed half-way."""
    saves_slowly: bool
    """Whether ``save`` takes seconds. Guests that are quick to save are paused after these."""
    kept: tuple[str, ...]
    """Units that run on until the guests are saved."""
    daemons: tuple[str, ...]
    """Units of the services that bring its guests back. A host uses those that run on it."""
