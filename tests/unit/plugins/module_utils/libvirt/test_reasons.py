# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _reasons

SIZE = 128 << 20
PATH = "/run/kvm-liveupdate-ram/libvirt/qemu/1-app/pc.ram"

# Live XML of a domain that comes over as it was; what goes into <domain>, into its <devices>, and its <cpu>.
XML = """<domain type='kvm' id='1'>
  <name>app</name>
  <uuid>1e4a4b0e-5a6e-4c1c-9d34-6c6162000003</uuid>
  <memory unit='KiB'>131072</memory>
  <memoryBacking>
    <source type='file'/>
    <access mode='shared'/>{backing}
  </memoryBacking>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' type='pflash' format='raw'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' format='raw'>/var/lib/libvirt/qemu/nvram/app_VARS.fd</nvram>
  </os>
  {cpu}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/srv/app.qcow2' index='1'/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
    </disk>
    <interface type='bridge'>
      <source bridge='br0'/>
      <target dev='vnet0'/>
      <alias name='net0'/>
    </interface>
    <interface type='direct'>
      <source dev='eth1' mode='bridge'/>
    </interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <tpm model='tpm-crb'>
      <backend type='emulator' version='2.0'/>
    </tpm>
    <graphics type='spice' port='5900'/>
    <memballoon model='virtio'/>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>{devices}
  </devices>{domain}
</domain>
"""
CPU = """<cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>EPYC-Rome</model>
    <feature policy='require' name='invtsc'/>
  </cpu>"""


def xml(place: str = "", inside: str = "") -> str:
    return XML.format(**{"backing": "", "cpu": CPU, "devices": "", "domain": "", **({place: inside} if place else {})})


# Where it stands, what it is, the code, and a part of message and remedy.
REASONS = [
    (
        "backing",
        "<hugepages><page size='2048' unit='KiB'/></hugepages>",
        "hugepages",
        "on huge pages, which the kernel cannot preserve: <hugepages>",
        "remove <hugepages/>",
    ),
    ("backing", "<discard/>", "discard", "discarded when QEMU ends: <discard>", "remove <discard/>"),
    ("domain", "<launchSecurity type='sev'/>", "launch-security", "is encrypted: <launchSecurity type='sev'>", "shut the domain down"),
    (
        "devices",
        "<hostdev mode='subsystem' type='pci'><alias name='hostdev0'/></hostdev>",
        "hostdev",
        "device of the host (passthrough): <hostdev mode='subsystem' type='pci'> hostdev0",
        "detach the device",
    ),
    (
        "devices",
        "<interface type='hostdev'><alias name='net1'/></interface>",
        "hostdev",
        "network card of the host (passthrough): <interface type='hostdev'> net1",
        "use a network interface on a bridge",
    ),
    (
        "devices",
        "<interface type='vhostuser'><target dev='vhu0'/><alias name='net1'/></interface>",
        "vhost-user",
        "another process serves its network (vhost-user): <interface type='vhostuser'> vhu0",
        "use a network interface on a bridge",
    ),
    (
        "devices",
        "<interface type='vdpa'/>",
        "vdpa",
        "is a vDPA device of the host: <interface type='vdpa'>",
        "use a network interface on a bridge",
    ),
    (
        "devices",
        "<filesystem type='mount'><driver type='virtiofs'/><target dir='share'/><alias name='fs0'/></filesystem>",
        "filesystem",
        "shares a directory of the host (virtiofs, 9p): <filesystem type='mount'> share",
        "unmount and detach the file system",
    ),
    ("devices", "<shmem name='s1' role='peer'/>", "shmem", "(ivshmem): <shmem name='s1' role='peer'>", "detach the device"),
    *(
        (
            "devices",
            f"<memory model='{model}'><alias name='{model}0'/></memory>",
            "memory-device",
            f"cannot be preserved yet: <memory model='{model}'> {model}0",
            "detach them",
        )
        for model in ("dimm", "virtio-mem", "nvdimm")
    ),
    (
        "devices",
        "<disk type='file'><driver name='qemu' cache='unsafe'/><target dev='vdb'/></disk>",
        "cache-unsafe",
        "has cache='unsafe', so writes may be lost at the jump: <disk type='file'> vdb",
        "another cache mode",
    ),
    (
        "devices",
        "<disk type='file'><target dev='vdb'/><transient/></disk>",
        "transient-disk",
        "all writes are discarded when QEMU ends: <disk type='file'> vdb",
        "remove <transient/>",
    ),
    (
        "devices",
        "<disk type='nvme'><target dev='vdb'/></disk>",
        "disk-nvme",
        "NVMe controller of the host (passthrough): <disk type='nvme'> vdb",
        "<disk type='block'>",
    ),
    (
        "devices",
        "<disk type='vhostuser'><target dev='vdb'/></disk>",
        "disk-vhost-user",
        "another process serves its disk (vhost-user): <disk type='vhostuser'> vdb",
        "<disk type='file'>",
    ),
    (
        "devices",
        "<disk type='vhostvdpa'><target dev='vdb'/></disk>",
        "disk-vdpa",
        "its disk is a vDPA device of the host: <disk type='vhostvdpa'> vdb",
        "<disk type='file'>",
    ),
    (
        "devices",
        "<disk type='file'><source file='/srv/b.img' fdgroup='group'/><target dev='vdb'/></disk>",
        "disk-fdgroup",
        "gave libvirt the file descriptor: <source file='/srv/b.img' fdgroup='group'>",
        "without fdgroup",
    ),
    (
        "devices",
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "tpm-passthrough",
        "TPM of the host (passthrough): <backend type='passthrough'> /dev/tpm0",
        "use <backend type='emulator'/>",
    ),
]
WARNINGS = [
    ("domain", "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>", "genid", "<genid> 43dc0cf8-809b-4adb", "remove <genid/>"),
    ("cpu", "<cpu mode='host-passthrough' migratable='on'/>", "cpu-host", "<cpu mode='host-passthrough' migratable='on'>", "mode='custom'"),
    ("cpu", "<cpu mode='maximum'/>", "cpu-host", "a new kernel may change it: <cpu mode='maximum'>", "mode='custom'"),
    ("cpu", "<cpu mode='host-model'/>", "cpu-host", "a new kernel may change it: <cpu mode='host-model'>", "mode='custom'"),
    (
        "devices",
        "<vsock model='virtio'><cid auto='yes' address='3'/><alias name='vsock0'/></vsock>",
        "vsock",
        "connections are reset: <vsock model='virtio'> 3",
        "both ends connect again",
    ),
    (
        "devices",
        "<interface type='user'><alias name='net1'/></interface>",
        "user-network",
        "are lost: <interface type='user'> net1",
        "bridge",
    ),
    (
        "devices",
        "<interface type='user'><backend type='passt'/></interface>",
        "user-network",
        "are lost: <interface type='user'>",
        "bridge",
    ),
]


def test_a_plain_domain_has_neither_reasons_nor_warnings():
    assert _reasons.xml_reasons(xml()) == [] == _reasons.xml_warnings(xml())


@pytest.mark.parametrize(("place", "inside", "code", "message", "remedy"), REASONS)
def test_what_cannot_be_carried_over_is_refused(place, inside, code, message, remedy):
    (reason,) = _reasons.xml_reasons(xml(place, inside))
    assert reason["code"] == code and message in reason["message"] and remedy in reason["remedy"]
    assert _reasons.xml_warnings(xml(place, inside)) == []


@pytest.mark.parametrize(("place", "inside", "code", "message", "remedy"), WARNINGS)
def test_what_does_not_come_over_as_it_was_is_a_warning(place, inside, code, message, remedy):
    (warning,) = _reasons.xml_warnings(xml(place, inside))
    assert warning["code"] == code and message in warning["message"] and remedy in warning["remedy"]
    assert _reasons.xml_reasons(xml(place, inside)) == []


@pytest.mark.parametrize(("checks", "cases"), [(_reasons._REASONS, REASONS), (_reasons._WARNINGS, WARNINGS)], ids=["reasons", "warnings"])
def test_every_check_has_a_case(checks, cases):
    domains = [ElementTree.fromstring(xml(place, inside)) for place, inside, *_expected in cases]
    assert not [path for _code, path, _message, _remedy in checks if not any(domain.find(path) is not None for domain in domains)]


def test_all_that_is_wrong_is_named_once():
    both = "<hostdev type='pci'><alias name='hostdev0'/></hostdev><hostdev type='usb'><alias name='hostdev1'/></hostdev><shmem name='s1'/>"
    host, shared = _reasons.xml_reasons(xml("devices", both))
    assert host["message"].endswith(": <hostdev type='pci'> hostdev0, <hostdev type='usb'> hostdev1")
    assert shared["code"] == "shmem"


def test_a_domain_without_definition_is_refused():
    assert _reasons.definition_reasons("app", "u", True) == []
    (reason,) = _reasons.definition_reasons("app", "u", False)
    assert reason["code"] == "not-persistent" and "definition of app" in reason["message"]
    assert reason["remedy"].endswith("virsh dumpxml --inactive --security-info u > u.xml && virsh define u.xml")


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        ("Job type:         None        \n\n", ""),
        ("Job type:         Unbounded   \nOperation:        Save        \nTime elapsed:     120          ms\n", "Save"),
        ("Job type:         Bounded     \nTime elapsed:     120          ms\n", "Bounded"),
        ("", "unknown"),
    ],
)
def test_a_domain_that_libvirt_works_on_is_refused(shown, says):
    reasons = _reasons.job_reasons(shown, "1-2")
    assert len(reasons) == bool(says)
    for reason in reasons:
        assert reason["code"] == "libvirt-job" and reason["message"].endswith(f": {says}") and "'virsh domjobabort 1-2'" in reason["remedy"]


@pytest.mark.parametrize(
    ("backends", "found", "codes"),
    [
        ([{"id": "pc.ram", "kind": "memory-backend-file", "size": SIZE, "path": PATH}], True, []),
        ([], False, ["ram-anonymous"]),
        ([{"id": "pc.ram", "kind": "memory-backend-ram", "size": SIZE, "path": ""}], False, ["ram-anonymous"]),
        ([{"id": "pc.ram", "kind": "memory-backend-memfd", "size": SIZE, "path": ""}], False, ["ram-backend"]),
        ([{"id": "pc.ram", "kind": "memory-backend-file", "size": SIZE, "path": PATH}], False, ["ram-gone"]),
    ],
)
def test_reasons_of_the_memory(backends, found, codes):
    assert [reason["code"] for reason in _reasons.memory_reasons(backends, found)] == codes


@pytest.mark.parametrize(("label", "is_its"), [("libvirt-6c6ef1d4 (enforce)", True), ("unconfined", False), ("", False)])
def test_the_label_tells_whether_apparmor_confines(label, is_its):
    assert _reasons.is_apparmors(label) is is_its


@pytest.mark.parametrize(
    ("label", "ruled", "remedies"),
    [
        ("", False, []),
        ("unconfined", False, []),
        ("system_u:system_r:unconfined_t:s0", False, []),
        ("libvirt-6c6ef1d4-0a29-4d3c-9c57-3f0f2d4a7c1e (enforce)", True, []),
        ("libvirt-6c6ef1d4-0a29-4d3c-9c57-3f0f2d4a7c1e (enforce)", False, ["run the playbook kvm.liveupdate.setup"]),
        ("system_u:system_r:svirt_t:s0:c1,c2", True, ["SELinux is not supported yet"]),
    ],
)
def test_a_confined_domain_needs_its_rule(label, ruled, remedies):
    reasons = _reasons.confinement_reasons(label, ruled)
    assert len(reasons) == len(remedies)
    for reason, remedy in zip(reasons, remedies, strict=True):
        assert reason["code"] == "confined" and label in reason["message"] and remedy in reason["remedy"]
