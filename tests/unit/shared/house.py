# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who imports whom among the Python files of a folder: for the tests that hold the houses of the collection and of the lab in order."""

from __future__ import annotations

import ast


def files(house):
    """The files of a house by their dotted names, without what only describes a folder."""
    found = {path.relative_to(house).with_suffix(""): path for path in sorted(house.rglob("*.py")) if path.name != "__init__.py"}
    return {".".join(name.parts): path for name, path in found.items()}


def imports(house):
    """What each file imports of the same house, also inside functions: dotted names."""
    return {name: set(_imports(house, path)) for name, path in files(house).items()}


def _imports(house, path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                place = folder / f"{alias.name}.py"
                target = place if place.is_file() else folder.with_suffix(".py")
                yield ".".join(target.relative_to(house).with_suffix("").parts)


def floor(name):
    """The folder at the top of the house in which a file is; or the file itself if it is in none."""
    return name.partition(".")[0]


def upward(imported, floors):
    """Who imports what is on a floor above its own, by floors from the bottom to the top."""
    height = {name: number for number, name in enumerate(floors)}
    return [(name, used) for name, some in imported.items() for used in some if height[floor(used)] > height[floor(name)]]


def circle(imported):
    """The files that import each other in a circle, and those that import them; empty if there is no circle."""
    left = {name: set(some) for name, some in imported.items()}
    while free := [name for name, some in left.items() if not some & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def without_a_sentence(house):
    """The folders of a house whose __init__.py is not one sentence and nothing else."""
    folders = [path for path in sorted(house.iterdir()) if path.is_dir() and path.name != "__pycache__"]
    return [folder.name for folder in folders if not _is_sentence(folder)]


def _is_sentence(folder):
    path = folder / "__init__.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
