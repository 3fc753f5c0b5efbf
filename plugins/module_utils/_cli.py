# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``kvm-liveupdate`` on a host. PRIVATE to the collection.

Called by systemd units; ``status``, ``resume`` and ``discard`` are for the operator.
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
       kvm-liveupdate give-up-unclaimed          give up memory that no guest takes (kvm-liveupdate-unclaimed.service)
       kvm-liveupdate rehearse|end-rehearsal NAME  pause, load elsewhere, go on (kvm-liveupdate-rehearsal@.service)
       kvm-liveupdate status                     the last update, the guests and who is away, as JSON
       kvm-liveupdate resume NAME                let a guest go on that a rehearsal or an update left paused
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
    from . import _guests, _host, _incoming, _paths

    journal = _incoming.recorded(name)
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


def _resume(name: str) -> None:
    from . import _guests, _incoming, _lock, _paused

    with _lock.Lock():
        record = _guests.find(name)
        _incoming.settle_running(record)
        why = _paused.let_go_on(record)
        whole = _paused.whole_saves(record)
    if not (why or whole):
        raise LiveUpdateError(f"guest {name}: nothing of ours keeps it paused; resume it by its own means (virsh resume, or its monitor)")


def _discard(name: str) -> None:
    from . import _lock

    with _lock.Lock():
        _discard_locked(name)


def _discard_locked(name: str) -> None:
    import contextlib

    from . import _boot_order, _guests, _holding, _host, _incoming, _libvirt, _lock, _paths, _systemd

    update = _paths.read_json(_paths.UPDATE)
    if _lock.outcome(update, _host.boot_id(), "") == "pending":
        raise LiveUpdateError(
            f"guest {name}: an update of this host is {update['state']}; wait until it has ended. If {_lock.JUMP_UNIT} does not run"
            " any more, 'kvm-liveupdate recover' undoes it"
        )
    record = _guests.known().get(name)
    if record:
        _incoming.settle_running(record)
    _incoming.settle_seen(name)  # of one that is back nothing is left to give up
    journal, state = _incoming.recorded(name), _guests.state_path(name)
    if journal.get("state") != "saved" and not os.path.exists(state):
        raise LiveUpdateError(f"guest {name!r}: nothing is saved for it")
    if record:
        _refuse_to_discard(record, journal)
    # A host that went down while it saved has left a state and no journal; the hook is what libvirt's domains then wait for.
    elif (journal.get("provider") == "libvirt" or not journal) and _libvirt.is_defined(name):
        _libvirt.virsh("managedsave-remove", _libvirt.uuid_of(name))
    holder = _holding.resident_unit(name)
    unit = journal.get("unit", holder)
    for ended in () if record else (holder, unit):
        with contextlib.suppress(LiveUpdateError):  # there is none of its kind, or it did not fail
            _systemd.run("systemctl", "stop", "--", ended)
            _systemd.run("systemctl", "reset-failed", "--", ended)
        if _holding.FDNAME in _systemd.fdstore(ended):
            _systemd.forget_fd(ended, 0, _holding.FDNAME)  # else its memory stays taken beside that of its next start
    if record:
        _holding.release(record)
    else:
        _holding.release_ended(name)
    _paths.remove(_guests.journal_path(name))
    _paths.remove(state)
    _paths.remove(_guests.run_path(name, "trying"))
    _boot_order.start_early(unit, False)


def _refuse_to_discard(record: dict, journal: dict) -> None:
    """Raise for a guest that is on its way, or stands still with what is saved: only one that runs has no need of that."""
    from . import _paused, _providers
    from ._errors import told

    for why in _paused.reasons(record):
        raise LiveUpdateError(told(why))
    name, state = record["name"], _providers.of(record).status(record)
    if journal.get("state") == "saved":
        raise LiveUpdateError(
            f"guest {name}: its QEMU is there ({state}) and may be about to take in what is saved; if it does not come back,"
            f" stop it first ('systemctl stop {record['unit']}', for a domain also 'virsh destroy'), then discard what is saved"
        )
    if state != "running":
        raise LiveUpdateError(f"guest {name} is {state}, and what is saved may be all there is of it; let it run first, or stop it")


def _checked(name: str) -> str:
    """A guest's name, which becomes a part of paths and of units' names."""
    if name in ("", ".", "..") or any(char == "/" or ord(char) < 32 or ord(char) == 127 for char in name):
        raise LiveUpdateError(f"{name!r} is not the name of a guest: it is empty, or has a slash, a line break or the like in it")
    return name


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 after a failure, 2 for a wrong call, or :data:`_incoming.AGAIN`."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if len(words) > 1:
            _checked(words[1])
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

            (_rehearsal.run if words[0] == "rehearse" else _rehearsal.end_cut_off)(words[1])
        elif words == ["jump"]:
            from ._update import jump

            return jump()
        elif words == ["recover"]:
            from ._update import recover

            recover()
        elif words == ["boot"]:
            from ._boot_order import start_rest

            start_rest()
        elif words == ["give-up-unclaimed"]:
            from ._unclaimed import give_up

            give_up()
        elif words == ["status"]:
            _status()
        elif len(words) == 2 and words[0] == "resume":
            _resume(words[1])
        elif len(words) == 2 and words[0] == "discard":
            _discard(words[1])
        else:
            sys.stderr.write(f"{USAGE}\n")
            return 2
    except (LiveUpdateError, OSError) as err:
        sys.stderr.write(f"kvm-liveupdate: {err}\n")
        if isinstance(err, LiveUpdateError) and err.details.get("again"):
            from ._incoming import AGAIN

            return AGAIN
        return 1
    return 0
