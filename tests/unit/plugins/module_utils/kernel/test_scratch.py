# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _scratch

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("content", "sizes"),
    [("0x8000000\n0x0\n0x4000000\n", [128 * MIB, 64 * MIB]), ("", []), ("what\n", None), (None, None)],
)
@pytest.mark.parametrize("name", ["scratch_len", "bootmem_len"])
def test_areas(tmp_path, content, sizes, name):
    """Linux 7.4 gave the file its second name."""
    if content is not None:
        (tmp_path / "sys/kernel/debug/kho/out").mkdir(parents=True)
        (tmp_path / "sys/kernel/debug/kho/out" / name).write_text(content)
    assert _scratch.areas(str(tmp_path)) == sizes


@pytest.mark.parametrize(
    ("sizes", "needs", "missing"),
    [
        ([100], {}, []),
        ([100], {"kernel": 100}, []),
        ([100], {"kernel": 101}, ["kernel"]),
        ([], {"kernel": 1}, ["kernel"]),
        ([100, 50], {"kernel": 90, "initrd": 50}, []),
        ([100, 50], {"initrd": 50, "kernel": 90}, []),
        # Together they would fit into all areas, but not each in one piece.
        ([100, 50], {"kernel": 80, "initrd": 60}, ["initrd"]),
        ([100, 50], {"kernel": 60, "initrd": 40, "crashkernel": 50}, []),
        ([10, 20], {"kernel": 60, "initrd": 40}, ["kernel", "initrd"]),
    ],
)
def test_misfits(sizes, needs, missing):
    before = list(sizes)
    assert _scratch.misfits(sizes, needs) == missing
    assert sizes == before


@pytest.mark.parametrize(
    ("cmdline", "pieces"),
    [
        ("", {}),
        ("root=/dev/vda", {}),
        ("crashkernel=", {}),
        ("crashkernel=much", {}),
        ("crashkernel=256M", {"crashkernel": 256 * MIB}),
        ("crashkernel=0x10000000@16M", {"crashkernel": 256 * MIB}),
        ('a="x crashkernel=32M" -- crashkernel=16M', {"crashkernel": 16 * MIB}),
        ("crashkernel=128M quiet crashkernel=64m", {"crashkernel": 64 * MIB}),
        ("crashkernel=2G-64G:256M,64G-:512M", {"crashkernel": 256 * MIB}),
        ("crashkernel=1G-2G:64M,2G-8G:128M,8G-:1G@16M", {"crashkernel": GIB}),
        ("crashkernel=64G-:512M", {}),
        ("crashkernel=8G-2G", {}),
        ("crashkernel=512M,high", {"crashkernel,high": 512 * MIB, "crashkernel,low": 256 * MIB}),
        ("crashkernel=512M,high crashkernel=72M,low", {"crashkernel,high": 512 * MIB, "crashkernel,low": 72 * MIB}),
        ("crashkernel=512M,high crashkernel=0,low", {"crashkernel,high": 512 * MIB}),
        ("crashkernel=72M,low", {}),
        ("crashkernel=300M crashkernel=512M,high", {"crashkernel": 300 * MIB}),
        ("crashkernel=512M,cma", {}),
    ],
)
def test_crashkernel(cmdline, pieces):
    assert _scratch.crashkernel(cmdline, 16 * GIB) == pieces


def test_a_small_machine_needs_no_piece_below_4_gib():
    assert _scratch.crashkernel("crashkernel=128M,high", 4 * GIB) == {"crashkernel,high": 128 * MIB}
