# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Unpack the kernel in a bzImage, change it, pack it again (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib

from .. import limits

# The commands of the kernel build (scripts/Makefile.lib, scripts/xz_wrap.sh). The build appends the size, except for gzip.
COMMANDS = {
    "gzip": ("gzip", "-n", "-f", "-9"),
    "bzip2": ("bzip2", "-9"),
    "lzma": ("lzma", "-9"),
    "xz": ("xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=dict=128MiB"),
    "lzo": ("lzop", "-9"),
    "lz4": ("lz4", "-l", "-9", "-", "-"),
    "zstd": ("zstd", "-22", "--ultra"),
}
GZIP, GZIP_NAME = b"\x1f\x8b", 8


def place(image: bytes) -> tuple[int, int]:
    """Offset and length of the compressed kernel, including the size at its end."""
    setup = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return setup + offset, length


def unpack(image: bytes) -> bytes:
    """The unpacked kernel of a bzImage. The build must have compressed it with gzip."""
    start, length = place(image)
    return zlib.decompressobj(wbits=31).decompress(image[start : start + length])


def pack(compression: str, kernel: bytes) -> bytes:
    """The kernel, compressed as the kernel build does it."""
    done = subprocess.run(COMMANDS[compression], input=kernel, capture_output=True, timeout=limits.TOOL, check=True)
    return done.stdout if compression == "gzip" else done.stdout + len(kernel).to_bytes(4, "little")


def replace(image: bytes, packed: bytes) -> bytes:
    """The image with another compressed kernel in it.

    The old length is compiled into the code around the kernel. A shorter gzip kernel is padded to that length, so that the image
    keeps its layout and still boots.
    """
    start, length = place(image)
    if packed.startswith(GZIP) and len(packed) < length:
        # The padding is a file name in the gzip header (RFC 1952), because the last bytes must stay at the end.
        packed = packed[:3] + bytes([packed[3] | GZIP_NAME]) + packed[4:10] + b"x" * (length - len(packed) - 1) + b"\0" + packed[10:]
    changed = bytearray(image[:start] + packed + image[start + length :])
    changed += bytes(-(len(changed) - (image[0x1F1] + 1) * 512) % 16)
    struct.pack_into("<I", changed, 0x24C, len(packed))
    struct.pack_into("<I", changed, 0x1F4, (len(changed) - (image[0x1F1] + 1) * 512) // 16)
    return bytes(changed)


def speak(kernel: bytes, old: str, new: str) -> bytes:
    """The kernel with the string old replaced by new wherever it is a whole string. Both have the same length."""
    changed, count = re.subn(rb"(?<![ -~])" + re.escape(old.encode()) + rb"(?=\0)", new.encode(), kernel)
    if not count or len(changed) != len(kernel):
        raise ValueError(f"cannot replace {old!r} by {new!r} in the kernel: found {count} times, and both must have the same length")
    return changed
