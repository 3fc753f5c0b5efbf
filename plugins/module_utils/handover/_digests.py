# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Digests of a guest's RAM: taken before the jump, compared after it. On the boot path. PRIVATE to the collection.

A digest is a CRC-32 of one *place*: a file, an offset and a length. ``full`` reads all places. ``sample`` reads the first and the last page
of each file, and a fixed number of pages that a seed chooses.

Why CRC-32: the digests find faults, and no attacker, who would need to be root. A wrong place has the right digest with a probability of
2**-32. zlib is the fastest of what Python has, also on a processor without instructions for digests, and a restore has it loaded already.

Why read() and no mapping: a read of a hole of a memory file returns zeros and allocates nothing. A hole and a page of zeros are the same.
"""

from __future__ import annotations

import os

from .._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Place = tuple[int, int, int]

__all__ = ("KINDS", "MOST_THREADS", "SAMPLE_PAGES", "note", "places", "speed", "told", "wrong")

KINDS = ("none", "sample", "full")
PAGE = 4096
SAMPLE_PAGES = 256
# The pieces of ``full``, and how many of them one file has at most. Larger files have larger pieces, so that a record stays small.
PIECE = 1 << 20
MOST_PIECES = 1024
# For each guest. All guests of a host are read at the same time.
MOST_THREADS = 4
_SPEED_BYTES = 64 << 20
_DIGITS = 8
_SHOWN = 5


def note(kind: str, files: list[int]) -> dict:
    """The record of what is in these files now: ``kind``, ``seed`` and ``crc32``, the digests of all places in one text."""
    seed = int.from_bytes(os.urandom(8), "big")
    found = _sums(files, places(kind, seed, _sizes(files)), _threads(kind))
    return {"kind": kind, "seed": seed, "crc32": "".join(f"{value:0{_DIGITS}x}" for value in found)}


def wrong(noted: dict, files: list[int]) -> tuple[list[Place], int]:
    """The places of these files that differ from the record, and the number of all places.

    Raises ValueError for a record that does not fit the files: then nothing is known about them.
    """
    kind, seed, text = noted.get("kind"), noted.get("seed"), noted.get("crc32")
    if kind not in KINDS[1:] or not isinstance(seed, int) or not isinstance(text, str):
        raise ValueError(f"the record of its digests is incomplete: kind {kind!r}, seed {seed!r}")
    where = places(kind, seed, _sizes(files))
    if len(text) != len(where) * _DIGITS:
        raise ValueError(f"the record of its digests has {len(text)} characters, not {len(where) * _DIGITS}")
    expected = [int(text[start : start + _DIGITS], 16) for start in range(0, len(text), _DIGITS)]
    found = _sums(files, where, _threads(kind))
    return [place for place, before, after in zip(where, expected, found) if before != after], len(where)


def places(kind: str, seed: int, sizes: list[int]) -> list[Place]:
    """Where files of these sizes are read. The same seed and sizes give the same places. Pure."""
    if kind == "full":
        return [
            (file, offset, min(length, size - offset))
            for file, size in enumerate(sizes)
            for length in (PIECE * max(1, -(-size // (PIECE * MOST_PIECES))),)
            for offset in range(0, size, length)
        ]
    pages = [(file, offset) for file, size in enumerate(sizes) for offset in (0, (size - 1) // PAGE * PAGE)]
    counts = [-(-size // PAGE) for size in sizes]
    for number in range(SAMPLE_PAGES):
        page, file = _random(seed, number) % sum(counts), 0
        while page >= counts[file]:
            page -= counts[file]
            file += 1
        pages.append((file, page * PAGE))
    return [(file, offset, min(PAGE, sizes[file] - offset)) for file, offset in pages]


def _random(seed: int, number: int) -> int:
    """The random number of 64 bits with this index (SplitMix64). Python's own generator is slow to import. Pure."""
    mask = (1 << 64) - 1
    value = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    return value ^ value >> 31


def told(differ: list[Place], count: int) -> str:
    """The places that differ, in words. Pure."""
    shown = ", ".join(f"file {file + 1} at offset {offset:#x} ({length} bytes)" for file, offset, length in differ[:_SHOWN])
    more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
    return f"{len(differ)} of {count} places that were read differ: {shown}{more}"


def speed() -> float:
    """How many bytes a second a full check of one guest reads on this host. It reads 64 MiB of its own memory."""
    import time

    file = os.memfd_create("kvm-liveupdate-speed", os.MFD_CLOEXEC)
    try:
        piece = bytes(range(256)) * (PIECE >> 8)
        for offset in range(0, _SPEED_BYTES, PIECE):
            os.pwrite(file, piece, offset)
        begun = time.monotonic()
        note("full", [file])
        return _SPEED_BYTES / (time.monotonic() - begun)
    finally:
        os.close(file)


def _sizes(files: list[int]) -> list[int]:
    return [os.fstat(file).st_size for file in files]


def _threads(kind: str) -> int:
    return min(MOST_THREADS, os.cpu_count() or 1) if kind == "full" else 1


def _sums(files: list[int], where: list[Place], threads: int) -> list[int]:
    """The digests of these places, in order. Each thread takes every so-many-th place; reading and the CRC release Python's lock."""
    found = [0] * len(where)
    problems: list[Exception] = []

    def work(first: int) -> None:
        buffer = bytearray(min(PIECE, max(length for _file, _offset, length in where)))
        try:
            for index in range(first, len(where), threads):
                found[index] = _sum(files, where[index], buffer)
        except Exception as err:  # pylint: disable=broad-except  # it is raised below, in the caller's thread
            problems.append(err)

    if threads == 1:
        work(0)
    else:
        import threading  # for a full check only

        others = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    if problems:
        raise problems[0]
    return found


def _sum(files: list[int], place: Place, buffer: bytearray) -> int:
    import zlib  # not every process needs it

    file, offset, length = place
    value, view = 0, memoryview(buffer)
    while length:
        got = os.preadv(files[file], [view[: min(length, len(buffer))]], offset)
        if not got:
            raise LiveUpdateError(f"RAM file {file + 1} ends at offset {offset:#x}, before its size")
        value = zlib.crc32(view[:got], value)
        offset, length = offset + got, length - got
    return value
