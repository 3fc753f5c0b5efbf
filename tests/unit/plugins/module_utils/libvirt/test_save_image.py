# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import random
import struct

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _save_image

BLOCKS = ((b"pc.ram", 128 << 20, 0), (b"vga.vram", 16 << 20, 0xFD000000))
DEVICES = b"\x7e\x00\x00\x00\x02" + bytes(range(256))


@pytest.fixture(autouse=True)
def reading_ends(monkeypatch):
    real = _save_image._Reader.peek

    def peek(stream):
        stream.looks = getattr(stream, "looks", 0) + 1
        assert stream.looks < 1000, "it reads the same place for ever"
        return real(stream)

    monkeypatch.setattr(_save_image._Reader, "peek", peek)


def short(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def subsection(name: bytes, content: bytes) -> bytes:
    return b"\x05" + short(b"configuration/" + name) + struct.pack(">I", 1) + content


def image(capabilities=(b"x-ignore-shared",), with_address=True, command=b"", flags=4, running=False, section=1) -> bytes:
    xml = b"<domain/>\0cookie\0"
    header = b"LibvirtQemudSave" + struct.pack("<III", 2, len(xml), running) + b"\0" * 64
    stream = b"QEVM\0\0\0\3" + b"\x07" + struct.pack(">I", 10) + b"pc-q35-9.9"
    stream += subsection(b"target-page-bits", struct.pack(">I", 12))
    if capabilities:
        stream += subsection(b"capabilities", struct.pack(">I", len(capabilities)) + b"".join(map(short, capabilities)))
    stream += subsection(b"uuid", b"u" * 16) + command
    stream += bytes([section]) + struct.pack(">I", 2) + short(b"ram") + struct.pack(">II", 0, 4)
    stream += struct.pack(">Q", sum(size for _name, size, _at in BLOCKS) | flags)
    for name, size, at in BLOCKS:
        stream += short(name) + struct.pack(">Q", size) + (struct.pack(">Q", at) if with_address else b"")
    return header + xml + stream + DEVICES


@pytest.mark.parametrize("command", [b"", b"\x08\0\x03\0\x04ping", b"\x08\0\x03\0\x04ping" * 2])
@pytest.mark.parametrize("others", [(), (b"events", b"xbzrle")])
@pytest.mark.parametrize("running", [True, False])
def test_the_image_is_that_of_a_save_without_the_capability(command, others, running):
    found = _save_image.loadable(image((*others, b"x-ignore-shared"), command=command), running)
    assert found == image(others, with_address=False, command=command, running=running)


@pytest.mark.parametrize("section", [1, 4])  # QEMU writes the RAM as the first of several parts; a snapshot may have it in one
def test_ram_is_saved_in_one_part_or_in_several(section):
    found = _save_image.loadable(image(section=section), False)
    assert found == image((), with_address=False, section=section)


def test_an_image_without_anything_behind_the_ram_is_complete():
    whole = image()[: -len(DEVICES)]
    assert _save_image.loadable(whole, False) == image((), with_address=False)[: -len(DEVICES)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with b''"),
        (image()[:16], "libvirt has not completed it"),
        (image()[:91], "libvirt has not completed it"),
        (image()[:130], "cut off at byte 130"),
        (image(section=2), "no section at the place of the RAM section"),
        (image(section=3), "no section at the place of the RAM section"),
        (image(section=0x7E), "no section at the place of the RAM section"),
        (image(flags=0), "flags 0x0"),
        (image(flags=5), "flags 0x5"),
        (image(flags=0x804), "flags 0x804"),
        (image().replace(b"QEVM\0\0\0\3\x07", b"QEVM\0\0\0\3\x06"), "no configuration section at byte 118"),
        (image()[:16] + b"\1" + image()[17:], "version 1"),
        (image().replace(struct.pack(">Q", 128 << 20), struct.pack(">Q", 200 << 20)), "do not add up"),
        (b"LibvirtQemudPart" + image()[16:], "LibvirtQemudPart"),
        (image()[:16] + b"\3" + image()[17:], "version 3"),
        (image((b"events",)), "without x-ignore-shared"),
        (image(flags=0x44), "flags 0x44"),
        (image().replace(b"QEVM", b"\x1f\x8b\x08\x00"), "compressed"),
        (image().replace(b"configuration/uuid", b"configuration/what"), "configuration/what"),
        (image().replace(b"\3ram", b"\3rom"), "another section before the RAM section"),
        (image().replace(struct.pack(">Q", 16 << 20), struct.pack(">Q", 17 << 20)), "do not add up"),
    ],
)
def test_anything_else_is_refused(data, says):
    with pytest.raises(LiveUpdateError, match="save image") as refused:
        _save_image.loadable(data, running=True)
    assert says in str(refused.value)


def test_an_image_that_is_cut_off_is_refused():
    whole = image()
    set_up = len(whole) - len(DEVICES)
    for length in range(92, set_up):
        with pytest.raises(LiveUpdateError, match="save image"):
            _save_image.loadable(whole[:length], running=True)


def test_damage_is_refused_or_harmless_but_never_a_traceback():
    chance = random.Random(7)
    for _round in range(3000):
        data = bytearray(image())
        for _change in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            _save_image.loadable(bytes(data), running=True)
        except LiveUpdateError:
            continue


def head(xml: bytes, cookie: bytes = b"", room: int = 64) -> bytes:
    data = xml + b"\0" + (cookie + b"\0" if cookie else b"") + b"\0" * room
    offset = len(xml) + 1 if cookie else 0
    return struct.pack("=16sIIIII14I", b"LibvirtQemudSave", 2, len(data), 1, 0, offset, *[0] * 14) + data


@pytest.mark.parametrize("cookie", [b"", b"<cookie>c</cookie>"])
def test_another_definition_takes_of_the_room_behind_it(cookie):
    before = head(b"<domain/>", cookie)
    after = _save_image.with_xml(before, lambda xml: xml.replace("/>", ">longer</domain>"))
    assert len(after) == len(before) and _save_image.stream_start(after) == _save_image.stream_start(before)
    offset = struct.unpack_from("=I", after, 32)[0]
    assert after[_save_image.HEADER :].startswith(b"<domain>longer</domain>\0" + cookie)
    assert bool(offset) == bool(cookie)
    if cookie:
        assert after[_save_image.HEADER + offset :].startswith(cookie + b"\0")
    assert after[16:32] == before[16:32]  # version, length, was running, format
    assert _save_image.with_xml(after, lambda xml: "<domain/>") == before


def test_a_definition_that_does_not_fit_is_refused():
    with pytest.raises(LiveUpdateError, match="needs 201 bytes, but there is room for 74"):
        _save_image.with_xml(head(b"<domain/>"), lambda xml: "x" * 200)


@pytest.mark.parametrize("cookie", [b"", b"<cookie/>"])
def test_a_definition_may_take_all_the_room_there_is(cookie):
    before = head(b"<domain/>", cookie)
    longest = len(before) - _save_image.HEADER - 1 - (len(cookie) + 1 if cookie else 0)
    after = _save_image.with_xml(before, lambda _xml: "x" * longest)
    assert len(after) == len(before) and after[_save_image.HEADER :].startswith(b"x" * longest + b"\0" + cookie)
    with pytest.raises(LiveUpdateError, match="there is room for"):
        _save_image.with_xml(before, lambda _xml: "x" * (longest + 1))


def test_a_definition_comes_back_byte_for_byte():
    """A name in Latin-1 is no UTF-8."""
    before = head("<domain>Büro</domain>".encode() + b"\xff")
    assert _save_image.with_xml(before, lambda xml: xml) == before
