# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ways to break a source file that cosmic-ray does not bring, and the places that nobody breaks. Pure, standard library only.

cosmic-ray swaps operators, numbers and booleans. The faults that cost guests are others: a step that is left out, a guard that is
gone, a file that others may read, a line that a unit file lacks.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import tokenize
import typing as t

Place = tuple[int, int]
"""A line from 1 and a column from 0, in characters."""


class Breakage(t.NamedTuple):
    """Replace what lies from ``start`` to ``end`` by ``text``."""

    operator: str
    start: Place
    end: Place
    text: str


OPERATORS = {
    "DeleteCall": "a call whose result nobody uses is left out",
    "DeleteAssignment": "an attribute, an entry or a variable keeps its old value",
    "DeleteRaise": "an error is not raised",
    "DeleteReturn": "a function goes on, or returns None",
    "DeleteContinue": "a loop does not skip the rest of a round",
    "UnwrapWith": "a with-block runs without its context manager (a lock)",
    "IfTrue": "the body of an if always runs",
    "IfFalse": "the body of an if never runs",
    "DropOperand": "an operand of and/or is left out",
    "DropCondition": "a comprehension takes all elements",
    "SwapMembership": "in becomes not in, and the reverse",
    "WidenMode": "a file mode is another one",
    "DeleteLine": "a line of a unit file or a script is left out",
}
MODES = {0o600: "0o644", 0o700: "0o755", 0o644: "0o600", 0o755: "0o700"}
# Texts that Ansible reads as documentation.
_DOCUMENTS = {"DOCUMENTATION", "EXAMPLES", "RETURN", "__all__"}
_LOGS = {"log", "_log", "sys.stderr.write"}
# One more or one less of these is no fault.
_WAIT = re.compile(r"_S$|LIMIT|ATTEMPTS")
_PLAIN_LINE = re.compile(r"\s*(#.*|Description=.*)?$")


def breakages(source: str) -> list[Breakage]:
    """All breakages of a source file, in the order of their places."""
    return list(_breakages(source))


def apply(source: str, breakage: Breakage) -> str:
    """The source with one breakage."""
    starts = _line_starts(source)
    begin, end = (starts[line - 1] + column for line, column in (breakage.start, breakage.end))
    return source[:begin] + breakage.text + source[end:]


def is_exempt(source: str, operator: str, start: Place) -> bool:
    """Whether what lies there is only told to people or to a type checker, is a wait that may be a bit longer, or joins texts."""
    everything, numbers, joins = _exempt(source)
    ranges = everything + (numbers if operator.endswith("NumberReplacer") else joins if operator.endswith("Add_Sub") else ())
    return any(begin <= start < end for begin, end in ranges)


def is_new(source: str, known: set[str]) -> bool:
    """Whether this is valid Python that means something else than all before; it is added to what is ``known``."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
        meaning = ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return False
    if meaning in known:
        return False
    known.add(meaning)
    return True


@functools.lru_cache(maxsize=4)
def _breakages(source: str) -> tuple[Breakage, ...]:
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    found = [*finder.found, *_modes(source)]
    return tuple(sorted((each for each in found if not is_exempt(source, each.operator, each.start)), key=lambda each: each.start))


@functools.lru_cache(maxsize=4)
def _line_starts(source: str) -> list[int]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _modes(source: str) -> t.Iterator[Breakage]:
    """File modes, which are the numbers that are written as octal ones."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NUMBER and token.string.startswith("0o") and int(token.string, 0) in MODES:
            yield Breakage("WidenMode", token.start, token.end, MODES[int(token.string, 0)])


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_log(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and (_dotted(node.value.func) in _LOGS or _dotted(node.value.func).rpartition(".")[2] in _LOGS)
    )


class _Places:
    """Where nodes lie. The ast module counts columns in bytes of UTF-8."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()

    def at(self, line: int, column: int) -> Place:
        return line, len(self.lines[line - 1].encode()[:column].decode())

    def of(self, node: ast.AST) -> tuple[Place, Place]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        (first, begin), (last, end) = self.of(node)
        if first == last:
            return self.lines[first - 1][begin:end]
        return "\n".join((self.lines[first - 1][begin:], *self.lines[first : last - 1], self.lines[last - 1][:end]))


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.found: list[Breakage] = []
        self._places = _Places(source)
        self._bound: dict[str, int] = {}  # name -> the line that binds it first, of the function at hand
        self._last: ast.stmt | None = None  # of the function at hand

    def _add(self, operator: str, node: ast.AST, text: str = "pass") -> None:
        self.found.append(Breakage(operator, *self._places.of(node), text))

    def _deletion(self, node: ast.stmt) -> str:
        """The operator that leaves out this statement; empty where that is no breakage."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return "" if _is_log(node) else "DeleteCall"
        if isinstance(node, ast.Raise):
            return "DeleteRaise"
        if isinstance(node, ast.Continue):
            return "DeleteContinue"
        if isinstance(node, ast.Return):
            empty = node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
            return "" if empty and node is self._last else "DeleteReturn"
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return "DeleteAssignment" if all(map(self._is_bound, targets)) else ""
        return ""

    def _is_bound(self, target: ast.expr) -> bool:
        """Whether something is there without this assignment."""
        if isinstance(target, (ast.Tuple, ast.List)):
            return all(map(self._is_bound, target.elts))
        if isinstance(target, ast.Name):
            return self._bound.get(target.id, target.lineno) < target.lineno
        return True

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            operator = self._deletion(node)
            if operator:
                self._add(operator, node)
        super().visit(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = self._bound, self._last
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        self._bound = {argument.arg: node.lineno for argument in arguments if argument}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self._bound[inner.id] = min(inner.lineno, self._bound.get(inner.id, inner.lineno))
        self._last = node.body[-1]
        self.generic_visit(node)
        self._bound, self._last = outer

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

    def visit_With(self, node: ast.With) -> None:
        for number, item in enumerate(node.items):
            if item.optional_vars is None:
                others = [self._item(other) for index, other in enumerate(node.items) if index != number]
                begin, end = self._places.of(node.items[0].context_expr)[0], self._places.of(node.items[-1].context_expr)[1]
                if others:
                    self.found.append(Breakage("UnwrapWith", begin, end, ", ".join(others)))
                else:
                    self.found.append(Breakage("UnwrapWith", self._places.of(node)[0], end, "if True"))
        self.generic_visit(node)

    def _item(self, item: ast.withitem) -> str:
        name = f" as {self._places.text(item.optional_vars)}" if item.optional_vars else ""
        return self._places.text(item.context_expr) + name

    def visit_If(self, node: ast.If) -> None:
        if node.orelse or not all(map(_is_log, node.body)):
            self._add("IfTrue", node.test, "True")
            if node.orelse or len(node.body) > 1 or not self._deletion(node.body[0]):
                self._add("IfFalse", node.test, "False")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = " and " if isinstance(node.op, ast.And) else " or "
        for number in range(len(node.values)):
            rest = [f"({self._places.text(value)})" for index, value in enumerate(node.values) if index != number]
            self._add("DropOperand", node, f"({word.join(rest)})" if len(rest) > 1 else rest[0])
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._add("DropCondition", condition, "True")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            word = "in" if isinstance(node.ops[0], ast.NotIn) else "not in"
            self._add("SwapMembership", node, f"(({self._places.text(node.left)}) {word} ({self._places.text(node.comparators[0])}))")
        self.generic_visit(node)

    def _visit_text(self, node: ast.Constant | ast.JoinedStr) -> None:
        (first, begin), (last, _end) = self._places.of(node)
        if last > first and re.match(r'[rRfFbB]*("""|\'\'\')', self._places.lines[first - 1][begin:]):
            for line in range(first + 1, last):
                if not _PLAIN_LINE.match(self._places.lines[line - 1]):
                    self.found.append(Breakage("DeleteLine", (line, 0), (line + 1, 0), ""))
            opening = re.match(r'[rRfFbB]*("""|\'\'\')\\?', self._places.lines[first - 1][begin:])
            column = begin + opening.end() if opening else begin
            if not _PLAIN_LINE.match(self._places.lines[first - 1][column:]):
                self.found.append(Breakage("DeleteLine", (first, column), (first + 1, 0), ""))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, (str, bytes)):
            self._visit_text(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._visit_text(node)  # not what lies inside: before Python 3.12 nothing says where that is


_Range = tuple[Place, Place]


@functools.lru_cache(maxsize=4)
def _exempt(source: str) -> tuple[tuple[_Range, ...], tuple[_Range, ...], tuple[_Range, ...]]:
    """Ranges that are left alone by all operators, those whose numbers are, and plus signs between texts, for which there is no minus."""
    places = _Places(source)
    joins: list[_Range] = []
    everything: list[ast.AST] = []
    numbers: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False):
            everything.append(node.body[0])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
            everything.append(node.returns)
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            everything.append(node.annotation)
        if _is_log(node):
            everything.append(node)
        if isinstance(node, ast.If) and _is_aside(node.test):
            everything += [node.test, *node.body]
        if isinstance(node, ast.Raise):
            everything += [inner for inner in ast.walk(node) if isinstance(inner, ast.JoinedStr)]
        if isinstance(node, ast.Assign):
            names = {_dotted(target) for target in node.targets}
            if names & (_DOCUMENTS | {"TYPE_CHECKING"}):
                everything.append(node)
            elif any(map(_WAIT.search, names)):
                numbers.append(node)
        if isinstance(node, ast.Call) and _dotted(node.func) == "time.sleep":
            numbers.append(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right)):
            joins.append((places.of(node.left)[1], places.of(node.right)[0]))
    numbers_of_modes = [(each.start, each.end) for each in _modes(source)]
    return tuple(map(places.of, everything)), (*map(places.of, numbers), *numbers_of_modes), tuple(joins)


def _is_text(node: ast.expr) -> bool:
    """Whether this is a text or bytes, as far as one sees without running it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _is_aside(test: ast.expr) -> bool:
    """``if TYPE_CHECKING`` and ``if __name__ == "__main__"``."""
    name = test.left if isinstance(test, ast.Compare) else test
    return _dotted(name).rpartition(".")[2] in ("TYPE_CHECKING", "__name__")


def statement_at(source: str, line: int) -> range:
    """The lines of the innermost statement at a line, without those of its body; only the line itself where there is none. Pure."""
    statements = [node for node in _statements(source) if node.lineno <= line <= (node.end_lineno or node.lineno)]
    if not statements:
        return range(line, line + 1)
    innermost = max(statements, key=lambda node: (node.lineno, node.col_offset))
    body = getattr(innermost, "body", None)
    end = max(innermost.lineno, body[0].lineno - 1) if body else innermost.end_lineno or innermost.lineno
    return range(innermost.lineno, end + 1) if line <= end else range(line, line + 1)


@functools.lru_cache(maxsize=4)
def _statements(source: str) -> tuple[ast.stmt | ast.ExceptHandler, ...]:
    return tuple(node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.stmt, ast.ExceptHandler)))


def identity(operator: str, source: str, mutated: str, line: int) -> str:
    """The same for mutants that change the same function in the same way, whatever stands around it; empty outside of functions. Pure."""
    functions = [node for node in _statements(source) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    around = [node for node in functions if _first_line(node) <= line <= (node.end_lineno or node.lineno)]
    if not around:
        return ""
    outermost = min(around, key=_first_line)
    begin, end = _first_line(outermost) - 1, outermost.end_lineno or outermost.lineno
    lines, changed = source.splitlines(), mutated.splitlines()
    texts = lines[begin:end], changed[begin : end + len(changed) - len(lines)]
    return hashlib.sha256("\0".join((operator, *("\n".join(text) for text in texts))).encode()).hexdigest()[:24]


def _first_line(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min((function.lineno, *(decorator.lineno for decorator in function.decorator_list)))
