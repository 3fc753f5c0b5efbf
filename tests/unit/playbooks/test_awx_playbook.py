# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook kvm.liveupdate.awx with stubs of the modules of awx.awx and ansible.controller, so that it runs with each ansible-core.

The real modules of awx.awx are in tests/awx.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import test_awx
from test_awx import DEFINED

# The arguments that each stub knows.
NAMED = "name organization state"
STUBS = {
    "organization": f"{NAMED} galaxy_credentials",
    "notification_template": f"{NAMED} notification_type notification_configuration",
    "execution_environment": f"{NAMED} image",
    "project": f"{NAMED} scm_type scm_url scm_branch",
    "inventory": NAMED,
    "job_template": f"{NAMED} description project playbook job_type inventory execution_environment credentials forks timeout"
    " ask_limit_on_launch job_slice_count allow_simultaneous survey_enabled survey_spec notification_templates_error",
    "schedule": f"{NAMED} unified_job_template rrule extra_data",
    "workflow_job_template": f"{NAMED} description inventory allow_simultaneous survey_enabled survey_spec notification_templates_error"
    " notification_templates_approvals",
    "workflow_job_template_node": "workflow_job_template organization identifier unified_job_template lookup_organization approval_node"
    " limit success_nodes failure_nodes",
}
STUB = '''#!/usr/bin/python
"""A STUB of a module of {collection}: it logs its arguments, and nothing else."""
import json
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({{word: {{"type": "raw"}} for word in "{words}".split()}})
given = {{word: value for word, value in module.params.items() if value is not None}}
with open("{folder}/calls", "a") as log:
    log.write(json.dumps(["{collection}.{name}", given]) + "\\n")
module.exit_json(changed=True)
'''
DATA = {
    "liveupdate_awx_organization": "Operations",
    "liveupdate_awx_project_url": "https://git.example.org/kvm.liveupdate.git",
    "liveupdate_awx_image": "registry.example.org/liveupdate:0.2.0",
    "liveupdate_awx_credential": "hypervisors",
    "liveupdate_awx_notifications": [{"name": "operators", "type": "email", "configuration": {"port": 25}}, {"name": "pager"}],
}


def play(folder, collection="awx.awx", **extra):
    """Run the playbook: how it ended, what it printed, and the calls of the modules in order."""
    place = folder / "ansible_collections" / collection.replace(".", "/")
    (place / "plugins/modules").mkdir(parents=True)
    for name, words in STUBS.items():
        (place / f"plugins/modules/{name}.py").write_text(STUB.format(collection=collection, name=name, words=words, folder=folder))
    (folder / "ansible_collections/kvm").mkdir()
    (folder / "ansible_collections/kvm/liveupdate").symlink_to(test_awx.ROOT)
    (folder / "calls").touch()
    done = subprocess.run(
        ["ansible-playbook", "kvm.liveupdate.awx", "-e", json.dumps({**DATA, "liveupdate_awx_collection": collection, **extra})],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(folder),
            "PYTHONPATH": "",
            "ANSIBLE_HOME": str(folder),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    assert all(name.startswith(f"{collection}.") for name, _given in calls)
    return done.returncode, done.stdout + done.stderr, [(name.removeprefix(f"{collection}."), given) for name, given in calls]


@pytest.fixture(name="applied", scope="module")
def applied_once(tmp_path_factory):
    """The calls of a run that makes everything."""
    code, output, calls = play(tmp_path_factory.mktemp("awx"), liveupdate_awx_check_kernel="/boot/vmlinuz-7.3.4")
    assert code == 0, output
    return calls


def test_everything_is_made_in_an_order_in_which_awx_finds_it(applied):
    order = ["organization", "notification_template", "execution_environment", "project", "inventory", "job_template", "schedule"]
    assert list(dict.fromkeys(name for name, _given in applied)) == [*order, "workflow_job_template", "workflow_job_template_node"]
    assert applied[0] == ("organization", {"name": "Operations", "state": "exists"})


def test_the_modules_get_numbers_lists_and_booleans(applied):
    templates = {given["name"]: given for name, given in applied if name == "job_template"}
    assert set(templates) == {f"liveupdate_{template['name']}" for template in DEFINED["__templates"]}
    for template in DEFINED["__templates"]:
        given = templates[f"liveupdate_{template['name']}"]
        assert (given["forks"], given["timeout"], given["job_slice_count"]) == (10, 0, 1)
        assert (given["allow_simultaneous"], given["survey_enabled"]) == (False, True)
        assert (given["credentials"], given["notification_templates_error"]) == (["hypervisors"], ["operators", "pager"])
        assert given["survey_spec"]["spec"] == [DEFINED["__questions"][name] for name in template["survey"]]
        assert given["playbook"] == f"playbooks/{template['playbook']}" and given["job_type"] == template["job_type"]
    (told,) = [given for name, given in applied if name == "notification_template"]
    assert told["notification_configuration"] == {"port": 25}
    (schedule,) = [given for name, given in applied if name == "schedule"]
    assert schedule["extra_data"] == {"hypervisor_update_kernel": "/boot/vmlinuz-7.3.4", "hypervisor_update_leave_out": "true"}


def test_a_node_leads_only_to_nodes_that_exist_and_an_approval_is_no_job(applied):
    made: dict[str, dict] = {}
    for given in (given for name, given in applied if name == "workflow_job_template_node"):
        assert {*given.get("success_nodes", []), *given.get("failure_nodes", [])} <= set(made)
        made.setdefault(given["identifier"], {}).update(given)
    assert len(made) == len(DEFINED["__workflow_nodes"])
    for node in DEFINED["__workflow_nodes"]:
        given = made[node["identifier"]]
        assert (given["success_nodes"], given["failure_nodes"]) == (node["success"], node["failure"])
        assert ("approval_node" in given) is ("approval" in node) and ("unified_job_template" in given) is ("template" in node)
        assert given.get("limit") == (node["limit"].replace("{{ liveupdate_awx_canary }}", "hypervisors[0]") if "limit" in node else None)
    assert made["look"]["approval_node"]["timeout"] == 86400


def test_the_automation_platform_and_what_absent_removes(tmp_path):
    code, output, calls = play(tmp_path, "ansible.controller", liveupdate_awx_state="absent", liveupdate_awx_shared=["organization"])
    assert code == 0 and all(given["state"] == "absent" for _name, given in calls), output
    removed = [name for name, _given in calls if name != "job_template"]
    assert removed == ["workflow_job_template", "notification_template", "project", "execution_environment", "inventory"]
    assert len(calls) - len(removed) == len(DEFINED["__templates"])


def test_a_state_that_does_not_exist_changes_nothing(tmp_path):
    code, output, calls = play(tmp_path, liveupdate_awx_state="removed")
    assert code != 0 and calls == [] and "Set it to present or absent. Nothing was done." in output, output


def test_a_data_file_that_lacks_something_changes_nothing(tmp_path):
    code, output, calls = play(tmp_path, liveupdate_awx_image="")
    assert code != 0 and calls == [] and "liveupdate_awx_image is not set. Set it in the data file." in output, output
