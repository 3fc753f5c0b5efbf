# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a trial calls worse, and what it only notes."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _compare

CARD, VF, SECOND = "0000:01:00.0", "0000:01:02.0", "0000:02:00.0"


def pci(**about):
    usual = {"id": "8086:1572", "class": "0x020000", "driver": "i40e", "numa_node": 0, "iommu": True, "speed": 8.0, "width": 8}
    return {**usual, "vfs": None, "vfs_max": None, "is_vf": False, **about}


def interface(name, **about):
    usual = {"name": name, "driver": "i40e", "mac": "", "carrier": True, "state": "up", "speed": 10000, "duplex": "full"}
    return {**usual, "rx_queues": 8, "tx_queues": 8, **about}


def disk(*names, **about):
    return {"names": list(names), "model": "SAN disk", "size": 1 << 30, "read_only": False, "queues": 2, **about}


@pytest.fixture(name="before")
def a_host():
    return {
        "processors": 8,
        "pci": {CARD: pci(vfs=1, vfs_max=64), VF: pci(is_vf=True, driver="iavf"), SECOND: pci(driver="nvme", vfs=0)},
        "interfaces": {
            CARD: interface("ens1"),
            VF: interface("ens1v0", driver="iavf"),
            f"{CARD} port 1": interface("ens1d1", carrier=None),
        },
        "disks": {"naa.5000": disk("sda", "sdb"), "eui.1": disk("nvme0n1")},
    }


@pytest.fixture(name="after")
def the_same(before):
    return copy.deepcopy(before)


def codes(before, after):
    return [found["code"] for found in _compare.findings(before, after)]


def test_a_host_that_is_the_same_has_no_finding(before, after):
    assert _compare.findings(before, after) == [] and _compare.notes(before, after) == []


def test_what_is_better_is_no_finding(before, after):
    after["processors"] = 16
    after["pci"][CARD].update(speed=16.0, width=16, vfs=2, vfs_max=128)
    after["interfaces"][CARD].update(speed=25000, rx_queues=16)
    after["interfaces"][f"{CARD} port 1"].update(carrier=True)
    after["disks"]["naa.5000"].update(names=["sda", "sdb", "sdc"], queues=4)
    assert codes(before, after) == []


@pytest.mark.parametrize(
    ("kind", "key", "change", "code", "says"),
    [
        ("pci", SECOND, {"driver": ""}, "driver-gone", "PCI device 0000:02:00.0 (8086:1572, driver nvme) has no driver now"),
        ("pci", SECOND, {"driver": "vfio-pci"}, "driver-changed", "has another driver now: vfio-pci"),
        ("pci", SECOND, {"id": "8086:1"}, "pci-other", "is another device now: 8086:1"),
        ("pci", CARD, {"width": 4}, "pci-slower", "the width of its PCI Express link is 4 lanes now, 8 lanes before"),
        ("pci", CARD, {"speed": 2.5}, "pci-slower", "the speed of its PCI Express link is 2.5 GT/s now, 8 GT/s before"),
        ("pci", CARD, {"speed": None}, "pci-slower", "is unknown now, 8 GT/s before"),
        ("pci", CARD, {"vfs": 0}, "vfs-fewer", "network interface ens1 ens1d1) has 0 virtual functions now, 1 before"),
        ("pci", CARD, {"vfs_max": None}, "vfs-fewer", "has 0 possible virtual functions now, 64 before"),
        ("pci", CARD, {"iommu": False}, "iommu-gone", "without an IOMMU group now: 0000:01:00.0"),
        ("pci", CARD, {"numa_node": -1}, "numa-changed", "another NUMA node now: 0000:01:00.0 0 -> -1"),
        ("interfaces", CARD, {"name": "eth0"}, "interface-renamed", "ens1 (0000:01:00.0) has another name now: eth0"),
        ("interfaces", CARD, {"driver": "other"}, "driver-changed", "has the driver other now, i40e before"),
        ("interfaces", CARD, {"carrier": False, "state": "down"}, "link-down", "has no link now (state down), and had one before"),
        ("interfaces", CARD, {"carrier": None, "state": ""}, "link-down", "state unknown"),
        ("interfaces", CARD, {"speed": 1000}, "link-slower", "the speed of its link is 1000 Mb/s now, 10000 Mb/s before"),
        ("interfaces", CARD, {"duplex": "half"}, "link-slower", "half duplex"),
        ("interfaces", CARD, {"rx_queues": 1}, "queues-fewer", "has 1 rx queues now, 8 before"),
        ("interfaces", CARD, {"tx_queues": 0}, "queues-fewer", "has 0 tx queues now, 8 before"),
        ("disks", "eui.1", {"size": 1}, "disk-size", "disk nvme0n1 (SAN disk eui.1) has 1 bytes now, 1073741824 before"),
        ("disks", "eui.1", {"read_only": True}, "disk-read-only", "is read-only now"),
        ("disks", "naa.5000", {"names": ["sda"]}, "disk-paths", "has 1 paths now, 2 before"),
        ("disks", "eui.1", {"queues": 1}, "queues-fewer", "has 1 queues now, 2 before"),
    ],
)
def test_what_is_worse_is_one_finding(before, after, kind, key, change, code, says):
    after[kind][key].update(change)
    (found,) = _compare.findings(before, after)
    assert found["code"] == code and says in found["message"] and found["remedy"]


@pytest.mark.parametrize(
    ("kind", "key", "code"), [("pci", SECOND, "pci-gone"), ("interfaces", CARD, "interface-gone"), ("disks", "eui.1", "disk-gone")]
)
def test_what_is_gone_is_one_finding(before, after, kind, key, code):
    del after[kind][key]
    assert codes(before, after) == [code]


def test_a_card_that_is_gone_takes_its_interfaces_along_and_is_one_finding_that_names_them(before, after):
    for kind, key in (("pci", CARD), ("pci", VF), ("interfaces", CARD), ("interfaces", VF), ("interfaces", f"{CARD} port 1")):
        del after[kind][key]
    (found,) = _compare.findings(before, after)
    assert found["code"] == "pci-gone" and "network interface ens1 ens1d1" in found["message"]


def test_a_card_without_its_driver_is_one_finding(before, after):
    after["pci"][CARD]["driver"] = ""
    del after["interfaces"][CARD], after["interfaces"][f"{CARD} port 1"]
    assert codes(before, after) == ["driver-gone"]


def test_a_virtual_function_that_was_not_made_again_is_a_finding_of_its_card(before, after):
    after["pci"][CARD]["vfs"] = 0
    del after["pci"][VF], after["interfaces"][VF]
    assert codes(before, after) == ["vfs-fewer"]


def test_a_virtual_function_that_is_gone_alone_is_a_finding(before, after):
    del after["pci"][VF], after["interfaces"][VF]
    assert codes(before, after) == ["pci-gone"]


def test_fewer_processors_are_a_finding(before, after):
    after["processors"] = 7
    assert codes(before, after) == ["processors-fewer"]


def test_what_concerns_all_devices_is_one_finding_that_names_some(before, after):
    before["pci"].update({f"0000:03:00.{number}": pci() for number in range(7)})
    after["pci"] = {address: {**device, "iommu": False} for address, device in before["pci"].items()}
    (found,) = _compare.findings(before, after)
    assert found["code"] == "iommu-gone" and found["message"].endswith("and 5 more")


def test_what_is_new_or_only_called_otherwise_is_noted(before, after):
    after["pci"]["0000:09:00.0"] = pci()
    after["interfaces"]["0000:09:00.0"] = interface("ens9")
    after["disks"]["eui.1"]["names"] = ["nvme1n1"]
    assert codes(before, after) == []
    assert _compare.notes(before, after) == [
        "new PCI device (0000:09:00.0)",
        "new network interface ens9 (0000:09:00.0)",
        "disk eui.1 is called nvme1n1 now, before nvme0n1",
    ]


def watched(before, start=3.0, **late):
    keys = _compare._named(before)
    return {"from": start, "seen": {key: late.get(key.replace(" ", "_"), start) for key in keys}}


def test_the_times_are_of_devices_drivers_and_links_and_say_what_was_there_from_the_first_look_on(before):
    seen = watched(before)
    seen["seen"][f"link {CARD}"] = 14.2
    del seen["seen"]["disk eui.1"]
    told = {time["device"]: (time["seconds"], time["at_most"]) for time in _compare.times(before, seen)}
    assert told["link of ens1"] == (14.2, False)
    assert told["driver nvme of PCI device 0000:02:00.0"] == (3.0, True)
    assert told["disk nvme0n1"] == (None, False)
    assert "link of ens1d1" not in told  # it had none before


def test_a_link_that_is_back_late_is_a_finding_and_a_slow_boot_is_not(before):
    seen = watched(before)
    seen["seen"][f"link {CARD}"] = 120.5
    (found,) = _compare.late(before, seen, 120)
    assert found["code"] == "late" and found["message"].startswith("link of ens1 is back only 120.5 s")
    assert _compare.late(before, seen, 121) == []
    assert _compare.late(before, watched(before, start=500.0), 120) == []
    assert _compare.late(before, {}, 120) == []


def test_a_driver_that_is_late_is_no_finding_by_itself(before):
    seen = watched(before)
    seen["seen"].update({f"driver {CARD}": 500.0, f"pci {CARD}": 500.0})
    assert _compare.late(before, seen, 120) == []
