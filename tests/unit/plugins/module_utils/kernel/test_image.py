# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import struct
import tracemalloc

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _decompress, _image, _modules, _storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CONFIG = b"""#
# Linux/x86 7.3.4 Kernel Configuration
#
CONFIG_IKCONFIG=y
CONFIG_LOCALVERSION="-lab"
CONFIG_KEXEC_FILE=y
CONFIG_KEXEC_HANDOVER=y
# CONFIG_KEXEC_HANDOVER_DEBUGFS is not set
CONFIG_LIVEUPDATE=y
CONFIG_LIVEUPDATE_MEMFD=y
CONFIG_KVM=m
# CONFIG_KVM_XEN is not set
# CONFIG_KVMTOOL is not set
CONFIG_RELOCATABLE=y
"""
OPTIONS = {
    "IKCONFIG": "y",
    "KEXEC_FILE": "y",
    "KEXEC_HANDOVER": "y",
    "KEXEC_HANDOVER_DEBUGFS": "n",
    "LIVEUPDATE": "y",
    "LIVEUPDATE_MEMFD": "y",
    "KVM": "m",
    "KVM_XEN": "n",
    "RELOCATABLE": "y",
}
ABI = {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2"}
BANNER = b"Linux version 7.3.4 (lab@lab) (gcc (Debian 14.2.0) 14.2.0, GNU ld 2.44) #1 SMP PREEMPT Thu\n\0"
# The kernel holds its banner a first time before its build has a number.
DRAFT = BANNER.replace(b"#1", b"#")
BUILD_ID = bytes(range(20))
NOTE = struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID
SIGNATURE = b"~Module signature appended~\n"


def code(length, seed=1):
    """Bytes that compress about as badly as a kernel."""
    return random.Random(seed).randbytes(length // 2) * 2


def kernel(abi=None, config=CONFIG, banner=DRAFT + BANNER):
    """What a kernel is once it is decompressed, as far as it matters here."""
    abi = ABI.values() if abi is None else abi
    parts = [b"\x7fELF\x02\x01", code(2000), banner, code(500, 2)]
    if config is not None:
        parts += [b"IKCFG_ST", gzip.compress(config, mtime=0), b"IKCFG_ED", code(300, 3)]
    # A static array after a pointer, and strings among others, as the compiler places them.
    for text in abi:
        parts += [b"\x81\xff\xff\xff\xff" if text.startswith("memfd") else b"\0compatible\0", text.encode(), b"\0", code(200, 4)]
    return b"".join([*parts, NOTE, code(900, 5)])


def xz(data):
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def lz4(data):
    """One legacy frame with a block of literal bytes."""
    length = len(data) - 15
    block = b"\xf0" + b"\xff" * (length // 255) + bytes([length % 255]) + data
    return b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block


COMPRESS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": xz,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lz4": lz4,
}


def pe_header(sections, machine=0x8664, certificates=0, at=0x40):
    """PE headers, to be placed ``at`` that offset, for sections (name, offset, size, size in the file)."""
    optional = struct.pack("<H", 0x20B) + bytes(106) + struct.pack("<I", 16) + bytes(32) + struct.pack("<II", 0x1000, certificates)
    optional += bytes(240 - len(optional))
    table = b"".join(
        name.encode().ljust(8, b"\0") + struct.pack("<IIII", size, 0, stored, offset) + bytes(16) for name, offset, size, stored in sections
    )
    return struct.pack("<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, len(optional), 0) + optional + table


def bzimage(inside=None, compression="gzip", flags=0x13, protocol=0x20F, certificates=0, says=None):
    """A bzImage with everything but the code that would run."""
    inside = kernel() if inside is None else inside
    payload = COMPRESS[compression](inside)
    says = len(inside) if says is None else says
    payload = payload[:-4] + says.to_bytes(4, "little") if compression == "gzip" else payload + says.to_bytes(4, "little")
    rest = code(256) + payload + bytes(-len(payload) % 16 + 32)
    image = bytearray(5 * 512)
    image[0:2] = b"MZ"
    image[0x1F1] = 4
    struct.pack_into("<I", image, 0x1F4, len(rest) // 16)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<H", image, 0x236, flags)
    struct.pack_into("<II", image, 0x248, 256, len(payload))
    struct.pack_into("<I", image, 0x260, 0x2345000)
    struct.pack_into("<I", image, 0x3C, 0x400)
    header = pe_header([], certificates=certificates)
    image[0x400 : 0x400 + len(header)] = header
    return bytes(image) + rest


def arm64(inside=None, page=1, beginning=b"MZ@\xfa"):
    inside = kernel() if inside is None else inside
    return beginning.ljust(8, b"\0") + struct.pack("<QQQ", 0, 0x100000, page << 1) + bytes(24) + b"ARM\x64" + bytes(4) + inside


def zboot(inside=None, compression="gzip"):
    inside = arm64() if inside is None else inside
    payload = COMPRESS[compression](inside)
    head = b"MZ\0\0zimg" + struct.pack("<IIQ", 0x400, len(payload), 0) + compression.encode().ljust(32, b"\0") + struct.pack("<II", 0, 0x40)
    head += pe_header([(".text", 0x400, 16, 16)], machine=0xAA64)
    return head.ljust(0x400, b"\0") + payload + (b"" if compression == "gzip" else len(inside).to_bytes(4, "little")) + bytes(64)


def vmlinux(inside=None, machine=62, segments=1, beyond=0):
    inside = kernel() if inside is None else inside
    start = 64 + 56 * (segments + 1)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, segments + 1, 0, 0, 0)
    step = -(-len(inside) // segments)
    table = struct.pack("<IIQQQQQQ", 4, 4, start, 0, 0, 64, 64, 4)
    for at in range(0, len(inside), step):
        size = min(step, len(inside) - at) + beyond
        table += struct.pack("<IIQQQQQQ", 1, 5, start + at, 0, 0, size, size, 4096)
    # What is not loaded counts for nothing, whatever it looks like.
    return head + table + inside + b"\0kho-v3\0"


def uki(linux=None, cmdline=b"root=/dev/vda1 kho=on liveupdate=on\n\0", names=(".linux", ".initrd", ".cmdline", ".uname"), certificates=0):
    contents = {
        ".osrel": b"ID=debian\n",
        ".cmdline": cmdline,
        ".uname": b"7.3.4",
        ".initrd": code(3000, 7),
        ".linux": bzimage() if linux is None else linux,
    }
    sections, body, at = [], b"", 0x1000
    for name in (*contents, *(name for name in names if names.count(name) > 1)):
        if name in names or name == ".osrel":
            stored = contents[name] + bytes(-len(contents[name]) % 512)
            sections.append((name, at + len(body), len(contents[name]), len(stored)))
            body += stored
    return (b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + pe_header(sections, certificates=certificates)).ljust(0x1000, b"\0") + body


@pytest.fixture
def read(tmp_path):
    """Reads bytes as the kernel image /.../vmlinuz; nothing of the machine that runs the tests is looked at."""

    def do(content, config=None):
        path = tmp_path / "vmlinuz"
        path.write_bytes(content)
        return _image.read(str(path), config, str(tmp_path / "root"))

    return do


def test_a_bzimage(read, tmp_path):
    image = bzimage()
    assert read(image) == {
        "path": str(tmp_path / "vmlinuz"),
        "kind": "bzImage",
        "arch": "x86_64",
        "release": "7.3.4",
        "version": "#1 SMP PREEMPT Thu",
        "size": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
        "compression": "gzip",
        "above_4g": True,
        "efi_kexec": True,
        "init_size": 0x2345000,
        "page_size": 4096,
        "signed": False,
        "initrd": False,
        "cmdline": None,
        "uname": None,
        "abi": ABI,
        "build_ids": [BUILD_ID.hex()],
        "config": OPTIONS,
        "config_source": "image",
        "unread": {},
    }


def test_the_same_image_is_unpacked_once(tmp_path, monkeypatch):
    path, keep = tmp_path / "vmlinuz", str(tmp_path / "keep")
    path.write_bytes(bzimage())
    first = _image.read(str(path), keep=keep)
    assert first == _image.read(str(path))
    monkeypatch.setattr(_image, "_kernel", None)
    assert _image.read(str(path), keep=keep) == first
    path.write_bytes(bzimage(compression="xz"))
    with pytest.raises(TypeError):
        _image.read(str(path), keep=keep)


def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    path, keep = tmp_path / "vmlinuz", str(tmp_path / "keep")
    path.write_bytes(bzimage())
    monkeypatch.setattr(_image, "_kernel", lambda *_part: {"unread": {"abi": "zstd is not here"}, "config": {}, "release": "7.3.4"})
    assert _image.read(str(path), keep=keep)["unread"]
    monkeypatch.undo()
    assert not _image.read(str(path), keep=keep)["unread"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_compression_gives_the_same(read, compression):
    found = read(bzimage(compression=compression))
    assert found["compression"] == compression
    assert (found["abi"], found["config"], found["build_ids"]) == (ABI, OPTIONS, [BUILD_ID.hex()])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(0x13, ("x86_64", True, True)), (0x03, ("x86_64", True, False)), (0x01, ("x86_64", False, False)), (0x02, ("i386", False, False))],
)
def test_what_the_boot_header_promises(read, flags, expected):
    found = read(bzimage(flags=flags))
    assert (found["arch"], found["above_4g"], found["efi_kexec"]) == expected


@pytest.mark.parametrize(
    ("image", "signed"),
    [
        (bzimage(), False),
        (bzimage(certificates=1464), True),
        (bzimage() + SIGNATURE, True),
        (bzimage() + SIGNATURE + b"\0", False),
        (vmlinux() + SIGNATURE, True),
        (uki(), False),
        (uki(certificates=8), True),
        (arm64(), False),
    ],
)
def test_signed(read, image, signed):
    assert read(image)["signed"] is signed


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (arm64(), ("arm64", "aarch64", 4096, None)),
        (arm64(page=2, beginning=b"\x01\x02\x03\x14"), ("arm64", "aarch64", 16384, None)),
        (arm64(page=3), ("arm64", "aarch64", 65536, None)),
        (arm64(page=0), ("arm64", "aarch64", None, None)),
        (zboot(), ("zboot", "aarch64", 4096, "gzip")),
        (zboot(compression="xz"), ("zboot", "aarch64", 4096, "xz")),
        (vmlinux(), ("vmlinux", "x86_64", 4096, None)),
        (vmlinux(segments=7), ("vmlinux", "x86_64", 4096, None)),
        (vmlinux(machine=183), ("vmlinux", "aarch64", None, None)),
        (uki(), ("uki", "x86_64", 4096, "gzip")),
        (uki(arm64()), ("uki", "aarch64", 4096, None)),
        (uki(zboot()), ("uki", "aarch64", 4096, "gzip")),
    ],
)
def test_other_kinds(read, image, expected):
    found = read(image)
    assert (found["kind"], found["arch"], found["page_size"], found["compression"]) == expected
    assert (found["release"], found["abi"], found["config"]) == ("7.3.4", ABI, OPTIONS)


def test_what_a_unified_kernel_image_brings(read):
    found = read(uki())
    assert (found["cmdline"], found["initrd"], found["uname"]) == ("root=/dev/vda1 kho=on liveupdate=on", True, "7.3.4")
    found = read(uki(names=(".linux",)))
    assert (found["cmdline"], found["initrd"], found["uname"]) == (None, False, None)
    assert read(uki(names=(".linux", ".cmdline", ".cmdline")))["cmdline"] == "root=/dev/vda1 kho=on liveupdate=on"


@pytest.mark.parametrize(
    ("abi", "expected"),
    [
        ((), {"kho": None, "luo": None, "memfd": None}),
        (("kho-v12", "luo-v5", "memfd-v2"), {**ABI, "kho": "kho-v12"}),
        # Other strings of the family, and text that only holds one.
        (("kho-v4", "luo-v5", "luo-session-v2", "luo-flb-v1", "kho-test-v1", "memfd-v2"), ABI),
        (("kho-v4", "luo-v5", "memfd-v2", "x kho-v3", "kho-v", "kho-vX", "incompatible with 'kho-v9'"), ABI),
        (("kho-v4", "kho-v4", "luo-v5", "memfd-v2"), ABI),
    ],
)
def test_which_strings_count(read, abi, expected):
    found = read(bzimage(kernel(abi=abi)))
    assert (found["abi"], found["unread"]) == (expected, {})


def test_several_strings_of_a_kind_are_not_guessed_between(read):
    found = read(bzimage(kernel(abi=("luo-v6", "luo-v5", "kho-v4", "memfd-v2"))))
    assert found["abi"] == {**ABI, "luo": None}
    assert found["unread"] == {"luo": "it contains several strings luo-vN: luo-v5, luo-v6"}


@pytest.mark.parametrize("text", ["luo-v5+radix-v1", "luo-v5;luo-v6", "luo-v5-sealed", "luo-v5,"])
def test_a_string_that_says_more_than_one_version_is_not_understood(read, text):
    found = read(bzimage(kernel(abi=("kho-v4", text, "memfd-v2"))))
    assert found["abi"] == {**ABI, "luo": None}
    assert found["unread"] == {"luo": f"it contains {text}, which this version of the collection does not know"}


@pytest.mark.parametrize("size", [1, 7, 1000, 1023, 1024, 1025, 4096])
def test_nothing_is_lost_at_the_border_of_blocks(size):
    data = kernel()
    scanner = _image._Scanner()
    scanner.scan(data[at : at + size] for at in range(0, len(data), size))
    assert {name: sorted(found) for name, found in scanner.strings.items()} == {name: [text] for name, text in ABI.items()}
    assert scanner.banner == ("7.3.4", "#1 SMP PREEMPT Thu")
    assert scanner.build_ids == {BUILD_ID.hex()}
    assert scanner.config == CONFIG


def test_strings_at_the_very_beginning_and_end():
    scanner = _image._Scanner()
    scanner.scan([b"kho-v4\0", b"luo-v5"])
    assert scanner.strings == {"kho": {"kho-v4"}, "luo": {"luo-v5"}, "memfd": set()}


def test_a_mark_without_a_configuration_behind_it_is_passed_over(read):
    damaged = b"IKCFG_ST" + gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 50
    assert read(bzimage(damaged + kernel()))["config"] == OPTIONS
    assert read(bzimage(b"IKCFG_ST\x1f\x8b\x08" + kernel(config=None)))["config"] is None


def test_a_configuration_of_any_size_does_not_fit(read):
    found = read(bzimage(kernel(config=CONFIG + bytes(5 << 20))))
    assert found["config"] is None


@pytest.mark.parametrize("place", ["config-7.3.4", "root/boot/config-7.3.4", "root/usr/lib/modules/7.3.4/config"])
def test_a_configuration_from_where_distributions_put_it(read, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONFIG)
    found = read(bzimage(kernel(config=None)))
    assert (found["config"], found["config_source"], found["unread"]) == (OPTIONS, str(path), {})


def test_a_configuration_beside_an_image_among_its_modules(tmp_path):
    directory = tmp_path / "7.3.4"
    directory.mkdir()
    (directory / "vmlinuz").write_bytes(bzimage(kernel(config=None)))
    (directory / "config").write_bytes(CONFIG)
    assert _image.read(str(directory / "vmlinuz"), root=str(tmp_path))["config_source"] == str(directory / "config")


def test_the_image_s_own_configuration_wins(read, tmp_path):
    (tmp_path / "config").write_bytes(b"CONFIG_KVM=n\n")
    assert read(bzimage(), str(tmp_path / "config"))["config_source"] == "image"


@pytest.mark.parametrize("content", [CONFIG, gzip.compress(CONFIG)])
def test_a_given_configuration(read, tmp_path, content):
    (tmp_path / "given").write_bytes(content)
    found = read(bzimage(kernel(config=None)), str(tmp_path / "given"))
    assert (found["config"], found["config_source"]) == (OPTIONS, str(tmp_path / "given"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory; use the configuration file"),
        (b"hello", "the file is not a kernel configuration"),
        (b"", "the file is not a kernel configuration"),
        (CONFIG + bytes(5 << 20), "the file is not a kernel configuration"),
        (gzip.compress(CONFIG)[:-9], "the file is not a kernel configuration"),
        (gzip.compress(CONFIG + bytes(5 << 20)), "the file is not a kernel configuration"),
    ],
)
def test_a_given_configuration_that_is_none(read, tmp_path, content, says):
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LiveUpdateError, match=f"kernel configuration {path}: {says}"):
        read(bzimage(kernel(config=None)), str(path))


def test_no_configuration_anywhere(read, tmp_path):
    found = read(bzimage(kernel(config=None)))
    assert (found["config"], found["config_source"]) == (None, None)
    assert found["unread"] == {
        "config": f"it contains none (CONFIG_IKCONFIG), and there is no file {tmp_path}/config-7.3.4 or {tmp_path}/root/boot/config-7.3.4"
        f" or {tmp_path}/root/usr/lib/modules/7.3.4/config"
    }


def test_a_release_cannot_lead_out_of_its_directory(read, tmp_path):
    (tmp_path / "config-").mkdir()
    (tmp_path / "secret").write_bytes(CONFIG)
    found = read(bzimage(kernel(config=None, banner=BANNER.replace(b"7.3.4", b"/../secret"))))
    assert (found["release"], found["config"]) == ("/../secret", None)
    assert found["unread"]["config"].endswith("there is no file for its release")


BAD_SECTION = bytearray(uki())
struct.pack_into("<I", BAD_SECTION, BAD_SECTION.find(b".linux") + 20, 1 << 31)
NO_SECTION = uki(names=(".initrd",))
LONG = b"\x7fELF\x02\x01" + bytes(58)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a kernel image but 0 bytes that begin with nothing; use a bzImage"),
        (b"#!/bin/sh\n", "not a kernel image but 10 bytes that begin with 23212f62;"),
        (gzip.compress(b"x" * 900), "not a kernel image but a file compressed with gzip"),
        (bzimage()[:0x210], "not a kernel image"),
        (bzimage()[:-1], "cut off or damaged: its kernel is at 2560 to .*; copy the file again"),
        (bzimage(protocol=0x20B), r"boot protocol 2\.11, but kexec_file_load needs 2\.12"),
        (bzimage(says=5), "the gzip data in it is cut off or damaged: .*; copy the file again"),
        (bzimage(compression="xz", says=5), "it unpacks to more than the 5 bytes that its header says"),
        (bzimage(compression="xz", says=1 << 31), "claims 2147483648 bytes, more than any kernel has"),
        (bzimage(b"no kernel"), "it contains no Linux kernel"),
        (bzimage(kernel(banner=DRAFT)), "it contains no Linux kernel"),
        (arm64(b"nothing"), "it contains no Linux kernel"),
        (zboot(kernel()), "not an arm64 Image"),
        (zboot()[:0x500], "its compressed kernel is at 1024 to"),
        (vmlinux(machine=3), r"an ELF file for another machine \(3\)"),
        (vmlinux(beyond=100000), "its segment is at"),
        (LONG, r"another machine \(0\)"),
        (vmlinux()[:100], "its program header table is at 64 to 176, but there are only 100 bytes"),
        (uki(vmlinux()), "its section .linux contains a vmlinux"),
        (uki(b"nothing"), "not a kernel image but 7 bytes"),
        (bytes(BAD_SECTION), "its section .linux is at 2147483648 to"),
        (NO_SECTION, "not a kernel image but .* that begin with 4d5a0000"),
    ],
)
def test_what_is_no_kernel_is_refused(read, tmp_path, content, says):
    with pytest.raises(LiveUpdateError, match=f"^kernel {tmp_path}/vmlinuz: .*{says}"):
        read(content)


def unknown_compression():
    image = bytearray(bzimage())
    image[5 * 512 + 256 : 5 * 512 + 260] = b"NOPE"
    return bytes(image)


def test_an_unknown_compression(read):
    with pytest.raises(LiveUpdateError, match=r"the compression of the kernel in it is unknown \(it begins with 4e4f5045"):
        read(unknown_compression())


def test_many_program_headers_are_no_kernel(read):
    with pytest.raises(LiveUpdateError, match="an ELF file with 65 program headers"):
        read(vmlinux(segments=64))


def test_segments_that_lie_on_one_another_are_limited(read, monkeypatch):
    monkeypatch.setattr(_image, "_KERNEL_LIMIT", 4096)
    with pytest.raises(LiveUpdateError, match="more than 4096 bytes together"):
        read(vmlinux())


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(LiveUpdateError, match="No such file or directory; use the path"):
        _image.read(str(tmp_path / "none"))
    with pytest.raises(LiveUpdateError, match="embedded null"):
        _image.read("a\0b")
    with pytest.raises(LiveUpdateError, match="not a regular file"):
        _image.read(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LiveUpdateError, match="not a regular file"):
        _image.read(str(tmp_path / "fifo"))
    with open(tmp_path / "large", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(LiveUpdateError, match="3221225472 bytes, more than any kernel has"):
        _image.read(str(tmp_path / "large"))


def test_a_file_that_shrinks_or_fails_while_it_is_read(read, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda *_args: b"")
        with pytest.raises(LiveUpdateError, match="became shorter while it was read"):
            read(bzimage())

    def fail(*_args):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(LiveUpdateError, match="Input/output error"):
            read(bzimage())


def test_build_ids():
    assert _image.build_ids(b"") == []
    assert _image.build_ids(b"abc" + NOTE + b"\n" * 40 + NOTE.replace(BUILD_ID, b"\n" * 20)) == [BUILD_ID.hex(), "0a" * 20]
    assert _image.build_ids(NOTE[:-1]) == []
    assert len(_image.build_ids(NOTE * 1000)) == 16


def test_a_large_kernel_takes_little_memory(read):
    block = code(1 << 20)
    image = bzimage(b"".join([block] * 20 + [kernel()] + [block] * 4))
    tracemalloc.start()
    try:
        assert read(image)["abi"] == ABI
        # The file that the test itself writes is not counted: it was made before.
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


IMAGES = {
    **{f"bzimage-{name}": bzimage(compression=name) for name in COMPRESS},
    "arm64": arm64(),
    "zboot": zboot(),
    "vmlinux": vmlinux(),
    "uki": uki(),
}


# Half of the changes hit headers, which are a small part of an image.
CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 20), st.integers(0, 7)), max_size=5)
BEGINNINGS = [b"", b"MZ", b"\x7fELF\x02\x01", bzimage()[:0x270], arm64()[:64], zboot()[:0x300], vmlinux()[:176], uki()[:0x400]]
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", IMAGES)
@FUZZ
@given(changes=CHANGES, kept=st.none() | st.integers(0, 20000))
def test_no_damage_is_more_than_an_error(read, name, changes, kept):
    data = bytearray(IMAGES[name])
    for in_header, position, bit in changes:
        data[position % (0x290 if in_header else len(data))] ^= 1 << bit
    try:
        found = read(bytes(data[:kept]))
    except LiveUpdateError as err:
        assert err.message.startswith("kernel ")
    else:
        assert found["kind"] in ("bzImage", "arm64", "zboot", "vmlinux", "uki")


@FUZZ
@given(beginning=st.sampled_from(BEGINNINGS), rest=st.binary(max_size=6000))
def test_no_file_of_anything_is_more_than_an_error(read, beginning, rest):
    with pytest.raises(LiveUpdateError, match=r"^kernel "):
        read(beginning + rest)


def test_a_text_in_a_configuration_is_read_as_kconfig_writes_it():
    options = _image.parse_config(b'CONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE="a=\\"b c\\" d=\\\\x"\n')
    assert options == {"CMDLINE_BOOL": "y", "CMDLINE": 'a="b c" d=\\x'}


def test_every_option_that_a_host_may_need_is_read():
    compressions = (f"RD_{name.upper()}" for _magic, name in _decompress._MAGICS)
    options = {*_modules.OPTIONS, *_modules.ROOT_MODULES, *_storage.OPTIONS.values(), *compressions, "MODULES"}
    text = "".join(f"CONFIG_{option}=m\n" for option in options)
    assert _image.parse_config(text.encode()) == dict.fromkeys(options, "m")
