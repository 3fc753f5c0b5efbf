# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Breakages of a source file: which there are, what they make of it, and what they leave alone."""

from __future__ import annotations

import textwrap

import pytest
from kvm_mutation.breakages import OPERATORS, apply, breakages, identity, is_exempt, is_new, statement_at


def mutants(source: str, operator: str) -> list[str]:
    """What an operator makes of a source, each as the lines that differ."""
    source = textwrap.dedent(source)
    before = source.splitlines()
    found = []
    for breakage in breakages(source):
        if breakage.operator == operator:
            after = apply(source, breakage)
            assert is_new(after, {""}), f"no valid Python:\n{after}"
            found.append("\n".join(line.strip() for line in after.splitlines() if line not in before))
    return found


@pytest.mark.parametrize(
    ("operator", "source", "made"),
    [
        ("DeleteCall", "import os\nos.fsync(3)\n", ["pass"]),
        ("DeleteCall", "write(\n    'ä', 1,\n)  # durable\n", ["pass  # durable"]),
        ("DeleteCall", "found = write()\n", []),
        ("DeleteAssignment", "def f(update):\n    update['state'] = 'saved'\n    state = 1\n", ["pass"]),
        ("DeleteAssignment", "def f(session=None):\n    session = 1\n    fresh = 2\n    fresh += 3\n", ["pass", "pass"]),
        ("DeleteAssignment", "def f():\n    a, b = 1, 2\n    a, b = b, a\n", ["pass"]),
        ("DeleteRaise", "def f(x):\n    if x:\n        raise ValueError(x)\n", ["pass"]),
        ("DeleteReturn", "def f(x):\n    if x:\n        return\n    return x\n", ["pass", "pass"]),
        ("DeleteReturn", "def f(x):\n    x()\n    return\n", []),
        ("DeleteContinue", "for x in y:\n    if x:\n        continue\n    z(x)\n", ["pass"]),
        ("UnwrapWith", "with Lock(wait_s=30):\n    jump()\n", ["if True:"]),
        ("UnwrapWith", "with open(path) as file, Lock():\n    jump()\n", ["with open(path) as file:"]),
        ("UnwrapWith", "with open(path) as file:\n    jump()\n", []),
        ("IfTrue", "def f(x):\n    if x > 1:\n        raise ValueError(x)\n", ["if True:"]),
        ("IfFalse", "def f(x):\n    if x > 1:\n        raise ValueError(x)\n", []),  # DeleteRaise means the same
        ("IfFalse", "if x > 1:\n    a()\n    b()\nelif x:\n    a()\nelse:\n    b()\n", ["if False:", "elif False:"]),
        ("DropOperand", "z = a and (b or c)\n", ["z = (b or c)", "z = (a)", "z = a and ((c))", "z = a and ((b))"]),
        ("DropOperand", "z = (a\n     or b\n     or c)\n", ["z = (((b) or (c)))", "z = (((a) or (c)))", "z = (((a) or (b)))"]),
        ("DropCondition", "z = [x for x in y if x > 1 if x]\n", ["z = [x for x in y if True if x]", "z = [x for x in y if x > 1 if True]"]),
        ("SwapMembership", "z = a in b\ny = a not in b\n", ["z = ((a) not in (b))", "y = ((a) in (b))"]),
        ("WidenMode", "os.chmod(path, 0o600)\nos.makedirs(path, mode=0o700)\n", ["os.chmod(path, 0o644)", "os.makedirs(path, mode=0o755)"]),
        ("WidenMode", "bits = 0o7\nlimit = 600\n", []),
    ],
)
def test_each_operator_makes_what_it_says(operator, source, made):
    assert mutants(source, operator) == made


UNIT = '''
UNIT = f"""[Unit]
Description=The jump
Before={unit}

# Why.
[Service]
ExecStopPost={command} recover
"""
'''


def test_each_line_of_a_unit_is_left_out_once_but_for_what_only_people_read():
    lines = UNIT.splitlines()
    assert [lines[each.start[0] - 1] for each in breakages(UNIT)] == ['UNIT = f"""[Unit]', "Before={unit}", "[Service]", lines[7]]
    for each in list(breakages(UNIT))[1:]:
        number = each.start[0] - 1
        assert apply(UNIT, each).splitlines() == lines[:number] + lines[number + 1 :]


def test_without_its_first_line_a_text_is_still_one():
    first = next(iter(breakages(UNIT)))
    assert apply(UNIT, first).startswith('\nUNIT = f"""Description=The jump\nBefore')


ASIDE = '''
"""A docstring.

Of two lines.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing

    typing.log(1)

__all__ = ("f",)
DOCUMENTATION = """
key: value
more: 1
"""
STOP_LIMIT_S = 180


def f(a: int | None, b: bool = True) -> int | str:
    """A docstring.

    Of two lines.
    """
    _log(f"{a + 1}")
    if a:
        sys.stderr.write(f"{a + 1}")
    _incoming.log(str(a or b))
    raise ValueError(f"{a >> 20} MiB")


if __name__ == "__main__":
    f(1)
'''


def test_what_is_told_to_people_or_to_a_type_checker_is_left_alone():
    assert [(each.operator, each.start[0]) for each in breakages(ASIDE)] == [("DeleteRaise", 32)]


@pytest.mark.parametrize(
    ("operator", "text", "exempt"),
    [
        ("core/NumberReplacer", "180", True),
        ("core/ReplaceBinaryOperator_Add_Sub", "180", False),
        ("core/ReplaceBinaryOperator_BitOr_BitAnd", "| None", True),
        ("core/ReplaceBinaryOperator_BitOr_BitAnd", "| str", True),
        ("core/ReplaceTrueWithFalse", "True) -> int", False),
        ("core/ReplaceBinaryOperator_RShift_LShift", ">> 20", True),
        ("core/ReplaceBinaryOperator_Add_Sub", "+ 1", True),
        ("core/ReplaceOrWithAnd", "or b", True),
    ],
)
def test_what_cosmic_ray_brings_is_left_out_there_too(operator, text, exempt):
    before, found, _after = ASIDE.partition(text)
    assert found
    place = before.count("\n") + 1, len(before.rpartition("\n")[2])
    assert is_exempt(ASIDE, operator, place) == exempt


def test_a_plus_sign_between_texts_is_no_number():
    """A minus would be an error wherever it is run. At an import nothing at all could be tested."""
    source = 'a = b + "x"\nc = (b"x" + a) + d\ne = f"{a}" + b\nf = a + b\n'
    places = [(1, 6), (2, 10), (2, 15), (3, 11), (4, 6)]
    assert [is_exempt(source, "core/ReplaceBinaryOperator_Add_Sub", place) for place in places] == [True, True, True, True, False]
    assert not is_exempt(source, "core/ReplaceBinaryOperator_Sub_Add", places[0])


def test_a_wait_may_be_a_bit_longer_and_a_mode_is_no_number():
    source = "time.sleep(0.5)\nos.chmod(path, 0o600)\nx = 1\n"
    assert [is_exempt(source, "core/NumberReplacer", place) for place in ((1, 11), (2, 15), (3, 4))] == [True, True, False]


def test_only_what_is_valid_and_means_something_else_is_new():
    known: set[str] = set()
    assert is_new("x = 1\n", known)
    assert not is_new("x  =  (1)  # the same\n", known)
    assert is_new("x = 2\n", known)
    assert not is_new("x = = 3\n", known)
    assert not is_new("return 1\n", known)


def test_every_breakage_has_an_operator_that_is_described():
    assert {each.operator for each in breakages(UNIT + ASIDE)} <= set(OPERATORS)
    assert all(OPERATORS.values())


STATEMENTS = """import os

LIMIT = (
    3
)

def save(path):
    with open(path) as file, os.scandir(
        "."
    ):
        if LIMIT:
            return file
        else:
            os.sync()
    try:
        os.sync()
    except OSError:
        # A comment.
        raise
"""


@pytest.mark.parametrize(
    ("line", "first", "last"),
    [
        (4, 3, 5),
        (7, 7, 7),
        (9, 8, 10),
        (11, 11, 11),
        (12, 12, 12),
        (13, 13, 13),
        (14, 14, 14),
        (15, 15, 15),
        (17, 17, 18),
        (19, 19, 19),
        (2, 2, 2),
    ],
)
def test_a_line_belongs_to_the_innermost_statement_without_its_body(line, first, last):
    assert statement_at(STATEMENTS, line) == range(first, last + 1)


FUNCTION = """
class Guest:
    @property
    def pauses(self):
        def inner():
            return 1
        return inner()
"""


def test_a_mutant_is_the_same_as_long_as_its_function_is():
    mutated = FUNCTION.replace("return 1", "return 2")
    known = identity("number", FUNCTION, mutated, 6)
    above, below = "TEXT = 1\n\n", "\n\ndef other():\n    return 3\n"
    assert known and known == identity("number", above + FUNCTION + below, above + mutated + below, 8)
    assert known != identity("other", FUNCTION, mutated, 6)
    assert known != identity("number", FUNCTION, FUNCTION.replace("return 1", "return 3"), 6)
    for changed in (("@property", "@cached_property"), ("return inner()", "return -inner()")):
        assert known != identity("number", FUNCTION.replace(*changed), mutated.replace(*changed), 6)


def test_a_mutant_that_leaves_out_a_line_of_its_function_is_the_same_only_in_that_function():
    mutated = FUNCTION.replace("        return inner()\n", "")
    assert identity("drop", FUNCTION + "A = 1\n", mutated + "A = 1\n", 7) == identity("drop", FUNCTION + "B = 2\n", mutated + "B = 2\n", 7)


def test_outside_of_functions_a_mutant_is_that_of_its_file_only():
    assert identity("number", "A = 1\n", "A = 2\n", 1) == ""
