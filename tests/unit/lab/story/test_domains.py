# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definitions of the lab's libvirt domains."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import jinja2
import pytest
from kvmlab.machines.host import Host
from kvmlab.story.domains import DISK, DOMAINS, PLAIN, TPM, Domain, variables

TEMPLATE = Path(__file__).parents[3] / "lab" / "domain.xml.j2"
UUID = "61f624b4-1e38-5c1c-9ef3-f73d4589b6bc"


def defined(domain: Domain) -> ElementTree.Element:
    """The definition of a domain on the first host, as the playbook writes it."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    (item,) = variables([domain])["lab_domains"]
    address = domain.address(Host(Path("hv1")))
    image = f"/var/lib/libvirt/images/{domain.name}.qcow2"
    return ElementTree.fromstring(environment.from_string(TEMPLATE.read_text()).render(item=item, uuid=UUID, address=address, image=image))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_a_domain_has_what_it_is_to_have(domain: Domain) -> None:
    xml = defined(domain)
    assert xml.findtext("name") == domain.name
    assert xml.findtext("memory") == str(domain.ram)
    heartbeat = "devices/channel" if domain.virtio else "devices/serial"
    assert xml.find(f"{heartbeat}/source").attrib["path"] == domain.tty  # type: ignore[union-attr]
    assert ("port=heartbeat" in (xml.findtext("os/cmdline") or "").split()) == domain.virtio
    assert (xml.find("devices/disk") is not None) == domain.disk
    assert (xml.find("devices/interface") is not None) == domain.network
    assert (xml.find("devices/tpm") is not None) == domain.tpm
    assert (xml.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None) == domain.agent
    assert ("agent=org.qemu.guest_agent.0" in (xml.findtext("os/cmdline") or "").split()) == domain.agent


def test_a_domain_is_not_prepared_for_live_updates() -> None:
    assert defined(PLAIN).find("memoryBacking") is None


def test_the_guest_is_told_its_disk_and_its_address() -> None:
    words = (defined(DISK).findtext("os/cmdline") or "").split()
    assert {"disk=/dev/vda", "address=10.77.0.14"} <= set(words)
    assert "52:54:00:77:01:14" in ElementTree.tostring(defined(DISK)).decode()


def test_no_two_domains_share_a_heartbeat() -> None:
    assert len({domain.tty for domain in DOMAINS}) == len(DOMAINS)
    assert DISK.tty == "/dev/hvc0"
    assert TPM.tty == "/dev/hvc1"
