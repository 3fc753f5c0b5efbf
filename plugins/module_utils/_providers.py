# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who runs guests on a host. PRIVATE to the collection.

A provider is a module, the only code that knows its VMM. It has, with ``record`` being one of what its ``known`` returns:

``known()``
    a record of each guest that runs: ``name``, ``provider``, ``uuid``, ``pid`` and ``started`` (of QEMU, :func:`_processes.start_time`),
    ``unit`` (it is started early after the jump and brings the guest back), ``ram`` (a list of ``fd`` in QEMU and ``size`` in bytes).
``survey(records)``
    asks about all of these guests at once and keeps the answers in the records, where that is quicker; the three below do it themselves
    for a record that was not surveyed. It raises nothing: a question without an answer is a reason of ``inspect``.
``inspect(record)``
    why the guest cannot be preserved: reasons with ``code``, ``message`` and ``remedy``.
``survey(records)``
    ask at once, for all these guests of its own, what ``inspect``, ``warn`` and ``describe`` need, and keep the answers in the records.
    These ask for themselves where a record has none.
``warn(record)``
    what the operator has to know though the guest can be preserved: warnings of the same shape. They keep no guest from an update.
``describe(record)``
    what a policy may tell guests apart by: ``memory_mib`` (its RAM, None when not known), ``devices`` (words such as ``disk:virtio``,
    ``interface:bridge``, ``hostdev``, ``tpm``), ``labels`` (by name), and ``ladder`` (the ways that its owner wants it to take in an
    update, or None).
``memory(record)``
    descriptors of its RAM files, in the order of ``record["ram"]``; the caller closes them.
``status(record)``
    its run state: ``running``, ``paused`` or another word of QEMU's.
``save(record, path, running)``
    pause it and write its device state to ``path``, durably; ``running`` is whether it is to run after the jump. Returns ``times``
    (``paused``, ``saved``, seconds since the epoch) and whatever else the provider needs to bring it back: all of it goes into the
    guest's journal.
``still_saved(records)``
    right before the jump, for all of its guests that were saved, at once and at little cost: problems in sentences, one for each that does
    not stand still as ``save`` left it. None when all do.
``survey(records)``
    optional: look up for all of these at once what ``inspect`` asks for, and keep it in the records.
``resume(record, running)``
    the undo of ``save``, also of one that failed half-way.
``rehearse(record, running)``
    pause it and load what is saved of it into another QEMU that never runs; returns when it was paused. It never changes the memory.
``end_rehearsal(record, running)``
    let it go on and remove all that is left of ``rehearse``, also of one that failed half-way.
``SAVES_SLOWLY``
    whether ``save`` takes seconds: guests that are quick to save are paused after these.
``KEPT``
    units that run on until the guests are saved.
``DAEMONS``
    units of the services that bring its guests back; a host uses those that run on it. Empty where a guest needs none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType  # not at run time: slow to import on the boot path

__all__ = ("all_of_them", "foreign_reason", "of")


def all_of_them() -> tuple[ModuleType, ...]:
    """Every provider."""
    from . import _libvirt, _qemu

    return (_qemu, _libvirt)


def foreign_reason(pid: int) -> dict:
    """Why a QEMU that no provider runs cannot be preserved."""
    from . import _qemu

    return _qemu.foreign_reason(pid)


def of(record: dict) -> ModuleType:
    """The provider of a guest."""
    return {provider.__name__.rpartition("._")[2]: provider for provider in all_of_them()}[record["provider"]]
