# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hosts' disk with a logical volume: what LVM and GRUB read of it. The boot that installs GRUB has LVM's own tools look at it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from kvmlab.machines import disk, lvm

SECTORS = 8 * 2048 - lvm.FIRST_SECTOR


def checksum(data: bytes) -> int:
    """LVM's calc_crc(), bit by bit (lib/misc/crc.c)."""
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        for _bit in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc


def test_the_label_is_in_the_second_sector_and_names_data_and_metadata() -> None:
    label = lvm.physical_volume(SECTORS)[512:1024]
    name, sector, crc, offset, kind = struct.unpack_from("<8sQII8s", label)
    assert (name, sector, offset, kind) == (b"LABELONE", 1, 32, b"LVM2 001")
    assert crc == checksum(label[20:])
    identity, size, *areas = struct.unpack_from("<32sQ8Q", label, 32)
    assert len(identity.strip(b"\0")) == 32 and size == SECTORS * 512
    assert areas == [lvm.EXTENTS_FROM * 512, 0, 0, 0, 4096, lvm.EXTENTS_FROM * 512 - 4096, 0, 0]


def test_the_metadata_is_where_its_header_says() -> None:
    volume = lvm.physical_volume(SECTORS)
    header = volume[4096:4608]
    crc, magic, version, start, size, offset, length, text_crc, flags = struct.unpack_from("<I16sIQQQQII", header)
    assert (magic, version, start, size, flags) == (b" LVM2 x[5A%r0N*>", 1, 4096, lvm.EXTENTS_FROM * 512 - 4096, 0)
    assert crc == checksum(header[4:])
    text = volume[4096 + offset : 4096 + offset + length]
    assert text_crc == checksum(text)
    assert text == lvm.metadata(SECTORS).encode() + b"\0"
    assert len(volume) == lvm.EXTENTS_FROM * 512


def test_the_volume_fills_the_group_and_ends_on_the_disk() -> None:
    text = lvm.metadata(SECTORS)
    numbers = {name: int(value) for name, value in re.findall(r"^(\w+) = (\d+)$", text, re.MULTILINE)}
    assert numbers["extent_count"] == numbers["pe_count"]
    assert numbers["pe_start"] + numbers["pe_count"] * numbers["extent_size"] <= SECTORS == numbers["dev_size"]
    assert all(re.fullmatch(r"\w{6}(-\w{4}){5}-\w{6}", identity) for identity in re.findall(r'^id = "(.*)"$', text, re.MULTILINE))
    assert text.count("{") == text.count("}")


def test_the_file_system_is_where_it_is_without_lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SIZE_MIB", 8)
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("hypervisor\n")
    raw = tmp_path / "disk.raw"
    lvm.make(tree, raw, tmp_path / "log")
    assert raw.stat().st_size == 8 * 1024 * 1024
    disk.replace_file(raw, "/etc/hostname", "hv1\n")
    assert disk._debugfs(raw, "cat /etc/hostname").splitlines()[-1] == "hv1"
    start = lvm.FIRST_SECTOR * 512
    begun = raw.read_bytes()[: start + lvm.EXTENTS_FROM * 512]
    assert begun[start:] == lvm.physical_volume(SECTORS)
    assert struct.unpack_from("<II", begun, 454) == (lvm.FIRST_SECTOR, SECTORS) and begun[450] == 0x8E
    assert begun[510:512] == b"\x55\xaa" and not any(begun[512:start])
