# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._trial_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _trial_summary
short_description: "Internal - lines for each host of a trial"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input
options:
  _input:
    description: The results of P(kvm.liveupdate._trial_result#filter) by host name.
    type: dict
    required: true
  names:
    description: The names of all hosts of the run.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show the lines of this host
  ansible.builtin.debug:
    msg: "{{ (results | kvm.liveupdate._trial_summary).lines[inventory_hostname] }}"
"""

RETURN = r"""
_value:
  description: V(lines), a list by host name. V(failed), the names of the hosts that did not pass. V(brief), a few figures for later jobs.
  type: dict
  sample:
    lines: {hv1: ["hv1: examined only: a trial is possible"]}
    failed: []
    brief: {outcome: checked, why: "", hosts: {checked: 1}, findings: 0, last_back: null, failed: []}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._trial import summary


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        """The filters of this file."""
        return {"_trial_summary": summary}
