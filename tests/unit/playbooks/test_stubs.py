# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stub of a module must know every argument that the tasks of the roles give to this module. Else what uses the stub fails."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import test_rollout
import yaml

ROOT = Path(__file__).parents[3]
COLLECTION = "kvm.liveupdate."
MODULES = {path.stem for path in (ROOT / "plugins/modules").glob("[a-z]*.py")}
# The source of each stub, the modules that it stands for, and the roles that run with it.
STUBS = {
    "tests/bench/simulation": (ROOT / "tests/bench/simulation/module.py", {"hypervisor_info"}, ["hypervisor_update"]),
    "tests/rollout": (ROOT / "tests/rollout/host/module.py", MODULES - {"kexec", "update_lease", "update_record"}, ["hypervisor_update"]),
    "the stage of test_rollout": (test_rollout.MODULE, MODULES, ["hypervisor_kernel", "hypervisor_trial", "hypervisor_update"]),
}


def words(source: str) -> set[str]:
    """The arguments that a stub knows."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AugAssign)) and re.match(r"WORDS \+?=", ast.unparse(node)):
            found.update(ast.literal_eval(node.value))
    return found


def given(role: str) -> dict[str, set[str]]:
    """The arguments that the tasks of a role give to each module of the collection."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        left = yaml.safe_load(file.read_text())
        while left:
            task = left.pop()
            left += [inner for part in ("block", "rescue", "always") for inner in task.get(part, [])]
            for name, arguments in task.items():
                if name.startswith(COLLECTION):
                    found.setdefault(name.removeprefix(COLLECTION), set()).update(arguments or {})
    return found


@pytest.mark.parametrize("stub", STUBS)
def test_a_stub_knows_what_the_roles_give_to_its_modules(stub):
    source, modules, roles = STUBS[stub]
    known = words(source if isinstance(source, str) else source.read_text())
    unknown = {
        f"{role}: {module}": sorted(arguments - known)
        for role in roles
        for module, arguments in given(role).items()
        if module in modules and arguments - known
    }
    assert not unknown


def test_the_arguments_of_the_tasks_are_found():
    asked = given("hypervisor_update")["hypervisor_info"]
    assert {"kernel", "verify_memory"} <= asked and words("WORDS = ('a',)\nWORDS += ('b',)\n") == {"a", "b"}
