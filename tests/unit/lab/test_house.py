# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may import whom below tests/lab/kvmlab (CONTRIBUTING.md, The house)."""

from __future__ import annotations

from pathlib import Path

import house
import kvmlab

LAB = Path(kvmlab.__path__[0])
# From the bottom to the top: a file imports what is in its own folder or below.
FLOORS = ("errors", "limits", "run", "cache", "watch", "machines", "parts", "lab", "cli", "story")
# Programs that are copied to a host by themselves.
COPIED = ("watch.echo", "watch.probe")
IMPORTED = house.imports(LAB, "kvmlab")


def test_every_file_is_on_a_floor() -> None:
    assert {house.floor(name) for name in IMPORTED} == set(FLOORS)


def test_every_import_is_of_a_file() -> None:
    assert house.no_files(IMPORTED) == []


def test_nobody_imports_what_is_above() -> None:
    assert house.upward(IMPORTED, FLOORS) == []


def test_nobody_imports_in_a_circle() -> None:
    assert house.circle(IMPORTED) == []


def test_a_folder_has_a_sentence_and_no_code() -> None:
    assert house.without_a_sentence(LAB) == []


def test_what_is_copied_to_a_host_stands_alone() -> None:
    assert {name: IMPORTED[name] for name in COPIED} == {name: set() for name in COPIED}
