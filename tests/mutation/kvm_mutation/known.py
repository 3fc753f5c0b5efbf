# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of lines on which the safety of guests rests: ``known.toml``, how each is broken, and which test notices."""

from __future__ import annotations

import tomllib
import typing as t
from pathlib import Path

from .checkout import Checkout, MutationError

TABLE = Path(__file__).resolve().parents[1] / "known.toml"


class Change(t.NamedTuple):
    """Replace the one place in ``file`` that reads ``find``."""

    file: str
    find: str
    replace: str


class Entry(t.NamedTuple):
    """One purpose, how it is broken, and the tests (as pytest names them) that are said to notice."""

    number: int
    purpose: str
    changes: tuple[Change, ...]
    killed_by: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(change.file for change in self.changes))


def read(text: str) -> dict[int, Entry]:
    """The entries of a table, by number. Pure."""
    entries: dict[int, Entry] = {}
    for given in tomllib.loads(text)["entry"]:
        changes = tuple(Change(change.get("file", given.get("file", "")), change["find"], change["replace"]) for change in given["change"])
        entry = Entry(given["number"], given["purpose"], changes, tuple(given.get("killed_by", ())))
        if entry.number in entries:
            raise MutationError(f"known.toml: number {entry.number} is there twice")
        entries[entry.number] = entry
    return entries


def broken(entry: Entry, checkout: Checkout) -> dict[str, str]:
    """The texts of the files that an entry breaks. Each of its places has to be there, once."""
    texts: dict[str, str] = {}
    for change in entry.changes:
        if change.file not in checkout.files:
            raise _stale(entry, f"there is no file {change.file}")
        text = texts.get(change.file, checkout.text(change.file))
        found = text.count(change.find)
        if found != 1:
            raise _stale(entry, f"{change.file} has this {found} times, not once:\n{change.find}")
        if change.find == change.replace:
            raise _stale(entry, "it changes nothing")
        texts[change.file] = text.replace(change.find, change.replace)
    for file, text in texts.items():
        try:
            compile(text, file, "exec", dont_inherit=True)
        except SyntaxError as err:
            raise _stale(entry, f"{file} is no Python any more ({err})") from err
    return texts


def problems(entries: t.Iterable[Entry], checkout: Checkout) -> list[str]:
    """What is wrong with these entries: each that does not fit the sources, or names a test file that is not there."""
    found = []
    for entry in entries:
        try:
            broken(entry, checkout)
        except MutationError as err:
            found.append(str(err))
        gone = [test for test in entry.killed_by if test.partition("::")[0] not in checkout.files]
        found += [f"known.toml, entry {entry.number} ({entry.purpose}): there is no test file {test.partition('::')[0]}" for test in gone]
    return found


def _stale(entry: Entry, why: str) -> MutationError:
    return MutationError(f"known.toml, entry {entry.number} ({entry.purpose}): {why}")
