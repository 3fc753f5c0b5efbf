# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""An empty qcow2 disk on top of a raw one: a host writes to it, and the raw disk stays as it is (QEMU, docs/interop/qcow2.rst)."""

from __future__ import annotations

import struct
from pathlib import Path

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
# What an entry of the first table covers: one second table, whose entries have eight bytes and cover a cluster each.
COVERED = CLUSTER // 8 * CLUSTER
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
VERSION = 3
REFCOUNT_ORDER = 4  # counters of 16 bits
BACKING_FORMAT = 0xE2792ACA
# The places of the parts, in clusters.
_COUNTERS, _COUNTER_BLOCK, _FIRST_TABLE = 1, 2, 3


def make(target: Path, base: Path) -> None:
    """Write an overlay on the raw disk base. Whoever starts from it must leave base as it is."""
    target.write_bytes(overlay(str(base.resolve()), base.stat().st_size))


def overlay(base: str, size: int) -> bytes:
    """The content of an overlay on a raw disk with this path and size. Pure."""
    entries = -(-size // COVERED)
    tables = -(-entries * 8 // CLUSTER)
    name = base.encode()
    extensions = struct.pack(">II8s", BACKING_FORMAT, len(b"raw"), b"raw") + struct.pack(">II", 0, 0)
    header = HEADER.pack(
        *(b"QFI\xfb", VERSION, HEADER.size + len(extensions), len(name), CLUSTER_BITS, size, 0),
        *(entries, _FIRST_TABLE * CLUSTER, _COUNTERS * CLUSTER, 1, 0, 0),
        *(0, 0, 0, REFCOUNT_ORDER, HEADER.size),
    )
    counted = _FIRST_TABLE + tables
    parts = (header + extensions + name, struct.pack(">Q", _COUNTER_BLOCK * CLUSTER), struct.pack(">H", 1) * counted)
    return b"".join(part.ljust(CLUSTER, b"\0") for part in parts) + bytes(tables * CLUSTER)
