# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._failure."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _failure
short_description: "Internal - why a task failed"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
positional: _input, refusals
options:
  _input:
    description: The variable C(ansible_failed_result) of a rescue section.
    type: dict
    required: true
  refusals:
    description: The refusals in the plan of the host. Empty if it has no plan.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Keep the reason
  ansible.builtin.set_fact:
    why: "{{ (ansible_failed_result | kvm.liveupdate._failure).why }}"
"""

RETURN = r"""
_value:
  description: V(why), a sentence, and V(lost), whether the host did not answer.
  type: dict
  sample: {why: "hv1 cannot be reached: timed out", lost: true}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._failure import failure


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        """The filters of this file."""
        return {"_failure": failure}
