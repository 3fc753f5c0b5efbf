# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._kernel_build_options."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _kernel_build_options
short_description: "Internal - what became of the options of a kernel configuration"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input, base, wanted
options:
  _input:
    description: The resulting configuration.
    type: str
    required: true
  base:
    description: The configuration that it was made from.
    type: str
    required: true
  wanted:
    description: The options that it must have, with their values.
    type: dict
    required: true
  kconfig:
    description: Lines of Kconfig files that describe these options.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show which options are missing
  ansible.builtin.debug:
    msg: "{{ ('CONFIG_KVM=m' | kvm.liveupdate._kernel_build_options('', {'LIVEUPDATE': 'y'})).unresolved }}"
"""

RETURN = r"""
_value:
  description: V(names), V(unresolved), V(lost), V(objects) and V(disk_mib).
  type: dict
  sample:
    names: [LIVEUPDATE]
    unresolved: ["CONFIG_LIVEUPDATE is n in the resulting configuration, but y is wanted"]
    lost: []
    objects: 4
    disk_mib: 4097
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._kernel_build import options


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_kernel_build_options": options}
