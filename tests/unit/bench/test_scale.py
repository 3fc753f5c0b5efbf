# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulation of many hosts, as far as it needs no Ansible."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._plan import plan as planned
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._policy import Policy
from kvmbench import scale
from kvmbench.facts import POLICY
from kvmbench.scale import Cost, Row


def test_each_host_can_be_updated_and_its_guests_take_several_ways() -> None:
    made = planned(scale.facts(), Policy(POLICY))
    assert made["verdict"] == "go" and len(made["guests"]) == scale.GUESTS
    assert {guest["way"] for guest in made["guests"]} >= {"preserve", "shutdown"}


def test_as_many_tasks_that_do_nothing() -> None:
    (play,) = scale.idle(ok=3, skipped=2)
    assert len(play["tasks"]) == 5 and sum(task.get("when") is False for task in play["tasks"]) == 2
    assert sum("ansible.builtin.ping" in task for task in play["tasks"]) == 1


def test_only_the_module_that_examines_a_host_is_a_stub(tmp_path: Path) -> None:
    scale.lay_out(tmp_path, 3)
    modules = tmp_path / "ansible_collections/kvm/liveupdate/plugins/modules"
    assert [path.name for path in modules.iterdir() if not path.is_symlink()] == ["hypervisor_info.py"]
    assert str(tmp_path / "facts.json") in (modules / "hypervisor_info.py").read_text()
    assert list(json.loads((tmp_path / "hosts.yml").read_text())["hypervisors"]["hosts"]) == ["hv1", "hv2", "hv3"]
    assert not (scale.REPOSITORY / "plugins/modules/hypervisor_info.py").is_symlink()


def test_the_table_says_that_it_is_a_simulation() -> None:
    row = Row(10, 20, Cost(15.0, 20.0, 120.0), Cost(10.0, 12.0, 90.0), 0.5, 100.0, 900.0)
    text = scale.table([row], "a machine")
    assert text.startswith("A simulation on a machine:") and "     - 1.50 (1.00)\n     - 2.00 (1.20)\n     - 120 (90)\n" in text
