# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The jobs of AWX: ansible-runner runs the playbook of each job template in the folders that AWX makes, with the answers of its survey.

The modules of the collection are stubs, and so is what the role hypervisor_setup does. AWX itself is not there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from test_rollout import COLLECTION, Stage

pytest.importorskip("ansible_runner")

DEFINED = yaml.safe_load((COLLECTION / "playbooks/vars/awx.yml").read_text())
TEMPLATES = {template["name"]: template for template in DEFINED["__templates"]}
KERNEL = "/boot/vmlinuz-7.3.4"
OLD, PACKAGE = "/boot/vmlinuz-7.2.13", "linux-image-7.3.4"
# A STUB of the package manager of a host.
INSTALLS = """#!/usr/bin/python
import os
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({"name": {}, "state": {}, "update_cache": {"type": "bool"}}, supports_check_mode=True)
if not module.check_mode:
    open(f"{os.environ['STAGE']}/{os.environ['HOST']}.installed", "w").close()
    with open(f"{os.environ['STAGE']}/log", "a") as log:
        log.write(f"{os.environ['HOST']} install {module.params['name']}\\n")
module.exit_json(changed=True)
"""
PREPARE = """- name: Log what the role was given
  ansible.builtin.command: sh -c 'echo $HOST reboot={{ hypervisor_setup_reboot_ok | bool }} adopt={{ hypervisor_setup_adopt | bool }} >>LOG'
  changed_when: true
"""


class Job(t.NamedTuple):
    """What AWX keeps of a job."""

    status: str
    output: str
    events: list[dict]
    artifacts: dict

    def failed(self) -> list[str]:
        """The hosts that failed at the end."""
        stats = next(event["event_data"] for event in self.events if event["event"] == "playbook_on_stats")
        return sorted({**stats["failures"], **stats["dark"]})

    def of(self, kind: str, task: str) -> list[str]:
        """The hosts with such an event at a task of this name."""
        return [event["event_data"]["host"] for event in self.events if event["event"] == kind and event["event_data"]["task"] == task]


def answers(name: str, **given: object) -> dict[str, object]:
    """What AWX makes of a survey that was filled in: "" for an empty answer."""
    survey = [DEFINED["__questions"][question] for question in TEMPLATES[name]["survey"]]
    filled = {question["variable"]: given.pop(question["variable"], question["default"]) for question in survey}
    assert not given, "the survey does not ask for this"
    assert all(filled[question["variable"]] != "" for question in survey if question["required"])
    return filled


class Project(Stage):
    """A stage in the folders of a job: ``project``, ``requirements_collections``, ``inventory`` and ``env``."""

    def __init__(self, path: Path, acts: dict[str, dict[str, str]]) -> None:
        super().__init__(path, 2, acts)
        self.private = path / "runner"
        for folder in ("env", "inventory"):
            (self.private / folder).mkdir(parents=True)
        (self.private / "project").symlink_to(path / "ansible_collections/kvm/liveupdate")
        (self.private / "requirements_collections").symlink_to(path)
        (path / "library").mkdir()
        (path / "library/installs.py").write_text(INSTALLS)
        self._write_inventory()
        self.number = 40
        self.inherited: dict[str, object] = {}  # what earlier nodes of a workflow have published

    def _write_inventory(self) -> None:
        variables = {"hypervisor_update_blackout_max": 60, "ansible_ssh_executable": f"{self.path}/ssh", "ansible_ssh_args": ""}
        variables |= {"ansible_pipelining": True, "ansible_become": False, "ansible_remote_tmp": f"{self.path}/tmp"}
        variables |= {"ansible_python_interpreter": sys.executable, "ansible_package_use": "ansible.legacy.installs"}
        hostvars = {name: {**variables, "remote_tower_enabled": "true", "remote_tower_id": 1} for name in self.names}
        data = {"all": {"children": ["hypervisors"]}, "hypervisors": {"hosts": self.names}, "_meta": {"hostvars": hostvars}}
        script = self.private / "inventory/hosts"
        script.write_text(f"#!/usr/bin/env python3\nprint({json.dumps(data)!r})\n")
        script.chmod(0o700)

    def act(self, acts: dict[str, dict[str, str]]) -> None:
        (self.path / "acts").write_text(json.dumps(acts))
        (self.path / "log").write_text("")

    def launch(self, name: str, limit: str = "", **given: object) -> Job:
        """Run the job template with the answers ``given`` and the defaults of its survey."""
        self.number += 1
        template, mine = TEMPLATES[name], {f"{word}_{key}": value for word in ("awx", "tower") for key, value in self._meta(name).items()}
        # Not a variable of AWX: the stage runs here what is to run on a host.
        mine["__hypervisor_update_records"] = f"{self.path}/$HOST.records"
        check = ["--check"] if template["job_type"] == "check" else []
        (self.private / "env/extravars").write_text(json.dumps({**answers(name, **given), **self.inherited, **mine}))
        (self.private / "env/cmdline").write_text(" ".join([*check, "-u", "liveupdate", "--forks=10", *(["-l", limit] if limit else [])]))
        (self.private / "env/envvars").write_text(json.dumps({
            "ANSIBLE_COLLECTIONS_PATH": f"{self.private}/requirements_collections", "ANSIBLE_RETRY_FILES_ENABLED": "False",
            "ANSIBLE_FORCE_COLOR": "true", "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            "ANSIBLE_LIBRARY": f"{self.path}/library",
            "ANSIBLE_HOME": str(self.path), "STAGE": str(self.path), "JOB_ID": str(self.number), "PYTHONPATH": "", "LC_ALL": "C.UTF-8",
        }))  # fmt: skip
        done = subprocess.run(
            ["ansible-runner", "run", str(self.private), "-p", f"playbooks/{template['playbook']}", "--ident", str(self.number)],
            env={**os.environ, "PYTHONPATH": ""}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        kept = self.private / "artifacts" / str(self.number)
        events = sorted((json.loads(path.read_text()) for path in (kept / "job_events").glob("*.json")), key=lambda event: event["counter"])
        stats = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
        assert len(stats) == 1, done.stdout + done.stderr
        return Job((kept / "status").read_text(), done.stdout + done.stderr, events, stats[0].get("artifact_data", {}))

    def _meta(self, name: str) -> dict[str, object]:
        return {"job_id": self.number, "job_launch_type": "manual", "job_template_name": f"liveupdate_{name}", "user_name": "operator"}

    def log(self) -> list[str]:
        return (self.path / "log").read_text().splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path, {})


def small(artifacts: dict) -> None:
    """AWX makes extra variables of them for later nodes, so none has the name of an option, and there is little of it."""
    options: set[str] = set()
    for path in COLLECTION.glob("roles/*/meta/argument_specs.yml"):
        options.update(*(spec["options"] for spec in yaml.safe_load(path.read_text())["argument_specs"].values()))
    assert not options.intersection(artifacts)
    assert len(json.dumps(artifacts)) < 4000


def test_setup(project):
    roles = project.path / "ansible_collections/kvm/liveupdate/roles"
    project.setup(PREPARE.replace("LOG", str(project.path / "log")), "true")
    for part in ("defaults", "meta", "vars"):
        (roles / "hypervisor_setup" / part).symlink_to(COLLECTION / "roles/hypervisor_setup" / part)
    job = project.launch("setup", hypervisor_setup_adopt="true")
    assert (job.status, job.failed()) == ("successful", []), job.output
    assert sorted(project.log()) == [f"hv{number} {what}" for number in (1, 2) for what in ("finish", "reboot=False adopt=True")]
    assert job.artifacts == {}


def test_kernel_with_an_empty_answer_takes_the_image_that_exists(project):
    job = project.launch("kernel", hypervisor_update_kernel=KERNEL)
    assert (job.status, job.failed()) == ("successful", []), job.output
    assert json.loads((project.private / "env/extravars").read_text())["hypervisor_kernel_package"] == ""
    assert sorted(job.of("runner_on_skipped", "Install the package")) == ["hv1", "hv2"]
    assert sorted(job.of("runner_on_ok", "Report")) == ["hv1", "hv2"]
    assert sorted(project.calls("boot_default")) == ["hv1", "hv2"]


def test_check_shows_the_plan_and_touches_nothing(project):
    job = project.launch("check", hypervisor_update_kernel=KERNEL)
    assert (job.status, job.failed()) == ("successful", []), job.output
    assert {line.split()[1] for line in project.log()} == {"hypervisor_info"}
    assert job.artifacts["liveupdate_summary"] == {
        "outcome": "checked", "why": "", "hosts": {"checked": 2}, "kernels": ["7.2.13"], "longest_pause": None, "failed": [],
    }  # fmt: skip
    small(job.artifacts)


@pytest.mark.beyond
def test_the_canary_then_the_rest_which_fails_and_a_relaunch_that_goes_on_where_it_stopped(project):
    canary = DEFINED["liveupdate_awx_canary"]
    first = project.launch("update", limit=canary, hypervisor_update_kernel=KERNEL)
    assert (first.status, first.failed(), project.calls("kexec")) == ("successful", [], ["hv1"]), first.output
    project.act({"hv2": {"guest preserved": "fail"}})
    rest = project.launch("update", limit=f"hypervisors:!{canary}", hypervisor_update_kernel=KERNEL)
    assert (rest.status, rest.failed(), project.calls("kexec")) == ("failed", ["hv2"], []), rest.output
    assert {line.split()[0] for line in project.log()} == {"hv2"}
    summary = rest.artifacts["liveupdate_summary"]
    assert (summary["outcome"], summary["hosts"], summary["failed"], summary["kernels"]) == ("failed", {"undone": 1}, ["hv2"], ["7.2.13"])
    assert "guest preserved does not work" in summary["why"]
    small(rest.artifacts)
    project.act({"hv1": {"hypervisor_info": "current"}})
    again = project.launch("update", hypervisor_update_kernel=KERNEL)
    assert (again.status, again.failed(), project.calls("kexec")) == ("successful", [], ["hv2"]), again.output
    summary = again.artifacts["liveupdate_summary"]
    assert (summary["outcome"], summary["hosts"], summary["failed"]) == ("updated", {"updated": 1, "current": 1}, [])
    assert summary["longest_pause"] == 8.6


def test_a_trial_of_a_host_with_a_guest_touches_nothing(project):
    job = project.launch("trial", limit="hv1", hypervisor_update_kernel=KERNEL)
    assert (job.status, job.failed()) == ("failed", ["hv1"]), job.output
    assert {line.split()[1] for line in project.log()} == {"hypervisor_info"}
    summary = job.artifacts["liveupdate_trial"]
    assert (summary["outcome"], summary["hosts"], summary["failed"]) == ("failed", {"refused": 1}, ["hv1"])
    assert "a trial needs a host without guests, and web runs here" in summary["why"]
    small(job.artifacts)


@pytest.mark.beyond
def test_the_workflow_installs_a_kernel_that_no_host_has_and_updates_to_it(project):
    """From node to node, as AWX goes. Each approval is given."""
    project.act({name: {"hypervisor_info": "missing"} for name in project.names})
    filled = {"hypervisor_update_kernel": KERNEL, "hypervisor_kernel_package": PACKAGE}
    assert filled.keys() <= set(DEFINED["__workflow_survey"])
    nodes = {node["identifier"]: node for node in DEFINED["__workflow_nodes"]}
    went, outputs, next_one = [], {}, ["check"]
    while next_one:
        node = nodes[next_one[0]]
        went.append(node["identifier"])
        next_one = node["success"]
        if "template" in node:
            limit = node.get("limit", "").replace("{{ liveupdate_awx_canary }}", DEFINED["liveupdate_awx_canary"])
            asked = {name: answer for name, answer in filled.items() if name in TEMPLATES[node["template"]]["survey"]}
            job = project.launch(node["template"], limit=limit, **asked)
            project.inherited |= job.artifacts
            outputs[node["identifier"]] = job.output
            next_one = node["success" if job.status == "successful" else "failure"]
    assert went == ["check", "approve_kernel", "kernel", "canary", "approve_rest", "rest"], outputs[list(outputs)[-1]]
    warning = "/boot/vmlinuz-7.3.4, 1 guest kept, expected pause unknown. WARNING: the new kernel is not installed yet."
    assert outputs["check"].rpartition("Show the result of each host")[2].count(warning) == 2 and warning not in outputs["canary"]
    done = [line for line in project.log() if line.endswith((f" install {PACKAGE}", " kexec"))]
    assert sorted(done[:2]) == [f"hv1 install {PACKAGE}", f"hv2 install {PACKAGE}"] and done[2:] == ["hv1 kexec", "hv2 kexec"]


def test_a_check_without_a_package_refuses_a_kernel_that_is_missing(project):
    project.act({"hv1": {"hypervisor_info": "missing"}})
    job = project.launch("check", hypervisor_update_kernel=KERNEL)
    assert (job.status, job.failed()) == ("failed", ["hv1"]), job.output
    assert job.artifacts["liveupdate_summary"]["hosts"] == {"refused": 1, "checked": 1}


def test_a_rollback(project):
    job = project.launch("rollback", limit="hv2", hypervisor_update_kernel=OLD)
    assert (job.status, job.failed(), project.calls("kexec")) == ("successful", [], ["hv2"]), job.output
    summary = job.artifacts["liveupdate_summary"]
    assert (summary["outcome"], summary["hosts"]) == ("updated", {"updated": 1})
    small(job.artifacts)


def test_every_template_is_run():
    launched = set(re.findall(r'project\.launch\("(\w+)"', Path(__file__).read_text()))
    assert launched == set(TEMPLATES)


def test_a_rollback_is_an_update():
    assert {**TEMPLATES["rollback"], "name": "", "description": ""} == {**TEMPLATES["update"], "name": "", "description": ""}


def test_no_kernel_is_refused(project):
    code, output = project.play(str(COLLECTION / "playbooks/kernel.yml"), hypervisor_update_kernel="", hypervisor_kernel_state="absent")
    assert code != 0 and "hypervisor_update_kernel is empty" in output, output
    assert project.log() == []
