# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._kernel_build_progress."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _kernel_build_progress
short_description: "Internal - how far the build of a kernel is"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input, objects
options:
  _input:
    description: The content of the file that the build writes.
    type: str
    required: true
  objects:
    description: About how many objects the kernel consists of.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Show how many minutes are left
  ansible.builtin.debug:
    msg: "{{ ('measured 100 60' | kvm.liveupdate._kernel_build_progress(2000)).minutes }}"
"""

RETURN = r"""
_value:
  description: V(done), V(objects), V(percent), V(minutes) and V(status).
  type: dict
  sample: {done: 0, objects: 2000, percent: 0, minutes: 25, status: null}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._kernel_build import progress


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_kernel_build_progress": progress}
