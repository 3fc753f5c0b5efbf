# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The answers are those of three real libvirts and their QEMUs: record_answers.py wrote them, and says which domains and changes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _differences

VERSIONS = ("9.0", "11.3", "12.8")
SOURCES = "/srv/lu/a.qcow2, /srv/lu/base.qcow2"


def recorded(version):
    """What is known about each domain after each step. A step has only what differs from the one before."""
    rows = json.loads((Path(__file__).parent / f"fixtures/answers-{version}.json").read_text(encoding="utf-8"))
    found, first, domain = {}, {}, ""
    for name, step, answers in rows:
        if name != domain:
            domain, known = name, dict(first)
            first.update(answers)
        known = {**known, **answers}
        found.setdefault(name, []).append((step, known))
    return found


DOMAINS = {version: recorded(version) for version in VERSIONS}
# Every other step is libvirt's own, or leaves the domain as it was.
PAST_LIBVIRT = {
    ("past", "snapshot of its own disk"): {
        "disk-changed": "it also has /srv/lu/hand.qcow2; it no longer has -drive file=/srv/lu/c.raw,format=raw,if=none,id=mine"
    },
    ("snapshot", "snapshot"): {"disk-changed": f"vda has /srv/lu/hand.qcow2, {SOURCES} instead of {SOURCES}"},
    ("commit", "pivot"): {"disk-changed": f"vda has /srv/lu/base.qcow2 instead of {SOURCES}"},
    ("mirror", "pivot"): {"disk-changed": f"vda has /srv/lu/copy.qcow2 instead of {SOURCES}"},
    ("medium", "change"): {"disk-changed": "sdb has /srv/lu/two.iso instead of /srv/lu/one.iso"},
    ("nameless", "device_add"): {"device-changed": "added without libvirt: virtio-rng-pci"},
    ("device", "device_add"): {"device-changed": "added without libvirt: mine (usb-kbd)"},
    ("card", "device_add"): {"device-changed": "added without libvirt: net7 (virtio-net-pci)"},
    ("disk", "device_add"): {"disk-changed": "it also has /srv/lu/c.raw", "device-changed": "added without libvirt: extra (scsi-hd)"},
    # Libvirt saw the first one go, so its name alone does not count.
    ("gone", "device_add"): {"disk-changed": "it also has /srv/lu/c.raw", "device-changed": "added without libvirt: scsi0-0-0-0 (scsi-hd)"},
}
STEPS = [(version, name, step) for version in VERSIONS for name, steps in DOMAINS[version].items() for step, _known in enumerate(steps)]


def told(known, volumes=()):
    return _differences.reasons(known, ["qemu", *known["argv"]], list(volumes), "the-uuid")


@pytest.mark.parametrize(("version", "name", "step"), STEPS)
def test_what_went_past_libvirt_is_a_reason_and_what_libvirt_did_is_none(version, name, step):
    what, known = DOMAINS[version][name][step]
    found = told(known)
    wanted = PAST_LIBVIRT.get((name, what), {})
    assert [reason["code"] for reason in found] == list(wanted)
    for reason, words in zip(found, wanted.values(), strict=True):
        assert words in reason["message"] and "virsh edit the-uuid" in reason["remedy"]


def test_each_change_past_libvirt_was_recorded_with_each_libvirt():
    steps = {(version, name, DOMAINS[version][name][step][0]) for version, name, step in STEPS}
    assert {(version, *key) for version in VERSIONS for key in PAST_LIBVIRT} <= steps and len(STEPS) > 100


@pytest.mark.parametrize("version", VERSIONS)
def test_the_save_image_has_what_the_live_xml_has(version):
    """A device that libvirt plugged in comes back, although it is not in the definition."""
    (known,) = (known for step, known in DOMAINS[version]["libvirt"] if step == "saved")
    live, saved = (ElementTree.fromstring(known[key]) for key in ("xml", "saved"))
    for path in ("disk", "interface", "rng", "controller"):
        assert len(live.findall(f"devices/{path}")) == len(saved.findall(f"devices/{path}")) > 0
    for xml in (live, saved):
        assert [target.get("dev") for target in xml.findall("devices/disk/target")] == ["vda", "vdb", "sda", "sdb"]
        assert [target.get("dev") for target in xml.findall("devices/interface/target")] == ["tap1", "tap2"]
        assert xml.find("devices/disk/source").get("file") == "/srv/lu/copy.qcow2"
        assert len(xml.findall("vcpus/vcpu[@enabled='yes']")) == 2


def small():
    """The recorded domain with a disk on a backing file, one on SCSI and a CD."""
    return copy.deepcopy(DOMAINS["11.3"]["libvirt"][0][1])


def inserted(known, target):
    return known["blocks"][["vda", "sda", "sdb"].index(target)]["inserted"]


def test_another_file_below_a_disk_is_a_change_and_one_that_was_merged_is_none():
    known = small()
    disk = inserted(known, "vda")
    for name in ("file", "image"):
        disk[name] = json.loads(json.dumps(disk[name]).replace("/srv/lu/base.qcow2", "/srv/lu/other.qcow2"))
    assert [reason["code"] for reason in told(known)] == ["disk-changed"]
    disk.update({"file": "/srv/lu/a.qcow2", "image": {"filename": "/srv/lu/a.qcow2"}})
    assert told(known) == []


@pytest.mark.parametrize("instead", ["removed", "exchanged"])
def test_a_device_that_libvirt_believes_to_be_there_is_missed(instead):
    known = small()
    known["devices"] = [device for device in known["devices"] if device["name"] not in ("balloon0", "net0")]
    if instead == "exchanged":
        known["nameless"].append({"name": "device[9]", "type": "child<virtio-net-pci>"})
    (reason,) = told(known)
    assert reason["code"] == "device-changed" and "removed: net0 (<interface>), balloon0 (<memballoon>)" in reason["message"]
    assert ("added without libvirt: virtio-net-pci" in reason["message"]) is (instead == "exchanged")


def test_a_plugged_disk_that_is_gone_is_missed_although_it_was_never_on_the_command_line():
    (known,) = (dict(known) for step, known in DOMAINS["11.3"]["libvirt"] if step == "attach disk")
    known["devices"] = [device for device in known["devices"] if device["name"] != "virtio-disk1"]
    known["blocks"] = [block for block in known["blocks"] if "virtio-disk1" not in block["qdev"]]
    (reason,) = told(known)
    assert "removed: virtio-disk1 (<disk>)" in reason["message"]


def test_a_processor_that_libvirt_did_not_plug_in_is_a_change():
    known = small()
    known["devices"].append({"name": "vcpu1", "type": "child<qemu64-x86_64-cpu>"})
    (reason,) = told(known)
    assert "vcpu1" in reason["message"]


def test_a_medium_where_libvirt_knows_none_is_a_change_and_an_open_tray_is_none():
    known = small()
    source = "<source file='/srv/lu/one.iso' index='1'/>"
    assert source in known["xml"]
    (reason,) = told({**known, "xml": known["xml"].replace(source, "")})
    assert "sdb has /srv/lu/one.iso instead of nothing" in reason["message"]
    (reason,) = told({**known, "xml": known["xml"].replace(source, "<source index='1'/>")})  # as libvirt 11 leaves it after an eject
    assert reason["code"] == "disk-changed"
    del known["blocks"][2]["inserted"]
    (reason,) = told(known)
    assert "sdb is empty instead of /srv/lu/one.iso" in reason["message"]
    assert told({**known, "xml": known["xml"].replace("<target dev='sdb'", "<target tray='open' dev='sdb'")}) == []


NBD = (
    "<disk type='network' device='disk'><source protocol='nbd' name='x' {}><host name='h'/></source><target dev='sda'/><alias name='d'/>"
    "</disk>"
)


@pytest.mark.parametrize(
    ("index", "node", "same"),
    [
        ("index='2'", "libvirt-2-format", True),
        ("index='2'", "libvirt-2-storage", True),
        ("index='2'", "#block123", False),
        ("", "#block123", True),  # of a libvirt that writes -drive
    ],
)
def test_a_network_disk_is_known_by_the_node_that_libvirt_made(index, node, same):
    block = {"qdev": "d", "inserted": {"file": "nbd://h:10809/x", "node-name": node, "image": {"filename": "nbd://h:10809/x"}}}
    seen = {"xml": f"<domain><devices>{NBD.format(index)}</devices></domain>", "blocks": [block], "nameless": []}
    seen["devices"] = [{"name": "d", "type": "child<scsi-hd>"}]
    assert [reason["code"] for reason in _differences.reasons(seen, ["qemu"], [], "u")] == ([] if same else ["disk-changed"])


@pytest.mark.parametrize(("file", "same"), [("/srv/a.raw", True), ("/srv/./a.raw", True), ("/srv/a.snap", False), ("nbd://h/a", False)])
def test_a_disk_of_a_libvirt_that_writes_drives_is_known_by_its_file(file, same):
    xml = "<disk type='file'><source file='/srv//a.raw'/><target dev='hda' bus='ide'/><alias name='ide0-0-0'/></disk>"
    block = {"device": "drive-ide0-0-0", "inserted": {"file": file, "node-name": "#block12", "image": {"filename": file}}}
    seen = {"xml": f"<domain><devices>{xml}</devices></domain>", "blocks": [block], "devices": [], "nameless": []}
    assert [reason["code"] for reason in _differences.reasons(seen, ["qemu"], [], "u")] == ([] if same else ["disk-changed"])


@pytest.mark.parametrize(
    ("file", "volumes", "same"),
    [
        ("/pool/a", ["/pool/a"], True),
        ("/pool/a", ["/pool/b"], False),
        ("/pool/a", [], True),  # libvirt does not say where the volume is, which is a reason by itself
        ("iscsi://h/a/1", ["/dev/disk/by-path/x"], True),
    ],
)
def test_a_volume_is_known_by_the_path_that_libvirt_tells(file, volumes, same):
    xml = "<disk type='volume'><source pool='p' volume='a' index='1'/><target dev='sda' bus='scsi'/><alias name='d'/></disk>"
    block = {"qdev": "d", "inserted": {"file": file, "node-name": "libvirt-1-format", "image": {"filename": file}}}
    devices = [{"name": "d", "type": "child<scsi-hd>"}]
    seen = {"xml": f"<domain><devices>{xml}</devices></domain>", "blocks": [block], "devices": devices, "nameless": []}
    found = _differences.reasons(seen, ["qemu"], [{"path": path, "what": "disk sda"} for path in volumes], "u")
    assert [reason["code"] for reason in found] == ([] if same else ["disk-changed"])


def test_a_disk_from_a_descriptor_is_known_by_its_node():
    xml = "<disk type='file'><source file='/srv/a' fdgroup='g' index='1'/><target dev='sda' bus='scsi'/><alias name='d'/></disk>"
    block = {"qdev": "d", "inserted": {"file": "/dev/fdset/3", "node-name": "libvirt-1-format", "image": {"filename": "/dev/fdset/3"}}}
    seen = {"xml": f"<domain><devices>{xml}</devices></domain>", "blocks": [block], "nameless": []}
    seen["devices"] = [{"name": "d", "type": "child<scsi-hd>"}]
    assert _differences.reasons(seen, ["qemu"], [], "u") == []


def test_devices_that_others_serve_have_the_names_of_their_xml():
    """They are reasons by themselves."""
    xml = """<domain><devices>
        <disk type='vhostuser'><source type='unix' path='/run/s'/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
        <disk type='nvme'><source type='pci' namespace='1' index='1'/><target dev='vdb' bus='virtio'/><alias name='virtio-disk1'/></disk>
        <interface type='vhostuser'><model type='virtio'/><alias name='net0'/></interface>
        <interface type='hostdev'><alias name='hostdev0'/></interface>
        <hostdev mode='subsystem' type='usb'><alias name='ua-stick'/></hostdev>
        <filesystem type='mount'><driver type='virtiofs'/><alias name='fs0'/></filesystem>
        <memory model='dimm'><alias name='dimm0'/></memory>
        </devices></domain>"""
    kinds = {
        "virtio-disk0": "vhost-user-blk-pci",
        "virtio-disk1": "virtio-blk-pci",
        "net0": "virtio-net-pci",
        "hostdev0": "vfio-pci",
        "ua-stick": "usb-host",
        "fs0": "vhost-user-fs-pci",
        "dimm0": "pc-dimm",
    }
    image = "nvme://0000:01:00.0/1"
    block = {
        "qdev": "/machine/peripheral/virtio-disk1/virtio-backend",
        "inserted": {"file": image, "node-name": "libvirt-1-format", "image": {"filename": image}},
    }
    devices = [{"name": name, "type": f"child<{kind}>"} for name, kind in kinds.items()]
    assert _differences.reasons({"xml": xml, "blocks": [block], "devices": devices, "nameless": []}, ["qemu"], [], "u") == []


def test_a_disk_that_libvirt_gives_no_name_is_nobody_elses():
    xml = "<domain><devices><disk><source file='/srv/a'/><target dev='vda'/></disk></devices></domain>"
    block = {"qdev": "", "device": "mine", "inserted": {"file": "/srv/b", "image": {"filename": "/srv/b"}}}
    seen = {"xml": xml, "blocks": [block], "devices": [], "nameless": []}
    (reason,) = _differences.reasons(seen, ["qemu"], [], "u")
    assert "it also has /srv/b" in reason["message"]


def test_writes_that_qemu_does_not_flush_are_a_reason_once():
    known = small()
    inserted(known, "sda")["cache"] = {"no-flush": True}
    assert [reason["code"] for reason in told(known)] == ["cache-unsafe"]
    assert told({**known, "xml": known["xml"].replace("cache='none'", "cache='unsafe'")}) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_device_that_was_plugged_in_again_past_libvirt_is_not_the_one_of_the_start(version):
    """Libvirt has taken it out of its XML, and would start QEMU without it. Only QEMU knows that it is another one."""
    known = DOMAINS[version]["many"][0][1]
    argv = ["qemu", *known["argv"]]
    assert sorted(_differences.unlisted(known, argv)) == ["sound0-codec0", "vmgenid0"]  # which libvirt made
    tree = ElementTree.fromstring(known["xml"])
    devices = tree.find("devices")
    tablet = next(device for device in devices.findall("input") if device.get("bus") == "usb")
    name = tablet.find("alias").get("name")
    devices.remove(tablet)
    known = {**known, "xml": ElementTree.tostring(tree, encoding="unicode")}
    assert sorted(_differences.unlisted(known, argv)) == sorted([name, "sound0-codec0", "vmgenid0"])
    assert _differences.reasons(known, argv, [], "the-uuid") == []
    (reason,) = _differences.reasons(known, argv, [], "the-uuid", [name])
    assert reason["code"] == "device-changed" and f"added without libvirt: {name} (usb-" in reason["message"]
    assert reason["remedy"].startswith(
        "remove each added device ('virsh qemu-monitor-command the-uuid --hmp device_del ID'), or shut the guest down"
    )


def test_a_removed_device_of_a_domain_is_not_to_be_put_back():
    """device_add may put it at another port."""
    known = small()
    known["devices"] = [device for device in known["devices"] if device["name"] != "balloon0"]
    (reason,) = told(known)
    assert reason["remedy"].startswith("shut the guest down and start it")
