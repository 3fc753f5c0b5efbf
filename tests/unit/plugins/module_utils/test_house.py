# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may import whom below plugins, and on the floors of plugins/module_utils (CONTRIBUTING.md, The house)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
from ansible_collections.kvm.liveupdate.plugins import module_utils
from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files

HOUSE = Path(module_utils.__path__[0])
PACKAGE = module_utils.__name__
PLUGINS = HOUSE.parent
ALL = PACKAGE.rpartition(".")[0]
# From the bottom to the top: a file imports what is in its own folder or below.
FLOORS = (
    "_errors",
    "_limits",
    "host",
    "kernel",
    "bootloader",
    "handover",
    "vmm",
    "qemu",
    "libvirt",
    "guests",
    "update",
    "_unit_files",
    "trial",
    "_command",
    "_runtime",
    "_module",
)
# Where both providers are named: their table, and the command, which starts what a unit asks for. What a host is given names libvirt.
KNOW_PROVIDERS = ("guests._providers", "_command", "_runtime", "_unit_files")
# What each part of a restore imports of ours at most, the folders among it.
MOST_FILES = {"qemu._start": 23, "libvirt._start": 23, "libvirt._hook": 8, "update._rest_of_boot": 14}
# What it never imports, because that is slow or large.
SLOW = {"socket", "subprocess", "typing", "kvm_liveupdate.vmm._argv_reasons"}
# What each kind of plugin imports of plugins.
IMPORTED_BY = {
    "action": {"module_utils", "plugin_utils"},
    "doc_fragments": set(),
    "filter": {"module_utils", "plugin_utils"},
    "module_utils": {"module_utils"},
    "modules": {"module_utils"},
    "plugin_utils": {"module_utils", "plugin_utils"},
}
# What the controller needs of the code for hosts: pure functions, and the class of errors.
ON_THE_CONTROLLER = {"_errors", "kernel._proof", "libvirt._room", "update._lease", "update._window"}
# Who may name libvirt besides: what is about domains only.
NAME_LIBVIRT = {"modules.domain_memory", "modules.hypervisor_info", "modules.runtime", "plugin_utils._plan"}
# What is neither ours nor of Python: Ansible, with which plugins have to do and hosts do not, and its libraries.
NOT_OF_PYTHON = {
    "module_utils._module": {"ansible.module_utils", "ansible.module_utils.basic", "ansible.module_utils.common"},
    "plugin_utils._lost_host": {"ansible.errors", "ansible.plugins.action.normal"},
    "plugin_utils._policy": {"jmespath", "jmespath.exceptions", "jmespath.visitor"},
}

HOUSE_IMPORTS = house.imports(HOUSE, PACKAGE)
ALL_IMPORTS = house.imports(PLUGINS, ALL)


def test_every_import_is_of_a_file():
    """Of none that the run computes, either: nobody could say who imports it."""
    assert house.no_files(ALL_IMPORTS) == []


def test_each_kind_of_plugin_imports_what_it_may():
    kinds = {house.floor(name): set() for name in ALL_IMPORTS}
    for name, some in ALL_IMPORTS.items():
        kinds[house.floor(name)] |= {house.floor(used) for used in some}
    assert kinds == IMPORTED_BY


def test_the_controller_runs_little_of_what_is_for_hosts():
    elsewhere = [some for name, some in ALL_IMPORTS.items() if house.floor(name) not in ("module_utils", "modules")]
    used = {name.removeprefix("module_utils.") for some in elsewhere for name in some if house.floor(name) == "module_utils"}
    assert used == ON_THE_CONTROLLER


def test_few_plugins_name_a_provider():
    sides = ("module_utils.libvirt.", "module_utils.qemu.")
    naming = {(name, used.split(".")[1]) for name, some in ALL_IMPORTS.items() for used in some if used.startswith(sides)}
    assert {(name, side) for name, side in naming if house.floor(name) != "module_utils"} == {(name, "libvirt") for name in NAME_LIBVIRT}


def test_who_needs_more_than_python():
    """Hosts run module_utils at boot, without Ansible. Only actions and filters have to do with Ansible freely."""
    python = {*sys.stdlib_module_names, "compression"}  # which is new in Python 3.14
    found = {
        name: {used for used in some if house.floor(used) not in python}
        for name, some in house.outside(PLUGINS, ALL).items()
        if house.floor(name) not in ("action", "filter")
    }
    assert {name: some for name, some in found.items() if some} == NOT_OF_PYTHON


def test_every_file_is_on_a_floor():
    assert {house.floor(name) for name in HOUSE_IMPORTS} == set(FLOORS)
    assert all(name.rpartition(".")[2].startswith("_") for name in HOUSE_IMPORTS)


def test_nobody_imports_what_is_above():
    assert house.upward(HOUSE_IMPORTS, FLOORS) == []


def test_the_providers_do_not_know_each_other():
    sides = {"qemu": "libvirt", "libvirt": "qemu"}
    found = [
        (name, used) for name, some in HOUSE_IMPORTS.items() for used in some if sides.get(name.partition(".")[0]) == used.partition(".")[0]
    ]
    assert found == []


def test_few_know_a_provider_by_its_name():
    knowing = {name for name, some in HOUSE_IMPORTS.items() for used in some if used.startswith(("qemu.", "libvirt."))}
    assert {name for name in knowing if not name.startswith(("qemu.", "libvirt."))} <= set(KNOW_PROVIDERS)


def test_nobody_imports_in_a_circle():
    """Also not inside a function."""
    assert house.circle(ALL_IMPORTS) == []


def test_one_file_writes_the_journal_of_a_guest():
    """Whoever else needs its path only asks whether it is there."""
    asking = {name for name, path in house.files(HOUSE).items() if "journal_path(" in path.read_text(encoding="utf-8")}
    assert asking == {"host._files", "handover._journal", "trial._guest"}


def test_contributing_names_each_file_with_the_text_of_a_reason():
    text = (PLUGINS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)/(\w+)`", text.partition("- The text of a reason")[2].partition("\n- ")[0])
    making = {name for name, path in house.files(PLUGINS).items() if re.search(r"\b_?reason\(", path.read_text(encoding="utf-8"))}
    assert {".".join(name.split(".")[-2:]) for name in making} - {"module_utils._errors"} == {".".join(name) for name in named}


def names_in(path):
    """What a file defines at its top, and the files that it imports there or in functions, by the names that it gives them."""
    defined, files = set(), {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            files.update({alias.asname or alias.name: folder / f"{alias.name}.py" for alias in node.names})
    return defined, files


def test_what_a_docstring_refers_to_is_there():
    """Also what is above, which the file does not import: then the name alone has to tell which file is meant."""
    by_name = {}
    for path in HOUSE.rglob("*.py"):
        by_name.setdefault(path.stem, []).append(path)
    missing = []
    for path in sorted(HOUSE.rglob("*.py")):
        defined, files = names_in(path)
        for kind, said in re.findall(r":(func|data|class|mod):`([^`]+)`", path.read_text(encoding="utf-8")):
            module, _dot, name = said.rpartition(".")
            if kind == "mod":
                found = path.with_name(f"{said}.py").is_file()
            elif not module:
                found = name in defined
            else:
                candidates = [files[module]] if module in files else by_name.get(module, [])
                found = any(place.is_file() and name in names_in(place)[0] for place in candidates)
            if not found:
                missing.append(f"{path.relative_to(HOUSE)}: {said}")
    assert missing == []


def test_a_folder_has_a_sentence_and_no_code():
    assert house.without_a_sentence(HOUSE) == []


@pytest.mark.parametrize("start", MOST_FILES)
def test_the_way_back_imports_little(tmp_path, start):
    """Each file costs the pause up to a millisecond."""
    for path, (content, _mode) in _runtime.files([]).items():
        if path.startswith(_files.LIBRARY):
            file = tmp_path / path.removeprefix(f"{_files.LIBRARY}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, '{tmp_path}'); import kvm_liveupdate._command, kvm_liveupdate.{start}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    ours = sorted(name for name in modules if name.startswith("kvm_liveupdate."))
    assert len(ours) <= MOST_FILES[start], ours
    assert modules & SLOW == set()
