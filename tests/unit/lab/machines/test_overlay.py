# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disk on top of a prepared one."""

from __future__ import annotations

import struct

from kvmlab.machines import overlay
from kvmlab.machines.machine import Machine

SIZE = 6144 << 20


def test_the_parts_of_an_overlay_are_where_its_header_says() -> None:
    content = overlay.overlay("/cache/prepared-1/disk.raw", SIZE)
    header = overlay.HEADER.unpack_from(content)
    magic, version, name_at, name_size, bits, size = header[:6]
    entries, table, counters, counter_clusters = header[7:11]
    assert (magic, version, bits, size) == (b"QFI\xfb", 3, 16, SIZE)
    assert content[name_at : name_at + name_size] == b"/cache/prepared-1/disk.raw"
    assert name_at + name_size <= overlay.CLUSTER
    assert entries * 512 << 20 >= SIZE > (entries - 1) * 512 << 20
    assert content[table:] == bytes(len(content) - table) and len(content) == table + overlay.CLUSTER
    (block,) = struct.unpack_from(">Q", content, counters)
    used = struct.unpack_from(">6H", content, block)
    assert counter_clusters == 1 and used == (1, 1, 1, 1, 0, 0)  # as many as the file has clusters
    assert header[-1] == overlay.HEADER.size


def test_a_machine_says_the_format_of_its_disk() -> None:
    (drive,) = [word for word in Machine(("qemu",), "disk.qcow2", disk_format="qcow2").command() if word.startswith("if=none,id=disk")]
    assert "file=disk.qcow2,format=qcow2," in drive
