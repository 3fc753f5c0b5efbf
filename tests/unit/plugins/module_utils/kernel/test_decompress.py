# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import tracemalloc

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _decompress
from hypothesis import given, settings
from hypothesis import strategies as st

# What a kernel build with xz does (scripts/xz_wrap.sh), with a smaller window.
XZ_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
TEXT = b"live update, " * 40 + bytes(range(64)) + b"\0" * 700 + b"the end"
# What the commands make of TEXT: lz4 -l -9, zstd -19, lzop -9.
LZ4 = bytes.fromhex(
    "02214c1862000000df6c697665207570646174652c200d00ffe9ff32000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
    "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f000100ffffaa7074686520656e64"
)
ZSTD = bytes.fromhex(
    "28b52ffd04680d030054056c697665207570646174652c20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324"
    "25262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f0074686520656e640200012eb78af0419d5fab524a15"
)
LZO = bytes.fromhex(
    "894c5a4f000d0a1a0a104020a0094003090300000d000000006b0421d10000000000297a02d70000050b00000066d9ecc3511e6c697665207570646174"
    "652c202000db3000002f000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132"
    "333435363738393a3b3c3d3e3f002000009c020074680fc1656e6411000000000000"
)
COMPRESSED = {
    "gzip": gzip.compress(TEXT, mtime=0),
    "xz": lzma.compress(TEXT, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=XZ_FILTERS),
    "bzip2": bz2.compress(TEXT),
    "lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    "zstd": ZSTD,
    "lz4": LZ4,
    "lzo": LZO,
}
TOOLS = {"lzo": "lzop"} if sys.version_info >= (3, 14) else {"lzo": "lzop", "zstd": "zstd"}
BUILT_IN = sorted(COMPRESSED.keys() - TOOLS.keys())


def unpack(compression, data, expected=None):
    expected = len(TEXT) if expected is None else expected
    return b"".join(_decompress.stream(compression, io.BytesIO(data).read, expected, "kernel K"))


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a shell script in the place of a command."""

    def put(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.parametrize("compression", COMPRESSED)
def test_identify(compression):
    assert _decompress.identify(COMPRESSED[compression][:8]) == compression


def test_what_is_not_compressed_is_not_identified():
    assert _decompress.identify(b"") is None
    assert _decompress.identify(b"\x7fELF\x02\x01\x01\0") is None


@pytest.mark.parametrize("compression", COMPRESSED)
def test_stream(compression):
    if compression in TOOLS and not shutil.which(TOOLS[compression]):
        pytest.skip(f"no command {TOOLS[compression]}")
    assert unpack(compression, COMPRESSED[compression]) == TEXT


@pytest.mark.parametrize("compression", COMPRESSED)
def test_damage_of_any_kind_is_an_error_with_a_sentence(compression):
    if compression in TOOLS and not shutil.which(TOOLS[compression]):
        pytest.skip(f"no command {TOOLS[compression]}")
    whole = COMPRESSED[compression]
    with pytest.raises(LiveUpdateError, match=f"^kernel K: the {compression} data in it is cut off or damaged: .*; copy the file again$"):
        unpack(compression, whole[:-20])
    with pytest.raises(LiveUpdateError, match="unpacks to 1291 bytes, but its header says 1292"):
        unpack(compression, whole, len(TEXT) + 1)
    with pytest.raises(LiveUpdateError, match="unpacks to more than the 1290 bytes that its header says"):
        unpack(compression, whole, len(TEXT) - 1)


@pytest.mark.parametrize("compression", BUILT_IN)
@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), max_size=5), kept=st.none() | st.integers(0, 2000))
def test_no_damage_is_more_than_an_error(compression, changes, kept):
    data = bytearray(COMPRESSED[compression])
    for position, bit in changes:
        data[position % len(data)] ^= 1 << bit
    try:
        assert len(unpack(compression, bytes(data[:kept]))) == len(TEXT)
    except LiveUpdateError as err:
        assert err.message.startswith("kernel K: ")


def lz4_zeros(size):
    """One block: a literal zero, a reference of one byte back, and a last literal byte."""
    length = size - 2 - 4 - 15
    block = b"\x1f\0\x01\0" + b"\xff" * (length // 255) + bytes([length % 255]) + b"\x10\0"
    return len(block).to_bytes(4, "little") + block


# Zeros, which pack best.
BOMBS = {
    "gzip": lambda size: gzip.compress(bytes(size), 1),
    "xz": lambda size: lzma.compress(bytes(size), preset=0),
    "bzip2": lambda size: bz2.compress(bytes(size), 1),
    "lzma": lambda size: lzma.compress(bytes(size), format=lzma.FORMAT_ALONE, preset=0),
    "lz4": lambda size: LZ4[:4] + lz4_zeros(8 << 20) * (size >> 23),
}


@pytest.mark.parametrize("compression", BOMBS)
def test_a_small_file_cannot_take_much_memory(compression):
    size = 64 << 20
    bomb = BOMBS[compression](size)
    tracemalloc.start()
    try:
        total = sum(len(block) for block in _decompress.stream(compression, io.BytesIO(bomb).read, size, "kernel K"))
        # Four blocks of the largest kind; what the C libraries take for themselves is limited by their own limits.
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert total == size


def test_xz_and_lzma_with_a_huge_window_are_refused():
    header = bytearray(COMPRESSED["lzma"])
    header[1:5] = (3 << 30).to_bytes(4, "little")
    with pytest.raises(LiveUpdateError, match="emory"):
        unpack("lzma", bytes(header))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it has a wrong beginning"),
        (LZ4[:4] + b"\xff\xff\xff\x7f", "a block of 2147483647 bytes is too large"),
        (LZ4[:4] + b"\x01\0", "it ends early"),
        (LZ4[:4] + b"\x05\0\0\0\x10", "it ends early"),
        (LZ4[:4] + b"\x01\0\0\0\x40", "a block ends early"),
        (LZ4[:4] + b"\x02\0\0\0\xf0\xff", "a block ends early"),
        (LZ4[:4] + b"\x05\0\0\0\x10a\x02\0\x00", "points outside its block"),
        (LZ4[:4] + b"\x05\0\0\0\x10a\x00\0\x00", "points outside its block"),
        (LZ4[:4] + b"\x01\0\0\0\x00", "an empty block"),
    ],
)
def test_lz4_damage(data, says):
    with pytest.raises(LiveUpdateError, match=says):
        unpack("lz4", data)


def test_lz4_blocks_and_frames_may_follow_one_another():
    assert unpack("lz4", LZ4 + LZ4[4:] + LZ4, 3 * len(TEXT)) == TEXT * 3


@pytest.mark.parametrize("compression", TOOLS)
def test_a_missing_tool_is_named(compression, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    name = TOOLS[compression]
    with pytest.raises(LiveUpdateError, match=f"compressed with {name}, but .* does not start on this host .*; install the package {name}"):
        unpack(compression, COMPRESSED[compression])


@pytest.mark.parametrize("compression", TOOLS)
def test_a_tool_gets_all_and_gives_all(compression, tool):
    tool(TOOLS[compression], '[ "$*" = -dc ] && exec cat')
    data = os.urandom(3 << 20)
    assert unpack(compression, data, len(data)) == data


def test_a_tool_that_fails(tool):
    tool("lzop", "cat; exit 3")
    with pytest.raises(LiveUpdateError, match="'lzop -dc' ended with status 3"):
        unpack("lzo", TEXT)


def test_a_tool_that_gives_too_much_is_stopped(tool):
    tool("lzop", "exec cat /dev/zero")
    with pytest.raises(LiveUpdateError, match="unpacks to more than"):
        unpack("lzo", TEXT)


def test_a_tool_that_hangs_is_stopped(tool, monkeypatch):
    monkeypatch.setattr(_decompress, "_TOOL_S", 0.2)
    tool("lzop", "exec sleep 60")
    with pytest.raises(LiveUpdateError, match=r"'lzop -dc' did not end within 0\.2 s"):
        unpack("lzo", TEXT)


def test_a_file_that_cannot_be_read_on(tool):
    def source(_length):
        raise LiveUpdateError("gone")

    tool("lzop", "exec cat")
    with pytest.raises(LiveUpdateError, match="unpacks to 0 bytes, but its header says 5"):
        b"".join(_decompress.stream("lzo", source, 5, "kernel K"))
