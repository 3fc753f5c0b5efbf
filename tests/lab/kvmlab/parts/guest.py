# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' initramfs: one static program in a cpio archive. The archive is written here, so that it is reproducible."""

from __future__ import annotations

import gzip
from pathlib import Path

from .. import cache, limits
from ..run import run_logged

SOURCE = Path(__file__).parents[2] / "guest" / "init.c"
COMPILE = ("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-s")


def initramfs() -> Path:
    """The path of the initramfs in the cache."""
    inputs = {"source": SOURCE.read_text(), "compile": " ".join(COMPILE)}

    def build(folder: Path, log: Path) -> None:
        program = folder / "init"
        run_logged((*COMPILE, "-o", program, SOURCE), what="compile the guest's init", log=log, limit_s=limits.TOOL)
        packed = cpio({"init": program.read_bytes()})
        (folder / "initramfs").write_bytes(gzip.compress(packed, mtime=0))
        program.unlink()

    return cache.artefact("guest", inputs, build) / "initramfs"


def cpio(programs: dict[str, bytes]) -> bytes:
    """A newc archive with executable files and the two folders that init mounts on."""
    entries = [(name, 0o040755, b"") for name in ("dev", "proc")]
    entries += [(name, 0o100755, content) for name, content in programs.items()]
    packed = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, start=1))
    return packed + _entry(0, "TRAILER!!!", 0, b"")


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One file: header and name, then content. Each is padded to a multiple of four bytes."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    """The data, padded with zeros to a multiple of four bytes."""
    return data + b"\0" * (-len(data) % 4)
