# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._kernel_build_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _kernel_build_plan
short_description: "Internal - what the build of a kernel consists of"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Any other argument has a name and a text. It is one more input of the build, such as the digest of the source.
positional: _input, suffix
options:
  _input:
    description: Kernel options with their values that are added to the configuration.
    type: dict
    required: true
  suffix:
    description: What follows the version of the source in the release of the kernel.
    type: str
    required: true
  signing_key:
    description: The path of the key that signs modules and image. Empty if nothing is signed.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show which options are added to the configuration
  ansible.builtin.debug:
    msg: "{{ ({} | kvm.liveupdate._kernel_build_plan('-liveupdate')).fragment }}"
"""

RETURN = r"""
_value:
  description: V(faults), V(wanted), V(fragment), V(version_suffix) and V(digest).
  type: dict
  sample:
    faults: []
    wanted: {KEXEC_HANDOVER: "y", LOCALVERSION: -liveupdate}
    fragment: "CONFIG_KEXEC_HANDOVER=y\nCONFIG_LOCALVERSION=\"-liveupdate\"\n"
    version_suffix: +liveupdate
    digest: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._kernel_build import plan


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_kernel_build_plan": plan}
