# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate.update_result."""

from __future__ import annotations

DOCUMENTATION = r"""
name: update_result
short_description: What a live update did to one host
version_added: 0.1.0
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Sums up what the modules returned during one update of one host, wherever it ended.
positional: _input
options:
  _input:
    description: What M(kvm.liveupdate.hypervisor_info) returned before the update. Empty when it failed.
    type: dict
    required: true
  plan:
    description: What P(kvm.liveupdate.update_plan#filter) made of it. Empty when there was none.
    type: dict
    default: {}
  jump:
    description: What M(kvm.liveupdate.kexec) returned.
    type: dict
    default: {}
  guests:
    description: What M(kvm.liveupdate.guest) returned afterwards as RV(kvm.liveupdate.guest#module:guests).
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
    description: Whether nothing was to be changed.
    type: bool
    default: false
  blackout_max:
    description: For how many seconds guests may be paused; V(0) for any.
    type: float
    default: 0
  step:
    description: The step of the update that failed; empty when none did or the update had not begun.
    type: str
    default: ""
  lost:
    description: Whether it failed because the host did not answer.
    type: bool
    default: false
  undo:
    description: The message of an undo that failed.
    type: str
    default: ""
  left_out:
    description: Whether the host is left out of a run that goes on with others.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Sum up
  ansible.builtin.set_fact:
    outcome: "{{ (before | kvm.liveupdate.update_result(plan=planned, jump=jumped, guests=restored.guests)).outcome }}"
"""

RETURN = r"""
_value:
  description:
    - V(outcome) is V(updated), V(current) (it ran the kernel already), V(refused) or V(left_out) (nothing was touched), V(undone) (before
      the jump), V(failed), V(lost) (it stopped answering in the middle) or V(checked) (examined only); V(why) says it in a sentence.
    - V(step) is the step at which an update that had begun failed; empty otherwise.
    - V(over_budget) says which pause is longer than O(blackout_max), expected before an update and measured after it; empty when none is.
    - V(plan), and its V(expected_pause) in seconds.
    - V(kernel_before), V(kernel_after), V(boot_id_before), V(boot_id_after), V(update_id), V(times) of the host.
    - V(guests) by name, each with V(state), V(why), V(times), V(clock_step) and V(warnings), which are sentences. One that left has
      V(back), whether it is here again.
  type: dict
"""

from ansible_collections.kvm.liveupdate.plugins.plugin_utils.result import result


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """The filters of this file."""
        return {"update_result": result}
