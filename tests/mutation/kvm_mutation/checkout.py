# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checkout as it was at the start of a run: its files, and which unit tests may notice a change of which of them."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# The tests that are asked, and all of them where none names the file that is broken. (Those of the playbooks run Ansible each time.)
TESTS = "tests/unit/plugins"
# What several tests import. A test that imports such a file also names what is named there.
SHARED = "tests/unit/shared"
# What the unit tests read: not the lab, which is large.
_PARTS = ("CONTRIBUTING.md", "changelogs", "docs", "galaxy.yml", "meta", "playbooks", "plugins", "pyproject.toml", "roles", "tests/unit")


class MutationError(Exception):
    """A mistake in a table, an option or the machine; its text says what to do."""


class Checkout:
    """All files of a collection that its unit tests may read, by their path below ``root``."""

    def __init__(self, root: Path = ROOT) -> None:
        files = (file for part in _PARTS for file in sorted([root / part, *(root / part).rglob("*")]) if file.is_file())
        self.files = {str(file.relative_to(root)): file.read_bytes() for file in files if "__pycache__" not in file.parts}

    def text(self, path: str) -> str:
        return self.files[path].decode()

    def matching(self, pattern: str) -> list[str]:
        """The Python files of the collection that a pattern means: a path, the end of a path, or a pattern of the shell for one."""
        sources = [path for path in self.files if path.startswith("plugins/") and path.endswith(".py") and self.files[path].strip()]
        found = [path for path in sources if fnmatch(path, pattern) or fnmatch(path, f"*/{pattern}")]
        if not found:
            raise MutationError(f"pattern {pattern!r} means no Python file below plugins/; an example is '_paths.py'")
        return found

    @functools.cached_property
    def surroundings(self) -> str:
        """A digest of all sources and tests: a mutant that survived them survives them again."""
        relevant = {path: text for path, text in self.files.items() if path.startswith(("plugins/", f"{TESTS}/", f"{SHARED}/"))}
        return digest(*(f"{path}\0".encode() + text for path, text in sorted(relevant.items())))

    @functools.cached_property
    def _named_by_test(self) -> dict[str, set[str]]:
        tests = [path for path in self.files if path.startswith(f"{TESTS}/") and path.rpartition("/")[2].startswith("test_")]
        files = [path for path in self.files if path.startswith(f"{SHARED}/") and path.endswith(".py")]
        shared = {Path(path).stem: names_in(self.text(path)) for path in files}
        found = {path: names_in(self.text(path)) for path in tests if path.endswith(".py")}
        return {path: names.union(*(shared[name] for name in names & shared.keys())) for path, names in found.items()}

    def tests_of(self, path: str) -> list[str]:
        """The test files that may notice a change of a source file: its own first, then all that name it."""
        module = path.removesuffix(".py").replace("/", ".")
        folder, _slash, name = path.rpartition("/")
        own = f"tests/unit/{folder}/test_{name.removesuffix('.py').lstrip('_')}.py"
        naming = [test for test, names in self._named_by_test.items() if any(f".{told}".endswith(f".{module}") for told in names)]
        return sorted(naming, key=lambda test: test != own) or [TESTS]


def names_in(test: str) -> set[str]:
    """All modules that a test imports, or reads as a file, by their dotted names. Pure."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            names.update(path.removesuffix(".py").replace("/", ".") for path in re.findall(r"plugins/[\w/]+\.py\b", node.value))
            if "plugins." in node.value:
                names.add(node.value)
    return names


def digest(*contents: bytes) -> str:
    """A short name for these contents."""
    together = hashlib.sha256()
    for content in contents:
        together.update(hashlib.sha256(content).digest())
    return together.hexdigest()[:16]
