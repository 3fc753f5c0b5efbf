# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which names are meant by names and patterns. Pure. PRIVATE to the collection."""

from __future__ import annotations

import fnmatch
import typing as t

__all__ = ("matching",)


def matching(patterns: t.Sequence[str], names: t.Sequence[str], word: str = "") -> dict[str, list[str]]:
    """``names``: what the patterns mean, each once, in their order. ``unmatched``: the patterns that match none of ``names``.

    A pattern is fnmatch's. ``word`` is a pattern that matches every name. Anything else is a name, whether it is among ``names`` or not.
    """
    found: dict[str, None] = {}
    unmatched = []
    for pattern in patterns:
        if word and pattern == word:
            matched = list(names)
        elif pattern in names or not any(sign in pattern for sign in "*?["):
            matched = [pattern]
        else:
            matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        found.update(dict.fromkeys(matched))
        if not matched:
            unmatched.append(pattern)
    return {"names": list(found), "unmatched": unmatched}
