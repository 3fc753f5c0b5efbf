# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""AWX as code: the surveys, and this repository as a project of AWX."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DEFINED = yaml.safe_load((ROOT / "playbooks/vars/awx.yml").read_text())
QUESTIONS = DEFINED["__questions"]
# The types of a survey that an answer to an option may have. Without choices a text may be any string.
TYPES = {"str": {"text"}, "path": {"text"}, "int": {"integer"}, "raw": {"text"}, "bool": {"multiplechoice"}}
# awx/main/utils/ansible.py: a project's playbooks are the YAML files outside of these folders with such a line.
PLAYBOOK = re.compile(r"^\s*?-?\s*?(?:hosts|include|import_playbook):\s*?.*?$", re.MULTILINE)
NOT_IN = {"roles", "tasks", "group_vars", "host_vars"}


def options() -> dict[str, tuple[dict, object]]:
    """Every option of a role: its specification, and its default if it has one."""
    found = {}
    for role in (ROOT / "roles").iterdir():
        spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
        found.update({name: (option, defaults.get(name)) for name, option in spec.items()})
    return found


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_agrees_with_the_option_of_the_role(name):
    question, (option, default) = QUESTIONS[name], options()[name]
    assert question["variable"] == name
    if "choices" in option or option["type"] == "bool":
        assert question["type"] == "multiplechoice"
        assert question["choices"] == option.get("choices", ["false", "true"])
    else:
        assert question["type"] in TYPES[option["type"]]
        assert question["min"] < question["max"]
    if question["type"] == "text":
        assert question["required"] is option.get("required", False)
        assert question["min"] == int(question["required"])
        assert question["default"] == ("" if default is None else str(default))
    else:
        # An empty answer arrives as "", which is no number and no choice.
        assert question["required"] is True
        assert question["default"] == (str(default).lower() if isinstance(default, bool) else default)


def test_every_question_is_asked_and_every_required_option_of_a_template_is_a_question():
    asked = {question for template in DEFINED["__templates"] for question in template["survey"]}
    assert asked == set(QUESTIONS)
    for template in DEFINED["__templates"]:
        assert (ROOT / "playbooks" / template["playbook"]).is_file()
        assert ("hypervisor_update_kernel" in template["survey"]) is (template["playbook"] != "setup.yml"), template["name"]


def test_the_workflow_asks_what_its_templates_require_and_its_edges_lead_to_nodes():
    templates = {template["name"]: template for template in DEFINED["__templates"]}
    asked = set(DEFINED["__workflow_survey"])
    nodes = {node["identifier"]: node for node in DEFINED["__workflow_nodes"]}
    for node in nodes.values():
        assert set(node["success"] + node["failure"]) <= set(nodes)
        if "template" in node:
            # What the workflow does not ask keeps the default of the template's survey.
            assert all(name in asked for name in templates[node["template"]]["survey"] if QUESTIONS[name]["default"] == "")
            assert node["failure"] == ["look"]
    # Else its check refuses the hosts on which it would install the kernel.
    assert {"hypervisor_update_kernel", "hypervisor_kernel_package"} <= set(templates["check"]["survey"])
    way = ["check"]
    while nodes[way[-1]]["success"]:
        way += nodes[way[-1]]["success"]
    assert way == ["check", "approve_kernel", "kernel", "canary", "approve_rest", "rest"]


def test_awx_lists_the_playbooks_of_the_templates():
    listed = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("playbooks/**/*.yml")
        if not NOT_IN & set(path.relative_to(ROOT).parts) and PLAYBOOK.search(path.read_text())
    }
    assert listed >= {f"playbooks/{template['playbook']}" for template in DEFINED["__templates"]}
    assert "playbooks/vars/awx.yml" not in listed


def run(*command: str, cwd: Path, home: Path) -> str:
    environment = {**os.environ, "HOME": str(home), "ANSIBLE_HOME": str(home), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_awx_installs_the_collection_from_the_project_itself(tmp_path):
    run(
        *("ansible-galaxy", "collection", "install", "-r", f"{ROOT}/collections/requirements.yml"),
        *("--collections-path", str(tmp_path / "requirements_collections"), "--force"),
        cwd=ROOT,
        home=tmp_path,
    )
    installed = tmp_path / "requirements_collections/ansible_collections/kvm/liveupdate"
    assert (installed / "playbooks/update.yml").is_file()
    assert not (installed / "collections").exists() and not (installed / "execution-environment.yml").exists()


def test_ansible_builder_makes_the_context_of_the_execution_environment(tmp_path):
    pytest.importorskip("ansible_builder")
    run("ansible-builder", "create", "-f", str(ROOT / "execution-environment.yml"), "-c", str(tmp_path), cwd=ROOT, home=tmp_path)
    build = tmp_path / "_build"
    assert (build / "liveupdate/galaxy.yml").is_file()
    for path in ("playbooks/update.yml", "roles/hypervisor_update/tasks/main.yml", "plugins/modules/kexec.py", "meta/runtime.yml"):
        assert (build / "liveupdate" / path).read_bytes() == (ROOT / path).read_bytes()
    assert yaml.safe_load((build / "requirements.yml").read_text()) == {"collections": [{"name": "liveupdate/", "type": "dir"}]}
    assert "jmespath" in (build / "requirements.txt").read_text()
    assert "openssh-clients" in (build / "bindep.txt").read_text()
    # The name depends on the container engine of the machine.
    (recipe,) = (path for name in ("Containerfile", "Dockerfile") if (path := tmp_path / name).is_file())
    assert re.search(r'ANSIBLE_INSTALL_REFS="ansible-core>=2\.20,<2\.23 ansible-runner"', recipe.read_text())
