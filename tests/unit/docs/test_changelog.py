# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The release notes in an artefact are complete: it has changelogs/changelog.yaml and CHANGELOG.md, and no fragments."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

REPO = Path(__file__).parents[3]
VERSION = yaml.safe_load((REPO / "galaxy.yml").read_text())["version"]
RELEASES = yaml.safe_load((REPO / "changelogs/changelog.yaml").read_text())["releases"]
COMMAND = "run: antsibull-changelog release --update-existing --reload-plugins --refresh-plugins"


def documented():
    """The kind, the name and the documentation of each module and role."""
    for path in (REPO / "plugins/modules").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
                yield "module", path.stem, yaml.safe_load(node.value.value)
    for path in (REPO / "roles").glob("*/meta/argument_specs.yml"):
        yield "role", path.parts[-3], yaml.safe_load(path.read_text())["argument_specs"]["main"]


def listed():
    """The kind, the name and the description of each new module and role of this version, as its release notes say."""
    release = RELEASES[VERSION]
    kinds = {"module": release.get("modules", []), "role": release.get("objects", {}).get("role", [])}
    return {(kind, entry["name"]): entry["description"] for kind, entries in kinds.items() for entry in entries}


def test_no_fragment_waits_if_the_version_has_release_notes():
    waiting = sorted(path.name for path in (REPO / "changelogs/fragments").glob("*.y*ml"))
    assert VERSION not in RELEASES or waiting == [], COMMAND


def test_every_new_module_and_role_is_in_the_release_notes_of_its_version():
    new = {(kind, name): doc["short_description"] for kind, name, doc in documented() if doc["version_added"] == VERSION}
    assert len(new) > 15 or VERSION != "0.2.0"
    assert VERSION not in RELEASES or new == {known: text.rstrip(".") for known, text in listed().items()}, COMMAND
