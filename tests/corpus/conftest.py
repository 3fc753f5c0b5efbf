# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The corpus: Debian's own kernels and the lab's, and a host that seems to run any of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image, _proof
from kvmlab.parts import kernel, packages, stock
from kvmlab.parts.kernel import Kernel
from kvmlab.parts.stock import Stock

CMDLINE = "root=/dev/vda1 rw kho=on liveupdate=on"


@pytest.fixture(scope="session")
def lab_kernels() -> tuple[Kernel, Kernel]:
    """The lab's two kernels, built if they are not in the cache."""
    return kernel.pair(packages.resolve())


@pytest.fixture(scope="session")
def stock_kernels() -> dict[str, Path]:
    """Debian's own kernels: image by series."""

    def image(found: Stock) -> Path:
        return stock.folder(found) / f"vmlinuz-{found.release}"

    return {found.series: image(found) for found in stock.newest()}


@pytest.fixture
def prove(tmp_path: Path) -> Callable[[Path, Path], dict[str, Any]]:
    """Holds two kernel images against each other, on a host that seems to run the first."""

    def do(running: Path, target: Path) -> dict[str, Any]:
        found = _image.read(str(running))
        boot, root = running.parent, tmp_path / "host"
        notes = b"".join(struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes.fromhex(build) for build in found["build_ids"])
        files = {
            f"boot/vmlinuz-{found['release']}": running.read_bytes(),
            "proc/sys/kernel/osrelease": found["release"].encode(),
            "proc/sys/kernel/version": found["version"].encode(),
            "proc/sys/kernel/arch": found["arch"].encode(),
            "proc/cmdline": CMDLINE.encode(),
            "proc/meminfo": b"MemTotal: 2097152 kB\n",
            "sys/kernel/notes": notes,
            "sys/kernel/debug/kho/out/scratch_len": b"0x10000000\n0x10000000\n",
            **{f"boot/{config.name}": config.read_bytes() for config in boot.glob(f"config-{found['release']}")},
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return _proof.prove(_image.read(str(target)), CMDLINE, None, str(root), without=True)

    return do
