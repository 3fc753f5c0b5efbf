# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The QEMU command line of an emulated hypervisor: processor, memory, devices."""

from __future__ import annotations

from dataclasses import dataclass

# QEMU emulates SVM with nested paging for EPYC-Rome. So /dev/kvm works inside, even without KVM on this machine.
ACCELERATOR = "tcg,thread=multi"
PROCESSOR = "EPYC-Rome"
# Only one. With two, QEMU delivered interrupts while they were off, and a host hung (docs/docsite/rst/lab.rst).
PROCESSORS = 1
MEMORY_MIB = 2048

# I/O port and interrupt. The four legacy ports share two interrupts. The hosts' kernel reads these from ACPI, so each port has its own.
SERIAL_PORTS = {"ttyS1": (0x2F8, 3), "ttyS2": (0x3E8, 5), "ttyS3": (0x2E8, 7)}
# More serial ports would need more interrupts. A line written to one of these arrives as a whole as soon as the write returns.
CONSOLES = ("hvc0", "hvc1", "hvc2", "hvc3", "hvc4")
# The host's devices for heartbeats. Guest 1 uses the first.
HEARTBEATS = (*SERIAL_PORTS, *CONSOLES)

# The network card that SSH uses.
CARD = "net"
# The segment, the network between the hosts. Frames are datagrams from QEMU to its supervisor, and from there to the other QEMUs.
SEGMENT_IN = "segment-in.sock"
SEGMENT_OUT = "segment-out.sock"


@dataclass(frozen=True)
class Machine:
    """One emulated machine. QEMU runs in its folder, and paths are relative to that."""

    emulator: tuple[str, ...]
    disk: str
    ssh_port: int | None = None
    number: int | None = None
    memory_mib: int = MEMORY_MIB
    kernel: str | None = None
    kernel_options: str = ""
    initrd: str | None = None
    disk_format: str = "raw"

    def command(self) -> list[str]:
        """The emulator's command line."""
        words = [*self.emulator, "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-machine", "q35", "-accel", ACCELERATOR, "-cpu", PROCESSOR]
        words += ["-smp", str(PROCESSORS), "-m", str(self.memory_mib)]
        words += ["-drive", f"if=none,id=disk,file={self.disk},format={self.disk_format},discard=unmap"]
        words += ["-device", "virtio-blk-pci,drive=disk,bootindex=1"]
        words += ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]
        words += ["-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console"]
        words += ["-qmp", "unix:qmp.sock,server=on,wait=off"]
        for index, (name, (port, interrupt)) in enumerate(SERIAL_PORTS.items(), start=1):
            words += ["-chardev", f"socket,id={name},path={name}.sock,server=on,wait=off"]
            words += ["-device", f"isa-serial,chardev={name},index={index},iobase={port:#x},irq={interrupt}"]
        words += ["-device", f"virtio-serial-pci,max_ports={len(CONSOLES)}"]
        for name in CONSOLES:
            words += ["-chardev", f"socket,id={name},path={name}.sock,server=on,wait=off", "-device", f"virtconsole,chardev={name}"]
        if self.ssh_port is not None:
            words += ["-netdev", f"user,id={CARD},hostfwd=tcp:127.0.0.1:{self.ssh_port}-10.0.2.15:22"]
            words += ["-device", f"virtio-net-pci,netdev={CARD},romfile="]
        if self.number is not None:
            words += ["-netdev", f"dgram,id=segment,local.type=unix,local.path={SEGMENT_IN},remote.type=unix,remote.path={SEGMENT_OUT}"]
            words += ["-device", f"virtio-net-pci,netdev=segment,mac={segment_mac(self.number)},romfile="]
        if self.kernel is not None:
            words += ["-kernel", self.kernel, "-append", self.kernel_options]
        if self.initrd is not None:
            words += ["-initrd", self.initrd]
        return words


def segment_mac(number: int) -> str:
    """The MAC address of a host's card on the segment."""
    return f"52:54:00:77:00:{number:02x}"
