# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``kvm-liveupdate`` on a host. PRIVATE to the collection.

Called by systemd units; ``status`` and ``discard`` are for the operator.
"""

from __future__ import annotations

import sys

from ._errors import LiveUpdateError

__all__ = ("main",)

USAGE = """usage: kvm-liveupdate run NAME -- QEMU ARGUMENT...  become the guest's QEMU (ExecStart= of its unit)
       kvm-liveupdate hold NAME                  hold the guest's memory (kvm-liveupdate-hold@.service)
       kvm-liveupdate jump                       carry out the committed update (kvm-liveupdate-jump.service)
       kvm-liveupdate recover                    undo it when that process ended before the jump
       kvm-liveupdate status                     the last update and the guests, as JSON
       kvm-liveupdate discard NAME               give up a guest's saved state, so that it starts clean"""


def _status() -> None:
    import json

    from . import _guests, _holding, _paths

    guests = {name: {"journal": _guests.journal(name), "held": bool(_holding.held(record))} for name, record in _guests.known().items()}
    json.dump({"update": _paths.read_json(_paths.UPDATE), "guests": guests}, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def _discard(name: str) -> None:
    from . import _guests, _paths

    if not _paths.remove(_guests.journal_path(name)):
        raise LiveUpdateError(f"guest {name!r}: nothing is saved for it")
    _paths.remove(_guests.state_path(name))


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 after a failure or 2 for a wrong call."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if len(words) > 3 and words[0] == "run" and words[2] == "--":
            from ._qemu_run import run

            run(words[1], words[3:])
        elif len(words) == 2 and words[0] == "hold":
            from ._holding import reside

            reside(words[1])
        elif words == ["jump"]:
            from ._update import jump

            return jump()
        elif words == ["recover"]:
            from ._update import recover

            recover()
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
