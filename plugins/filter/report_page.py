# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate.report_page."""

from __future__ import annotations

DOCUMENTATION = r"""
name: report_page
short_description: The report of a live update as an HTML page
version_added: 0.1.0
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Turns what the role P(kvm.liveupdate.hypervisor_update#role) reports into one HTML page without scripts and external files.
  - It has a timeline for each host and guest, where each second of the pause went, and what was refused and why.
positional: _input
options:
  _input:
    description: The report, by host name, as the role sets it in C(liveupdate_report).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Write the report
  ansible.builtin.copy:
    dest: ./report.html
    content: "{{ liveupdate_report | kvm.liveupdate.report_page }}"
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.plugin_utils.report import page


def report_page(hosts: t.Any) -> str:
    """The page, or an error that names what is wrong with the report."""
    if not isinstance(hosts, dict):
        raise AnsibleFilterError(f"report_page: the report is a {type(hosts).__name__}, not a dictionary of hosts")
    try:
        return page(hosts)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise AnsibleFilterError(f"report_page: this is no report of the role hypervisor_update: {err!r}") from err


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[[t.Any], str]]:
        """The filters of this file."""
        return {"report_page": report_page}
