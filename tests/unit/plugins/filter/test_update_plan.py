# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.filter._update_plan import plain, update_plan

WEB = {"name": "web", "provider": "qemu", "memory_mib": 4096, "devices": ["hostdev"], "labels": {"tier": "gold"}, "reasons": []}
HOST = {"guests": [WEB], "reasons": [], "target": {"release": "7.3.4", "current": False}}


class Text(str):
    """What Ansible makes of strings that it keeps notes about."""

    __slots__ = ()


def test_the_defaults_are_those_of_the_role():
    assert update_plan(HOST)["guests"][0]["way"] == "preserve"
    assert update_plan({**HOST, "guests": [{"name": "other", "reasons": []}]})["verdict"] == "refuse"


def test_a_mistake_is_an_error_of_the_filter():
    with pytest.raises(AnsibleFilterError, match="the plan cannot be made: rule 1 of hypervisor_update_policy: match is not a JMESPath"):
        update_plan(HOST, policy=[{"match": "memory_mib >", "ladder": ["save"]}])
    with pytest.raises(AnsibleFilterError, match="the plan cannot be made: this is not what hypervisor_info returns"):
        update_plan({"unreachable": True})
    for timeout in (0, -1, "0"):
        with pytest.raises(AnsibleFilterError, match=f"the plan cannot be made: hypervisor_update_timeout is {timeout}; write a number"):
            update_plan(HOST, timeout=timeout)
    assert update_plan(HOST, timeout=1)["verdict"] == "go"


def test_the_kinds_of_ansible_become_those_that_jmespath_knows():
    assert [type(item) for pair in plain({Text("a"): Text("b")}).items() for item in pair] == [str, str]
    kinds = [type(item) for item in plain((Text("b"), 1, 1.5, True, None))]
    assert kinds == [str, int, float, bool, type(None)]
