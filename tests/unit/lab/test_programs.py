# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs that the lab's tests and the bench run on a host import the runtime there. Nothing else would notice a name that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "plugins/module_utils"
TEXTS = [path.read_text(encoding="utf-8") for folder in ("lab", "bench") for path in sorted((ROOT / "tests" / folder).rglob("*.py"))]
IMPORTS = sorted({found for text in TEXTS for found in re.findall(r"^from kvm_liveupdate([\w.]*) import ([\w, ]+)$", text, re.MULTILINE)})


@pytest.mark.parametrize(("folder", "names"), IMPORTS)
def test_what_a_program_on_a_host_imports_is_there(folder: str, names: str) -> None:
    place = HOUSE.joinpath(*filter(None, folder.split(".")))
    for name in names.split(", "):
        assert (place / f"{name}.py").is_file() or re.search(rf"^(def|class) {name}\b", place.with_suffix(".py").read_text(), re.MULTILINE)


def test_there_are_such_programs() -> None:
    assert len(IMPORTS) > 5
