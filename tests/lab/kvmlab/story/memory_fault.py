# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Change one bit of a guest's memory in its next update, between its save and the jump: a fault that only a check of the memory finds."""

from __future__ import annotations

from ..errors import LabError
from ..machines.host import Host

# Where in the first RAM file. It is no border of a page or of a piece.
OFFSET = (48 << 20) + 4321

# It runs in place of "kvm-liveupdate jump". By the time it changes the memory, all guests are saved and their digests are on the disk.
_JUMP = """
import mmap, os, sys

sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.handover import _journal
from kvm_liveupdate.update import _jump

put_aside = _jump._put_exitrd_aside


def change():
    record = _journal.of_update()["records"]["NAME"]
    handle = os.open(f"/proc/{record['pid']}/fd/{record['ram'][0]['fd']}", os.O_RDWR)
    page = OFFSET - OFFSET % mmap.PAGESIZE
    with mmap.mmap(handle, mmap.PAGESIZE, offset=page) as memory:
        memory[OFFSET - page] ^= 1
    put_aside()


_jump._put_exitrd_aside = change
sys.exit(_jump.jump())
"""


def arrange(host: Host, name: str) -> None:
    """Prepare it for the guest ``name``. All of it is in /run, so it is over after the jump."""
    program = _JUMP.replace("NAME", name).replace("OFFSET", str(OFFSET))
    drop_in = "[Service]\\nExecStart=\\nExecStart=/usr/bin/python3 -IS /run/memory-fault.py\\n"
    folder = "/run/systemd/system/kvm-liveupdate-jump.service.d"
    done = host.ssh(
        f"cat > /run/memory-fault.py && mkdir -p {folder} && printf '{drop_in}' > {folder}/fault.conf && systemctl daemon-reload",
        stdin=program,
    )
    if done.returncode:
        raise LabError(f"{host.name}: the fault of {name} cannot be prepared: {done.stderr.strip()}")
