# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate.update_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: update_plan
short_description: What a live update will do with a host and each of its guests
version_added: 0.1.0
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Decides for each guest whether it stays in memory, is migrated, saved, shut down, or stops the update, and says why.
  - Changes nothing and asks nobody. The same facts and the same policy give the same plan.
positional: _input
options:
  _input:
    description: What M(kvm.liveupdate.hypervisor_info) returned.
    type: dict
    required: true
  policy:
    description: Rules, as O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_policy).
    type: list
    elements: dict
    default: []
  ladder:
    description: The ladder of guests that no rule matches, as O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_ladder).
    type: list
    elements: raw
    default: [preserve, refuse]
  guests:
    description: Ladders by the names of guests, as O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_guests).
    type: dict
    default: {}
  rehearsal:
    description: As O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_rehearsal).
    type: str
    choices: [none, canary, all]
    default: none
  rehearsal_guests:
    description: As O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_rehearsal_guests).
    type: dict
    default: {}
  keep_units:
    description: As O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_keep_units).
    type: list
    elements: str
    default: []
requirements:
  - jmespath, on the controller, for O(policy)
"""

EXAMPLES = r"""
- name: Show what an update would do
  ansible.builtin.debug:
    msg: "{{ (host | kvm.liveupdate.update_plan(policy=rules)).table }}"
  vars:
    rules:
      - match: contains(devices, 'hostdev')
        ladder: [shutdown, refuse]
"""

RETURN = r"""
_value:
  description:
    - V(verdict) is V(go), V(refuse) or V(current) (the host runs the kernel already, nothing is done). V(refusals) are sentences.
    - V(guests) is a list of all guests, each with V(name), V(way) (V(preserve), V(migrate), V(save), V(shutdown), V(refuse)), V(why),
      V(by) (which setting gave it its ladder; empty for the default), V(passed_over) (V(way) and V(why) of each rung that does not apply),
      V(destination) and V(back) of a migration, and V(warnings).
    - V(staying) are the names of the guests that stay in memory, V(rehearse) of those that are rehearsed before, V(leaving) says who
      leaves and how, as O(kvm.liveupdate.guest_away#module:guests) takes it.
    - V(steps) are what is done, in order.
    - V(room) says for V(memory) and V(saves) (the disk of managed saves) V(needed_mib) and V(free_mib).
    - V(expected_pause) is for how many seconds a guest that stays was paused at most in its last update; V(null) when none had one.
    - V(table) is all of it for people, as lines.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.plugin_utils.plan import plan
from ansible_collections.kvm.liveupdate.plugins.plugin_utils.policy import Policy, PolicyError


def plain(value: t.Any) -> t.Any:
    """The value without Ansible's own kinds of strings and containers, which JMESPath's functions do not know."""
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
) -> dict[str, t.Any]:
    """The plan, or an error that says what cannot be read."""
    try:
        return plan(plain(host), Policy(plain(policy), plain(ladder), plain(guests)), rehearsal, plain(rehearsal_guests), plain(keep_units))
    except PolicyError as err:
        raise AnsibleFilterError(f"update_plan: {err}") from err


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"update_plan": update_plan}
