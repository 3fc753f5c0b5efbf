# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulator of the hosts: the QEMU of Debian forky, run from the cache without being installed.

An older QEMU emulates SVM with faults that look like faults of a live update: under 7.2 a guest with the host's processor
model does not even boot. One fault is left up to 11.1, in helper_vmrun(): an interrupt that the host injects with VMRUN is
delivered at once, but also stays noted in cs->exception_index. When the emulated processor is kicked just then, it is
delivered a second time, into code of the guest that runs with interrupts off, and the guest deadlocks. In the copy in the
cache, the store that leaves the note is a no-op.
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
NOTHING = b"\x66\x0f\x1f\x44\x00\x00"  # one instruction as long as the store


def command(root_tar: Path) -> tuple[str, ...]:
    """The words that start the emulator that is in this root file system."""
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
            # A newer QEMU may have lost the fault, or its compiler may have said the same with other instructions.
            say(f"  emulator: {error}; a guest that falls silent in the lab may be the emulator's fault")

    tree = cache.artefact("emulator", inputs, unpack)
    # Its own loader and C library: this machine's may be older.
    loader = (str(tree / LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", str(tree / LIBRARIES))
    data = tuple(word for name in DATA for word in ("-L", str(tree / name)))
    return (*loader, str(tree / PROGRAM), *data)


def mended(program: bytes) -> bytes:
    """The program without the fault; an error when the fault is not found in exactly one place."""
    found = list(FAULT.finditer(program))
    if len(found) != 1:
        raise LabError(f"the known fault of event injection is in {len(found)} places of this QEMU instead of one, left as it is")
    start, end = found[0].span("store")
    return program[:start] + NOTHING + program[end:]
