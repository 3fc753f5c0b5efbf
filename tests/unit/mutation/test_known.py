# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of known lines: it fits the sources, and says so where it does not."""

from __future__ import annotations

import pytest
from kvm_mutation import equivalent, known
from kvm_mutation.checkout import Checkout, MutationError, names_in

TABLE = """
[[entry]]
number = 1
purpose = "the lock"
file = "plugins/a.py"
killed_by = ["tests/unit/plugins/test_a.py::test_lock"]
[[entry.change]]
find = '''
with Lock():
'''
replace = '''
if True:
'''
[[entry.change]]
file = "plugins/b.py"
find = "return 1"
replace = "return 2"
"""


@pytest.fixture
def checkout(tmp_path):
    """A collection of two files and two tests."""
    for path, text in {
        "plugins/a.py": "with Lock():\n    jump()\n",
        "plugins/b.py": "def f():\n    return 1\n",
        "plugins/modules/guest.py": "x = 1\n",
        "tests/unit/plugins/test_a.py": "from c.plugins import a, b\n",
        "tests/unit/plugins/test_b.py": "from c.plugins import b\n",
        "tests/unit/plugins/modules/test_guest.py": "from c.plugins.modules.guest import x\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return Checkout(tmp_path)


def test_every_entry_of_the_table_fits_the_sources_and_names_tests_that_are_there():
    entries = known.read(known.TABLE.read_text(encoding="utf-8"))
    assert sorted(entries) == list(range(1, len(entries) + 1))
    assert known.problems(entries.values(), Checkout()) == []


def test_what_is_set_aside_can_be_read_and_names_files_that_are_there():
    entries = equivalent.read(equivalent.TABLE.read_text(encoding="utf-8"))
    files = Checkout().files
    assert [entry.file for entry in entries.values() if entry.file not in files] == []


def test_all_changes_of_an_entry_are_made_at_once(checkout):
    entry = known.read(TABLE)[1]
    assert entry.files == ("plugins/a.py", "plugins/b.py")
    assert known.broken(entry, checkout) == {"plugins/a.py": "if True:\n    jump()\n", "plugins/b.py": "def f():\n    return 2\n"}
    assert known.problems([entry], checkout) == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("with Lock():\n'''", "with Lock(1):\n'''", r"entry 1 \(the lock\): plugins/a.py has this 0 times, not once"),
        ('find = "return 1"', 'find = "r"', "plugins/b.py has this 2 times, not once"),
        ("plugins/b.py", "plugins/gone.py", "there is no file plugins/gone.py"),
        ("return 2", "return return", "is no Python any more"),
        ("return 2", "return 1", "it changes nothing"),
    ],
)
def test_an_entry_that_does_not_fit_is_an_error_that_names_it(checkout, old, new, why):
    entry = known.read(TABLE.replace(old, new))[1]
    with pytest.raises(MutationError, match=why):
        known.broken(entry, checkout)
    assert len(known.problems([entry], checkout)) == 1


def test_a_number_that_is_there_twice_and_a_test_that_is_gone_are_errors(checkout):
    with pytest.raises(MutationError, match="number 1 is there twice"):
        known.read(TABLE + TABLE)
    (problem,) = known.problems(known.read(TABLE.replace("test_a.py", "test_gone.py")).values(), checkout)
    assert problem.endswith("entry 1 (the lock): there is no test file tests/unit/plugins/test_gone.py")


def test_what_is_set_aside_has_a_reason_and_is_there_once():
    text = "[[equivalent]]\nfile = 'a.py'\noperator = 'kvm/IfTrue'\nline = '  if x:'\nreason = '%s'\n"
    (entry,) = equivalent.read(text % "x is always true").values()
    assert entry.key == ("a.py", "kvm/IfTrue", "if x:")
    with pytest.raises(MutationError, match="no reason"):
        equivalent.read(text % " ")
    with pytest.raises(MutationError, match="twice"):
        equivalent.read(text % "one" + text % "two")


def test_the_tests_of_a_file_are_its_own_and_then_those_that_name_it(checkout):
    assert checkout.tests_of("plugins/a.py") == ["tests/unit/plugins/test_a.py"]
    assert checkout.tests_of("plugins/b.py") == ["tests/unit/plugins/test_b.py", "tests/unit/plugins/test_a.py"]
    assert checkout.tests_of("plugins/modules/guest.py") == ["tests/unit/plugins/modules/test_guest.py"]
    assert checkout.tests_of("plugins/modules/other.py") == ["tests/unit/plugins"]


def test_a_test_names_what_a_shared_file_names_that_it_imports(tmp_path):
    texts = {
        "plugins/a.py": "x = 1\n",
        "tests/unit/shared/made_up.py": "from c.plugins import a\n",
        "tests/unit/plugins/test_b.py": "from made_up import host\n",
        "tests/unit/plugins/test_c.py": "import made_up\n",
        "tests/unit/plugins/test_d.py": "import frames\n",
    }
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = Checkout(tmp_path)
    assert before.tests_of("plugins/a.py") == ["tests/unit/plugins/test_b.py", "tests/unit/plugins/test_c.py"]
    (tmp_path / "tests/unit/shared/made_up.py").write_text("from c.plugins import a, b\n")
    assert Checkout(tmp_path).surroundings != before.surroundings  # what survived may not survive again


def test_the_own_tests_of_a_file_come_first():
    tests = Checkout().tests_of("plugins/module_utils/update/_jump.py")
    assert tests[0] == "tests/unit/plugins/module_utils/update/test_jump.py"
    assert "tests/unit/plugins/module_utils/update/test_undo.py" in tests


def test_a_pattern_means_files_by_their_end_and_a_wrong_one_is_an_error(checkout):
    assert checkout.matching("b.py") == ["plugins/b.py"]
    assert checkout.matching("plugins/*") == ["plugins/a.py", "plugins/b.py", "plugins/modules/guest.py"]
    assert checkout.matching("modules/guest.py") == ["plugins/modules/guest.py"]
    with pytest.raises(MutationError, match=r"'_gone\.py' means no Python file"):
        checkout.matching("_gone.py")


def test_names_are_those_of_modules_and_files_that_are_read():
    text = 'from a.b import c as d\nimport e.f\ng.h()\npath = "plugins/x/i.py"\nload("a.plugins.modules.j")\ntext = "k l"\n'
    assert names_in(text) == {"a.b", "a.b.c", "e.f", "plugins.x.i", "a.plugins.modules.j"}
