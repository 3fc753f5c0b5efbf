# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook kvm.liveupdate.awx, with the real modules of awx.awx, against a fake of AWX's REST API."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _result
from fake_controller import TOKEN, Controller, FakeController, Refused

COLLECTION = Path(_result.__file__).parents[2]
PLAYBOOKS = {f"playbooks/{path.name}" for path in (COLLECTION / "playbooks").glob("*.yml")}
NOTIFICATION = {
    "name": "operators",
    "type": "email",
    "configuration": {
        "host": "mail.example.org", "port": 25, "username": "", "password": "", "use_tls": False, "use_ssl": False,
        "sender": "awx@example.org", "recipients": ["ops@example.org"], "timeout": 30,
    },
}  # fmt: skip
DATA = {
    "liveupdate_awx_organization": "Operations",
    "liveupdate_awx_project_url": "https://git.example.org/kvm.liveupdate.git",
    "liveupdate_awx_project_branch": "0.2.0",
    "liveupdate_awx_image": "registry.example.org/liveupdate:0.2.0",
    "liveupdate_awx_credential": "hypervisors",
    "liveupdate_awx_check_kernel": "/boot/vmlinuz-7.3.4",
    "liveupdate_awx_notifications": [NOTIFICATION, {"name": "pager"}],
}
OTHERS = {"credentials": ["hypervisors"], "notification_templates": ["pager"], "organizations": ["Others"]}


def others(controller: Controller) -> None:
    """What is in AWX before the playbook runs."""
    organization = controller.add("organizations", {"name": "Others"})
    controller.add("credentials", {"name": "hypervisors", "credential_type": 1, "organization": organization["id"]})
    pager = {"name": "pager", "organization": organization["id"], "notification_type": NOTIFICATION["type"]}
    controller.add("notification_templates", {**pager, "notification_configuration": NOTIFICATION["configuration"]})


def play(fake: FakeController, home: Path, *options: str, **more: object) -> tuple[int, str, dict[str, int]]:
    """Run the playbook: its exit code, what it printed, and its recap."""
    home.mkdir(exist_ok=True)
    (home / "data.yml").write_text(yaml.safe_dump({**DATA, **more}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOWER_", "CONTROLLER_"))}
    # Without verification no request loads the certificates of the machine, which the fake does not need.
    environment |= {
        "CONTROLLER_HOST": fake.url,
        "CONTROLLER_VERIFY_SSL": "false",
        "CONTROLLER_OAUTH_TOKEN": TOKEN,
        "HOME": str(home),
        "ANSIBLE_HOME": str(home),
    }
    environment |= {"ANSIBLE_COLLECTIONS_PATH": f"{COLLECTION.parents[2]}:{os.environ['AWX_COLLECTIONS']}", "PYTHONPATH": ""}
    environment |= {"LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        ["ansible-playbook", "kvm.liveupdate.awx", "-e", f"@{home}/data.yml", *options],
        cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    recap = dict(re.findall(r"(\w+)=(\d+)", done.stdout.rpartition("PLAY RECAP")[2]))
    return done.returncode, done.stdout + done.stderr, {name: int(value) for name, value in recap.items()}


def needs_awx(test):
    """A minute, and the collection awx.awx."""
    without = pytest.mark.skipif(not os.environ.get("AWX_COLLECTIONS"), reason="no awx.awx: call ensure_awx of tests/setup.sh")
    return pytest.mark.beyond(without(test))


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """The playbook twice, once without the kernel of the nightly check, and once to remove everything."""
    home = tmp_path_factory.mktemp("awx") / "home"
    runs: dict[str, object] = {}
    with FakeController(PLAYBOOKS) as fake:
        others(fake.controller)
        no_kernel = ["--start-at-task", "Nightly check", "-e", "liveupdate_awx_check_kernel=''"]
        for name, options in (("first", []), ("second", []), ("no_kernel", no_kernel)):
            before = fake.controller.changes
            code, output, recap = play(fake, home, *options)
            assert code == 0, output
            runs[name] = {"output": output, "recap": recap, "requests": fake.controller.changes - before, "made": fake.controller.made()}
            if name == "second":
                runs["controller"] = copy.deepcopy(fake.controller)
        code, output, recap = play(fake, home, liveupdate_awx_state="absent", liveupdate_awx_shared=[])
        assert code == 0, output
        runs["absent"] = {"output": output, "recap": recap, "made": fake.controller.made()}
    return runs


@needs_awx
def test_the_first_run_makes_everything_from_the_organization_to_the_workflow(applied):
    templates = [f"liveupdate_{name}" for name in ("check", "kernel", "rollback", "setup", "trial", "update")]
    assert applied["first"]["made"] == {
        "organizations": ["Operations", "Others"],
        "credentials": ["hypervisors"],
        "execution_environments": ["liveupdate"],
        "notification_templates": ["operators", "pager"],
        "projects": ["liveupdate"],
        "inventories": ["liveupdate"],
        "job_templates": templates,
        "workflow_job_templates": ["liveupdate"],
        "workflow_job_template_nodes": ["approve_kernel", "approve_rest", "canary", "check", "kernel", "look", "rest"],
        "workflow_approval_templates": ["liveupdate_approve_kernel", "liveupdate_approve_rest", "liveupdate_look"],
        "schedules": ["liveupdate_check"],
    }


@needs_awx
def test_the_second_run_changes_nothing(applied):
    assert applied["first"]["recap"]["changed"] > 0
    assert applied["second"]["recap"]["changed"] == 0, applied["second"]["output"]
    assert applied["second"]["requests"] == 0
    assert applied["second"]["made"] == applied["first"]["made"]


@needs_awx
def test_no_jobs_at_the_same_time_and_no_slices(applied):
    controller = applied["controller"]
    for template in controller.objects["job_templates"].values():
        assert (template["job_slice_count"], template["allow_simultaneous"]) == (1, False), template["name"]
        assert template["ask_limit_on_launch"] and not template["ask_job_slice_count_on_launch"] and not template["ask_variables_on_launch"]
        assert template["survey_enabled"] and controller.surveys[template["id"]]["spec"]
    workflow = controller.named("workflow_job_templates", "liveupdate")
    assert workflow["allow_simultaneous"] is False
    assert {name for name, template in named(controller).items() if template["job_type"] == "check"} == {"liveupdate_check"}


def named(controller: Controller) -> dict[str, dict]:
    return {template["name"]: template for template in controller.objects["job_templates"].values()}


@needs_awx
def test_the_job_templates_have_what_a_job_needs(applied):
    controller = applied["controller"]
    project = controller.named("projects", "liveupdate")
    assert (project["scm_type"], project["scm_url"], project["scm_branch"]) == (
        "git",
        DATA["liveupdate_awx_project_url"],
        DATA["liveupdate_awx_project_branch"],
    )
    environment = controller.named("execution_environments", "liveupdate")
    assert environment["image"] == DATA["liveupdate_awx_image"]
    for template in named(controller).values():
        assert template["project"] == project["id"]
        assert template["inventory"] == controller.named("inventories", "liveupdate")["id"]
        assert template["execution_environment"] == environment["id"]
        assert controller.lists[template["id"], "credentials"] == [controller.named("credentials", "hypervisors")["id"]]
    schedule = controller.named("schedules", "liveupdate_check")
    assert schedule["unified_job_template"] == named(controller)["liveupdate_check"]["id"]
    assert schedule["extra_data"] == {"hypervisor_update_kernel": "/boot/vmlinuz-7.3.4", "hypervisor_update_leave_out": "true"}


def edges(controller: Controller, kind: str) -> dict[str, str]:
    """Where each node of the workflow leads to."""
    nodes = controller.objects["workflow_job_template_nodes"]
    return {
        node["identifier"]: ", ".join(nodes[each]["identifier"] for each in ids)
        for node in nodes.values()
        if (ids := controller.lists.get((node["id"], f"{kind}_nodes")))
    }


@needs_awx
def test_the_workflow_asks_before_it_changes_something_and_a_failure_asks_for_a_look(applied):
    controller = applied["controller"]
    jobs = ("check", "kernel", "canary", "rest")
    way = ("check", "approve_kernel", "kernel", "canary", "approve_rest", "rest")
    assert edges(controller, "success") == dict(itertools.pairwise(way))
    assert edges(controller, "failure") == dict.fromkeys(jobs, "look")
    assert edges(controller, "always") == {}
    nodes = {node["identifier"]: node for node in controller.objects["workflow_job_template_nodes"].values()}
    templates = {template["id"]: name for name, template in named(controller).items()}
    assert {name: templates[nodes[name]["unified_job_template"]] for name in jobs} == {
        "check": "liveupdate_check", "kernel": "liveupdate_kernel", "canary": "liveupdate_update", "rest": "liveupdate_update",
    }  # fmt: skip
    assert (nodes["canary"]["limit"], nodes["rest"]["limit"]) == ("hypervisors[0]", "hypervisors:!hypervisors[0]")
    approval = controller.named("workflow_approval_templates", "liveupdate_approve_rest")
    assert nodes["approve_rest"]["unified_job_template"] == approval["id"] and approval["timeout"] == 86400


@needs_awx
def test_failures_and_approvals_are_told(applied):
    controller = applied["controller"]
    told = {controller.named("notification_templates", name)["id"] for name in ("operators", "pager")}
    workflow = controller.named("workflow_job_templates", "liveupdate")
    for number in (workflow["id"], *(template["id"] for template in named(controller).values())):
        assert set(controller.lists[number, "notification_templates_error"]) == told
    assert set(controller.lists[workflow["id"], "notification_templates_approvals"]) == told


@needs_awx
def test_without_a_kernel_the_nightly_check_goes_and_nothing_else_changes(applied):
    assert applied["no_kernel"]["made"] == {kind: names for kind, names in applied["first"]["made"].items() if kind != "schedules"}
    assert (applied["no_kernel"]["recap"]["changed"], applied["no_kernel"]["requests"]) == (1, 1), applied["no_kernel"]["output"]


@needs_awx
def test_absent_removes_everything_that_was_made_and_nothing_else(applied):
    assert applied["absent"]["made"] == OTHERS
    # AWX removes some of these with the organization. The playbook removes each by itself.
    removed = ["workflow", "job templates", "notification templates", "project", "execution environment", "inventory", "organization"]
    assert applied["absent"]["recap"]["changed"] == len(removed), applied["absent"]["output"]


def test_the_fake_refuses_what_awx_does_not_know_or_allow():
    controller = Controller(PLAYBOOKS)
    others(controller)
    wrong = [
        ("POST", "organizations/", {"name": "Third", "colour": "red"}),
        ("POST", "organizations/", {"name": "Others"}),
        ("POST", "organizations/", {"description": "no name"}),
        ("POST", "organizations/", {"name": "Third", "max_hosts": "10"}),
        ("PATCH", "organizations/1/", {"colour": "red"}),
        ("POST", "job_templates/", {"name": "update", "project": 99, "playbook": "playbooks/update.yml"}),
        ("GET", "organizations/?colour=red", {}),
        ("GET", "colours/", {}),
    ]
    before = controller.changes
    for method, path, body in wrong:
        place, _, query = path.partition("?")
        with pytest.raises(Refused):
            controller.answer(method, f"/api/v2/{place}", dict([query.split("=")]) if query else {}, json.loads(json.dumps(body)))
    assert controller.changes == before


def test_the_fake_takes_only_what_a_template_asks_for_and_no_circle():
    controller = Controller(PLAYBOOKS)
    others(controller)
    project = controller.add("projects", {"name": "p", "organization": 1, "scm_type": "git"})
    inventory = controller.add("inventories", {"name": "i", "organization": 1})
    template = {"name": "update", "project": project["id"], "inventory": inventory["id"], "playbook": "playbooks/update.yml"}
    with pytest.raises(Refused, match="Playbook not found"):
        controller.add("job_templates", template)
    controller.answer("GET", f"/api/v2/project_updates/{project['id']}/", {}, {})
    update = controller.add("job_templates", template)
    workflow = controller.add("workflow_job_templates", {"name": "w", "organization": 1})
    node = {"workflow_job_template": workflow["id"], "unified_job_template": update["id"]}
    with pytest.raises(Refused, match="prompt on launch"):
        controller.add("workflow_job_template_nodes", {**node, "identifier": "one", "limit": "hv1"})
    with pytest.raises(Refused, match="not allowed on launch"):
        controller.add("schedules", {"name": "s", "unified_job_template": update["id"], "rrule": "x", "extra_data": {"a": 1}})
    one, two = (controller.add("workflow_job_template_nodes", {**node, "identifier": name})["id"] for name in ("one", "two"))
    controller.link(one, "success_nodes", {"id": two})
    for number, kind, child in ((two, "failure_nodes", one), (one, "failure_nodes", two), (one, "always_nodes", one)):
        with pytest.raises(Refused):
            controller.link(number, kind, {"id": child})
