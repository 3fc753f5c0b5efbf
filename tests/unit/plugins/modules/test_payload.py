# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each module takes to a host: its own file and every utility that it imports, also inside functions, as Ansible packs it.

``pytest -s`` prints how many files of this collection that is.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins import modules

MODULES = Path(modules.__path__[0])
UTILITIES = MODULES.parent / "module_utils"
PACKAGE = "ansible_collections.kvm.liveupdate.plugins.module_utils"


def imported(path):
    """The files below module_utils that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            folder = path.parents[node.level - 1]
        elif (node.module or "").startswith(PACKAGE):
            folder = UTILITIES
        else:
            continue
        parts = (node.module or "").removeprefix(PACKAGE).strip(".")
        place = folder.joinpath(*filter(None, parts.split(".")))
        candidates = [place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)]
        found.update(candidate.resolve() for candidate in candidates if candidate.is_file())
    return found


def payload(name):
    """The names of the utilities that go along with a module."""
    seen, waiting = set(), {MODULES / f"{name}.py"}
    while waiting:
        path = waiting.pop()
        new = imported(path) - seen
        seen |= new
        waiting |= new
    return {path.stem for path in seen}


# The sources of the whole runtime, for those that install it or compare it; reading and proving kernel images; the guests and all that
# runs them; the update itself.
RUNTIME, KERNELS, GUESTS, UPDATE = {"_runtime", "_command"}, {"_image", "_proof"}, {"_providers", "_reasons", "_virsh"}, {"_jump"}


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("boot_default", RUNTIME | KERNELS | GUESTS | UPDATE),
        ("guest", RUNTIME | KERNELS),
        ("guest_away", RUNTIME | KERNELS),
        ("guest_rehearsal", RUNTIME | KERNELS),
        ("kexec", RUNTIME | KERNELS),
        ("kexec_image", RUNTIME | GUESTS | UPDATE),
        ("session", RUNTIME | KERNELS | GUESTS | UPDATE),
        ("trial", RUNTIME | KERNELS | UPDATE),
        ("update_record", RUNTIME | GUESTS | UPDATE | {"_proof"}),
    ],
)
def test_a_module_takes_along_what_it_needs(name, without):
    taken = payload(name)
    print(f"{name}: {len(taken)} files")
    assert "_errors" in taken and not taken & without
