# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of the throw-away guest, and what the guest's RAM must be. PRIVATE to the collection.

The guest has no disk and no operating system: its firmware (``-bios``) is all that it runs. It fills each page of its RAM from 1 MiB on
with the number of this page. From then on it reads them all again and again, a MiB at each tick of its timer, and counts those that differ.
So its processor, interrupts and timer have to go on after a jump too. Between the ticks it sleeps.

The host reads the counters and the pages in the file that is the guest's RAM, while the guest runs.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("MARK_AT", "RAM", "STATUS_AT", "firmware", "is_marked", "look", "status")

RAM = 64 << 20
_PAGE = 4096
_FIRST = 1 << 20
_SIZE = 64 << 10  # QEMU maps the image so that it ends at 4 GiB, where the processor starts (hw/i386/x86-common.c)
_CODE_AT, _NUMBERS_AT, _RESET_AT = 0xF000, 0xFF00, 0xFFF0
# In the RAM: how often the guest read all pages, how many differed, the ticks; and the mark that the host writes, which only memory that
# came through a jump has: a guest that starts again counts from 0, but fills its RAM with the same numbers.
STATUS_AT, _STATUS = 0x8000, struct.Struct("<3I")
MARK_AT = 0x8010

# Addresses are 0xFFFF0000 + offset. [SEED] and [END] are the two numbers at 0xFFFFFF00.
_CODE = bytes.fromhex(
    "fa"  # cli
    "2e660f0116e4f0"  # lgdtl cs:gdtr
    "0f20c0 0c01 0f22c0"  # cr0 |= 1: protected mode
    "66ea18f0ffff0800"  # ljmpl 8:next
    "66b81000 8ed8 8ec0 8ed0"  # ds = es = ss = 16
    "bc00700000"  # esp = 0x7000
    "0f011deaf0ffff"  # lidt idtr
    # The interrupt controller: timer only, as vector 0x20, without an end of interrupt. Let the processor take its interrupts (LINT0): that
    # needs an enabled local APIC. The timer: 18.2 times a second. KVM's does not run before somebody sets it.
    "b011e620 b020e621 b004e621 b003e621 b0fee621"  # 0x11 to port 0x20; 0x20, 4, 3 and 0xFE to port 0x21
    "c705f000e0feff010000 c7055003e0fe00070000"  # [0xFEE000F0] = 0x1FF, [0xFEE00350] = 0x700
    "b034e643 30c0e640e640"  # 0x34 to port 0x43; 0 and 0 to port 0x40
    "fc"  # cld
    "a100ffffff bf00001000"  # eax = [SEED], edi = 1 MiB
    "b900040000 f3ab 40"  # fill: write eax 1024 times, ++eax
    "3b3d04ffffff 72f0"  # until edi = [END]
    "8b1500ffffff bb00001000"  # pass: edx = [SEED], ebx = 1 MiB
    "89d0 89df b900040000 f3af"  # page: compare eax = edx 1024 times, from edi = ebx
    "7406 ff0504800000"  # if one differs: ++[0x8004]
    "42 81c300100000"  # ++edx, ebx += 4096
    "f7c3ffff0f00 7509"  # at each MiB:
    "fb f4 fa ff0508800000"  # sti, hlt, cli, ++[0x8008]
    "3b1d04ffffff 72cd"  # page, until ebx = [END]
    "ff0500800000 ebba"  # ++[0x8000], pass
    "cf 6690"  # the handler of the timer: iret
    "0000000000000000 ffff0000009bcf00 ffff00000093cf00"  # GDT: none, code, data
    "c1f00800008effff"  # IDT, vector 0x20
    "1700c4f0ffff"  # gdtr
    "0701dcefffff"  # idtr, 0x100 below its only entry
)
_RESET = bytes.fromhex("e90df0")  # jmp to the code


def firmware(seed: int) -> bytes:
    """The image for ``-bios``. ``seed`` is the number of the first page, below 2**31."""
    image = bytearray(_SIZE)
    image[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
    image[_NUMBERS_AT : _NUMBERS_AT + 8] = struct.pack("<II", seed, RAM)
    image[_RESET_AT : _RESET_AT + len(_RESET)] = _RESET
    return bytes(image)


def status(ram: t.BinaryIO) -> dict:
    """What the guest says: ``passes`` over its pages, pages that were ``wrong`` to it, ``ticks``."""
    ram.seek(STATUS_AT)
    return dict(zip(("passes", "wrong", "ticks"), _STATUS.unpack(ram.read(_STATUS.size))))


def is_marked(ram: t.BinaryIO, mark: bytes) -> bool:
    """Whether the mark is there."""
    ram.seek(MARK_AT)
    return ram.read(len(mark)) == mark


def look(ram: t.BinaryIO, seed: int, mark: bytes) -> dict:
    """What the guest says, and what the host sees: ``marked``, whether the mark is there; ``pages``; how many ``differ``."""
    marked = is_marked(ram, mark)
    ram.seek(_FIRST)
    pages = (RAM - _FIRST) // _PAGE
    differ = sum(ram.read(_PAGE) != struct.pack("<I", seed + page) * (_PAGE // 4) for page in range(pages))
    return {**status(ram), "marked": marked, "pages": pages, "differ": differ}
