# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._matching_names."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _matching_names
short_description: "Internal - which names are meant by names and patterns"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Returns V(names), what the patterns mean, and V(unmatched), the patterns that match nothing.
positional: _input, names
options:
  _input:
    description: Names and patterns in the syntax of Python's fnmatch.
    type: list
    elements: str
    required: true
  names:
    description: The names that exist.
    type: list
    elements: str
    required: true
  word:
    description: A word that matches every name.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show the domains that are meant
  ansible.builtin.debug:
    msg: "{{ (['web*', 'db1'] | kvm.liveupdate._matching_names(['web1', 'web2', 'db1'])).names }}"
"""

RETURN = r"""
_value:
  description: V(names) and V(unmatched).
  type: dict
  sample: {names: [web1, web2, db1], unmatched: []}
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._patterns import matching


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"_matching_names": matching}
