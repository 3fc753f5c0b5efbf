# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of the boot after a jump: first the guests, then the rest. PRIVATE to the collection.

CPU weights alone do not make a guest first: PID 1 loads every unit of the boot, and starts its sockets and mounts, before it starts a
service. So the jump makes the new kernel boot a special target (systemd.unit=, kernel-command-line(7)), which wants the guests and little
else. A service in it starts what the next guests need (libvirt's daemon for domains), and finally default.target, each as soon as the
guests before it run or are late. An ordinary boot is not affected.
"""

from __future__ import annotations

import os
import time

from ..handover import _early
from ..host import _commands, _files, _systemd, _units

__all__ = ("alone", "load_early", "plan", "start_rest")


def plan(records: list[dict]) -> list[dict]:
    """The stages of the boot after the jump. This also writes what they need. Empty if all guests need the ordinary boot.

    Each stage waits for its ``guests``, then starts its ``start``.
    """
    units, domains = _ahead(records)
    daemons = _daemons(domains)
    stages = []
    if units:
        stages.append({"guests": [record["name"] for record in units], "start": _units.DAEMONS_TARGET if daemons else "default.target"})
    if daemons:
        stages.append({"guests": [record["name"] for record in domains], "start": "default.target"})
        dropin = f"{_units.FOLDER}/{_units.DAEMONS_TARGET}.d/wants.conf"
        os.makedirs(os.path.dirname(dropin), exist_ok=True)
        _files.write_text(dropin, "[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*_before(daemons), *daemons)), 0o644)
    # If no guest comes before the daemons, the target of the guests starts them directly.
    _early.link(f"{_units.FOLDER}/{_units.TARGET}.wants/{_units.DAEMONS_TARGET}", bool(daemons) and not units)
    return stages


def load_early() -> None:
    """Make the next boots load the modules that guests use now, at their very beginning.

    Else udev loads KVM with the rest of the boot, which starts after the guests, and the guests wait for KVM. That takes longer, but
    loses nothing. So an error here does not stop the update.
    """
    from ..kernel import _modules  # the boot does not need it

    names = _modules.loaded()
    try:
        if names:
            os.makedirs(os.path.dirname(_files.MODULES), exist_ok=True)
            _files.write_text(_files.MODULES, "".join(f"{name}\n" for name in names), 0o644)
        else:
            _files.remove(_files.MODULES)
    except OSError as err:
        _systemd.log(f"the next boot loads the kernel modules of the guests late: {err}")


def _ahead(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """The guests that can be restored before the rest of the boot: those that need nothing of it, and those that need daemons."""
    from ..guests import _providers  # not on the restore path

    seen = _systemd.show_each([record["unit"] for record in records], "After")
    able = [record for record in records if alone(seen[record["unit"]].get("After", "").split())]
    needing = [bool(_providers.of(record).daemons) for record in able]
    return [record for record, needs in zip(able, needing) if not needs], [record for record, needs in zip(able, needing) if needs]


def _daemons(records: list[dict]) -> list[str]:
    """The units of the daemons that these guests need. Only daemons that run now count."""
    from ..guests import _providers

    known = sorted({unit for record in records for unit in _providers.of(record).daemons})
    return [unit for unit, seen in _systemd.show_each(known, "ActiveState").items() if seen.get("ActiveState") == "active"]


def _before(daemons: list[str]) -> list[str]:
    """What an ordinary boot starts before these daemons, so that they find the same after a jump."""
    called = _systemd.show_each(["default.target", *daemons], "Id")  # default.target is only another name of a target
    target, *ordered = (called[unit].get("Id") or unit for unit in called)
    starts, after = _systemd.graph()
    return sorted((reached(after, ordered) & reached(starts, [target])) - {*daemons, *ordered})


def reached(dependencies: dict[str, list[str]], units: list[str]) -> set[str]:
    """These units and all their dependencies, direct and indirect. Pure."""
    found: set[str] = set()
    left = list(units)
    while left:
        unit = left.pop()
        if unit not in found:
            found.add(unit)
            left += dependencies.get(unit, [])
    return found


def alone(after: list[str]) -> bool:
    """Whether a unit that starts after these needs only :data:`_early.BASE`, the root file system and slices of the boot. Pure."""
    return all(unit in (*_early.BASE, _units.UNCLAIMED_UNIT, "-.mount") or unit.endswith(".slice") for unit in after)


def start_rest() -> None:
    """Carry out the stages of :func:`plan`. If this fails, OnFailure= of its unit starts the rest of the boot."""
    until = time.monotonic() + _early.LIMIT_S
    # If another boot reuses this boot's command line, there may be an update without stages, or none.
    for stage in _files.read_json(_files.UPDATE).get("stages") or [{"guests": [], "start": "default.target"}]:
        while time.monotonic() < until and not all(map(_early.settled, stage["guests"])):
            time.sleep(_early.POLL_S)
        _commands.run("systemctl", "start", "--no-block", stage["start"])
