# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of an emulated machine."""

from __future__ import annotations

import re

import pytest
from kvmlab.machines.machine import CONSOLES, HEARTBEATS, SERIAL_PORTS, Machine, segment_mac


def test_each_heartbeat_has_a_port_and_an_interrupt_of_its_own() -> None:
    words = Machine(("qemu",), "disk.raw", ssh_port=40001).command()
    assert words[0] == "qemu"
    devices = [word for word in words if word.startswith("isa-serial")]
    assert [re.sub(r"isa-serial,chardev=(\w+),index=(\d).*", r"\1 \2", device) for device in devices] == ["ttyS1 1", "ttyS2 2", "ttyS3 3"]
    interrupts = [interrupt for port, interrupt in SERIAL_PORTS.values()]
    assert len({4, *interrupts}) == 4
    assert "user,id=net,hostfwd=tcp:127.0.0.1:40001-10.0.2.15:22" in words
    assert "-kernel" not in words


def test_eight_guests_have_a_heartbeat() -> None:
    words = Machine(("qemu",), "disk.raw").command()
    chardevs = [word.partition(",path=")[0].removeprefix("socket,id=") for word in words if word.startswith("socket,id=")]
    assert chardevs == list(HEARTBEATS)
    assert len(HEARTBEATS) == 8
    assert [word for word in words if word.startswith("virtconsole")] == [f"virtconsole,chardev={name}" for name in CONSOLES]


def test_hosts_have_cards_of_their_own_on_the_segment() -> None:
    words = Machine(("qemu",), "disk.raw", number=2).command()
    assert "virtio-net-pci,netdev=segment,mac=52:54:00:77:00:02,romfile=" in words
    assert segment_mac(1) != segment_mac(2)


@pytest.mark.parametrize(("given", "megabytes"), [({}, "2048"), ({"memory_mib": 4096}, "4096")])
def test_a_machine_has_the_memory_that_it_was_given(given: dict[str, int], megabytes: str) -> None:
    words = Machine(("qemu",), "disk.raw", **given).command()  # type: ignore[arg-type]
    assert words[words.index("-m") + 1] == megabytes


def test_a_machine_without_ssh_has_no_network() -> None:
    words = Machine(("qemu",), "disk.raw", kernel="vmlinuz", kernel_options="quiet").command()
    assert not [word for word in words if "net" in word]
    assert words[-4:] == ["-kernel", "vmlinuz", "-append", "quiet"]


def test_a_kernel_may_have_an_initial_ram_disk() -> None:
    words = Machine(("qemu",), "disk.raw", kernel="vmlinuz", kernel_options="quiet", initrd="initrd").command()
    assert words[-6:] == ["-kernel", "vmlinuz", "-append", "quiet", "-initrd", "initrd"]
