# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records in a file, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def append(file: Path, record: Any) -> None:
    """Add a dataclass, durably."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(record))
        stream.flush()
        os.fsync(stream.fileno())


def read(kind: Callable[..., T], *files: Path) -> list[T]:
    """The records of these files, in their order. A last line that is cut off does not count. A file may be missing."""
    return [
        kind(**json.loads(line))
        for file in files
        if file.exists()
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def write(file: Path, records: Iterable[Any]) -> None:
    """Write a file with these dataclasses."""
    file.write_text("".join(map(_line, records)), encoding="utf-8")


def _line(record: Any) -> str:
    return json.dumps(asdict(record), sort_keys=True) + "\n"
