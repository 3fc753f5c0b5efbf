# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The answers are a real QEMU's: record_answers.py wrote them, and says which guests and changes they are of."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _changes

GUESTS = json.loads((Path(__file__).parent / "fixtures/answers.json").read_text(encoding="utf-8"))
EXPECTED = """
lab 0 -
lab 1 -
docs 0 -
docs 1 disk-changed: has /snap.qcow2 instead of /a.qcow2
docs 2 disk-changed: /snap.qcow2 | device-changed: added since its start: virtio-rng-pci
blockdevs 0 -
blockdevs 1 disk-changed: has nothing instead of /over.qcow2 | device-changed: removed: disk (scsi-hd)
blockdevs 2 device-changed: command line; removed and plugged in again: disk (scsi-hd)
blockdevs 3 disk-changed: has /snap.qcow2 instead of /over.qcow2 | device-changed: removed and plugged in again: disk (scsi-hd)
old 0 -
old 1 disk-changed: has /e.iso instead of /d.iso
old 2 -
old 3 disk-changed: has nothing instead of /d.iso
old 4 -
old 5 device-changed: added since its start: k (usb-kbd)
odd 0 cache-unsafe: QEMU has /b.qcow2 open with cache.no-flush
"""


@pytest.mark.parametrize("line", EXPECTED.strip().splitlines())
def test_a_change_since_the_start_is_a_reason_and_a_guest_without_one_is_as_it_was(line):
    name, step, reasons = line.split(" ", 2)
    argv, recorded = GUESTS[name]
    wanted = [reason.split(": ", 1) for reason in reasons.split(" | ")] if reasons != "-" else []
    found = _changes.differences(argv, recorded[int(step)][1])
    assert [reason["code"] for reason in found] == [code for code, _words in wanted]
    assert all(words in reason["message"] and reason["remedy"] for reason, (_code, words) in zip(found, wanted, strict=True))


def test_what_qemu_has_is_asked_of_it():
    answers = {
        "query-block": [{"device": "virtio0"}],
        "/machine/peripheral": [
            {"name": "type", "type": "string"},
            {"name": "s", "type": "child<virtio-scsi-pci>"},
            {"name": "t", "type": "child<usb-kbd>"},
        ],
        "/machine/peripheral-anon": [{"name": "type", "type": "string"}, {"name": "device[0]", "type": "child<scsi-cd>"}],
        "info network": "",
        "query-migrate-capabilities": [{"capability": "x-ignore-shared", "state": True}],
        "query-cpus-fast": [{"cpu-index": 0}, {"cpu-index": 1}],
    }

    plugged = {"/machine/peripheral/s": False, "/machine/peripheral/t": True, "/machine/peripheral-anon/device[0]": True}

    class Monitor:
        def execute(self, command, **arguments):
            if command == "qom-get":
                assert arguments == {"path": arguments["path"], "property": "hotplugged"}
                return plugged[arguments["path"]]
            return answers[next(iter(arguments.values()), command)]

    assert _changes.ask(Monitor()) == {
        "disks": [{"device": "virtio0"}],
        "devices": {"s": "virtio-scsi-pci", "t": "usb-kbd"},
        "nameless": ["scsi-cd"],
        "hotplugged": ["t (usb-kbd)", "scsi-cd"],
        "networks": "",
        "cpus": 2,
        "ignores_shared": True,
    }


def started(name):
    argv, recorded = GUESTS[name]
    return list(argv), copy.deepcopy(recorded[0][1])


def test_a_processor_that_was_taken_away_is_a_change():
    argv, now = started("old")
    assert now["cpus"] == 2
    (reason,) = _changes.differences(argv, {**now, "cpus": 1})
    assert reason["code"] == "device-changed" and "1 processors instead of 2" in reason["message"]


def test_a_card_on_another_tap_than_that_of_the_command_line_is_a_change():
    """The text is what net/net.c prints for a tap; the recorded guests have none."""
    argv, now = started("docs")
    argv[argv.index("user,id=n")] = "tap,id=n,ifname=web1,script=no"
    shown = now["networks"].replace("type=user,net=10.0.2.0,restrict=off", "type=tap,ifname={},script=no,downscript=no")
    assert "ifname={}" in shown
    assert _changes.differences(argv, {**now, "networks": shown.format("web1")}) == []
    (reason,) = _changes.differences(argv, {**now, "networks": shown.format("web11")})
    assert reason["code"] == "network-changed" and "ifname=web11" in reason["message"]
    numbered = [word.replace("web1", "vm%d") for word in argv]  # the kernel gives the number
    assert _changes.differences(numbered, {**now, "networks": shown.format("vm3")}) == []
    (reason,) = _changes.differences(argv, {**now, "networks": ""})
    assert reason["code"] == "network-changed" and "n is gone" in reason["message"]


def test_a_drive_without_a_medium_is_as_it_was():
    argv, now = started("lab")
    assert _changes.differences([*argv, "-cdrom", "", "-drive", "if=floppy"], now) == []


def test_two_devices_without_a_name_that_changed_places_are_told_by_their_types():
    argv, now = started("lab")
    now["nameless"][0] = "virtio-rng-pci"
    (reason,) = _changes.differences(argv, now)
    assert "added since its start: virtio-rng-pci" in reason["message"] and "removed: virtio-serial-pci" in reason["message"]


@pytest.mark.parametrize(
    ("words", "opened", "same"),
    [
        ("file=nbd:unix:/run/n:exportname=x", "nbd+unix:///x?socket=/run/n", True),
        ("file=nbd://10.0.0.1:10809/x", "nbd://10.0.0.1:10809/x", True),
        ("file=nbd://10.0.0.1:10809/x", "nbd://10.0.0.2:10809/x", False),
        ("file=nbd://10.0.0.1:10809/x", "/srv/x", False),
        (
            "file=rbd:pool/image:id=admin",
            'json:{"driver":"raw","file":{"pool":"pool","image":"image","driver":"rbd","user":"admin"}}',
            True,
        ),
        ("file=rbd:pool/image", 'json:{"driver":"raw","file":{"pool":"pool","image":"other","driver":"rbd"}}', False),
        (
            "file=rbd:pool/img:id=admin:conf=/etc/ceph/ceph.conf",
            'json:{"driver":"raw","file":{"pool":"pool","image":"img","conf":"/etc/ceph/ceph.conf","driver":"rbd","user":"admin"}}',
            True,
        ),
        (
            "file=rbd:pool/img:conf=/etc/ceph/ceph.conf",
            'json:{"driver":"raw","file":{"pool":"pool","image":"img","conf":"/etc/ceph/b.conf","driver":"rbd"}}',
            False,
        ),
        ("file=fat:rw:/srv/d", 'json:{"driver":"raw","file":{"dir":"/srv/d","driver":"vvfat","rw":true}}', True),
        ("file=fat:rw:/srv/d", "fat:rw:/srv/d", True),
        ("file=fat:rw:/srv/d", "fat:rw:/srv/e", False),
        ("file=file:/srv/x", "/srv/x", True),
        ("file=/srv/x", "/srv/x.snap", False),
    ],
)
def test_an_image_that_qemu_calls_by_another_name_is_the_same_image(words, opened, same):
    _argv, now = started("docs")
    now = {**now, "nameless": ["virtio-blk-pci"], "disks": [{"inserted": {"file": opened, "ro": False}}]}
    found = _changes.differences(["qemu", "-nodefaults", "-drive", f"{words},if=virtio"], now)
    assert [reason["code"] for reason in found] == ([] if same else ["disk-changed"])


def test_device_del_undoes_only_what_was_added():
    """A device that is plugged in again may be at another port, and the state of the guest would not load."""
    argv, now = started("old")
    added = {**now, "devices": {**now["devices"], "k": "usb-kbd"}, "hotplugged": ["k (usb-kbd)"]}
    (reason,) = _changes.differences(argv, added)
    assert reason["message"].endswith("added since its start: k (usb-kbd)") and "device_del" in reason["remedy"]
    again = {**now, "hotplugged": ["t (usb-tablet)"]}
    gone = {**now, "devices": {name: kind for name, kind in now["devices"].items() if name != "t"}}
    for changed in (again, gone, {**now, "nameless": [*now["nameless"]], "hotplugged": ["lsi53c895a"]}, {**now, "cpus": 1}):
        (reason,) = _changes.differences(argv, changed)
        assert reason["code"] == "device-changed" and reason["remedy"].startswith("restart the guest (to keep the change, ")
