# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The suite has the tests that its table names, and the commands that it gives to hosts can be read by their shell."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kvmfaults import agent, injections, schedule
from kvmfaults.cases import CASES, STEPS
from kvmfaults.marks import each

SUITE = Path(__file__).parents[2] / "faults"
LAB = SUITE.parent / "lab/tests"


def functions(folder: Path) -> list[str]:
    """The names of the tests in a folder."""
    trees = [ast.parse(path.read_text()) for path in sorted(folder.glob("test_*.py"))]
    return [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_each_case_has_one_test() -> None:
    assert sorted(int(name[5:7]) for name in functions(SUITE)) == [case.number for case in CASES]


def test_the_tests_of_the_lab_that_the_table_names_exist() -> None:
    named = {name for case in CASES for name in case.elsewhere.split(", ") if name}
    assert named and named <= set(functions(LAB))


def test_few_variants_are_quick() -> None:
    quick = [param.id for case in CASES for param in each(case.number).args[1] if not param.marks]
    assert quick == [name for case in CASES for name in case.quick] and 3 <= len(quick) <= 4


def test_the_steps_of_the_agent_are_those_of_the_cases() -> None:
    assert STEPS[2:] == agent.IN_ORDER


NAMES = sorted({*schedule.LASTING, *schedule.ENDING})
DONE_BY_THE_LAB = {"cut", "kill-controller", "power", "second"}


@pytest.mark.parametrize("name", NAMES)
def test_each_fault_of_a_schedule_is_done_by_the_host_or_by_the_lab(name: str) -> None:
    command = injections.on_host(name, "/boot/vmlinuz-7.3.4")
    assert bool(command) != (name in DONE_BY_THE_LAB)
    reads(command)


def reads(command: str) -> None:
    """A shell can read this."""
    done = subprocess.run(["sh", "-n"], input=command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


TEXTS = {name: text for name, text in vars(injections).items() if name.isupper() and name not in ("RUNTIME", "STATE", "RUN", "CGROUPS")}


@pytest.mark.parametrize("name", TEXTS)
def test_a_shell_can_read_the_commands(name: str) -> None:
    reads(TEXTS[name])


def test_what_removes_the_causes_ends_well_where_there_are_none(tmp_path: Path) -> None:
    text = injections.mended("/boot/vmlinuz-7.3.4")
    reads(text)
    assert "rm -r" in text and "test ! -d" in text  # a saved state in the place of the obstacle stays


def test_the_process_of_a_guest_is_found_in_its_record(tmp_path: Path) -> None:
    record = tmp_path / "web.json"
    record.write_text('{\n "argv": [\n  "x"\n ],\n "pid": 4711,\n "ram": [\n  {\n   "fd": 3\n  }\n ]\n}\n')
    command = injections.WEB_PID.replace(f"{injections.RUN}/web.json", str(record))
    assert subprocess.run(["sh", "-c", f"echo {command}"], capture_output=True, text=True, check=True, timeout=60).stdout == "4711\n"
    assert not re.search(r"[{}]", injections.WEB_PID)


def test_what_is_copied_to_a_host_stands_alone() -> None:
    tree = ast.parse(Path(str(agent.__file__)).read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    assert names <= set(sys.stdlib_module_names)
    assert {node.module for node in imported if isinstance(node, ast.ImportFrom)} == {"__future__"}
