# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests' initramfs."""

from __future__ import annotations

from kvmlab.parts import guest


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file in a newc archive."""
    found, offset = {}, 0
    while True:
        assert offset % 4 == 0
        fields = [int(archive[offset + 6 + 8 * number : offset + 14 + 8 * number], 16) for number in range(13)]
        assert archive[offset : offset + 6] == b"070701"
        name = archive[offset + 110 : offset + 110 + fields[11]]
        assert name.endswith(b"\0")
        start = (offset + 110 + fields[11] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert start == len(archive)
            return found
        found[name[:-1].decode()] = (fields[1], archive[start : start + fields[6]])
        offset = (start + fields[6] + 3) // 4 * 4


def test_the_initramfs_holds_an_executable_init() -> None:
    archive = guest.cpio({"init": b"\x7fELF!"})
    assert entries(archive) == {"dev": (0o040755, b""), "proc": (0o040755, b""), "init": (0o100755, b"\x7fELF!")}
