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
    (tmp_path / "low.py").write_text("import os\n")
    (tmp_path / "high/__init__.py").write_text('"""A sentence."""\n')
    (tmp_path / "high/one.py").write_text("from ..low import NAME\nfrom . import two\n")
    (tmp_path / "high/two.py").write_text("")
    return tmp_path


def test_a_house_in_order(root):
    assert house.imports(root) == {"low": set(), "high.one": {"low", "high.two"}, "high.two": set()}
    assert house.upward(house.imports(root), FLOORS) == []
    assert house.circle(house.imports(root)) == []
    assert house.without_a_sentence(root) == []


def test_an_import_from_above_is_noticed_also_inside_a_function(root):
    (root / "low.py").write_text("def later():\n    from .high import two\n")
    assert house.upward(house.imports(root), FLOORS) == [("low", "high.two")]


def test_a_circle_is_noticed(root):
    (root / "high/two.py").write_text("from .one import NAME\n")
    assert house.circle(house.imports(root)) == ["high.one", "high.two"]


@pytest.mark.parametrize("text", ["", '"""A sentence."""\nX = 1\n', "X = 1\n"])
def test_a_folder_without_a_sentence_or_with_code_is_noticed(root, text):
    (root / "high/__init__.py").write_text(text)
    assert house.without_a_sentence(root) == ["high"]
