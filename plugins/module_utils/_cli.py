# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``kvm-liveupdate`` on a host. PRIVATE to the collection.

Called by systemd units; ``status`` and ``discard`` are for the operator.
"""

from __future__ import annotations

import os
import sys

from ._errors import LiveUpdateError

__all__ = ("main",)

USAGE = """usage: kvm-liveupdate run NAME -- QEMU ARGUMENT...  become the guest's QEMU (ExecStart= of its unit)
       kvm-liveupdate hold NAME                  hold the guest's memory (kvm-liveupdate-hold@.service)
       kvm-liveupdate hook NAME                  give the domain that libvirt starts its memory (libvirt's hook)
       kvm-liveupdate jump                       carry out the committed update (kvm-liveupdate-jump.service)
       kvm-liveupdate recover                    undo it when that process ended before the jump
       kvm-liveupdate boot                       start the rest of the boot after its guests (kvm-liveupdate-boot.service)
       kvm-liveupdate rehearse|end-rehearsal NAME  pause, load elsewhere, go on (kvm-liveupdate-rehearsal@.service)
       kvm-liveupdate status                     the last update, the guests and who is away, as JSON
       kvm-liveupdate discard NAME               give up a guest's saved state, so that it starts clean"""


def _status() -> None:
    import json

    from . import _away, _guests, _holding, _update

    running, journals = _guests.known(), _guests.journals()
    held = {name for name, record in running.items() if _holding.held(record)}
    guests = {name: {"running": name in running, "held": name in held, "journal": journals.get(name, {})} for name in {*running, *journals}}
    away = {record["guest"]: record for record in _away.records()}
    json.dump({"update": _update.last(), "guests": guests, "away": away}, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def _hold(name: str) -> None:
    from . import _guests, _host, _paths

    journal = _guests.journal(name)
    cut_off = _guests.cut_off(name) if journal.get("state") != "saved" else {}
    if cut_off and cut_off["boot_id"] != _host.boot_id():
        journal = cut_off
        _paths.write_json(_guests.journal_path(name), journal)
    if journal.get("provider") == "libvirt" and journal["state"] == "saved" and journal["boot_id"] != _host.boot_id():
        from ._libvirt_run import restore

        restore(name, journal)
    else:
        from ._holding import reside

        reside(name)


def _discard(name: str) -> None:
    import contextlib

    from . import _boot_order, _guests, _holding, _libvirt, _paths, _systemd

    journal, state = _guests.journal(name), _guests.state_path(name)
    if not journal and not os.path.exists(state):
        raise LiveUpdateError(f"guest {name!r}: nothing is saved for it")
    # A host that went down while it saved has left a state and no journal; the hook is what libvirt's domains then wait for.
    if (journal.get("provider") == "libvirt" or not journal) and _libvirt.is_defined(name):
        _libvirt.virsh("managedsave-remove", _libvirt.uuid_of(name))
    holder = _holding.resident_unit(name)
    unit = journal.get("unit", holder)
    for ended in (holder,) if name in _guests.known() else (holder, unit):
        with contextlib.suppress(LiveUpdateError):  # there is none of its kind, or it did not fail
            _systemd.run("systemctl", "stop", ended)
            _systemd.run("systemctl", "reset-failed", ended)
        if _holding.FDNAME in _systemd.fdstore(ended):
            _systemd.forget_fd(ended, 0, _holding.FDNAME)  # else its memory stays taken beside that of its next start
    _paths.remove(_guests.journal_path(name))
    _paths.remove(state)
    _boot_order.start_early(unit, False)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 after a failure or 2 for a wrong call."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if len(words) > 3 and words[0] == "run" and words[2] == "--":
            from ._qemu_run import run

            run(words[1], words[3:])
        elif len(words) == 2 and words[0] == "hold":
            _hold(words[1])
        elif len(words) == 2 and words[0] == "hook":
            from ._libvirt_run import hook

            hook(words[1])
        elif len(words) == 2 and words[0] in ("rehearse", "end-rehearsal"):
            from . import _rehearsal

            (_rehearsal.run if words[0] == "rehearse" else _rehearsal.end)(words[1])
        elif words == ["jump"]:
            from ._update import jump

            return jump()
        elif words == ["recover"]:
            from ._update import recover

            recover()
        elif words == ["boot"]:
            from ._boot_order import start_rest

            start_rest()
        elif words == ["status"]:
            _status()
        elif len(words) == 2 and words[0] == "discard":
            _discard(words[1])
        else:
            sys.stderr.write(f"{USAGE}\n")
            return 2
    except (LiveUpdateError, OSError) as err:
        sys.stderr.write(f"kvm-liveupdate: {err}\n")
        return 1
    return 0
