# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_result."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_result
short_description: "Internal - what a live update did to one host"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Sums up what the modules returned. The update may have ended at any step.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info) before the update. Empty if there is none.
    type: dict
    required: true
  plan:
    description: The plan, from P(kvm.liveupdate._update_plan#filter). Empty if there is none.
    type: dict
    default: {}
  jump:
    description: The return value of M(kvm.liveupdate.kexec).
    type: dict
    default: {}
  guests:
    description: What M(kvm.liveupdate.guest) returned after the jump as RV(kvm.liveupdate.guest#module:guests).
    type: list
    elements: dict
    default: []
  away:
    description: What M(kvm.liveupdate.guest_away) returned as RV(kvm.liveupdate.guest_away#module:guests), there and back, in order.
    type: list
    elements: dict
    default: []
  why:
    description: The message of the first failure.
    type: str
    default: ""
  check_mode:
    description: Whether the run is in check mode.
    type: bool
    default: false
  blackout_max:
    description: The longest pause that is allowed, in seconds. V(0) means any.
    type: float
    default: 0
  step:
    description: The step that failed. Empty if none did, or if the update had not begun.
    type: str
    default: ""
  lost:
    description: Whether the step failed because the host did not answer.
    type: bool
    default: false
  undo:
    description: The message of an undo that failed.
    type: str
    default: ""
  late:
    description: The messages of what failed after the update or its undo, such as the tasks after it.
    type: list
    elements: str
    default: []
  taken_over:
    description: Whose lease this run took over, from M(kvm.liveupdate.update_lease).
    type: str
    default: ""
  left_out:
    description: Whether the run skips this host.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Sum up
  ansible.builtin.set_fact:
    outcome: "{{ (before | kvm.liveupdate._update_result(plan=planned, jump=jumped, guests=restored.guests)).outcome }}"
"""

RETURN = r"""
_value:
  description: The result of the host. The role P(kvm.liveupdate.hypervisor_update#role) describes it.
  type: dict
  sample: {outcome: updated, why: "", step: "", kernel_before: 7.2.13, kernel_after: 7.3.4, guests_lost: []}
"""

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import result


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """The filters of this file."""
        return {"_update_result": result}
