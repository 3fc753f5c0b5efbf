# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulator of the hosts: QEMU of Debian forky, run from the cache without an installation.

Older QEMU versions have bugs in the emulation of SVM. They look like bugs of a live update. In QEMU 7.2, a guest with the
host's processor model does not even boot. One bug remains up to 11.1, in helper_vmrun(). The host injects an interrupt with
VMRUN, and QEMU delivers it at once. But QEMU also leaves it in cs->exception_index. If the emulated processor is kicked at
that moment, QEMU delivers the interrupt again, to guest code that runs with interrupts off, and the guest deadlocks. In the
copy in the cache, the store to cs->exception_index is replaced by a no-op.
"""

from __future__ import annotations

import re
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say

SUITE = "forky"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROGRAM = "usr/bin/qemu-system-x86_64"
DATA = ("usr/share/qemu", "usr/share/seabios")

# case SVM_EVTINJ_TYPE_INTR: vector to %esi; error_code, exception_index, exception_is_int = 0, exception_next_eip = -1.
FAULT = re.compile(
    rb"\x41\x0f\xb6\xf4"
    rb"\x44\x89\xab.{4}"
    rb"(?P<store>\x89\xb3.{4})"
    rb"\xc7\x83.{4}\x00{4}"
    rb"\x48\xc7\x83.{4}\xff{4}",
    re.DOTALL,
)
NOTHING = b"\x66\x0f\x1f\x44\x00\x00"  # one no-op instruction of the same length


def command(root_tar: Path) -> tuple[str, ...]:
    """The command that starts the emulator of this root file system."""
    inputs = {
        "rootfs": root_tar.parent.name,
        "parts": " ".join((LIBRARIES, PROGRAM, *DATA)),
        "mend": repr((FAULT.pattern, NOTHING)),
    }

    def unpack(folder: Path, log: Path) -> None:
        members = [f"./{name}" for name in (LIBRARIES, PROGRAM, *DATA)]
        run_logged(("tar", "-C", folder, "--no-same-owner", "-xf", root_tar, *members), what="unpack QEMU", log=log, limit_s=limits.TOOL)
        program = folder / PROGRAM
        try:
            program.write_bytes(mended(program.read_bytes()))
        except LabError as error:
            # A newer QEMU may not have the bug any more, or it may be compiled to other instructions.
            say(f"  WARNING emulator: {error}; if a guest in the lab goes silent, suspect the emulator")

    tree = cache.artefact("emulator", inputs, unpack)
    # With its own loader and C library, because this machine's may be older.
    loader = (str(tree / LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", str(tree / LIBRARIES))
    data = tuple(word for name in DATA for word in ("-L", str(tree / name)))
    return (*loader, str(tree / PROGRAM), *data)


def mended(program: bytes) -> bytes:
    """The program without the bug. Raises LabError if the bug is not found in exactly one place."""
    found = list(FAULT.finditer(program))
    if len(found) != 1:
        raise LabError(f"the known bug of event injection is in {len(found)} places of this QEMU instead of one, QEMU stays unchanged")
    start, end = found[0].span("store")
    return program[:start] + NOTHING + program[end:]
