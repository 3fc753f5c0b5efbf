# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._trial_result."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _trial_result
short_description: "Internal - what a trial found on one host"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info) before the jump. Empty if there is none.
    type: dict
    required: true
  plan:
    description: The plan, from P(kvm.liveupdate._trial_plan#filter). Empty if there is none.
    type: dict
    default: {}
  update:
    description: The result of the update with the throw-away guest. Empty if there is none.
    type: dict
    default: {}
  compared:
    description: What M(kvm.liveupdate.trial) returned after the jump. Empty if there is none.
    type: dict
    default: {}
  why:
    description: The message of the first failure.
    type: str
    default: ""
  check_mode:
    description: Whether the run is in check mode.
    type: bool
    default: false
  kept:
    description: Whether the throw-away guest was left on the host.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Sum up
  ansible.builtin.set_fact:
    outcome: "{{ (host | kvm.liveupdate._trial_result(plan=planned, compared=trial)).outcome }}"
"""

RETURN = r"""
_value:
  description: The result of the host. The role P(kvm.liveupdate.hypervisor_trial#role) describes it.
  type: dict
  sample: {outcome: passed, why: "", kernel_before: 7.2.13, kernel_after: 7.3.4, pause: 6.1, guest_kept: false, findings: []}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._trial import result


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        """The filters of this file."""
        return {"_trial_result": result}
