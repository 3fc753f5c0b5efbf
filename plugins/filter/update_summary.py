# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate.update_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
name: update_summary
short_description: What became of each host of a run, in a line
version_added: 0.1.0
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Says of each host in one line what the run did with it, and which hosts are to fail for it.
  - Hosts that were refused, undone, failed or lost do, and those over their budget. Hosts that were left out do when no host was updated.
positional: _input
options:
  _input:
    description: By host name what P(kvm.liveupdate.update_result#filter) says of it.
    type: dict
    required: true
  check_mode:
    description: Whether nothing was to be changed.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Say what became of this host
  ansible.builtin.debug:
    msg: "{{ (liveupdate_report | kvm.liveupdate.update_summary).lines[inventory_hostname] }}"
"""

RETURN = r"""
_value:
  description: V(lines) by host name, and V(failed), a list of host names.
  type: dict
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils.result import summary


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"update_summary": summary}
