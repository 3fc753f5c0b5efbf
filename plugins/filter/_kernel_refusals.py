# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._kernel_refusals."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _kernel_refusals
short_description: "Internal - why a new kernel cannot take over from the running one"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input
options:
  _input:
    description: The return value of M(kvm.liveupdate.hypervisor_info) for the new kernel.
    type: dict
    required: true
  accept_unknown:
    description: Pairs of kernels that need no proof, see O(kvm.liveupdate.hypervisor_info#module:accept_unknown).
    type: list
    elements: str
    default: []
  initrd_to_build:
    description: Whether the initial RAM disk is missing only because check mode did not build it.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show why the kernel is refused
  ansible.builtin.debug:
    msg: "{{ host | kvm.liveupdate._kernel_refusals }}"
"""

RETURN = r"""
_value:
  description: Reasons with their remedies. Empty if the kernel can take over.
  type: list
  elements: str
  sample:
    - >-
      kernel /boot/vmlinuz-7.3.4 is built without CONFIG_TUN: guests with a tap device cannot be restored on it - use a kernel with
      CONFIG_TUN=m or y
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._refusals import against_kernel


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., list[str]]]:
        """The filters of this file."""
        return {"_kernel_refusals": against_kernel}
