# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whoever reads a code in a report finds it in docs/guests.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PLUGINS = Path(__file__).parents[4] / "plugins"
# Of the host and of its kernels: hypervisor_info and kexec_image explain these themselves. Not of a guest that is examined: not-back,
# not-managed.
OF_THE_HOST = {"cmdline", "systemd", "kexec-disabled", "no-device", "no-kexec", "not-back", "not-managed", "runtime"}
KERNELS = ("kernel/_proof.py", "kernel/_image.py")
TABLES = ("vmm/_argv.py", "libvirt/_reasons.py", "vmm/_now.py")
KINDS = ("network", "pool")


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


def test_every_reason_and_warning_is_told_in_the_documentation():
    modules = [path for path in PLUGINS.rglob("*.py") if "/".join(path.parts[-2:]) not in KERNELS]
    made = {code for path in modules for code in codes(path)}
    assert {"saves-link", "ram-gone", "pool-transient", "name-twice", "unit", "hostdev", "genid", "not-back"} <= made
    told = set(re.findall(r"`([a-z-]+)`", (PLUGINS.parent / "docs" / "guests.md").read_text()))
    assert made - told <= OF_THE_HOST
