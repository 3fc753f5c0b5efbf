# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._without_memory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _without_memory
short_description: "Internal - which guests run, but were not restored by this update"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input, update_id
options:
  _input:
    description: What M(kvm.liveupdate.guest) returned as RV(kvm.liveupdate.guest#module:guests).
    type: list
    elements: dict
    required: true
  update_id:
    description: The ID of this update.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show who lost the memory
  ansible.builtin.debug:
    msg: "{{ restored.guests | kvm.liveupdate._without_memory(jumped.journal.id) }}"
"""

RETURN = r"""
_value:
  description: A sentence for each of these guests.
  type: list
  elements: str
  sample: ["guest web1 runs without its memory: this update did not restore it"]
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._refusals import without_memory


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., list[str]]]:
        """The filters of this file."""
        return {"_without_memory": without_memory}
