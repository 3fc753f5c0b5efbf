# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulator of the hosts: the QEMU of the hosts' own Debian release, run from the cache without being installed.

An older QEMU emulates SVM with faults that look like faults of a live update: under 7.2 a guest with the host's processor
model does not even boot.
"""

from __future__ import annotations

from pathlib import Path

from . import cache
from .run import run_logged

LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROGRAM = "usr/bin/qemu-system-x86_64"
DATA = ("usr/share/qemu", "usr/share/seabios")


def command(root_tar: Path) -> tuple[str, ...]:
    """The words that start the emulator that is in this root file system."""
    inputs = {"rootfs": root_tar.parent.name, "parts": " ".join((LIBRARIES, PROGRAM, *DATA))}

    def unpack(folder: Path, log: Path) -> None:
        members = [f"./{name}" for name in (LIBRARIES, PROGRAM, *DATA)]
        # Links into other packages' folders stay behind: owners and modes do not matter here.
        run_logged(("tar", "-C", folder, "--no-same-owner", "-xf", root_tar, *members), what="unpack QEMU", log=log, limit_s=600)

    tree = cache.artefact("emulator", inputs, unpack)
    # Its own loader and C library: this machine's may be older.
    loader = (str(tree / LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", str(tree / LIBRARIES))
    data = tuple(word for name in DATA for word in ("-L", str(tree / name)))
    return (*loader, str(tree / PROGRAM), *data)
