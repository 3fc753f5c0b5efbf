# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an emulated hypervisor is made of: processor, memory and devices."""

from __future__ import annotations

from dataclasses import dataclass

# EPYC-Rome has the SVM that QEMU emulates with nested paging: /dev/kvm inside works, without KVM on this machine.
ACCELERATOR = "tcg,thread=multi"
PROCESSOR = "EPYC-Rome"
# One: with two, interrupts were seen to be delivered where they are off, and a host hung (docs/lab.md).
PROCESSORS = 1
MEMORY_MIB = 2048

# The four legacy ports share two interrupts; the hosts' kernel learns these from ACPI, so each port can have its own.
HEARTBEATS = {"ttyS1": (0x2F8, 3), "ttyS2": (0x3E8, 5), "ttyS3": (0x2E8, 7)}


@dataclass(frozen=True)
class Machine:
    """One emulated machine. Files are named relative to its folder, in which QEMU runs."""

    emulator: tuple[str, ...]
    disk: str
    ssh_port: int | None = None
    kernel: str | None = None
    kernel_options: str = ""

    def command(self) -> list[str]:
        """The emulator's command line."""
        words = [*self.emulator, "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-machine", "q35", "-accel", ACCELERATOR, "-cpu", PROCESSOR]
        words += ["-smp", str(PROCESSORS), "-m", str(MEMORY_MIB)]
        words += ["-drive", f"if=none,id=disk,file={self.disk},format=raw,discard=unmap"]
        words += ["-device", "virtio-blk-pci,drive=disk,bootindex=1"]
        words += ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]
        words += ["-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console"]
        words += ["-qmp", "unix:qmp.sock,server=on,wait=off"]
        for index, (name, (port, interrupt)) in enumerate(HEARTBEATS.items(), start=1):
            words += ["-chardev", f"socket,id={name},path={name}.sock,server=on,wait=off"]
            words += ["-device", f"isa-serial,chardev={name},index={index},iobase={port:#x},irq={interrupt}"]
        if self.ssh_port is not None:
            words += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.ssh_port}-10.0.2.15:22"]
            words += ["-device", "virtio-net-pci,netdev=net,romfile="]
        if self.kernel is not None:
            words += ["-kernel", self.kernel, "-append", self.kernel_options]
        return words
