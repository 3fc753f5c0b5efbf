#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_rehearsal
short_description: Test whether the saved state of guests can be loaded, before an update
version_added: 0.2.0
description:
  - The module pauses a guest, saves its device state as a live update does, loads that state into a second QEMU, and resumes the guest.
    It handles one guest after the other.
  - A paused guest is not rehearsed, because QEMU can save it only once. The rehearsal of such a guest fails before it touches the guest.
  - The second QEMU, the stand-in, has the same command line and a private copy of the guest's memory. It never runs the guest, never
    writes to its disks, and is not connected to its networks.
  - The guest is paused until the stand-in has loaded the state. For a libvirt domain this includes the time in which libvirt starts the
    stand-in. RV(guests[].paused_s) says how long it was.
  - The host resumes the guest in any case, also if the controller or the module fails.
  - The task fails if a state does not load or a stand-in cannot be made. The module then does not pause the remaining guests.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: The module changes nothing.
  idempotent:
    support: N/A
    details: Each call is another rehearsal.
options:
  names:
    description: The names of the guests. With an empty list the module does nothing.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Rehearse the update of a guest
  kvm.liveupdate.guest_rehearsal:
    names: [web1]
"""

RETURN = r"""
guests:
  description: The result of each guest, in the order of O(names).
  returned: success, and failure after the guests were examined
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      returned: always
      type: str
    rehearsed:
      description: Whether the state was loaded. V(false) in check mode, and for a guest whose RAM is already preserved for an update.
      returned: always
      type: bool
    paused_s:
      description: For how many seconds the guest was paused. V(null) if it was not rehearsed.
      returned: always
      type: float
    failed:
      description: Whether the rehearsal failed.
      returned: always
      type: bool
    msg:
      description: What the module did or would do, or what went wrong, as a sentence.
      returned: always
      type: str
  sample:
    - name: web1
      rehearsed: true
      paused_s: 0.31
      failed: false
      msg: "guest web1: its state loads. The guest was paused for 0.31 s"
msg:
  description: The messages of all guests. After a failure only that of the guest that failed.
  returned: always
  type: str
  sample: "guest web1: its state loads. The guest was paused for 0.31 s"
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _rehearsal


def result(name: str, msg: str, paused_s: float | None = None, failed: bool = False) -> dict:
    """The result of a guest. Pure."""
    return {"name": name, "rehearsed": paused_s is not None, "paused_s": paused_s, "failed": failed, "msg": msg}


def rehearse(names: list, check_mode: bool) -> list:
    """Rehearse one guest after the other, until one fails."""
    running = _providers.known()
    held = _hold.held_each([_providers.find(name, running) for name in names])
    guests: list = []
    for name in names:
        if name in held:
            guests.append(result(name, f"guest {name} is not rehearsed, because its RAM is already preserved for an update"))
        elif check_mode:
            guests.append(predicted(running[name]))
        elif any(guest["failed"] for guest in guests):
            guests.append(result(name, f"guest {name} was not rehearsed, because another rehearsal failed"))
        else:
            guests.append(rehearsed(name))
    return guests


def predicted(record: dict) -> dict:
    """What check mode says of a guest."""
    try:
        _rehearsal.refuse(record)
    except LiveUpdateError as err:
        return failed(record["name"], err)
    return result(record["name"], f"guest {record['name']} would be rehearsed, and paused for a moment")


def failed(name: str, err: LiveUpdateError) -> dict:
    """The result of a guest whose rehearsal fails. Pure."""
    return result(name, ("" if err.message.startswith("guest ") else f"guest {name}: ") + err.message, failed=True)


def rehearsed(name: str) -> dict:
    """Rehearse a guest."""
    try:
        paused_s = _rehearsal.rehearse(name)["paused_s"]
    except LiveUpdateError as err:
        return failed(name, err)
    return result(name, f"guest {name}: its state loads. The guest was paused for {paused_s:.2f} s", paused_s)


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
