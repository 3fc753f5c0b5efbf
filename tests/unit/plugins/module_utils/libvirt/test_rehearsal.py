# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _guests, _rehearsal, _save, _stand_in, _virsh

ORIGINAL = """<domain type='kvm' id='7'>
  <name>app</name><uuid>11111111-1111-1111-1111-111111111111</uuid>
  <metadata><owner/></metadata>
  <memoryBacking><source type='file'/><access mode='shared'/><allocation mode='immediate'/><locked/></memoryBacking>
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
    return ElementTree.fromstring(_stand_in.stand_in(ORIGINAL, "app-rehearsal", "22222222-2222-2222-2222-222222222222", "/f"))


def test_a_stand_in_is_another_domain(other):
    assert "id" not in other.attrib
    assert other.findtext("name") == "app-rehearsal"
    assert other.findtext("uuid") == other.findtext("sysinfo/system/entry") == "22222222-2222-2222-2222-222222222222"
    assert other.find("seclabel") is None and other.find("metadata") is None


def test_nothing_that_a_stand_in_writes_gets_into_the_memory_of_the_original(other):
    assert "shared" not in {value for element in other.iter() for value in element.attrib.values()}
    assert other.find("memoryBacking/access").attrib == {"mode": "private"}
    assert [cell.get("memAccess") for cell in other.findall("cpu/numa/cell")] == ["private", None]


def test_a_stand_in_does_not_allocate_the_memory_a_second_time(other):
    assert [element.tag for element in other.find("memoryBacking")] == ["source", "access"]


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


def stand_in(inside: str, place: str = "devices"):
    xml = f"<domain><name>app</name><{place}>{inside}</{place}></domain>"
    return ElementTree.fromstring(_stand_in.stand_in(xml, "other", "u", "/f")).find(place)


@pytest.mark.parametrize(
    ("firmware", "path", "becomes"),
    [
        ("<nvram template='/t'>/vars/app.fd</nvram>", [("/vars/app.fd", "nvram")], "<nvram>/f/nvram</nvram>"),
        ("<nvram format='qcow2'>/vars/app</nvram>", [("/vars/app", "nvram")], '<nvram format="qcow2">/f/nvram</nvram>'),
        ("<nvram type='file'><source file='/v'/></nvram>", [("/v", "nvram")], "<nvram>/f/nvram</nvram>"),
        ("<nvram type='block'><source dev='/dev/v'/></nvram>", [("/dev/v", "nvram")], "<nvram>/f/nvram</nvram>"),
        ("<varstore path='/v' template='/t'/>", [("/v", "varstore")], '<varstore path="/f/varstore" template="/t" />'),
        ("<loader readonly='yes' type='pflash'>/code</loader>", [], '<loader readonly="yes" type="pflash">/code</loader>'),
        ("<loader type='pflash'>/both</loader>", [("/both", "loader")], '<loader type="pflash">/f/loader</loader>'),
        ("<loader>/rom</loader>", [], "<loader>/rom</loader>"),
    ],
)
def test_firmware_writes_to_copies(firmware, path, becomes):
    """A copy of a file in the format qcow2 has that format too."""
    assert _stand_in.firmware(f"<domain><os>{firmware}</os></domain>") == path
    assert ElementTree.tostring(stand_in(firmware, "os")[0], encoding="unicode") == becomes


@pytest.mark.parametrize(
    ("device", "becomes"),
    [
        ("<disk type='block' device='lun' rawio='yes'><source dev='/d'><reservations/></source><target dev='sda' bus='scsi'/></disk>",
         '<disk type="file" device="disk"><source file="/f/sda" /><target dev="sda" bus="scsi" /></disk>'),
        ("<disk type='file'><driver type='qcow2' copy_on_read='on'/><source file='/a'/><transient/><target dev='vda'/></disk>",
         '<disk type="file"><source file="/f/vda" /><driver type="raw" cache="default" /><target dev="vda" /></disk>'),
        ("<interface type='network'><source network='n'/><port isolated='yes'/><coalesce/><mtu size='9'/></interface>",
         '<interface type="ethernet"><mtu size="9" /></interface>'),
        ("<redirdev bus='usb' type='tcp'><source host='h'/><protocol type='raw'/></redirdev>", '<redirdev bus="usb" type="null" />'),
        ("<smartcard mode='passthrough' type='unix'><source path='/s'/></smartcard>", '<smartcard mode="passthrough" type="null" />'),
        ("<smartcard mode='host'/>", '<smartcard mode="host" />'),
        ("<rng><backend model='egd' type='unix'><source path='/s'/></backend></rng>",
         '<rng><backend model="random">/dev/urandom</backend></rng>'),
        ("<audio id='2' type='file' path='/x.wav'><input/></audio>", '<audio id="2" type="none" />'),
        ("<graphics type='spice' port='5900'><listen type='socket' socket='/s'/></graphics>", '<graphics type="spice" autoport="yes" />'),
    ],
)  # fmt: skip
def test_a_device_stays_but_not_what_it_is_connected_to(device, becomes):
    """A device that is left out would be missed by the state that is loaded."""
    (found,) = stand_in(device)
    assert ElementTree.tostring(found, encoding="unicode") == becomes


@pytest.mark.parametrize(
    "device",
    ["<graphics type='dbus'/>", "<graphics type='sdl' display=':0'/>", "<input type='evdev'><source dev='/dev/input/event1'/></input>"],
)
def test_what_is_no_device_of_the_guest_is_left_out(device):
    assert not list(stand_in(device))


ARGUMENT = (
    "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline><qemu:arg value='{}'/></qemu:commandline></domain>"
)


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<domain><devices><tpm><backend type='external'/></tpm></devices></domain>", "type='external'"),
        ("<domain><devices><disk device='lun'><target dev='vda' bus='virtio'/></disk></devices></domain>", "device='lun'"),
        ("<domain><os><nvram type='network'><source protocol='nbd'/></nvram></os></domain>", "network source"),
        (ARGUMENT.format("-chardev"), "<qemu:commandline> has -chardev"),
        (ARGUMENT.format("vhost-vsock-pci,guest-cid=42"), "guest-cid=42"),
        (ARGUMENT.format("mem-lock=on"), "mem-lock=on"),
        (ARGUMENT.format("-realtime"), "-realtime"),
    ],
)
def test_what_cannot_be_there_twice_is_refused_before_the_domain_is_paused(libvirt, tmp_path, monkeypatch, xml, said):
    record = libvirt.add("app", 1, dumpxml=xml)
    monkeypatch.setattr(_rehearsal, "_FOLDERS", str(tmp_path / "nowhere"))
    with pytest.raises(LiveUpdateError, match=r"guest app cannot be rehearsed: .*leave it out") as caught:
        _rehearsal.rehearse(record)
    assert said in str(caught.value)
    assert libvirt.asked() == ["dumpxml app"]


def test_what_qemu_is_told_beside_libvirt_is_there_twice():
    xml = ARGUMENT.format("-no-hpet")
    assert "-no-hpet" in _stand_in.stand_in(xml, "other", "u", "/f")


@pytest.mark.parametrize(
    ("said", "loads"),
    [
        ("QEMU unexpectedly closed the monitor: qemu-system-x86_64: error while loading state for instance 0x0 of device 'ram'", False),
        ("qemu-system-x86_64: load of migration failed: Invalid argument", False),
        ("Unknown savevm section or instance", False),
        ("Size mismatch: 0000:00:02.0/virtio-net-pci.rom: 0x40000 != 0x80000", False),
        ("unsupported configuration: disk device='lun' is only valid for block type disk source", True),
        ("qemu-system-x86_64: -device vhost-vsock-pci,guest-cid=42: Address already in use", True),
        ("virsh restore: no answer within 150 s", True),
    ],
)
def test_a_stand_in_that_does_not_start_says_nothing_about_the_guest(said, loads):
    told = _stand_in.verdict(said)
    assert ("cannot be rehearsed" in told) is loads and ("does not load, so it would not load after the jump" in told) is not loads
    assert said in told


@pytest.mark.parametrize(
    ("label", "directory", "refused"),
    [("libvirt-1 (enforce)", "/proc/self", True), ("libvirt-1 (enforce)", "/", False), ("", "/proc/self", False)],
)
def test_memory_that_has_lost_its_name_is_not_for_a_confined_stand_in(monkeypatch, label, directory, refused):
    """A file of /proc stands for one on the RAM directory's file system."""
    with open("/proc/self/status", encoding="ascii") as file:
        record = {"name": "app", "pid": os.getpid(), "ram": [{"fd": file.fileno()}], "backends": [{"path": f"{directory}/1-app/pc.ram"}]}
        monkeypatch.setattr(_guests, "confinement", lambda _pid: label)
        monkeypatch.setattr(_save, "ram_places", lambda _record: {"directory": directory})
        if refused:
            with pytest.raises(LiveUpdateError, match="guest app cannot be rehearsed: its RAM file has no name"):
                _rehearsal._refuse_nameless(record)
        else:
            _rehearsal._refuse_nameless(record)


def test_only_its_own_stand_in_is_destroyed(tmp_path, monkeypatch):
    """The operator may have a domain named like a rehearsal of another."""
    destroyed = []
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_save, "resume", lambda record, running: None)
    monkeypatch.setattr(_virsh, "virsh", lambda verb, name: destroyed.append((verb, name)))
    _rehearsal.end({"name": "app", "uuid": "11111111-1111-1111-1111-111111111111"}, running=True)
    assert destroyed == [("destroy", "kvm-liveupdate-rehearsal-11111111-1111-1111-1111-111111111111")]


OWN = {"uid": os.getuid(), "gid": os.getgid()}


@pytest.mark.parametrize("ended", [True, False])
def test_the_stand_in_of_a_domain_that_has_ended_goes_too(tmp_path, monkeypatch, ended):
    """But not that of a domain that is still paused: the end is tried again."""
    record = {"name": "app", "uuid": "u"}
    other = _rehearsal._name_of_stand_in(record)
    calls = []

    def resume(_record, _running):
        raise LiveUpdateError("no", **({"ended": True} if ended else {}))

    monkeypatch.setattr(_rehearsal, "_FOLDERS", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_save, "resume", resume)
    monkeypatch.setattr(_virsh, "virsh", lambda *words: calls.append(words))
    (tmp_path / other).mkdir()
    _files.write_json(_files.run_path(other, "stand-in"), {})
    if ended:
        _rehearsal.end(record, True)
    else:
        with pytest.raises(LiveUpdateError, match="no"):
            _rehearsal.end(record, True)
    assert calls == [("destroy", other)] * ended and len(list(tmp_path.iterdir())) == (0 if ended else 2)


def test_the_folder_of_a_rehearsal_is_one_that_only_root_can_change(tmp_path):
    """QEMU's user would put links there, and root write through them."""
    folder = tmp_path / "above" / "rehearsal"
    folder.parent.mkdir()
    folder.mkdir()
    (folder / "vda").symlink_to("/nowhere")
    _rehearsal._make_folder(str(folder))
    assert not list(folder.iterdir()) and folder.stat().st_mode & 0o777 == 0o711
    folder.parent.chmod(0o770)
    with pytest.raises(LiveUpdateError, match=r"not only root may write to it \(user \d+, mode 770\)"):
        _rehearsal._make_folder(str(folder))
    folder.parent.chmod(0o711)
    (tmp_path / "link").symlink_to(folder.parent)
    with pytest.raises(LiveUpdateError, match="is a symbolic link"):
        _rehearsal._make_folder(str(tmp_path / "link" / "rehearsal"))


def test_rehearsals_lie_beside_the_folder_of_qemus_user():
    assert _rehearsal._FOLDERS == "/var/lib/libvirt"


def test_disks_of_a_stand_in_are_qemus_users_own(libvirt, tmp_path, monkeypatch):
    owners = []
    monkeypatch.setattr(os, "fchown", lambda handle, uid, gid: owners.append((os.readlink(f"/proc/self/fd/{handle}"), uid, gid)))
    record = {**libvirt.add("app", 1, domblkinfo="Capacity:       4096\n"), "uid": 5, "gid": 6}
    (tmp_path / "vda").symlink_to(tmp_path / "root")
    _rehearsal._make_disks(record, ["vda"], str(tmp_path))
    assert (tmp_path / "vda").stat().st_size == 4096 and not (tmp_path / "root").exists()
    assert owners == [(str(tmp_path / "vda"), 5, 6)]


def test_firmware_variables_are_copied_through_qemus_own_descriptor(tmp_path):
    """QEMU's user owns their folder, and may put a link to a file of root's there. It may also have that open, but not for reading."""
    path, copy = tmp_path / "app.fd", tmp_path / "copy"
    path.write_bytes(b"variables")
    record = {"name": "app", "pid": os.getpid(), **OWN}
    _rehearsal._copy_opened(record, str(tmp_path / "nothing"), str(copy))
    _rehearsal._copy_opened(record, str(path), str(copy))
    assert not copy.exists()  # it is not open
    blind = os.open(path, os.O_PATH)
    _rehearsal._copy_opened(record, str(path), str(copy))
    assert not copy.exists() or not copy.read_bytes()
    with path.open("r+b") as file:
        file.seek(4)
        _rehearsal._copy_opened(record, str(path), str(copy))
        assert file.tell() == 4
    os.close(blind)
    assert copy.read_bytes() == b"variables"
