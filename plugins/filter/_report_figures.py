# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate._report_figures."""

from __future__ import annotations

DOCUMENTATION = r"""
name: _report_figures
short_description: "Internal - the figures of a run"
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Internal. The roles of this collection use it. It can change or disappear in any release.
  - Computes all that the HTML page and the metrics of the role P(kvm.liveupdate.hypervisor_update#role) show.
positional: _input
options:
  _input:
    description: The results of P(kvm.liveupdate._update_result#filter) by host name.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the main figures
  ansible.builtin.debug:
    msg: "{{ (results | kvm.liveupdate._report_figures).tiles }}"
"""

RETURN = r"""
_value:
  description: The figures. C(plugin_utils/_report.py) describes them.
  type: dict
  sample:
    title: Live update of hv1
    when: 2026-12-01 02:10:00 to 2026-12-01 02:11:05 UTC
    tiles: [{name: hosts on the new kernel, value: 1 of 1}, {name: guests kept in memory, value: "0"}]
    hosts: []
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._report import figures


def report_figures(hosts: t.Any) -> dict[str, t.Any]:
    """The figures, or an error that names the mistake in the report."""
    if not isinstance(hosts, dict):
        raise AnsibleFilterError(f"_report_figures: the report is a {type(hosts).__name__}, not a dictionary of hosts")
    try:
        return figures(hosts)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise AnsibleFilterError(f"_report_figures: this is not a report of the role hypervisor_update: {err!r}") from err


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[[t.Any], dict[str, t.Any]]]:
        """The filters of this file."""
        return {"_report_figures": report_figures}
