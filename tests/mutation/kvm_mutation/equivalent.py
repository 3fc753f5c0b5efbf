# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The mutants that no test can notice: ``equivalent.toml``, each with its reason."""

from __future__ import annotations

import tomllib
import typing as t
from pathlib import Path

from .checkout import MutationError

TABLE = Path(__file__).resolve().parents[1] / "equivalent.toml"


class Equivalent(t.NamedTuple):
    """The mutants of one operator that begin on a line of this text (without its indent) in this file."""

    file: str
    operator: str
    line: str
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


def read(text: str) -> dict[tuple[str, str, str], Equivalent]:
    """The entries of a table. Pure."""
    entries: dict[tuple[str, str, str], Equivalent] = {}
    for given in tomllib.loads(text).get("equivalent", []):
        entry = Equivalent(given["file"], given["operator"], given["line"].strip(), given["reason"].strip())
        if not entry.reason:
            raise MutationError(f"equivalent.toml: {entry.file}, {entry.operator}, {entry.line!r}: no reason is given")
        if entry.key in entries:
            raise MutationError(f"equivalent.toml: {entry.file}, {entry.operator}, {entry.line!r} is there twice")
        entries[entry.key] = entry
    return entries
