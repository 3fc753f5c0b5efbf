# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulator of the hosts: QEMU of Debian forky, run from the cache without an installation.

Older QEMU versions have bugs in the emulation of SVM. They look like bugs of a live update. In QEMU 7.2, a guest with the
host's processor model does not even boot. Two bugs remain up to 11.1, and are mended in the copy in the cache:

* helper_vmrun(): the host injects an interrupt with VMRUN, and QEMU delivers it at once. But QEMU also leaves it in
  cs->exception_index. If the emulated processor is kicked at that moment, QEMU delivers the interrupt again, to guest code that runs
  with interrupts off, and the guest deadlocks. The store to cs->exception_index is replaced by a no-op.
* helper_write_crN(): a guest writes CR8, as each interrupt handler of UEFI firmware does, while KVM waits for the moment when it can
  inject an interrupt. QEMU then calls cpu_interrupt() without its big lock, and an assertion ends it. The call goes to
  cpu_set_interrupt() instead, as in helper_vmrun(). That sets the same bit atomically, so it needs no lock. A write to CR8 ends a
  translated block, so the processor looks at the bit next.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..run import run_logged, say
from . import elf

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

# Who calls whom without the lock, and whom instead.
CALLER, LOCKED, ATOMIC = "helper_write_crN", "cpu_interrupt", "cpu_set_interrupt"
_CALLS = (0xE8, 0xE9)  # call and jmp: one byte, then the distance from the next instruction in four
_CALL_SIZE = 5


def command(root_tar: Path) -> tuple[str, ...]:
    """The command that starts the emulator of this root file system."""
    inputs = {
        "rootfs": root_tar.parent.name,
        "parts": " ".join((LIBRARIES, PROGRAM, *DATA)),
        "mend": repr((FAULT.pattern, NOTHING, CALLER, LOCKED, ATOMIC)),
    }

    def unpack(folder: Path, log: Path) -> None:
        members = [f"./{name}" for name in (LIBRARIES, PROGRAM, *DATA)]
        run_logged(("tar", "-C", folder, "--no-same-owner", "-xf", root_tar, *members), what="unpack QEMU", log=log, limit_s=limits.TOOL)
        program = folder / PROGRAM
        content = program.read_bytes()
        # A newer QEMU may not have a bug any more, or it may be compiled to other instructions.
        for mend, consequence in (
            (without_second_delivery, "if a guest in the lab goes silent, suspect the emulator"),
            (without_assertion, "a UEFI guest may end the emulator"),
        ):
            try:
                content = mend(content)
            except LabError as error:
                say(f"  WARNING emulator: {error}; {consequence}")
        program.write_bytes(content)

    tree = cache.artefact("emulator", inputs, unpack)
    # With its own loader and C library, because this machine's may be older.
    loader = (str(tree / LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", str(tree / LIBRARIES))
    data = tuple(word for name in DATA for word in ("-L", str(tree / name)))
    return (*loader, str(tree / PROGRAM), *data)


def without_second_delivery(program: bytes) -> bytes:
    """The program without the bug of helper_vmrun(). Raises LabError if the bug is not found in exactly one place. Pure."""
    found = list(FAULT.finditer(program))
    if len(found) != 1:
        raise LabError(f"the known bug of event injection is in {len(found)} places of this QEMU instead of one, it is not mended")
    start, end = found[0].span("store")
    return program[:start] + NOTHING + program[end:]


def without_assertion(program: bytes) -> bytes:
    """The program without the bug of helper_write_crN(). Raises LabError if there is not exactly one call to change. Pure."""
    known = elf.functions(program)
    missing = [name for name in (CALLER, LOCKED, ATOMIC) if name not in known]
    if missing:
        raise LabError(f"this QEMU exports no {' and no '.join(missing)}, so the known bug of writes to CR8 is not mended")
    caller = known[CALLER]
    calls = [
        place
        for place in range(caller.size - _CALL_SIZE + 1)
        if program[caller.offset + place] in _CALLS and _called(program, caller, place) == known[LOCKED].address
    ]
    if len(calls) != 1:
        raise LabError(f"{CALLER} of this QEMU calls {LOCKED} in {len(calls)} places instead of one, so the known bug of CR8 is not mended")
    distance = known[ATOMIC].address - (caller.address + calls[0] + _CALL_SIZE)
    start = caller.offset + calls[0] + 1
    return program[:start] + struct.pack("<i", distance) + program[start + 4 :]


def _called(program: bytes, caller: elf.Function, place: int) -> int:
    """The address that the call at this place of a function goes to."""
    distance: int = struct.unpack_from("<i", program, caller.offset + place + 1)[0]
    return caller.address + place + _CALL_SIZE + distance
