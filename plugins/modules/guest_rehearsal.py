#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_rehearsal
short_description: See whether a guest's saved state can be loaded, before it has to be
version_added: 0.1.0
description:
  - Pauses the guest, saves it as a live update does, loads what was saved into another QEMU of the same kind, and lets the guest go on.
  - The other QEMU, the stand-in, has a private copy of the guest's memory. It never runs the guest, writes to none of its disks and is on
    none of its networks.
  - The guest stands still until the state is loaded. For a guest in a unit that is well under a second; for a libvirt domain it includes
    the start of the stand-in by libvirt.
  - Whatever becomes of the controller or of the module, the host lets the guest go on.
  - Fails when the state does not load, and when a stand-in cannot be made.
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
  name:
    description: The guest's name.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Rehearse the jump of a guest
  kvm.liveupdate.guest_rehearsal:
    name: web1
"""

RETURN = r"""
rehearsed:
  description: Whether the state was loaded. V(false) in check mode, and for a guest that is held for an update already.
  returned: success
  type: bool
paused_s:
  description: For how many seconds the guest stood still; V(0.0) for one that was paused anyway.
  returned: when RV(rehearsed)
  type: float
msg:
  description: What was done, or would be, in a sentence.
  returned: success
  type: str
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _holding, _rehearsal
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module


def rehearse(module) -> dict:
    """Look, and rehearse."""
    name = module.params["name"]
    if _holding.held(_guests.find(name)):
        return {"changed": False, "rehearsed": False, "msg": f"guest {name} is held for an update already, and not rehearsed any more"}
    if module.check_mode:
        return {"changed": False, "rehearsed": False, "msg": f"guest {name} would be rehearsed, and stand still for a moment"}
    done = _rehearsal.rehearse(name)
    msg = f"guest {name}: its state loads; it stood still for {done['paused_s']:.2f} s"
    return {"changed": False, "rehearsed": True, **done, "msg": msg}


def main():
    """Spec and run."""
    run_module(rehearse, argument_spec={"name": {"type": "str", "required": True}})


if __name__ == "__main__":
    main()
