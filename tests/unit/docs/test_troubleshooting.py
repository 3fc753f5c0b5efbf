# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whoever reads a code in a report finds it in docs/docsite/rst/troubleshooting.rst, and no code stands there that nothing gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _modules, _proof
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv_reasons

REPO = Path(__file__).parents[3]
PLUGINS = REPO / "plugins"
PAGE = REPO / "docs/docsite/rst/troubleshooting.rst"
RUNBOOKS = PAGE.with_name("runbooks.rst")
# The lines of runbooks that quote messages, and what else stands there.
SAYS = re.compile(r"says\*|The run says|run says|message is|^ +\* - ``")
NO_MESSAGES = ('"', "kvm-liveupdate ", "systemctl ")
# These judge kernels.
KERNELS = ("kernel/_proof.py", "kernel/_image.py")
TABLES = ("vmm/_argv_reasons.py", "libvirt/_reasons.py", "vmm/_changes.py")
KINDS = ("network", "pool")
# Codes that a kernel's reasons are put together from.
BUILT_WITH = {*_modules.OPTIONS, *(option for option, *_words in _proof._PARTS.values())} - {"VHOST_NET"}
PATTERNS = {
    "abi-*": {f"abi-{name}" for name in _image.ABI},
    "abi-*-unread": {f"abi-{name}-unread" for name in _image.ABI},
    "cmdline-*": {f"cmdline-{word.partition('=')[0]}" for word in _cmdline.NEEDED},
    "*-off": {f"{option.lower().replace('_', '-')}-off" for option in BUILT_WITH},
}


def codes(path):
    """The codes that a module makes reasons and warnings of: the first argument of reason(), "code" of a dict, and tables of them."""
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("reason", "_reason"):
            found = node.args[:1]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"]
        elif isinstance(node, ast.Tuple) and len(node.elts) >= 3 and "/".join(path.parts[-2:]) in TABLES:
            # A code beside a sentence and a remedy.
            words = [getattr(part, "value", None) for part in node.elts]
            if any(isinstance(word, str) and " " in word for word in words):
                found = [part for part in node.elts if isinstance(getattr(part, "value", None), str)]
        for part in found:
            text = ast.unparse(part)
            for kind in KINDS if "{kind}" in text else ("",):
                word = re.fullmatch(r"f?'([a-z]+(?:-[a-z]+)*)'", text.replace("{kind}", kind))
                if word:
                    yield word[1]


def kernel_codes():
    """The codes of kernels: the second argument of _reason(). One that is put together is in PATTERNS, or a KeyError."""
    for node in ast.walk(ast.parse((PLUGINS / "module_utils/kernel/_proof.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_reason":
            code = node.args[1]
            if isinstance(code, ast.JoinedStr):
                yield from PATTERNS["".join(part.value if isinstance(part, ast.Constant) else "*" for part in code.values)]
            else:
                yield code.value


def first_cells(part):
    """The first cells of the tables of this part of the page."""
    label = f".. _ansible_collections.kvm.liveupdate.docsite.troubleshooting.{part}:"
    text = PAGE.read_text().partition(label)[2].partition("\n.. _")[0]
    return re.findall(r"^   \* - (.*)$", text, re.MULTILINE)


def told(part):
    """The codes there."""
    return [code for cell in first_cells(part) for code in re.findall(r"``([a-z0-9-]+)``", cell)]


def sentences():
    """All texts of the code, with "*" for each value put into them; of tasks all that they say."""
    for path in PLUGINS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for path in (REPO / "roles").rglob("*.yml"):
        yield " ".join(re.sub(r"\{\{.*?\}\}", "*", path.read_text(), flags=re.DOTALL).split())


@pytest.mark.parametrize("part", ["steps", "return"])
def test_every_message_is_one_of_the_code(part):
    said = "\n".join(sentences())
    messages = [message for cell in first_cells(part) for message in re.findall("``(.+?)``", cell)]
    assert len(messages) > 10
    pieces = {piece for message in messages for piece in re.split(r" ?\.\.\. ?|: WHY", message) if piece}
    assert sorted(piece for piece in pieces if piece not in said) == []


def test_every_message_in_a_runbook_is_one_of_the_code():
    said = "\n".join(sentences())
    quoted = [text for line in RUNBOOKS.read_text().splitlines() if SAYS.search(line) for text in re.findall("``(.+? .+?)``", line)]
    pieces = {piece for text in quoted for piece in re.split(r" ?\.\.\. ?", text) if piece and not text.startswith(NO_MESSAGES)}
    assert len(pieces) > 10
    assert sorted(piece for piece in pieces if piece not in said) == []


def test_every_reason_and_warning_of_a_guest_or_host_is_told_and_no_other():
    modules = [path for path in PLUGINS.rglob("*.py") if "/".join(path.parts[-2:]) not in KERNELS]
    made = {code for path in modules for code in codes(path)} | set(_argv_reasons._SAYS)
    assert {"saves-link", "ram-gone", "pool-transient", "name-twice", "unit", "hostdev", "genid", "not-back", "runtime"} <= made
    assert {*told("guests"), *told("warnings"), *told("hosts"), *told("devices")} == made


def test_every_reason_of_a_kernel_is_told_and_no_other():
    made = set(kernel_codes())
    assert {"abi-luo", "abi-memfd-unread", "kexec-handover-off", "tun-off", "cmdline-kho", "scratch", "unproven"} <= made
    assert set(told("kernels")) == made


@pytest.mark.parametrize("part", ["guests", "warnings", "hosts", "kernels", "devices"])
def test_no_code_is_told_twice(part):
    assert len(told(part)) == len(set(told(part))) > 0
