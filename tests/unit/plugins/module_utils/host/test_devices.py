# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's devices, from a tree like sysfs."""

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _devices


class Sysfs:
    """A tree with the files and links of sysfs that count."""

    def __init__(self, root):
        self.root = root
        self.write("sys/devices/system/cpu/online", "0-2,4")

    def write(self, path, text):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def link(self, path, target):
        """Both are paths below the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.root / target).mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.root / target, place.parent))

    def pci(self, address, driver="", **files):
        device = f"sys/devices/pci0000:00/{address}"
        for name, text in {"vendor": "0x8086", "device": "0x1572", "class": "0x020000", "numa_node": "0", **files}.items():
            self.write(f"{device}/{name}", text)
        self.link(f"sys/bus/pci/devices/{address}", device)
        self.link(f"{device}/subsystem", "sys/bus/pci")
        if driver:
            self.link(f"{device}/driver", f"sys/bus/pci/drivers/{driver}")
        return device

    def virtio(self, above, name, driver):
        device = f"{above}/{name}"
        self.link(f"{device}/subsystem", "sys/bus/virtio")
        self.link(f"{device}/driver", f"sys/bus/virtio/drivers/{driver}")
        return device

    def net(self, name, device, index, queues=("rx-0", "tx-0"), **files):
        place = f"sys/class/net/{name}"
        self.write(f"{place}/ifindex", str(index))
        for key, text in files.items():
            self.write(f"{place}/{key}", text)
        for queue in queues:
            (self.root / place / "queues" / queue).mkdir(parents=True)
        if device:
            self.link(f"{place}/device", device)

    def block(self, name, device="", sectors=2048, **files):
        place = f"sys/block/{name}"
        self.write(f"{place}/size", str(sectors))
        self.write(f"{place}/ro", "0")
        if device:
            self.link(f"{place}/device", device)
        for key, text in files.items():
            self.write(f"{place}/{key.replace('__', '/')}", text)

    def read(self):
        return _devices.read(str(self.root))

    def seen(self):
        return _devices.seen(str(self.root))


@pytest.fixture(name="sysfs")
def a_tree(tmp_path):
    return Sysfs(tmp_path)


def test_a_pci_device(sysfs):
    device = sysfs.pci(
        "0000:01:00.0",
        driver="i40e",
        current_link_speed="8.0 GT/s PCIe",
        current_link_width="8",
        sriov_numvfs="4",
        sriov_totalvfs="64",
    )
    sysfs.link(f"{device}/iommu_group", "sys/kernel/iommu_groups/7")
    sysfs.pci("0000:00:1f.0", numa_node="-1")
    found = sysfs.read()
    assert found["processors"] == 4
    assert found["pci"]["0000:01:00.0"] == {
        "id": "8086:1572",
        "class": "0x020000",
        "driver": "i40e",
        "numa_node": 0,
        "iommu": True,
        "speed": 8.0,
        "width": 8,
        "vfs": 4,
        "vfs_max": 64,
        "is_vf": False,
    }
    bare = found["pci"]["0000:00:1f.0"]
    assert (bare["driver"], bare["iommu"], bare["speed"], bare["vfs"], bare["numa_node"]) == ("", False, None, None, -1)


def test_interfaces_are_known_by_their_place_and_port_and_those_of_software_are_left_out(sysfs):
    card = sysfs.pci("0000:01:00.0", driver="mlx4_core")
    sysfs.net("eth0", card, 2, dev_port="0", carrier="1", speed="10000", duplex="full", operstate="up", queues=("rx-0", "rx-1", "tx-0"))
    sysfs.net("eth1", card, 3, dev_port="1", speed="-1", operstate="down")  # carrier cannot be read
    sysfs.net("eth2", sysfs.virtio(sysfs.pci("0000:00:04.0", driver="virtio-pci"), "virtio2", "virtio_net"), 4, carrier="0")
    sysfs.net("br0", "", 5, carrier="1")
    found = sysfs.read()["interfaces"]
    assert list(found) == ["0000:01:00.0", "0000:01:00.0 port 1", "0000:00:04.0"]
    first, second, third = found.values()
    assert (first["name"], first["driver"], first["carrier"], first["speed"], first["duplex"]) == ("eth0", "mlx4_core", True, 10000, "full")
    assert (first["rx_queues"], first["tx_queues"]) == (2, 1)
    assert (second["carrier"], second["speed"]) == (None, None)
    assert (third["driver"], third["carrier"]) == ("virtio_net", False)


def test_two_interfaces_of_one_port_have_different_keys(sysfs):
    card = sysfs.pci("0000:01:00.0")
    for number in (2, 3, 4):
        sysfs.net(f"eth{number}", card, number)
    assert list(sysfs.read()["interfaces"]) == ["0000:01:00.0", "0000:01:00.0 number 2", "0000:01:00.0 number 3"]


def test_disks_are_known_by_their_numbers_and_else_by_their_place(sysfs):
    virtio = sysfs.virtio(sysfs.pci("0000:00:05.0"), "virtio3", "virtio_blk")
    sysfs.block("vda", virtio)
    sysfs.block("vdb", serial="disk-1")
    sata = f"{sysfs.pci('0000:00:1f.2')}/ata1/host3/target3:0:0/3:0:0:0"
    sysfs.block("sda", sata)
    for name in ("sdb", "sdc"):
        sysfs.block(name, device__wwid="naa.5000", device__model="SAN  disk")
    sysfs.block("dm-0", dm__uuid="LVM-abc", dm__name="vg-root")
    for name in ("loop0", "zram0", "sr0"):
        sysfs.block(name)
    sysfs.block("sdd", sectors=0)
    found = sysfs.read()["disks"]
    assert set(found) == {"0000:00:05.0", "disk-1", "0000:00:1f.2 0:0:0", "naa.5000", "dm LVM-abc"}
    assert found["naa.5000"]["names"] == ["sdb", "sdc"] and found["naa.5000"]["model"] == "SAN disk"
    assert found["dm LVM-abc"]["model"] == "vg-root"
    assert found["0000:00:05.0"]["size"] == 2048 * 512 and not found["0000:00:05.0"]["read_only"]


def test_what_is_there_is_told_with_the_same_keys(sysfs):
    card = sysfs.pci("0000:01:00.0", driver="i40e")
    sysfs.pci("0000:00:1f.0")
    sysfs.net("eth0", card, 2, carrier="1")
    sysfs.net("eth1", card, 3, carrier="0", dev_port="1")
    sysfs.block("vdb", serial="disk-1")
    assert sysfs.seen() == {
        "pci 0000:01:00.0",
        "driver 0000:01:00.0",
        "pci 0000:00:1f.0",
        "interface 0000:01:00.0",
        "link 0000:01:00.0",
        "interface 0000:01:00.0 port 1",
        "disk disk-1",
    }


def test_a_host_without_any_of_it_is_read_too(tmp_path):
    assert _devices.read(str(tmp_path)) == {"processors": 0, "pci": {}, "interfaces": {}, "disks": {}}
    assert _devices.seen(str(tmp_path)) == set()
