# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._update_record."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _update_record
short_description: "Internal - the record that a host keeps of an update"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Says who updated the host, when, to which kernel, and what became of each guest.
positional: _input
options:
  _input:
    description: The result of the host, from P(kvm.liveupdate._update_result#filter).
    type: dict
    required: true
  jump:
    description: The return value of M(kvm.liveupdate.kexec). Empty if there is none.
    type: dict
    default: {}
  by:
    description: Who started the run. Empty values are left out.
    type: dict
    default: {}
  target:
    description: The new kernel, RV(kvm.liveupdate.hypervisor_info#module:target).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the record
  ansible.builtin.debug:
    msg: "{{ hypervisor_update_result | kvm.liveupdate._update_record(by={'user': 'alice'}) }}"
"""

RETURN = r"""
_value:
  description: The record. C(plugin_utils/_record.py) describes it.
  type: dict
  sample: {at: "2026-12-01T02:11:05+00:00", by: {user: alice}, outcome: updated, kernel_before: 7.2.13, kernel_after: 7.3.4}
"""

import time
import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._record import record


def update_record(host: t.Any, jump: t.Any = None, by: t.Any = None, target: t.Any = None) -> dict[str, t.Any]:
    """The record of an update that ends now."""
    return record(host, jump or {}, by or {}, time.time(), target)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_update_record": update_record}
