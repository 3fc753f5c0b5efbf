# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_gate."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_gate
short_description: "Internal - whether the next batch of a rollout may begin"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Looks at the results of the last batch, at the clock, and at a request to stop.
positional: _input
options:
  _input:
    description: The results of the last batch, from P(kvm.liveupdate._update_result#filter), by host name. Empty before the first batch.
    type: dict
    required: true
  before:
    description: What this filter returned before the last batch.
    type: dict
    default: {}
  undone_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_undone_max).
    type: int
    default: 0
  lost_max:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_lost_max).
    type: int
    default: 0
  until:
    description: See O(kvm.liveupdate.hypervisor_update#role:main:hypervisor_update_until).
    type: str
    default: ""
  request:
    description: The return value of M(ansible.builtin.stat) for the file that stops the run. Skipped if there is no such file.
    type: dict
    default: {skipped: true}
  file:
    description: The place of that file, for messages.
    type: str
    default: ""
  gone:
    description: Hosts of the last batch that a task found unreachable.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show why the rollout stops
  ansible.builtin.debug:
    msg: "{{ ({} | kvm.liveupdate._update_gate(until='2026-12-01T04:00+01:00')).stop }}"
"""

RETURN = r"""
_value:
  description:
    - V(stop), why no other host is updated, empty if the next batch may begin. V(on_request), whether the operator wanted this. V(undone)
      and V(lost), the figures so far.
  type: dict
  sample: {stop: "hv2 failed", on_request: false, undone: [], lost: 0}
"""

import time
import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _window
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import asked, gate


def update_gate(
    hosts: t.Any,
    before: t.Any = None,
    undone_max: t.Any = 0,
    lost_max: t.Any = 0,
    until: t.Any = "",
    request: t.Any = None,
    file: str = "",
    gone: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """Whether the next batch may begin, at this moment."""
    closes = _window.closes(str(until)) if str(until or "") else None
    who = asked(request or {"skipped": True}, file)
    return gate(before, hosts, int(undone_max or 0), int(lost_max or 0), closes, time.time(), who, gone)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_gate": update_gate}
