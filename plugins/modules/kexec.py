#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kexec
short_description: Jump into the staged kernel with the held guests, and come back
version_added: 0.1.0
description:
  - Checks that a kernel is staged by M(kvm.liveupdate.kexec_image) and that every virtual machine of the host is held by
    M(kvm.liveupdate.guest), and refuses otherwise.
  - Then the host acts alone. It stops what the guests do not need, ends logins and containers, pauses and saves all guests, jumps, and
    brings them back, whether or not this task still waits.
  - The task waits for the host to come back with another boot id, and proves that it runs the staged kernel.
  - A host that undid the update before the jump, or does not come back in time, makes the task fail; it is not reported as unreachable.
  - The wait never lasts longer than O(timeout), whatever becomes of the connection.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
    details: Predicts the jump; what an earlier task only predicted is not asked for.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: It always jumps. The role P(kvm.liveupdate.hypervisor_update#role) calls it only when the kernel is another one.
  action:
    description: Has an action plugin on the controller.
    support: full
options:
  guests:
    description: The names of the guests that are held; all guests of the host have to be among them.
    type: list
    elements: str
    required: true
  keep_units:
    description:
      - Units that go on running until the guests are paused, beside the guests, what their units require, mounts, the network, and the
        packet filters, routing and storage services that guests would miss (docs/guests.md lists them).
      - Name what else the guests' storage or network needs, with the unit's whole name, for example C(ceph-osd@3.service). A unit that the
        host does not know is refused.
      - An active cluster manager (Pacemaker, Corosync, SBD, Proxmox HA) is refused unless it is named here.
    type: list
    elements: str
    default: []
  on_loss:
    description: What a guest does whose memory did not come over. V(start) boots it clean, V(stop) leaves it down.
    type: str
    choices: [start, stop]
    default: start
  timeout:
    description:
      - Seconds from the commit until the host has to answer again with the new kernel.
      - Until half of them the host has to have paused its guests. One that is too slow for that undoes the update, and its guests run on.
    type: int
    default: 1800
"""

EXAMPLES = r"""
- name: Jump
  kvm.liveupdate.kexec:
    guests: [web1, db1]
"""

RETURN = r"""
journal:
  description: The update's journal as it was committed, with its V(id).
  returned: when a jump was committed
  type: dict
boot_id_before:
  description: The boot id before the jump.
  returned: when a jump was committed
  type: str
boot_id_after:
  description: The boot id after the jump.
  returned: when the host came back
  type: str
kernel_before:
  description: The kernel release before the jump.
  returned: when a jump was committed
  type: str
kernel_after:
  description: The kernel release after the jump.
  returned: when the host came back
  type: str
outcome:
  description:
    - V(jumped) when the host runs the staged kernel, V(aborted) when it undid the update before the jump, V(rebooted) when it came
      back with another kernel, V(gone) when it did not come back in O(timeout), or still carries the update out then, V(stuck) when
      it runs the old kernel and nothing there carries the update on, V(lost) when the connection broke while the host was told to
      jump, which it may have done.
  returned: when a jump was committed, or may have been
  type: str
times:
  description:
    - When the update was V(committed), V(stopping) other services, past the last V(gate), V(saving) the guests and V(jumping), and when
      the new V(kernel) and its PID 1 (V(userspace)) started and that had loaded its V(units), in seconds since the epoch on the host's
      clock, which steps by up to a second at the jump.
  returned: when the host came back
  type: dict
elapsed:
  description: Seconds from the commit until the host answered, on the controller's clock. Not the guests' pause.
  returned: when the host came back
  type: float
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump


def commit(module):
    """The part that runs on the host: the gate, and the commit."""
    if module.check_mode:
        return {"changed": True}
    with _lock.Lock():
        asked = [module.params[option] for option in ("guests", "keep_units", "on_loss", "timeout")]
        return {"changed": True, "journal": _jump.commit(*asked)}


def main():
    """Spec and run."""
    run_module(
        commit,
        argument_spec={
            "guests": {"type": "list", "elements": "str", "required": True},
            "keep_units": {"type": "list", "elements": "str", "default": []},
            "on_loss": {"type": "str", "choices": ["start", "stop"], "default": "start"},
            "timeout": {"type": "int", "default": _jump.TIMEOUT_S},
        },
    )


if __name__ == "__main__":
    main()
