# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who imports whom among the Python files of a folder: for the tests that hold the houses of the collection and of the lab in order.

``package`` is the full name of the house, for example ``kvmlab``: a file may be imported by its full name as well as by a relative one.
"""

from __future__ import annotations

import ast

# What a file imports by a name that only the run knows.
COMPUTED = "?"


def files(house):
    """The files of a house by their dotted names, without what only describes a folder."""
    found = {path.relative_to(house).with_suffix(""): path for path in sorted(house.rglob("*.py")) if path.name != "__init__.py"}
    return {".".join(name.parts): path for name, path in found.items()}


def imports(house, package):
    """What each file imports of the same house, also inside functions: dotted names. :func:`no_files` tells which of them are no files."""
    inside = f"{package}."
    return {
        name: {used.removeprefix(inside) for used in some if used.startswith(inside)} for name, some in _all_imports(house, package).items()
    }


def outside(house, package):
    """What each file imports that is not in the house: full names of modules."""
    return {name: {used for used in some if not used.startswith(f"{package}.")} for name, some in _all_imports(house, package).items()}


def _all_imports(house, package):
    known = files(house)
    full = {f"{package}.{name}" for name in known}
    return {name: set(_imported(path, f"{package}.{name}", package, full)) for name, path in known.items()}


def _imported(path, name, package, known):
    """The full names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            place = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{place}.{alias.name}"
                a_name = place in known or not f"{place}.".startswith(f"{package}.")  # and not a file
                yield place if a_name and whole not in known else whole
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("__import__", "import_module"):
            yield f"{package}.{COMPUTED}"


def no_files(imported):
    """Who imports what of the house that is no file of it: a folder, all of a folder, or a name that only the run knows."""
    return [(name, used) for name, some in imported.items() for used in sorted(some) if used not in imported]


def floor(name):
    """The folder at the top of the house in which a file is; or the file itself if it is in none."""
    return name.partition(".")[0]


def upward(imported, floors):
    """Who imports what is on a floor above its own, or on none, by floors from the bottom to the top."""
    height = {name: number for number, name in enumerate(floors)}
    return [
        (name, used)
        for name, some in imported.items()
        for used in sorted(some)
        if height.get(floor(used), len(floors)) > height[floor(name)]
    ]


def circle(imported):
    """The files that import each other in a circle, and those that import them; empty if there is no circle."""
    left = {name: set(some) for name, some in imported.items()}
    while free := [name for name, some in left.items() if not some & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def without_a_sentence(house):
    """The folders of a house, at any depth, whose __init__.py is not one sentence and nothing else."""
    folders = [path for path in sorted(house.rglob("*")) if path.is_dir() and path.name != "__pycache__"]
    return [".".join(folder.relative_to(house).parts) for folder in folders if not _is_sentence(folder)]


def _is_sentence(folder):
    path = folder / "__init__.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    value = body[0].value.value if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else None
    return isinstance(value, str) and value.strip().endswith(".")
