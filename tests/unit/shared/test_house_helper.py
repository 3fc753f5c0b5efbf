# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests of the houses notice what they look for."""

from __future__ import annotations

import house
import pytest

FLOORS = ("low", "high")


@pytest.fixture
def root(tmp_path):
    """A house of two floors, in which high/one.py imports high/two.py and low.py, and nobody imports in a circle."""
    (tmp_path / "high").mkdir()
    (tmp_path / "low.py").write_text("import os\nfrom ansible.errors import AnsibleError\n")
    (tmp_path / "high/__init__.py").write_text('"""A sentence."""\n')
    (tmp_path / "high/one.py").write_text("from ..low import NAME\nfrom . import two\n")
    (tmp_path / "high/two.py").write_text("")
    return tmp_path


def imports(root):
    return house.imports(root, "org.house")


def test_a_house_in_order(root):
    assert imports(root) == {"low": set(), "high.one": {"low", "high.two"}, "high.two": set()}
    assert house.outside(root, "org.house") == {"low": {"os", "ansible.errors"}, "high.one": set(), "high.two": set()}
    assert house.upward(imports(root), FLOORS) == []
    assert house.circle(imports(root)) == []
    assert house.no_files(imports(root)) == []
    assert house.without_a_sentence(root) == []


@pytest.mark.parametrize(
    "line",
    [
        "from .high import two",
        "from .high.two import NAME",
        "from org.house.high import two",
        "from org.house.high.two import NAME",
        "import org.house.high.two",
        "import org.house.high.two as later",
    ],
)
def test_an_import_from_above_is_noticed_also_inside_a_function(root, line):
    (root / "low.py").write_text(f"def later():\n    {line}\n")
    assert house.upward(imports(root), FLOORS) == [("low", "high.two")]


@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("from . import high", "high"),
        ("from org.house import high", "high"),
        ("from .high import *", "high.*"),
        ("from .high import gone", "high.gone"),
        ("import importlib\nimportlib.import_module('org.house.high.two')", "?"),
        ("from importlib import import_module\nimport_module('.two', 'org.house.high')", "?"),
        ("__import__('org.house.high.two')", "?"),
    ],
)
def test_an_import_of_what_is_no_file_is_noticed(root, line, used):
    (root / "low.py").write_text(f"{line}\n")
    assert house.no_files(imports(root)) == house.upward(imports(root), FLOORS) == [("low", used)]


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from ansible.module_utils.basic import AnsibleModule", "ansible.module_utils.basic"),
        ("import ansible", "ansible"),
        ("from .. import other", "org"),
        ("from ..other import NAME", "org.other"),
        ("from org.houses import low", "org.houses"),
    ],
)
def test_what_is_not_in_the_house_is_named(root, line, module):
    (root / "low.py").write_text(f"def later():\n    {line}\n")
    assert house.outside(root, "org.house")["low"] == {module} and not imports(root)["low"]


def test_a_circle_is_noticed(root):
    (root / "high/two.py").write_text("from .one import NAME\n")
    assert house.circle(imports(root)) == ["high.one", "high.two"]


@pytest.mark.parametrize("text", ["", '"""A sentence."""\nX = 1\n', "X = 1\n", '"""no sentence"""\n', "1\n"])
@pytest.mark.parametrize("folder", ["high", "high/inner"])
def test_a_folder_without_a_sentence_or_with_code_is_noticed(root, folder, text):
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "__init__.py").write_text(text)
    assert house.without_a_sentence(root) == [folder.replace("/", ".")]
