# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decompress kernels, block by block, in the formats of the kernel build. PRIVATE to the collection.

Source: scripts/Makefile.lib and lib/decompress*.c. The data may be damaged or hostile: every block and the total have a limit, and every
problem is a LiveUpdateError.
"""

from __future__ import annotations

import os
import sys

from .. import _limits
from .._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any  # not at run time: slow to import

    Source = Callable[[int], bytes]

__all__ = ("blocks", "identify", "length", "stream")

_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x89LZO\0", "lzo"),
)
_BLOCK_IN = 1 << 16
_BLOCK_OUT = 1 << 20
# The kernel build gives xz and zstd a window of 128 MiB; only as much of it is used as the kernel is large.
_WINDOW_LOG = 27
_XZ_MEMORY = (1 << _WINDOW_LOG) + (16 << 20)
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
_TOOL_S = _limits.COMMAND
# Far above every initial RAM disk.
_LENGTH_LIMIT = 8 << 30


def identify(head: bytes) -> str | None:
    """The name of the compression of data with this beginning; None if it is unknown."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def stream(compression: str, source: Source, expected: int, what: str) -> Iterator[bytes]:
    """The decompressed data, block by block. Raises at the end unless the data is complete and has ``expected`` bytes."""
    total = 0
    try:
        for block in _blocks(compression, source, what):
            total += len(block)
            # Check this in each block: a small file can unpack to any size.
            if total > expected:
                raise _damaged(what, compression, f"it unpacks to more than the {expected} bytes that its header says")
            yield block
    except _errors() as err:
        raise _damaged(what, compression, str(err) or type(err).__name__) from err
    if total != expected:
        raise _damaged(what, compression, f"it unpacks to {total} bytes, but its header says {expected}")


def blocks(compression: str, source: Source, what: str) -> Iterator[bytes]:
    """The decompressed data, block by block, of a stream whose size nothing says."""
    total = 0
    try:
        for block in _blocks(compression, source, what):
            total += len(block)
            if total > _LENGTH_LIMIT:
                raise ValueError(f"it unpacks to more than {_LENGTH_LIMIT} bytes")
            yield block
    except _errors() as err:
        raise _damaged(what, compression, str(err) or type(err).__name__) from err


def _blocks(compression: str, source: Source, what: str) -> Iterator[bytes]:
    return _decode(_DECODERS[compression](), source) if compression in _DECODERS else _STREAMS[compression](source, what)


def length(compression: str, source: Source) -> int:
    """How many bytes of ``source`` one gzip, xz, lzma or bzip2 stream takes. Raises unless it is complete."""
    decoder = _DECODERS[compression]()
    taken = total = 0
    try:
        while not decoder.eof:
            data = source(_BLOCK_IN) if decoder.needs_input else b""
            if not data and decoder.needs_input:
                raise EOFError("it ends early")
            taken += len(data)
            total += len(decoder.decompress(data, _BLOCK_OUT))
            if total > _LENGTH_LIMIT:
                raise ValueError(f"it unpacks to more than {_LENGTH_LIMIT} bytes")
    except _errors() as err:
        raise LiveUpdateError(f"the {compression} data in it is cut off or damaged: {str(err) or type(err).__name__}") from err
    return taken - len(decoder.unused_data)


def _damaged(what: str, compression: str, why: str) -> LiveUpdateError:
    return LiveUpdateError(f"{what}: the {compression} data in it is cut off or damaged: {why}; copy the file again")


def _errors() -> tuple[type[Exception], ...]:
    """What the decoders of the standard library raise for data that they cannot decode."""
    import lzma
    import zlib

    found: list[type[Exception]] = [EOFError, MemoryError, OSError, ValueError, lzma.LZMAError, zlib.error]
    if sys.version_info >= (3, 14):
        from compression import zstd

        found.append(zstd.ZstdError)
    return tuple(found)


class _Gzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        import zlib

        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


def _xz() -> Any:
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _lzma() -> Any:
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY)


def _bzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


_DECODERS: dict[str, Callable[[], Any]] = {"gzip": _Gzip, "xz": _xz, "bzip2": _bzip2, "lzma": _lzma}


def _zstd(source: Source, what: str) -> Iterator[bytes]:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return _decode(zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}), source)
    return _tool("zstd", source, what)


def _lzo(source: Source, what: str) -> Iterator[bytes]:
    return _tool("lzop", source, what)


def _decode(decoder: Any, source: Source) -> Iterator[bytes]:
    """Through a decoder of the standard library."""
    while not decoder.eof:
        data = source(_BLOCK_IN) if decoder.needs_input else b""
        if not data and decoder.needs_input:
            raise EOFError("it ends early")
        block = decoder.decompress(data, _BLOCK_OUT)
        if block:
            yield block


def _tool(tool: str, source: Source, what: str) -> Iterator[bytes]:
    """Through a command of the host that decompresses its input to its output."""
    import subprocess
    import threading

    try:
        # pylint: disable-next=ansible-bad-function  # run_command waits for the end, this reads meanwhile
        process = subprocess.Popen([tool, "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as err:
        raise LiveUpdateError(
            f"{what} is compressed with {tool}, but the command {tool} does not start on this host ({err.strerror});"
            f" install the package {tool}"
        ) from err
    if process.stdin is None or process.stdout is None:
        raise LiveUpdateError(f"{what}: {tool} was started without pipes")
    # Both pipes need a process or thread at the other end, or tool and reader wait for each other.
    feeder = threading.Thread(target=_feed, args=(process.stdin, source), daemon=True)
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_TOOL_S, stop)
    timer.daemon = True
    try:
        feeder.start()
        timer.start()
        output = process.stdout.fileno()
        yield from iter(lambda: os.read(output, _BLOCK_OUT), b"")
        status = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        feeder.join()
    if late.is_set():
        raise LiveUpdateError(f"{what}: '{tool} -dc' did not end within {_TOOL_S} s; try again when the host is less busy")
    if status:
        raise ValueError(f"'{tool} -dc' ended with status {status}")


def _feed(pipe: Any, source: Source) -> None:
    import contextlib

    # The tool ends early, with an exit status, if it cannot decode the data or if the file cannot be read to the end.
    with contextlib.suppress(OSError, LiveUpdateError):
        for block in iter(lambda: source(_BLOCK_IN), b""):
            pipe.write(block)
    with contextlib.suppress(OSError):
        pipe.close()


def _lz4(source: Source, _what: str) -> Iterator[bytes]:
    """The legacy frame: blocks that each begin with their size, without a mark at the end."""
    if source(4) != _LZ4_MAGIC:
        raise ValueError("it has a wrong beginning")
    while True:
        header = source(4)
        if not header:
            return
        # Frames may follow one another.
        if header == _LZ4_MAGIC:
            continue
        size = int.from_bytes(header, "little")
        if len(header) < 4:
            raise EOFError("it ends early")
        if size > _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16:
            raise ValueError(f"a block of {size} bytes is too large")
        data = source(size)
        if len(data) < size:
            raise EOFError("it ends early")
        try:
            block = _lz4_block(data)
        except IndexError:
            raise EOFError("a block ends early") from None
        if not block:
            raise ValueError("it contains an empty block")
        yield block


def _lz4_block(data: bytes) -> bytes:
    """One block: literal bytes and references to what was decoded before, in turns, with literal bytes at the end."""
    out = bytearray()
    at, end = 0, len(data)
    while True:
        token = data[at]
        at += 1
        length = token >> 4
        if length == 15:
            more = 255
            while more == 255:
                more = data[at]
                at += 1
                length += more
        out += data[at : at + length]
        at += length
        if at >= end:
            if at > end:
                raise EOFError("a block ends early")
            return bytes(out)
        back = data[at] | data[at + 1] << 8
        at += 2
        length = (token & 15) + 4
        if length == 19:
            more = 255
            while more == 255:
                more = data[at]
                at += 1
                length += more
        start = len(out) - back
        if start < 0 or not back or len(out) + length > _LZ4_BLOCK:
            raise ValueError("a reference points outside its block")
        if back >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // back + 1))[:length]


_STREAMS: dict[str, Callable[[Source, str], Iterator[bytes]]] = {
    "zstd": _zstd,
    "lz4": _lz4,
    "lzo": _lzo,
}
