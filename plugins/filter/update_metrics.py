# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter kvm.liveupdate.update_metrics."""

from __future__ import annotations

DOCUMENTATION = r"""
name: update_metrics
short_description: A live update of one host as Prometheus metrics
version_added: 0.1.0
author: kvm.liveupdate contributors (@kvm-liveupdate)
description:
  - Turns the result of one host into metrics in Prometheus' text format, for the textfile collector of node_exporter.
  - They are C(kvm_liveupdate_last_update_timestamp_seconds), C(_last_update_outcome{outcome}),
    C(_last_update_info{kernel_before,kernel_after,update_id}), C(_blackout_max_seconds), C(_guest_restored{guest}) and
    C(_guest_blackout_seconds{guest}).
positional: _input
options:
  _input:
    description: What P(kvm.liveupdate.update_result#filter) says of the host.
    type: dict
    required: true
  now:
    description: When the update ended, in seconds since the epoch.
    type: float
    required: true
"""

EXAMPLES = r"""
- name: Tell Prometheus of the update
  ansible.builtin.copy:
    dest: /var/lib/prometheus/node-exporter/kvm_liveupdate.prom
    content: "{{ hypervisor_update_result | kvm.liveupdate.update_metrics(now=now().timestamp()) }}"
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The metrics.
  type: str
"""

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils.metrics import text


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        """The filters of this file."""
        return {"update_metrics": text}
