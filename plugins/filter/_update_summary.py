# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_summary
short_description: "Internal - one line for each host of a run"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Says in one line what the run did with each host, and which hosts must fail.
  - Hosts that were refused, undone, failed or lost must fail, and those whose guests paused for too long. Skipped hosts must fail if the
    run updated no host.
positional: _input
options:
  _input:
    description: The results of P(kvm.liveupdate._update_result#filter) by host name.
    type: dict
    required: true
  check_mode:
    description: Whether the run is in check mode.
    type: bool
    default: false
  gate:
    description: The return value of P(kvm.liveupdate._update_gate#filter) that stopped the run. Empty if none did.
    type: dict
    default: {}
  gone:
    description: Hosts that a task found unreachable in the middle of their update.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show the line of this host
  ansible.builtin.debug:
    msg: "{{ (results | kvm.liveupdate._update_summary).lines[inventory_hostname] }}"
"""

RETURN = r"""
_value:
  description:
    - V(lines) by host name. V(failed), a list of host names. V(hosts), the results, where hosts that were not begun say why. V(brief), a
      few figures for later jobs.
  type: dict
  sample:
    lines: {hv1: "hv1: updated 7.2.13 -> 7.3.4, 2 guests kept, longest pause 8.6 s"}
    failed: []
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import summary


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_summary": summary}
