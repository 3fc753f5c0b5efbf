# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller does for all hosts at once must not be done once for each of them."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
import yaml

ROLE = Path(__file__).parents[3] / "roles/hypervisor_update"
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text())
IS_DUE = jinja2.Environment().from_string(VARIABLES["__hypervisor_update_page_is_due"])
# What a variable of the role or of Ansible has of every host.
OF_ALL = re.compile(r"\bhostvars\b|\b__hypervisor_update_(results|whole|page|stop)\b")
# These task files run once for all hosts, wherever they are used.
ONCE = ("page.yml",)


def tasks(file: Path):
    """All tasks of a file, also those in blocks."""
    left = yaml.safe_load(file.read_text())
    while left:
        task = left.pop(0)
        left += [inner for part in ("block", "rescue", "always") for inner in task.get(part, [])]
        yield {name: value for name, value in task.items() if name not in ("block", "rescue", "always")}


def due(number: int, batches: int, report: str = "page.html") -> bool:
    """Whether the page is written after this batch of so many. Each has one host."""
    known = {f"hv{each}": each for each in range(1, batches + 1)}
    given = {"__hypervisor_update_batches": known} if batches else {}
    return IS_DUE.render(hypervisor_update_report=report, inventory_hostname=f"hv{number}", **given) == "True"


@pytest.mark.parametrize("batches", [1, 20, 21, 100, 500])
def test_the_page_is_written_after_each_batch_and_about_twenty_times_in_a_long_run(batches):
    written = sum(due(number, batches) for number in range(1, batches + 1))
    assert written == batches if batches <= 20 else 10 <= written <= 20


def test_the_page_is_written_without_batches_and_never_unasked():
    """Somebody may use the role without the playbook."""
    assert due(1, 0) and not due(1, 0, report="") and not due(1, 1, report="")


@pytest.mark.parametrize("file", sorted((ROLE / "tasks").glob("*.yml")), ids=lambda file: file.name)
def test_what_looks_at_all_hosts_runs_once(file):
    for task in tasks(file):
        if file.name not in ONCE and OF_ALL.search(str(task)):
            assert task.get("run_once") is True, f"{task['name']} would look at all hosts once for each host"
        if any(name in str(task) for name in ONCE):
            by_one = "inventory_hostname == ansible_play_batch[0]" in str(task.get("when"))
            assert by_one or task.get("run_once") is True, task["name"]


def test_a_fact_that_each_host_reads_has_no_results_of_the_others():
    """ansible-core 2.18 renders all of a variable each time it is read."""
    (made,) = [task for task in tasks(ROLE / "tasks/sum_up.yml") if "ansible.builtin.set_fact" in task]
    assert "rejectattr('key', 'equalto', 'hosts')" in made["ansible.builtin.set_fact"]["__hypervisor_update_summary"]
    (place,) = [task for task in tasks(ROLE / "tasks/place.yml") if "ansible.builtin.set_fact" in task]
    kept = place["ansible.builtin.set_fact"]["__hypervisor_update_place"]["plan"]
    assert set(re.findall(r"__hypervisor_update_plan\.(\w+)", kept)) == {"essential", "members"}
    place = place["ansible.builtin.set_fact"]["__hypervisor_update_place"]
    assert set(place) == {"name", "plan", "apart", "moves", "present", "absent"}
