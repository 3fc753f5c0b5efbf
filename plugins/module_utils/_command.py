# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``kvm-liveupdate`` on a host. PRIVATE to the collection.

systemd units call it. An operator uses ``status``, ``resume``, ``discard`` and ``recover``.
"""

from __future__ import annotations

import sys

from ._errors import LiveUpdateError, typed

__all__ = ("main",)

USAGE = """usage: kvm-liveupdate COMMAND

For the operator:
  status                     show the last update and its outcome, all guests and the guests that are away, as JSON
  resume NAME                resume a guest that a rehearsal or an update left paused
  discard NAME               discard a guest's preserved memory and saved state, so that it starts from its disks
  recover                    undo an update whose process ended before the jump

In systemd units and libvirt's hook:
  run NAME -- QEMU ARG...    start the guest, with its preserved memory if there is any (ExecStart= of its unit)
  hold NAME                  preserve the guest's memory (kvm-liveupdate-hold@.service)
  hook NAME                  give a domain that libvirt starts its preserved memory (libvirt's hook)
  jump                       carry out the committed update (kvm-liveupdate-jump.service)
  boot                       start the rest of the boot after the guests (kvm-liveupdate-boot.service)
  give-up-unclaimed          release preserved memory that no guest uses (kvm-liveupdate-unclaimed.service)
  rehearse NAME              rehearse the update of a guest (kvm-liveupdate-rehearsal@.service)
  end-rehearsal NAME         end that rehearsal and resume the guest (kvm-liveupdate-rehearsal@.service)
  watch-devices              record when each device is back after the jump of a trial (liveupdate-trial-watch.service)"""


def _status() -> None:
    import json

    from .guests import _away, _hold, _providers
    from .handover import _journal

    running, journals = _providers.known(), _journal.of_guests()
    held = {name for name, record in running.items() if _hold.held(record)}
    guests = {name: {"running": name in running, "held": name in held, "journal": journals.get(name, {})} for name in {*running, *journals}}
    away = {record["guest"]: record for record in _away.records()}
    json.dump({"update": _journal.last_update(), "guests": guests, "away": away}, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def _hold_memory(name: str) -> None:
    from .handover import _journal
    from .host import _this_boot
    from .libvirt import _start

    journal = _journal.recorded(name)
    cut_off = _start.awaited(name) if journal.get("state") != "saved" else {}
    if cut_off and cut_off["boot_id"] != _this_boot.boot_id():
        journal = cut_off
        _journal.record_guest(journal)
    if journal.get("provider") == "libvirt" and journal["state"] == "saved" and journal["boot_id"] != _this_boot.boot_id():
        _start.restore(name, journal)
    else:
        from .guests import _hold

        _hold.serve(name)


def _resume(name: str) -> None:
    from .guests import _paused, _providers
    from .handover import _journal, _lock

    with _lock.Lock():
        record = _providers.find(name)
        _paused.settle_running(record)
        why = _paused.let_go_on(record)
        if not why and _journal.of_guest(name).get("state") == "saved":
            verb, unit = "restart" if record["provider"] == "qemu" else "start", record["unit"]
            raise LiveUpdateError(
                f"guest {name} is not paused: its QEMU loads the saved state, or waits for disks. Wait. If 'systemctl status"
                f" {typed(unit)}' shows no process of the unit besides QEMU, nothing loads the state any more: run"
                f" 'systemctl {verb} {typed(unit)}'. Memory and state are kept"
            )
        whole = _paused.whole_saves(record)
    if not (why or whole):
        how = f"run 'virsh resume {record['uuid']}'" if record["provider"] == "libvirt" else "use 'cont' in its QEMU monitor"
        raise LiveUpdateError(f"guest {name} was not paused by an update or a rehearsal. To resume it anyway, {how}")


def _checked(name: str) -> str:
    """Check a guest's name, which becomes a part of paths and unit names."""
    if name in ("", ".", "..") or any(char == "/" or ord(char) < 32 or ord(char) == 127 for char in name):
        raise LiveUpdateError(f"{name!r} is not a valid guest name: it is empty, '.' or '..', or contains a slash or a control character")
    return name


def main(argv: list[str] | None = None) -> int:
    """Run one command. The exit code is 0, 1 after a failure, 2 for wrong arguments, or :data:`_return.AGAIN`."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if len(words) > 1:
            _checked(words[1])
        if len(words) > 3 and words[0] == "run" and words[2] == "--":
            from .qemu import _start as _qemu_start

            _qemu_start.run(words[1], words[3:])
        elif len(words) == 2 and words[0] == "hold":
            _hold_memory(words[1])
        elif len(words) == 2 and words[0] == "hook":
            from .libvirt import _hook

            _hook.hook(words[1])
        elif len(words) == 2 and words[0] in ("rehearse", "end-rehearsal"):
            from .guests import _rehearsal

            (_rehearsal.run if words[0] == "rehearse" else _rehearsal.end_cut_off)(words[1])
        elif words == ["jump"]:
            from .update import _jump

            return _jump.jump()
        elif words == ["recover"]:
            from .update import _jump

            _jump.recover()
        elif words == ["boot"]:
            from .update import _rest_of_boot

            _rest_of_boot.start_rest()
        elif words == ["give-up-unclaimed"]:
            from .guests import _unclaimed

            _unclaimed.give_up()
        elif words == ["watch-devices"]:
            from .trial import _watch

            _watch.watch()
        elif words == ["status"]:
            _status()
        elif len(words) == 2 and words[0] == "resume":
            _resume(words[1])
        elif len(words) == 2 and words[0] == "discard":
            from .guests import _discard

            _discard.discard(words[1])
        else:
            sys.stderr.write(f"{USAGE}\n")
            return 2
    except (LiveUpdateError, OSError) as err:
        sys.stderr.write(f"kvm-liveupdate: {err}\n")
        if isinstance(err, LiveUpdateError) and err.details.get("again"):
            from .handover import _return

            return _return.AGAIN
        return 1
    return 0
