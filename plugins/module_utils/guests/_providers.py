# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of providers, and the guests that run now. PRIVATE to the collection."""

from __future__ import annotations

from .._errors import LiveUpdateError
from ..host import _processes
from ..libvirt import _away as _libvirt_away
from ..libvirt import _guests as _libvirt_guests
from ..libvirt import _rehearsal as _libvirt_rehearsal
from ..libvirt import _save as _libvirt_save
from ..libvirt import _virsh
from ..qemu import _away as _qemu_away
from ..qemu import _guests as _qemu_guests
from ..qemu import _rehearsal as _qemu_rehearsal
from ..qemu import _save as _qemu_save
from ..qemu import _unit as _qemu_unit
from ._contract import Provider

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("all_of_them", "find", "known", "of", "records", "strangers")


def _qemu() -> Provider:
    return Provider(
        known=_qemu_guests.known,
        survey=_qemu_guests.survey,
        inspect=_qemu_guests.inspect,
        warn=_qemu_guests.warn,
        unit_properties=_qemu_unit.PROPERTIES,
        unit_reasons=_qemu_unit.reasons,
        unit_warnings=_qemu_unit.warnings,
        describe=_qemu_guests.describe,
        memory=_qemu_guests.memory,
        status=_qemu_guests.status,
        save=_qemu_save.save,
        still_saved=_qemu_save.still_saved,
        resume=_qemu_save.resume,
        discard=_qemu_save.discard,
        rehearse=_qemu_rehearsal.rehearse,
        end_rehearsal=_qemu_rehearsal.end,
        saves_slowly=_qemu_save.SAVES_SLOWLY,
        kept=_qemu_guests.KEPT,
        daemons=_qemu_guests.DAEMONS,
        away=_qemu_away,
    )


def _libvirt() -> Provider:
    return Provider(
        known=_libvirt_guests.known,
        survey=_libvirt_guests.survey,
        inspect=_libvirt_guests.inspect,
        warn=_libvirt_guests.warn,
        unit_properties=(),
        unit_reasons=_libvirt_guests.of_unit,
        unit_warnings=_libvirt_guests.of_unit,
        describe=_libvirt_guests.describe,
        memory=_libvirt_guests.memory,
        status=_virsh.status,
        save=_libvirt_save.save,
        still_saved=_libvirt_save.still_saved,
        resume=_libvirt_save.resume,
        discard=_libvirt_save.discard,
        rehearse=_libvirt_rehearsal.rehearse,
        end_rehearsal=_libvirt_rehearsal.end,
        saves_slowly=_libvirt_save.SAVES_SLOWLY,
        kept=_libvirt_guests.KEPT,
        daemons=_libvirt_guests.DAEMONS,
        away=_libvirt_away,
    )


_PROVIDERS = {"qemu": _qemu, "libvirt": _libvirt}


def all_of_them() -> tuple[Provider, ...]:
    """Every provider."""
    return tuple(make() for make in _PROVIDERS.values())


def of(record: dict) -> Provider:
    """The provider of a guest, or of its journal."""
    return _PROVIDERS[record["provider"]]()


def records() -> list[dict]:
    """A record of each running guest, from its provider.

    ``namesake`` is the unit of another guest with the same name, if there is one.
    """
    found = [record for provider in all_of_them() for record in provider.known()]
    for record in found:
        others = [other["unit"] for other in found if other is not record and other["name"] == record["name"]]
        if others:
            record["namesake"] = others[0]
    return found


def known() -> dict[str, dict]:
    """The running guests, by name. Of two with the same name only one is here; both have a reason (:func:`_reasons.name_reasons`)."""
    return {record["name"]: record for record in records()}


def find(name: str, running: dict[str, dict] | None = None) -> dict:
    """The record of the running guest ``name``, from ``running`` or :func:`known`."""
    guests = known() if running is None else running
    if name not in guests:
        raise LiveUpdateError(
            f"guest {name!r} does not run on this host. The running guests are: {', '.join(guests) or 'none'}. A guest's name is the first"
            " argument of 'kvm-liveupdate run' in its unit, or the name of its libvirt domain"
        )
    return guests[name]


def strangers(guests: t.Iterable[dict] | None = None) -> list[dict]:
    """Virtual machines on this host that are not among these guests (by default all :func:`records`). A jump would end them."""
    ours = {record["pid"] for record in (records() if guests is None else guests)}
    found = []
    for pid in _processes.pids():
        if pid not in ours and _processes.VM_LINK in _processes.fd_links(pid).values():
            unit = _processes.unit_of(pid) or ""
            name = unit.rpartition(".")[0] or f"pid-{pid}"
            found.append({"name": name, "unit": unit, "pid": pid, "reasons": [_qemu_guests.foreign_reason(pid)], "warnings": []})
    return found
