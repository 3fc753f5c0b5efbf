# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _libvirt, _libvirt_rehearsal, _paths
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError

ORIGINAL = """<domain type='kvm' id='7'>
  <name>app</name><uuid>11111111-1111-1111-1111-111111111111</uuid>
  <metadata><owner/></metadata>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <cpu><numa><cell id='0' memAccess='shared'/><cell id='1'/></numa></cpu>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-1111-1111-1111-111111111111</entry></system></sysinfo>
  <os><nvram template='/t'>/vars/app.fd</nvram></os>
  <devices>
    <disk type='block' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' queues='4'/>
      <source dev='/dev/vg/app'/><backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/><model type='virtio'/></interface>
    <interface type='user'><backend type='passt'/><portForward/><model type='virtio'/></interface>
    <serial type='file'><source path='/log'/><target port='0'/></serial>
    <console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/></console>
    <channel type='unix'><source mode='bind' path='/sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' passwd='x'><listen type='address' address='::'/></graphics>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>
    <vsock><cid auto='no' address='5'/></vsock>
  </devices>
  <seclabel type='dynamic' model='apparmor'><label>libvirt-1111</label></seclabel>
</domain>"""


@pytest.fixture(name="other", scope="module")
def stand_in_of_the_original():
    return ElementTree.fromstring(_libvirt_rehearsal.stand_in(ORIGINAL, "app-rehearsal", "22222222-2222-2222-2222-222222222222", "/f"))


def test_a_stand_in_is_another_domain(other):
    assert "id" not in other.attrib
    assert other.findtext("name") == "app-rehearsal"
    assert other.findtext("uuid") == other.findtext("sysinfo/system/entry") == "22222222-2222-2222-2222-222222222222"
    assert other.find("seclabel") is None and other.find("metadata") is None


def test_nothing_that_a_stand_in_writes_gets_into_the_memory_of_the_original(other):
    assert "shared" not in {value for element in other.iter() for value in element.attrib.values()}
    assert other.find("memoryBacking/access").attrib == {"mode": "private"}
    assert [cell.get("memAccess") for cell in other.findall("cpu/numa/cell")] == ["private", None]


def test_a_stand_in_has_empty_disks_of_its_own(other):
    disk, cdrom = other.findall("devices/disk")
    assert disk.get("type") == "file" and disk.find("source").attrib == {"file": "/f/vda"} and disk.find("backingStore") is None
    assert disk.find("driver").attrib == {"name": "qemu", "type": "raw", "cache": "writeback", "queues": "4"}
    assert disk.find("alias") is not None
    assert cdrom.find("source") is None
    assert other.findtext("os/nvram") == "/f/nvram"


def test_a_stand_in_is_on_no_network(other):
    bridged, user = other.findall("devices/interface")
    assert bridged.get("type") == "ethernet" and {child.tag for child in bridged} == {"mac", "model"}
    assert user.get("type") == "user" and {child.tag for child in user} == {"model"}


def test_a_stand_in_answers_nowhere_where_the_original_does(other):
    for tag in ("serial", "console", "channel"):
        device = other.find(f"devices/{tag}")
        assert device.attrib == {"type": "null"} and device.find("source") is None
    assert other.find("devices/channel/target") is not None
    assert other.find("devices/graphics").attrib == {"type": "vnc", "autoport": "yes"} and not list(other.find("devices/graphics"))
    assert "persistent_state" not in other.find("devices/tpm/backend").attrib
    assert other.find("devices/vsock/cid").attrib == {"auto": "yes"}


@pytest.mark.parametrize(
    ("nvram", "path"),
    [("", ""), ("<nvram template='/t'>/vars/app.fd</nvram>", "/vars/app.fd"), ("<nvram type='file'><source file='/v'/></nvram>", "/v")],
)
def test_the_variables_of_the_firmware_are_found(nvram, path):
    assert _libvirt_rehearsal.nvram(f"<domain><os>{nvram}</os></domain>") == path


@pytest.mark.parametrize(
    ("label", "directory", "refused"),
    [("libvirt-1 (enforce)", "/proc/self", True), ("libvirt-1 (enforce)", "/", False), ("", "/proc/self", False)],
)
def test_memory_that_has_lost_its_name_is_not_for_a_confined_stand_in(monkeypatch, label, directory, refused):
    """A file of /proc stands for one on the RAM directory's file system."""
    with open("/proc/self/status", encoding="ascii") as file:
        record = {"name": "app", "pid": os.getpid(), "ram": [{"fd": file.fileno()}], "backends": [{"path": f"{directory}/1-app/pc.ram"}]}
        monkeypatch.setattr(_libvirt, "confinement", lambda _pid: label)
        if refused:
            with pytest.raises(LiveUpdateError, match="guest app cannot be rehearsed: its RAM has no name"):
                _libvirt_rehearsal._refuse_nameless(record)
        else:
            _libvirt_rehearsal._refuse_nameless(record)


def test_only_its_own_stand_in_is_destroyed(tmp_path, monkeypatch):
    """The operator may have a domain named like a rehearsal of another."""
    destroyed = []
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_libvirt, "resume", lambda record, running: None)
    monkeypatch.setattr(_libvirt, "virsh", lambda verb, name: destroyed.append((verb, name)))
    _libvirt_rehearsal.end({"name": "app", "uuid": "11111111-1111-1111-1111-111111111111"}, running=True)
    assert destroyed == [("destroy", "kvm-liveupdate-rehearsal-11111111-1111-1111-1111-111111111111")]
