# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as people have them move to another kernel and back: many, large, with several processors and disks, with a TPM, with UEFI.

All on one host with much memory, which is alone. Each test starts its own guests and ends them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from kvmlab import cache
from kvmlab.lab import Lab
from kvmlab.machines import collector
from kvmlab.machines.host import Host
from kvmlab.machines.machine import HEARTBEATS
from kvmlab.story.controller import Controller, Guest
from kvmlab.story.domains import SCSI, SMP, TPM, UEFI, Domain, define_domains, records, shut_down, start_domains
from kvmlab.story.night import boot_of, end_guests, other_kernel, start_guests, update, wait_alive
from kvmlab.watch.report import all_survived

pytestmark = pytest.mark.beyond

HOST_MIB = 6144
DOMAINS = (SCSI, TPM, SMP, UEFI)
FOUR = Guest("four", 1, 128, cpus=4)
# More than the 2816 MiB that a q35 machine has below 4 GiB, so a part of it is above.
BIG = Guest("big", 2, 3072, words="wide=2560")
# There are no lines for their heartbeats any more: these use the network.
FIRST = len(HEARTBEATS) + 1
MANY = tuple(Guest(f"small{number}", number, 64) for number in range(FIRST, FIRST + 20))
# A kernel that is emulated twice takes seconds to boot, and twenty share one processor. Firmware writes its flash byte by byte. The host
# gets each page of a large guest by an exit of its own.
ALIVE_S = 3600
# The same holds for an update and for the restores after it: what is tested is not how fast they are.
PATIENT: dict[str, Any] = {"hypervisor_update_timeout": 7200, "hypervisor_update_restore_timeout": 1800}

UNIT = """[Unit]
Description=Small guest {name}

[Service]
ExecStart=/usr/local/sbin/kvm-liveupdate run {name} -- /usr/bin/qemu-system-x86_64 -name {name} \\
  -machine q35,accel=kvm,hpet=off -cpu host -smp 1 -m {ram} -nodefaults -display none \\
  -netdev bridge,id=net,br=br0 -device virtio-net-pci,netdev=net,mac=52:54:00:77:02:{number:02x},romfile= \\
  -kernel /var/lib/lab-guest/vmlinuz -initrd /var/lib/lab-guest/initramfs \\
  -append "quiet panic=-1 address={address} heart={collector}"
"""


@pytest.fixture(scope="module", name="roomy")
def controller_and_host_with_much_memory() -> Iterator[tuple[Controller, Host]]:
    keep = bool(os.environ.get("KVM_LIVEUPDATE_KEEP_LAB"))
    lab = Lab(cache.root() / "lab-guests")
    if not keep:
        lab.down()
    try:
        (host,) = lab.up(["forky"], memory_mib=HOST_MIB)
        controller = Controller(lab)
        define_domains(controller, [host], DOMAINS)
        prepared = controller.play(
            "kvm.liveupdate.setup",
            hypervisor_setup_reboot_ok=True,
            hypervisor_setup_guest_units=[guest.unit for guest in (FOUR, BIG, *MANY)],
            hypervisor_setup_domains=[domain.name for domain in DOMAINS],
        )
        assert prepared.code == 0, prepared.output
        yield controller, host
    finally:
        if not keep:
            lab.down()


@pytest.fixture(name="controller")
def its_controller(roomy: tuple[Controller, Host]) -> Controller:
    return roomy[0]


@pytest.fixture(name="host")
def the_host_without_guests(roomy: tuple[Controller, Host]) -> Iterator[Host]:
    host = roomy[1]
    yield host
    end_guests(host, (FOUR, BIG, *MANY))


def moves_there_and_back(controller: Controller, host: Host, guests: Iterable[Guest]) -> None:
    """Each of these guests survives both updates of its host."""
    guests = tuple(guests)
    for _direction in ("there", "back"):
        before, target = boot_of(host), other_kernel(host)
        play, reports = update(controller, [host], target, guests=guests, **PATIENT)
        assert play.code == 0, play.output
        assert boot_of(host).kernel == target and boot_of(host).boot_id != before.boot_id
        assert all_survived(reports), json.dumps(reports, indent=1)
        told = play.report[host.name]["guests"]
        assert {guest.name: told[guest.name]["state"] for guest in guests} == dict.fromkeys((guest.name for guest in guests), "restored")
        print(json.dumps({"kernel": target, "times": play.report[host.name]["times"], "guests": reports[host.name]["guests"]}, indent=1))


def start_many(host: Host) -> None:
    """Start the guests that use the network for their heartbeats, and wait until each has read its memory."""
    script = ""
    for guest in MANY:
        text = UNIT.format(
            name=guest.name,
            ram=guest.ram,
            number=guest.port,
            address=host.guest_address(guest.port),
            collector=collector.ADDRESS,
        )
        script += f"cat > /etc/systemd/system/{guest.unit} <<'END'\n{text}END\n"
    script += f"systemctl daemon-reload && systemctl start {' '.join(guest.unit for guest in MANY)}\n"
    started = host.ssh("sh -e", stdin=script)
    assert started.returncode == 0, started.stderr
    for guest in MANY:
        wait_alive(host, guest, ALIVE_S)


def test_twenty_guests_move_and_come_back(controller: Controller, host: Host) -> None:
    start_many(host)
    moves_there_and_back(controller, host, MANY)


def test_a_guest_of_three_gib_moves_and_comes_back(controller: Controller, host: Host) -> None:
    """The checksum that it tells is also of memory above 4 GiB."""
    start_guests(controller, [host], [BIG], ALIVE_S)
    moves_there_and_back(controller, host, [BIG])


def test_guests_with_several_disks_a_tpm_and_four_processors_move_and_come_back(controller: Controller, host: Host) -> None:
    """Each processor counts, the TPM is the one it was, and nothing is lost on the disks."""
    start_guests(controller, [host], [FOUR], ALIVE_S)
    start_domains([host], (SCSI, TPM, SMP), ALIVE_S)
    moves_there_and_back(controller, host, (FOUR, SCSI, TPM, SMP))
    said = host.heartbeat(SCSI.port)[-1]
    shut_down(host, SCSI)
    for second, told in ((False, said.synced), (True, said.synced_second)):
        found = records(host, SCSI, second)
        assert found.fault is None and found.count >= (told or 0) > 0, found
    counts_after_a_clean_start(host, TPM)


def test_a_uefi_guest_moves_and_comes_back_with_its_variables(controller: Controller, host: Host) -> None:
    """It reads and writes its variable all the time, and finds it again after a clean start: in the file of the host."""
    start_domains([host], [UEFI], ALIVE_S)
    moves_there_and_back(controller, host, [UEFI])
    counts_after_a_clean_start(host, UEFI)
    look = f'"LabCount".encode("utf-16-le") in open("/var/lib/libvirt/qemu/nvram/{UEFI.name}_VARS.fd", "rb").read()'
    assert host.ssh(f"python3 -c 'print({look})'").stdout.strip() == "True"


def counts_after_a_clean_start(host: Host, domain: Domain) -> None:
    """What its TPM and its firmware keep is on the disk of the host: a clean start continues from there."""
    last = host.heartbeat(domain.port)[-1]
    shut_down(host, domain)
    start_domains([host], [domain], ALIVE_S)
    later = [tick for tick in host.heartbeat(domain.port) if tick.arrived > last.arrived and tick.boot_id != last.boot_id]
    first = next(tick for tick in later if domain.tells_all(tick))
    for before, after in ((last.tpm_count, first.tpm_count), (last.efi_count, first.efi_count)):
        assert (before is None and after is None) or (before or 0) <= (after or 0), (last, first)
