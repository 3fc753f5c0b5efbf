# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._trial_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _trial_plan
short_description: "Internal - what a trial does on a host"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info) for the kernel of the trial.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Plan the trial
  ansible.builtin.set_fact:
    planned: "{{ host | kvm.liveupdate._trial_plan }}"
"""

RETURN = r"""
_value:
  description: V(refusals), a list of sentences. V(begins) and V(continues), whether the host jumps, or jumped already.
  type: dict
  sample: {refusals: [], begins: true, continues: false}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._trial import planned


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        """The filters of this file."""
        return {"_trial_plan": planned}
