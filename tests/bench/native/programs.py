# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the programs take that a pause starts, with their files in memory."""

from __future__ import annotations

import room

_IMPORT = "import sys; sys.path.insert(0, '/usr/local/lib/kvm-liveupdate'); from kvm_liveupdate import _command; "
PYTHON = ("/usr/bin/python3", "-IS", "-c")

room.finish(
    {
        "python3 -IS -c pass": room.timed(*PYTHON, "pass"),
        "kvm-liveupdate status, no guest": room.timed("/usr/local/sbin/kvm-liveupdate", "status"),
        "Python and the imports of a unit's restore": room.timed(*PYTHON, _IMPORT + "from kvm_liveupdate.qemu import _start"),
        "Python and the imports of a domain's restore": room.timed(*PYTHON, _IMPORT + "from kvm_liveupdate.libvirt import _start"),
        "virsh --version": room.timed("virsh", "--version"),
        "qemu-system-x86_64 --version": room.timed(room.QEMU, "--version"),
    }
)
