# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_not_together."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_not_together
short_description: "Internal - which hosts of a batch must not be updated with it any more"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Guests may have moved to other hosts since the batches were made.
positional: _input
options:
  _input:
    description: The hosts of the batch that are about to jump, as for P(kvm.liveupdate._update_batches#filter), with their newest plans.
    type: list
    elements: dict
    required: true
  paused_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_paused_max).
    type: dict
    default: {}
  more_follow:
    description: Whether hosts without essential guests come after this batch.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show why this host is not updated now
  ansible.builtin.debug:
    msg: "{{ (hosts | kvm.liveupdate._update_not_together)[inventory_hostname] | default('it is updated now') }}"
"""

RETURN = r"""
_value:
  description: The reason with its remedy, for each host that must wait.
  type: dict
  sample:
    hv2: >-
      guests have moved since the batches were made: with hypervisor_update_paused_max and hypervisor_update_apart it cannot be updated
      together with hv1 any more - wait for the end of this run, then repeat the command
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import not_together


def update_not_together(hosts: t.Any, paused_max: t.Any = None, more_follow: t.Any = False) -> dict[str, str]:
    """Why hosts have to wait, by name."""
    return not_together({host["name"]: host for host in hosts}, paused_max, bool(more_follow))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_not_together": update_not_together}
