# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The first play and the last, against this machine, which is not prepared, and one that is not there. Nothing is done to them."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

# Nothing listens on port 1, so "away" does not answer; "here" has no such kernel.
INVENTORY = """
[fleet]
here ansible_connection=local
away ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-o BatchMode=yes -o ConnectTimeout=5'
[others]
elsewhere
[fleet:vars]
ansible_become=false
ansible_python_interpreter={{ ansible_playbook_python }}
hypervisor_update_kernel=/nowhere/vmlinuz-9.9.9
"""


def ansible(tmp_path, command, *words, **extra):
    """What it printed, and how it ended."""
    inventory = tmp_path / "hosts"
    inventory.write_text(INVENTORY)
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_HOME": str(tmp_path),
        "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [command, "-i", str(inventory), "-e", json.dumps(extra), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def update(tmp_path, **extra):
    """Run the playbook; returns how it ended, what it printed, its report and the page."""
    page = tmp_path / "report.html"
    code, output = ansible(
        tmp_path, "ansible-playbook", "kvm.liveupdate.update", hypervisor_update_hosts="fleet", hypervisor_update_report=str(page), **extra
    )
    report = json.loads((tmp_path / "report.html.json").read_text()) if page.exists() else {}
    return code, output, report, page.read_text() if page.exists() else ""


def test_hosts_that_are_not_fit_stop_the_run_before_any_is_touched(tmp_path):
    code, output, report, _page = update(tmp_path)
    assert code != 0 and "To skip such hosts, set hypervisor_update_leave_out to true" in output, output
    assert report["away"]["outcome"] == "refused" and report["away"]["why"].startswith("away cannot be reached: ")
    assert report["here"]["outcome"] == "refused" and report["here"]["why"]
    assert "Stage the kernel" not in output


def test_a_run_that_leaves_out_every_host_fails(tmp_path):
    code, output, report, page = update(tmp_path, hypervisor_update_leave_out=True)
    assert code != 0 and output.count("The run updated no host") >= 2, output
    assert {name: host["outcome"] for name, host in report.items()} == {"here": "left_out", "away": "left_out"}
    assert "skipped, not touched" in page and "away cannot be reached" in page
    assert "Stage the kernel" not in output


@pytest.mark.parametrize(
    ("playbook", "hosts", "words", "told"),
    [
        ("update", {"hypervisor_update_hosts": "fleed"}, [], "=fleed. Nothing was done. Add hosts to the group, or choose"),
        ("setup", {"hypervisor_setup_hosts": ["fleet", "&fleed"]}, [], "hypervisor_setup_hosts=fleet,&fleed. Nothing was done. Add hosts"),
        ("kernel", {"hypervisor_update_hosts": "fleed"}, [], "hypervisor_update_hosts=fleed. Nothing was done. Add hosts"),
        ("update", {}, [], "hypervisor_update_hosts=hypervisors. Nothing was done. Add hosts"),
        ("setup", {}, [], "hypervisor_setup_hosts=hypervisors. Nothing was done. Add hosts"),
        ("build_kernel", {}, [], "build_kernel_hosts=kernel_builders. Nothing was done. Add hosts"),
        # A limit leaves out localhost too.
        ("update", {"hypervisor_update_hosts": "fleet"}, ["--limit", "elsewhere"], "=fleet within the limit elsewhere. Nothing was done."),
    ],
)
def test_a_playbook_without_a_host_fails(tmp_path, playbook, hosts, words, told):
    code, output = ansible(tmp_path, "ansible-playbook", f"kvm.liveupdate.{playbook}", *words, **hosts)
    assert code != 0 and "No host matches " in output and told in output, output
    assert "TASK [Stop if there is no host]" in output and output.count("TASK [") == 1
    assert not re.search(r"unreachable=[1-9]", output)


def test_a_rule_without_a_ladder_stops_the_run(tmp_path):
    code, output, report, _page = update(tmp_path, hypervisor_update_policy=[{"match": "name"}])
    assert code != 0 and "missing required arguments: ladder found in hypervisor_update_policy" in output and report == {}, output


@pytest.mark.parametrize("match", ["contains(devices, 'hostdev')", "starts_with(labels.tier, 'go')", "length(devices) == `1`"])
def test_functions_of_jmespath_work_on_what_a_template_hands_over(tmp_path, match):
    guest = {"name": "web", "provider": "qemu", "devices": ["hostdev"], "labels": {"tier": "gold"}, "reasons": []}
    code, output = ansible(
        tmp_path,
        "ansible",
        "here",
        "-m",
        "ansible.builtin.debug",
        "-a",
        "msg={{ (facts | kvm.liveupdate._update_plan(policy=rules)).guests[0].way }}",
        facts={"guests": [guest], "reasons": []},
        rules=[{"match": match, "ladder": ["shutdown"]}],
    )
    assert code == 0 and re.search(r'"msg": "shutdown"', output), output
