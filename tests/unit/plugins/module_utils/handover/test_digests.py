# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Digests of RAM: what is different is found, and what is equal is not taken for different."""

from __future__ import annotations

import os
import zlib

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests

MIB = 1 << 20
SIZES = [5 * MIB, MIB + 4096 + 100]


def memory(sizes, fill=True):
    """Memory files of these sizes with something in them, or with holes only."""
    files = [os.memfd_create("ram") for _size in sizes]
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        os.ftruncate(file, size)
        if fill:
            os.pwrite(file, bytes([number + 1]) * size, 0)
    return files


@pytest.fixture(name="files")
def two_memory_files():
    files = memory(SIZES)
    yield files
    for file in files:
        os.close(file)


@pytest.mark.parametrize("kind", ["sample", "full"])
def test_memory_that_is_the_same_differs_nowhere(files, kind):
    differ, count = _digests.wrong(_digests.note(kind, files), files)
    assert differ == [] and count == {"sample": 2 * 2 + _digests.SAMPLE_PAGES, "full": 5 + 2}[kind]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("file", "offset", "place"),
    [
        (0, 0, (0, 0, MIB)),
        (0, 2 * MIB - 1, (0, MIB, MIB)),
        (0, 3 * MIB + 12345, (0, 3 * MIB, MIB)),
        (0, 5 * MIB - 1, (0, 4 * MIB, MIB)),
        (1, 0, (1, 0, MIB)),
        (1, SIZES[1] - 1, (1, MIB, 4196)),
    ],
)
def test_full_finds_one_bit_anywhere(files, monkeypatch, file, offset, place, threads):
    monkeypatch.setattr(_digests, "MOST_THREADS", threads)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    noted = _digests.note("full", files)
    (byte,) = os.pread(files[file], 1, offset)
    os.pwrite(files[file], bytes([byte ^ 0x10]), offset)
    assert _digests.wrong(noted, files) == ([place], 7)
    os.pwrite(files[file], bytes([byte]), offset)
    assert _digests.wrong(noted, files) == ([], 7)


def test_a_record_has_the_crc_32_of_each_place_in_order(files):
    """As text, with eight digits each: another version of the collection may check it."""
    for kind, threads in (("full", 3), ("full", 1), ("sample", 1)):
        noted = _digests.note(kind, files)
        where = _digests.places(kind, noted["seed"], SIZES)
        expected = [zlib.crc32(os.pread(files[file], length, offset)) for file, offset, length in where]
        assert noted["crc32"] == "".join(f"{value:08x}" for value in expected) and noted["kind"] == kind
        assert _digests._sums(files, where, threads) == expected


def test_only_a_full_check_uses_threads(monkeypatch):
    """A sample is read in a moment, and the import of threading takes longer."""
    for processors, threads in ((8, _digests.MOST_THREADS), (2, 2), (1, 1), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda found=processors: found)
        assert (_digests._threads("full"), _digests._threads("sample")) == (threads, 1)


def test_one_thread_is_the_one_that_asks(files, monkeypatch):
    noted = _digests.note("sample", files)
    monkeypatch.setattr("threading.Thread", None)
    assert _digests.wrong(noted, files)[0] == []


def test_full_finds_a_byte_in_a_hole_and_two_pages_that_changed_places():
    (file,) = memory([4 * MIB], fill=False)
    noted = _digests.note("full", [file])
    os.pwrite(file, b"\1", 3 * MIB)
    assert _digests.wrong(noted, [file])[0] == [(0, 3 * MIB, MIB)]
    os.pwrite(file, b"a" * 4096 + b"b" * 4096, 3 * MIB)
    noted = _digests.note("full", [file])
    os.pwrite(file, b"b" * 4096 + b"a" * 4096, 3 * MIB)
    assert _digests.wrong(noted, [file])[0] == [(0, 3 * MIB, MIB)]
    os.close(file)


@pytest.mark.parametrize("kind", ["sample", "full"])
def test_a_hole_is_the_same_as_zeros_and_reading_it_takes_no_memory(kind):
    """The kernel may fill holes when it preserves memory, or leave out pages of zeros when it hands it over."""
    holes, zeros = memory([8 * MIB], fill=False), memory([8 * MIB], fill=False)
    os.pwrite(zeros[0], bytes(8 * MIB), 0)
    assert os.fstat(zeros[0]).st_blocks * 512 == 8 * MIB
    assert _digests.wrong(_digests.note(kind, holes), zeros)[0] == []
    assert _digests.wrong(_digests.note(kind, zeros), holes)[0] == []
    assert os.fstat(holes[0]).st_blocks == 0
    for file in (*holes, *zeros):
        os.close(file)


def test_the_places_of_a_sample_depend_on_the_seed_and_the_sizes_only():
    one = _digests.places("sample", 7, SIZES)
    assert one == _digests.places("sample", 7, list(SIZES))
    assert one != _digests.places("sample", 8, SIZES) and one != _digests.places("sample", 7, [6 * MIB, SIZES[1]])
    # Another version of the collection may check what this one wrote down.
    assert [_digests._random(0, number) for number in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("sizes", [SIZES, [1], [4096], [4097], [1 << 40, 4096], [100, 100]])
def test_the_places_of_a_sample_are_few_and_inside_of_the_files(sizes):
    for seed in (0, 1, (1 << 64) - 1):
        found = _digests.places("sample", seed, sizes)
        assert len(found) == 2 * len(sizes) + _digests.SAMPLE_PAGES
        assert all(offset % 4096 == 0 and 0 < length <= 4096 and offset + length <= sizes[file] for file, offset, length in found)
        for file, size in enumerate(sizes):
            assert (file, 0, min(4096, size)) in found and any(at == file and offset + length == size for at, offset, length in found)


def test_a_sample_reaches_all_parts_of_all_files():
    found = _digests.places("sample", 3, [1 << 32, 1 << 32])[4:]
    eighths = {(file, offset >> 29) for file, offset, _length in found}
    assert eighths == {(file, part) for file in range(2) for part in range(8)}
    assert len(set(found)) > _digests.SAMPLE_PAGES - 3


def test_a_sample_finds_memory_that_is_another_ones(files):
    noted = _digests.note("sample", files)
    assert len(_digests.wrong(noted, [files[0], *memory(SIZES[1:], fill=False)])[0]) > 2
    os.pwrite(files[1], b"x", SIZES[1] - 1)
    assert _digests.wrong(noted, files)[0][0] == (1, SIZES[1] // 4096 * 4096, 100)


@pytest.mark.parametrize("size", [1, MIB, MIB + 1, 1024 * MIB, 1024 * MIB + 1, 70_000 * MIB + 5])
def test_the_pieces_of_a_full_check_are_all_of_the_file_and_not_many(size):
    found = _digests.places("full", 0, [4096, size])
    assert found[0] == (0, 0, 4096) and len(found) <= 1 + _digests.MOST_PIECES
    ends = [0]
    for file, offset, length in found[1:]:
        assert file == 1 and offset == ends[-1] and length > 0
        ends.append(offset + length)
    assert ends[-1] == size


def test_each_record_has_a_seed_of_its_own(files):
    assert _digests.note("sample", files)["seed"] != _digests.note("sample", files)["seed"]


BROKEN = [
    {},
    {"kind": "none"},
    {"kind": "other"},
    {"kind": "none", "crc32": "0" * 8 * 260},  # as many digests as a sample has
    {"kind": "other", "crc32": "0" * 8 * 260},
    {"seed": "7"},
    {"seed": None},
    {"crc32": None},
    {"crc32": ""},
    {"crc32": "0" * 8},
    {"crc32": "x" * 8 * 7},
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_record_that_does_not_fit_is_told_from_memory_that_differs(files, broken):
    noted = {**_digests.note("full", files), **broken} if broken else {}
    with pytest.raises(ValueError, match=r"record of its digests|invalid literal"):
        _digests.wrong(noted, files)


def test_a_failure_in_a_thread_is_one_of_the_check(files, monkeypatch):
    noted = _digests.note("full", files)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "preadv", lambda *_words: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        _digests.wrong(noted, files)
    monkeypatch.setattr(os, "preadv", lambda *_words: 0)
    with pytest.raises(LiveUpdateError, match=r"RAM file \d ends at offset 0x"):
        _digests.wrong(noted, files)


def test_a_failure_in_one_thread_only_is_one_of_the_check(files, monkeypatch):
    real, noted = os.preadv, _digests.note("full", files)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: 0 if offset == 2 * MIB else real(file, views, offset))
    with pytest.raises(LiveUpdateError, match="RAM file 1 ends at offset 0x200000"):
        _digests.wrong(noted, files)


def test_a_read_that_returns_less_than_asked_for_is_gone_on_with(files, monkeypatch):
    noted, real = _digests.note("full", files), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: real(file, [views[0][:100_001]], offset))
    assert _digests.wrong(noted, files)[0] == []


def test_places_larger_than_the_buffer_are_read_whole(monkeypatch):
    monkeypatch.setattr(_digests, "MOST_PIECES", 2)
    (file,) = memory([5 * MIB])
    noted = _digests.note("full", [file])
    os.pwrite(file, b"x", 5 * MIB - 1)
    assert _digests.wrong(noted, [file]) == ([(0, 3 * MIB, 2 * MIB)], 2)
    os.close(file)


def test_what_differs_is_told_in_words():
    differ = [(0, 0x1000, 4096), *((1, number << 20, MIB) for number in range(7))]
    assert _digests.told(differ[:1], 258) == "1 of 258 places that were read differ: file 1 at offset 0x1000 (4096 bytes)"
    assert _digests.told(differ, 9).endswith("file 2 at offset 0x300000 (1048576 bytes) and 3 more")
    assert _digests.told(differ[:5], 9).endswith("file 2 at offset 0x300000 (1048576 bytes)")


def test_the_speed_is_measured_on_memory_of_its_own(monkeypatch):
    """64 MiB without a hole, which the kernel would not have to read. Nothing but a full check counts."""
    now, read = [100.0], []

    def note(kind, files):
        read.extend((kind, os.fstat(file).st_size, os.fstat(file).st_blocks * 512, set(os.pread(file, 64 * MIB, 0))) for file in files)
        now[0] += 0.25

    def written(file, data, offset, real=os.pwrite):
        now[0] += 1
        return real(file, data, offset)

    monkeypatch.setattr(_digests, "note", note)
    monkeypatch.setattr(os, "pwrite", written)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    before = len(os.listdir("/proc/self/fd"))
    assert _digests.speed() == 256 * MIB
    assert read == [("full", 64 * MIB, 64 * MIB, set(range(256)))]
    assert len(os.listdir("/proc/self/fd")) == before
