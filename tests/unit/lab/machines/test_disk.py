# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts' raw disk: its partition table, and files changed without a mount."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from kvmlab.machines import disk


def test_the_partition_table_has_one_active_linux_partition() -> None:
    table = disk.partition_table(2048, 4096)
    assert len(table) == 512
    assert table[510:] == b"\x55\xaa"
    assert table[446] == 0x80
    assert table[450] == 0x83
    assert struct.unpack_from("<II", table, 454) == (2048, 4096)
    assert table[462:510] == b"\0" * 48
    assert table[:440] == b"\0" * 440


def test_a_host_gets_its_name_without_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SIZE_MIB", 8)
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("hypervisor\n")
    (tree / "script").write_text("once")
    raw = tmp_path / "disk.raw"
    disk.make(tree, raw, tmp_path / "log")
    assert raw.stat().st_size == 8 * 1024 * 1024
    disk.replace_file(raw, "/etc/hostname", "hv1\n")
    disk.remove_file(raw, "/script")
    assert disk._debugfs(raw, "cat /etc/hostname").splitlines()[-1] == "hv1"
    assert "script" not in disk._debugfs(raw, "ls -p /").partition("\n")[2]
    assert [path.name for path in tmp_path.glob("replace*")] == []
