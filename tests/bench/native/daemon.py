# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long libvirt's daemons take until they answer, with and without what they know of QEMU, and how long a call of virsh takes then."""

from __future__ import annotations

import time

import room
import virt

seconds = {}
for name in virt.installed():
    for cache in ("empty", "valid"):
        if cache == "empty":
            virt.forget_capabilities()
        room.forget()
        begun = time.monotonic()
        daemons = virt.start(name)
        room.until(f"{name} listens", lambda name=name: virt.listens(name))
        virt.ask("list")
        seconds[f"{name} until virsh answers, {cache} cache of QEMU's capabilities"] = time.monotonic() - begun
        begun = time.monotonic()
        virt.ask("domcapabilities", "--virttype", "qemu", "--arch", "x86_64")
        seconds[f"{name} then says what QEMU can do, {cache} cache"] = time.monotonic() - begun
        if cache == "valid":
            seconds[f"a call of virsh, {name}"] = room.timed(*virt.VIRSH, "list")
        virt.power_cut(daemons)
room.finish(seconds)
