# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our own breakages as operators of cosmic-ray, which finds them through the entry point in ``kvm_mutation.dist-info``."""

from __future__ import annotations

import typing as t

import parso
from cosmic_ray.operators.operator import Operator

from . import breakages


class Own(Operator):  # type: ignore[misc]
    """An operator of :mod:`breakages`. It works on the text of a whole file, so its place is the root of the tree."""

    kind = ""

    def _found(self, node: t.Any) -> list[breakages.Breakage]:
        return [each for each in breakages.breakages(node.get_code()) if each.operator == self.kind]

    def mutation_positions(self, node: t.Any) -> t.Iterator[tuple[breakages.Place, breakages.Place]]:
        if node.type == "file_input" and node.parent is None:
            for each in self._found(node):
                yield each.start, each.end

    def mutate(self, node: t.Any, index: int) -> t.Any:
        return parso.parse(breakages.apply(node.get_code(), self._found(node)[index]))

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class Provider:
    """What cosmic-ray finds through the entry point."""

    _operators: t.ClassVar = {name: type(name, (Own,), {"kind": name, "__doc__": text}) for name, text in breakages.OPERATORS.items()}

    def __iter__(self) -> t.Iterator[str]:
        return iter(self._operators)

    def __getitem__(self, name: str) -> type[Own]:
        return self._operators[name]
