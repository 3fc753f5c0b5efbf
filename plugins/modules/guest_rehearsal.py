#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_rehearsal
short_description: See whether the saved state of guests can be loaded, before it has to be
version_added: 0.1.0
description:
  - Pauses a guest, saves it as a live update does, loads what was saved into another QEMU of the same kind, and lets the guest go on.
    Then the next one.
  - The other QEMU, the stand-in, has a private copy of the guest's memory. It never runs the guest, writes to none of its disks and is on
    none of its networks.
  - The guest stands still until the state is loaded. For a guest in a unit that is well under a second; for a libvirt domain it includes
    the start of the stand-in by libvirt.
  - Whatever becomes of the controller or of the module, the host lets the guest go on.
  - Fails when the state does not load, and when a stand-in cannot be made. The guests behind that one are not paused any more.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: Changes nothing.
  idempotent:
    support: N/A
    details: Each call is another rehearsal.
options:
  names:
    description: The guests' names. With an empty list nothing is done.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Rehearse the jump of a guest
  kvm.liveupdate.guest_rehearsal:
    names: [web1]
"""

RETURN = r"""
guests:
  description: Each guest, in the order of O(names). After a failure too.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      type: str
    rehearsed:
      description: Whether the state was loaded. V(false) in check mode, and for a guest that is held for an update already.
      type: bool
    paused_s:
      description: For how many seconds the guest stood still; V(0.0) for one that was paused anyway, V(null) for one not rehearsed.
      type: float
    failed:
      description: Whether its rehearsal failed.
      type: bool
    msg:
      description: What was done, or would be, or went wrong, in a sentence.
      type: str
msg:
  description: The same of all guests, in sentences; after a failure only of the one that failed.
  returned: always
  type: str
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _rehearsal


def result(name: str, msg: str, paused_s: float | None = None, failed: bool = False) -> dict:
    """What became of a guest. Pure."""
    return {"name": name, "rehearsed": paused_s is not None, "paused_s": paused_s, "failed": failed, "msg": msg}


def rehearse(names: list, check_mode: bool) -> list:
    """Look, and rehearse one after the other, until one fails."""
    running = _providers.known()
    held = _hold.held_each([_providers.find(name, running) for name in names])
    guests: list = []
    for name in names:
        if name in held:
            guests.append(result(name, f"guest {name} is held for an update already, and not rehearsed any more"))
        elif check_mode:
            guests.append(result(name, f"guest {name} would be rehearsed, and stand still for a moment"))
        elif any(guest["failed"] for guest in guests):
            guests.append(result(name, f"guest {name} was not rehearsed"))
        else:
            guests.append(rehearsed(name))
    return guests


def rehearsed(name: str) -> dict:
    """Rehearse a guest."""
    try:
        paused_s = _rehearsal.rehearse(name)["paused_s"]
    except LiveUpdateError as err:
        return result(name, ("" if err.message.startswith("guest ") else f"guest {name}: ") + err.message, failed=True)
    return result(name, f"guest {name}: its state loads; it stood still for {paused_s:.2f} s", paused_s)


def manage(module):
    """Rehearse, and sum up."""
    guests = rehearse(list(dict.fromkeys(module.params["names"])), module.check_mode)
    problems = [guest["msg"] for guest in guests if guest["failed"]]
    if problems:
        raise LiveUpdateError("; ".join(problems), guests=guests)
    return {"changed": False, "guests": guests, "msg": "; ".join(guest["msg"] for guest in guests)}


def main():
    """Spec and run."""
    run_module(manage, argument_spec={"names": {"type": "list", "elements": "str", "required": True}})


if __name__ == "__main__":
    main()
