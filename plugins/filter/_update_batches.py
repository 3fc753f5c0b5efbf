# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_batches."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_batches
short_description: "Internal - which hosts a rollout updates together"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Puts each host into a batch. Hosts of one failure domain, and hosts that pause too many guests that belong apart, are never in one
    batch. Hosts with essential guests come last, each alone.
positional: _input
options:
  _input:
    description: The hosts to update, in order. Each has V(name), V(apart), and V(plan) with V(essential) and V(members) of
      P(kvm.liveupdate._update_plan#filter).
    type: list
    elements: dict
    required: true
  serial:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_serial).
    type: raw
    default: 1
  paused_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_paused_max).
    type: dict
    default: {}
  until:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_until). A mistake in it is an error.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show the batch of this host
  ansible.builtin.debug:
    msg: "{{ (hosts | kvm.liveupdate._update_batches(serial=[1, 5]))[inventory_hostname] }}"
"""

RETURN = r"""
_value:
  description: The number of its batch for each host, from 1.
  type: dict
  sample: {hv1: 1, hv2: 2, hv3: 2}
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _window
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import RolloutError, batches


def update_batches(hosts: t.Any, serial: t.Any = 1, paused_max: t.Any = None, until: t.Any = "") -> dict[str, int]:
    """The number of the batch of each host, or an error that names the mistake."""
    try:
        if str(until or ""):
            _window.closes(str(until))
        made = batches({host["name"]: host for host in hosts}, serial, paused_max)
    except (LiveUpdateError, RolloutError) as err:
        raise AnsibleFilterError(f"the batches cannot be made: {err}") from err
    return {name: number for number, names in enumerate(made, 1) for name in names}


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_batches": update_batches}
