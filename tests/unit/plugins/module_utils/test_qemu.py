# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._qemu import largest_mapping

SMALL = """55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f4000000000 r--p 00000000 fe:01 99                         /usr/lib/large-but-read-only.so
KernelPageSize:        4 kB
"""
RAM = """7f5a00000000-7f5a08000000 {mode} 00000000 00:01 1037                       {backing}
Size:             131072 kB
KernelPageSize:     {page:4d} kB
MMUPageSize:        {page:4d} kB
VmFlags: rd wr sh mr mw me ms
"""


@pytest.mark.parametrize(
    ("backing", "page"),
    [
        ("", 4),
        ("/memfd:memory-backend-memfd (deleted)", 4),
        ("/memfd:memory-backend-memfd (deleted)", 2048),
        ("/dev/hugepages/x (deleted)", 2048),
    ],
)
def test_the_largest_writable_mapping_is_the_ram(backing, page):
    ram = RAM.format(mode="rw-s", backing=backing, page=page)
    assert largest_mapping((SMALL + ram).splitlines(keepends=True)) == (backing, page)
    assert largest_mapping((ram + SMALL).splitlines(keepends=True)) == (backing, page)


def test_a_process_without_memory():
    assert largest_mapping([]) == ("", 0)
