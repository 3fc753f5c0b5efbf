# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Change libvirt's save images: make one without RAM loadable with an ordinary ``virsh start``, or replace the definition in one.
Pure. PRIVATE to the collection.

A state that QEMU saved with x-ignore-shared needs the same capability when it is loaded, but libvirt does not set it. The stream differs
in two places: the name of the capability in the configuration section, and the address after each RAM block in the set-up of the section
"ram". Without these two it is the stream of a guest whose pages are all in place.

Source: libvirt src/qemu/qemu_saveimage.h; QEMU migration/savevm.c, migration/ram.c, docs/devel/migration.
"""

from __future__ import annotations

import struct

from .._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("HEADER", "is_complete", "loadable", "stream_start", "with_xml")

_LIBVIRT = b"LibvirtQemudSave"
HEADER = 92
# In struct _virQEMUSaveHeader.
_WAS_RUNNING_OFFSET, _COOKIE_OFFSET = 24, 32
_QEMU = b"QEVM"
_CAPABILITY = b"x-ignore-shared"
_SECTION_START, _SECTION_FULL, _SUBSECTION, _CONFIGURATION, _COMMAND = 1, 4, 5, 7, 8
_MEM_SIZE = 0x04  # RAM_SAVE_FLAG_MEM_SIZE
_FLAGS = 0xFFF


class _Reader:
    """The stream, read forward. Errors name the position in it."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise LiveUpdateError(f"save image: it is cut off at byte {len(self.data)}, before the end of its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def peek(self) -> int:
        self.take(1)
        self.at -= 1
        return self.data[self.at]

    def name(self) -> bytes:
        return self.take(self.number(1))

    def unknown(self, what: str) -> LiveUpdateError:
        return LiveUpdateError(
            f"save image: {what} at byte {self.at}, which this version of the collection does not know; give the guest another way"
            " (hypervisor_update_ladder)"
        )


def loadable(image: bytes, running: bool) -> bytes:
    """The image without its traces of x-ignore-shared. ``running``: whether the guest runs after the load. Raises for anything that is
    not as expected: this guesses nothing.
    """
    stream = _Reader(image, stream_start(image))
    if stream.take(4) != _QEMU:
        raise stream.unknown("no QEMU stream, perhaps a compressed one (snapshot_image_format in qemu.conf)")
    stream.take(4)
    if stream.number(1) != _CONFIGURATION:
        raise stream.unknown("no configuration section")
    stream.take(stream.number(4))
    out = bytearray(image[: stream.at])
    while stream.peek() == _SUBSECTION:
        out += _subsection(stream)
    while stream.peek() == _COMMAND:
        begun = stream.at
        stream.take(3)
        stream.take(stream.number(2))
        out += image[begun : stream.at]
    begun = stream.at
    if stream.number(1) not in (_SECTION_START, _SECTION_FULL):
        raise stream.unknown("no section at the place of the RAM section")
    stream.take(4)
    if stream.name() != b"ram":
        raise stream.unknown("another section before the RAM section")
    stream.take(8)
    total = stream.number(8)
    if total & _FLAGS != _MEM_SIZE:
        raise stream.unknown(f"RAM set-up with flags {total & _FLAGS:#x}")
    out += image[begun : stream.at]
    left = total & ~_FLAGS
    while left > 0:
        begun = stream.at
        stream.name()
        left -= stream.number(8)
        out += image[begun : stream.at]
        stream.take(8)  # the address of the block, which exists only with x-ignore-shared
    if left:
        raise stream.unknown("RAM blocks whose sizes do not add up")
    struct.pack_into("=I", out, _WAS_RUNNING_OFFSET, running)
    return bytes(out + image[stream.at :])


def with_xml(head: bytes, change: t.Callable[[str], str]) -> bytes:
    """The part before QEMU's stream (header, XML, cookie, free space) with the XML changed. Its length stays the same."""
    room = stream_start(head) - HEADER
    (cookie_at,) = struct.unpack_from("=I", head, _COOKIE_OFFSET)
    xml, cookie = (head[HEADER + at :].partition(b"\0")[0] for at in (0, cookie_at))
    new = change(xml.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape") + b"\0"
    data = new + (cookie + b"\0" if cookie_at else b"")
    if len(data) > room:
        raise LiveUpdateError(f"save image: the definition needs {len(data)} bytes, but there is room for {room}")
    header = bytearray(head[:HEADER])
    struct.pack_into("=I", header, _COOKIE_OFFSET, len(new) if cookie_at else 0)
    return bytes(header) + data + b"\0" * (room - len(data))


def is_complete(head: bytes) -> bool:
    """Whether libvirt has completed the save image that begins so. Until then it begins with LibvirtQemudPart."""
    return head[:16] == _LIBVIRT and len(head) >= HEADER


def stream_start(image: bytes) -> int:
    """Where QEMU's stream begins, after libvirt's header, XML and cookie."""
    if not is_complete(image):
        raise LiveUpdateError(f"save image: it begins with {image[:16]!r}, not with {_LIBVIRT!r}; libvirt has not completed it")
    version, length = struct.unpack_from("<II", image, 16)
    if version != 2:
        raise LiveUpdateError(
            f"save image: version {version}; this version of the collection supports 2. Give the guest another way"
            " (hypervisor_update_ladder)"
        )
    return HEADER + int(length)


def _subsection(stream: _Reader) -> bytes:
    """One part of the configuration, without the capability; empty if nothing else is in it."""
    begun = stream.at
    stream.take(1)
    name = stream.name()
    stream.take(4)
    head = stream.data[begun : stream.at]
    if name.endswith(b"/capabilities"):
        names = [stream.name() for _index in range(stream.number(4))]
        if _CAPABILITY not in names:
            raise stream.unknown("a list of capabilities without x-ignore-shared")
        kept = [other for other in names if other != _CAPABILITY]
        packed = b"".join(bytes([len(other)]) + other for other in kept)
        return head + struct.pack(">I", len(kept)) + packed if kept else b""
    sizes = {b"/target-page-bits": 4, b"/uuid": 16}
    size = next((size for end, size in sizes.items() if name.endswith(end)), None)
    if size is None:
        raise stream.unknown(f"the configuration {name!r}")
    return head + stream.take(size)
