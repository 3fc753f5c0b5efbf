# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A kernel taken out of a bzImage and put back."""

from __future__ import annotations

import gzip
import struct

import pytest
from kvmlab.parts import bzimage

KERNEL = b"\x01memfd-v2\0 kho-v3\0\0kho-v4\0\xffkho-v4\0" + bytes(range(256)) * 4
PACKED = gzip.compress(KERNEL, mtime=0)


def image() -> bytes:
    """A bzImage as far as it matters here: setup, code, compressed kernel, more code."""
    data = bytearray(5 * 512) + b"head" * 8 + PACKED + b"tail"
    data += bytes(-len(data) % 16)
    data[0x1F1] = 4
    struct.pack_into("<II", data, 0x248, 32, len(PACKED))
    return bytes(data)


def test_the_kernel_comes_out() -> None:
    assert bzimage.place(image()) == (5 * 512 + 32, len(PACKED))
    assert bzimage.unpack(image()) == KERNEL


@pytest.mark.parametrize("shorter", [0, 1, 7])
def test_a_kernel_that_is_not_longer_leaves_the_layout_as_it_is(shorter: int) -> None:
    old = bzimage.replace(image(), PACKED + bytes(shorter))
    changed = bzimage.replace(old, PACKED)
    start, length = bzimage.place(changed)
    assert (start, length, len(changed)) == (*bzimage.place(old), len(old))
    assert gzip.decompress(changed[start : start + length]) == KERNEL
    assert changed[start + length :] == old[start + length :]


def test_only_gzip_is_filled_up() -> None:
    assert bzimage.place(bzimage.replace(image(), b"\x28\xb5\x2f\xfd----SIZE"))[1] == 12


def test_a_longer_kernel_moves_what_follows() -> None:
    changed = bzimage.replace(image(), PACKED + b"12345")
    start, length = bzimage.place(changed)
    assert changed[start : start + length] == PACKED + b"12345"
    assert changed[start + length :].startswith(b"tail")
    assert len(changed) == 5 * 512 + 16 * struct.unpack_from("<I", changed, 0x1F4)[0]


def test_only_the_whole_string_is_changed() -> None:
    assert bzimage.speak(KERNEL, "kho-v4", "kho-v9") == KERNEL.replace(b"kho-v4", b"kho-v9")
    assert bzimage.speak(KERNEL, "memfd-v2", "memfd-v1") == KERNEL.replace(b"memfd-v2", b"memfd-v1")
    for old, new in (("kho-v3", "kho-v4"), ("luo-v5", "luo-v6"), ("kho-v4", "kho-v10")):
        with pytest.raises(ValueError, match=f"cannot replace '{old}' by '{new}' in the kernel: found [02] times"):
            bzimage.speak(KERNEL, old, new)
