# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_plan
short_description: "Internal - what a live update will do with a host and each of its guests"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Decides for each guest whether it stays in memory, is migrated, saved or shut down, or stops the update, and says why.
  - Changes nothing. The same facts and the same policy give the same plan.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info).
    type: dict
    required: true
  policy:
    description: Rules, see O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_policy).
    type: list
    elements: dict
    default: []
  ladder:
    description: The ladder of guests that no rule matches, see O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_ladder).
    type: list
    elements: raw
    default: [preserve, refuse]
  guests:
    description: Ladders by the names of guests, see O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_guests).
    type: dict
    default: {}
  rehearsal:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_rehearsal).
    type: str
    choices: [none, canary, all]
    default: none
  rehearsal_guests:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_rehearsal_guests).
    type: dict
    default: {}
  keep_units:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_keep_units).
    type: list
    elements: str
    default: []
  blackout_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_blackout_max).
    type: float
    default: 0
  labels:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_labels).
    type: dict
    default: {}
  paused_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_paused_max).
    type: dict
    default: {}
  essential:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_essential).
    type: list
    elements: str
    default: []
  verify_memory:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_verify_memory).
    type: str
    choices: [none, sample, full]
    default: sample
  timeout:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_timeout). A value below 1 is an error.
    type: int
    default: 1800
requirements:
  - jmespath, on the controller, for O(policy)
"""

EXAMPLES = r"""
- name: Show what an update would do
  ansible.builtin.debug:
    msg: "{{ (host | kvm.liveupdate._update_plan(policy=rules)).table }}"
  vars:
    rules:
      - match: contains(devices, 'hostdev')
        ladder: [shutdown, refuse]
"""

RETURN = r"""
_value:
  description: The plan. C(plugin_utils/_plan.py) describes it.
  type: dict
  sample: {verdict: go, refusals: [], kernel: 7.3.4, staying: [web1], leaving: [], rehearse: [], expected_pause: 8.6}
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._plan import plan
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._policy import Policy, PolicyError
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import RolloutError, read_paused_max


def plain(value: t.Any) -> t.Any:
    """The value without Ansible's own types of strings and containers. JMESPath's functions do not know these."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if isinstance(value, float) else int(value)
    return value


def update_plan(
    host: t.Any,
    policy: t.Any = (),
    ladder: t.Any = ("preserve", "refuse"),
    guests: t.Any = None,
    rehearsal: str = "none",
    rehearsal_guests: t.Any = None,
    keep_units: t.Any = (),
    blackout_max: float = 0.0,
    labels: t.Any = None,
    paused_max: t.Any = None,
    essential: t.Any = (),
    verify_memory: str = "sample",
    timeout: int = 1800,
) -> dict[str, t.Any]:
    """The plan, or an error that names the mistake."""
    try:
        if int(timeout) < 1:  # the module kexec would refuse it too, but after guests were sent away
            raise PolicyError(f"hypervisor_update_timeout is {timeout}; write a number of seconds, 1 or more")
        wanted = Policy(plain(policy), plain(ladder), plain(guests))
        return plan(
            plain(host),
            wanted,
            rehearsal,
            plain(rehearsal_guests),
            plain(keep_units),
            float(blackout_max),
            plain(labels),
            read_paused_max(plain(paused_max)),
            plain(essential),
            str(verify_memory),
        )
    except (PolicyError, RolloutError) as err:
        raise AnsibleFilterError(f"the plan cannot be made: {err}") from err


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_plan": update_plan}
