# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._host_refusals."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _host_refusals
short_description: "Internal - why a host cannot be updated live after its setup"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info).
    type: dict
    required: true
  check_mode:
    description: Whether the run is in check mode. Then reasons that the role ends do not count.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what is left
  ansible.builtin.debug:
    msg: "{{ host | kvm.liveupdate._host_refusals(check_mode=ansible_check_mode) }}"
"""

RETURN = r"""
_value:
  description: Reasons with their remedies. Empty if the host can be updated live.
  type: list
  elements: str
  sample: ["systemd 252 cannot carry sessions through a shutdown - install systemd 255 or later"]
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._refusals import against_host


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., list[str]]]:
        """The filters of this file."""
        return {"_host_refusals": against_host}
