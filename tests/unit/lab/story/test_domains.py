# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definitions of the lab's libvirt domains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import pytest
from kvmlab.machines.host import Host
from kvmlab.story.domains import DISK, DOMAINS, PLAIN, SCSI, SMP, TPM, UEFI, Domain, variables
from kvmlab.watch.heartbeat import Tick

TEMPLATE = Path(__file__).parents[3] / "lab" / "domain.xml.j2"
UUID = "61f624b4-1e38-5c1c-9ef3-f73d4589b6bc"
ALL = (*DOMAINS, SCSI, SMP, UEFI)


def defined(domain: Domain) -> ElementTree.Element:
    """The definition of a domain on the first host, as the playbook writes it."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    (item,) = variables([domain])["lab_domains"]
    address = domain.address(Host(Path("hv1")))
    image, second = "/images/first.qcow2", "/images/second.raw"
    template = environment.from_string(TEMPLATE.read_text())
    return ElementTree.fromstring(template.render(item=item, uuid=UUID, address=address, image=image, second_image=second))


def words(domain: Domain) -> list[str]:
    """What a domain's kernel is told."""
    return (defined(domain).findtext("os/cmdline") or "").split()


@pytest.mark.parametrize("domain", ALL, ids=lambda domain: domain.name)
def test_a_domain_has_what_it_is_to_have(domain: Domain) -> None:
    xml = defined(domain)
    assert xml.findtext("name") == domain.name
    assert xml.findtext("memory") == str(domain.ram)
    heartbeat = "devices/channel" if domain.virtio else "devices/serial"
    assert xml.find(f"{heartbeat}/source").attrib["path"] == domain.tty  # type: ignore[union-attr]
    assert ("port=heartbeat" in words(domain)) == domain.virtio
    assert (xml.find("devices/disk") is not None) == domain.disk
    assert (xml.find("devices/interface") is not None) == domain.network
    assert (xml.find("devices/tpm") is not None) == domain.tpm
    assert (xml.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None) == domain.agent
    assert ("agent=org.qemu.guest_agent.0" in words(domain)) == domain.agent
    assert ("tpm=yes" in words(domain)) == domain.tpm
    assert ("nvram=yes" in words(domain)) == (xml.find("os/nvram") is not None) == domain.uefi
    assert xml.findtext("vcpu") == str(domain.cpus)
    assert len(xml.findall("devices/disk")) == domain.disk + domain.scsi


def test_a_domain_is_not_prepared_for_live_updates() -> None:
    assert defined(PLAIN).find("memoryBacking") is None


def test_the_guest_is_told_its_disk_and_its_address() -> None:
    assert {"disk=/dev/vda", "address=10.77.0.14"} <= set(words(DISK))
    assert "52:54:00:77:01:14" in ElementTree.tostring(defined(DISK)).decode()


def test_a_guest_with_two_disks_has_both_on_its_scsi_controller() -> None:
    xml = defined(SCSI)
    targets = {target.attrib["dev"]: target.attrib["bus"] for target in xml.iterfind("devices/disk/target")}
    assert targets == {"sda": "scsi", "sdb": "scsi"}
    assert xml.find("devices/controller[@type='scsi']").attrib["model"] == "virtio-scsi"  # type: ignore[union-attr]
    assert {"disk=0:0:0:0", "disk2=0:0:0:1"} <= set(words(SCSI))
    assert "/images/second.raw" in ElementTree.tostring(xml).decode()


TICK = Tick(1.0, 2.0, 17, 3.0, UUID, "c95aa2bb5e83908c", 2)


@pytest.mark.parametrize(
    ("domain", "part"),
    [
        (SMP, {"processors": (3, 2, 3, 3)}),
        (TPM, {"pcr": "62e8d94e58431a63", "tpm_count": 1}),
        (UEFI, {"efi_count": 1}),
        (SCSI, {"synced": 4, "synced_second": 3}),
    ],
    ids=lambda value: value.name if isinstance(value, Domain) else "",
)
def test_a_guest_tells_of_all_its_parts(domain: Domain, part: dict[str, Any]) -> None:
    assert PLAIN.tells_all(TICK)
    assert not domain.tells_all(TICK)
    assert domain.tells_all(replace(TICK, **part))


@pytest.mark.parametrize("processors", [(3, 2, 3), (3, 0, 3, 3)])
def test_a_guest_with_a_processor_that_never_counted_is_not_ready(processors: tuple[int, ...]) -> None:
    assert not SMP.tells_all(replace(TICK, processors=processors))


def test_no_two_domains_share_a_heartbeat() -> None:
    assert len({domain.tty for domain in ALL}) == len(ALL)
    assert DISK.tty == "/dev/hvc0"
    assert TPM.tty == "/dev/hvc1"
