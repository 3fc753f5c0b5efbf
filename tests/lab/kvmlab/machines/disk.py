# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A raw disk with one ext4 partition: create it from a folder, change files on it without a mount."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from .. import limits
from ..errors import LabError
from ..run import run_logged

SIZE_MIB = 6144
FIRST_SECTOR = 2048  # 1 MiB before the partition, for GRUB's core image
SIGNATURE = 0x4C414231
FILE_SYSTEM_ID = "6b766d6c-7570-4461-a65f-6c6162000001"


def make(tree: Path, target: Path, log: Path) -> None:
    """Create a sparse disk with the files of the folder tree."""
    sectors = SIZE_MIB * 2048 - FIRST_SECTOR
    with target.open("wb") as stream:
        stream.write(partition_table(FIRST_SECTOR, sectors))
        stream.truncate(SIZE_MIB * 1024 * 1024)
    command = ("mke2fs", "-q", "-F", "-t", "ext4", "-U", FILE_SYSTEM_ID, "-L", "lab", "-m", "0", "-d", tree)
    place = ("-E", f"offset={FIRST_SECTOR * 512},root_owner=0:0", target, f"{sectors // 2}k")
    run_logged((*command, *place), what="mke2fs", log=log, limit_s=limits.TOOL)


def partition_table(first: int, sectors: int) -> bytes:
    """A master boot record with one active Linux partition."""
    no_geometry = b"\xfe\xff\xff"
    entry = b"\x80" + no_geometry + b"\x83" + no_geometry + struct.pack("<II", first, sectors)
    return b"\0" * 440 + struct.pack("<I", SIGNATURE) + b"\0\0" + entry + b"\0" * 48 + b"\x55\xaa"


def replace_file(disk: Path, name: str, text: str) -> None:
    """Write a file into the file system of a disk. No machine may be using the disk."""
    source = disk.parent / "replace_file.text"
    source.write_text(text)
    try:
        _debugfs(disk, f"rm {name}", f"write {source.name} {name}", f"set_inode_field {name} mode 0100644")
    finally:
        source.unlink()
    found = _debugfs(disk, f"cat {name}")
    if text not in found:
        raise LabError(f"cannot write {name} to {disk}; debugfs reads back: {found}")


def remove_file(disk: Path, name: str) -> None:
    """Remove a file from the file system of a disk. No machine may be using the disk."""
    _debugfs(disk, f"rm {name}")


def _debugfs(disk: Path, *steps: str) -> str:
    """Run debugfs commands on the partition. It runs in the disk's folder, because it cannot quote paths."""
    command = ("debugfs", "-w", "-f", "-", f"{disk.name}?offset={FIRST_SECTOR * 512}")
    text = "".join(step + "\n" for step in steps)
    done = subprocess.run(command, cwd=disk.parent, input=text, capture_output=True, text=True, timeout=limits.TOOL, check=False)
    if done.returncode != 0:
        raise LabError(f"debugfs failed on {disk}: {done.stderr.strip()}")
    return done.stdout
