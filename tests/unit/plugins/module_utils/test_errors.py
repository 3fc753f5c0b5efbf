# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An operator pastes the commands that messages name."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins import module_utils
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import typed
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _units

PLUGINS = Path(module_utils.__path__[0]).parent
COMMAND = re.compile(r"(?:systemctl|journalctl|systemd-analyze|virsh|kvm-liveupdate)(?: [a-z=-]+)+ $")
# What has no special characters.
PLAIN = re.compile(r"_units\.(?:JUMP|TRIAL)|JUMP_UNIT|uuid|.*\['uuid'\]|len\(.*")
# What is not typed into a shell: a line of a unit.
OTHERS = ["kvm-liveupdate run {name}"]


@pytest.mark.parametrize("name", ["web1", "db-1", "build 7", "it's", "$HOME", "caf\u00e9"])
def test_the_unit_of_a_guest_reaches_the_command_as_it_is(name):
    unit = _units.hold(name)
    assert shlex.split(f"systemctl start {typed(unit)}") == ["systemctl", "start", unit]
    assert shlex.split(f"kvm-liveupdate discard {typed(name)}")[2] == name


def test_a_usual_name_is_not_quoted():
    assert typed(_units.hold("web1")) == "kvm-liveupdate-hold@web1.service"


def test_the_remedy_for_a_domain_that_is_not_back_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    _journal.record_guest({"guest": "db-1", "state": "saved", "unit": _units.hold("db-1")})
    (why,) = _journal.not_back([])
    assert r"run 'systemctl start 'kvm-liveupdate-hold@db\x2d1.service'' to restore it" in why["remedy"]


def commands(path):
    """The commands in a file's texts, and the values that are put behind them, as source."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for before, value in itertools.pairwise(node.values):
                found = COMMAND.search(before.value) if isinstance(before, ast.Constant) else None
                if found and isinstance(value, ast.FormattedValue):
                    yield found[0], ast.unparse(value.value)


def test_every_message_quotes_what_it_puts_into_a_command():
    found = [pair for path in sorted(PLUGINS.rglob("*.py")) for pair in commands(path)]
    assert len(found) > 30
    bare = [f"{command}{{{value}}}" for command, value in found if not value.startswith("typed(") and not PLAIN.fullmatch(value)]
    assert bare == OTHERS
