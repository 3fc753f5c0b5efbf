# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _modules

RELEASE = "7.3.4"
HOST = {"options": ["KVM", "KVM_AMD", "TUN", "VHOST_NET"], "root": [], "cards": ["e1000e", "mlx5_core"]}
MODULAR = {"MODULES": "y", "KVM": "m", "KVM_AMD": "m", "KVM_INTEL": "m", "TUN": "m", "VHOST_NET": "m"}
NAMES = ("kvm.ko.zst", "kvm-amd.ko.xz", "tun.ko", "vhost_net.ko.gz", "e1000e.ko", "mlx5_core.ko")


@pytest.fixture(name="install")
def install_modules(tmp_path):
    """Puts modules below the given place and lists them as depmod does."""

    def put(names=NAMES, place="usr/lib/modules", builtin=(), listed=None):
        folder = tmp_path / place / RELEASE
        (folder / "kernel/x").mkdir(parents=True)
        for name in names:
            (folder / "kernel/x" / name).touch()
        (folder / "modules.dep").write_text("".join(f"kernel/x/{name}: kernel/x/other.ko\n" for name in listed or names))
        (folder / "modules.builtin").write_text("".join(f"kernel/x/{name}\n" for name in builtin))

    put.absent = lambda config=MODULAR, needed=HOST: _modules.absent(config, RELEASE, needed, str(tmp_path))
    return put


@pytest.mark.parametrize("place", ["usr/lib/modules", "lib/modules"])
def test_modules_that_are_there(install, place):
    install(place=place)
    assert install.absent() == []


def test_an_image_that_was_copied_alone(install):
    assert install.absent() == ["kvm", "kvm_amd", "tun", "vhost_net", "e1000e", "mlx5_core"]


def test_only_what_this_host_needs_has_to_be_there(install):
    install(["kvm.ko", "kvm-amd.ko"])
    assert install.absent(needed={**HOST, "options": ["KVM", "KVM_AMD"], "cards": []}) == []
    assert install.absent(needed={**HOST, "cards": []}) == ["tun", "vhost_net"]
    assert install.absent({**MODULAR, "TUN": "y", "VHOST_NET": "n"}, {**HOST, "cards": []}) == []


def test_a_driver_that_moved_into_the_kernel(install):
    install(["kvm.ko", "kvm-amd.ko", "tun.ko", "vhost_net.ko", "e1000e.ko"], builtin=["mlx5_core.ko"])
    assert install.absent() == []


def test_a_driver_that_is_in_another_package(install):
    """Ubuntu's linux-modules-extra."""
    install(NAMES[:-1])
    assert install.absent() == ["mlx5_core"]


def test_a_list_without_the_modules(install):
    install(NAMES[1:], listed=NAMES)
    assert install.absent() == ["kvm"]


def test_a_kernel_without_modules_needs_none(install):
    assert install.absent({"MODULES": "n", "KVM": "y", "KVM_AMD": "y", "TUN": "y", "VHOST_NET": "y"}) == []


@pytest.fixture(name="host")
def a_host(tmp_path):
    """Files and links of /proc and /sys."""

    def put(path, content="", link=None):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if link:
            (tmp_path / link).mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(tmp_path / link, place.parent))
        else:
            place.write_text(content)

    put.needs = lambda: _modules.needs(str(tmp_path))
    put.loaded = lambda: _modules.loaded(str(tmp_path))
    device = tmp_path.stat().st_dev
    put.root = f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    return put


@pytest.mark.parametrize(
    ("vendor", "options"),
    [
        ("AuthenticAMD", ["KVM", "KVM_AMD"]),
        ("HygonGenuine", ["KVM", "KVM_AMD"]),
        ("GenuineIntel", ["KVM", "KVM_INTEL"]),
        ("CentaurHauls", ["KVM"]),
    ],
)
def test_the_processor_decides_on_kvm(host, vendor, options):
    host("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert host.needs() == {"options": options, "root": [], "cards": []}


def test_a_host_that_says_nothing_needs_kvm(host):
    assert host.needs() == {"options": ["KVM"], "root": [], "cards": []}


def test_a_tap_device_is_a_guest_s(host):
    host("sys/class/net/eth0/mtu")
    host("sys/module/vhost_net/refcnt")
    assert host.needs()["options"] == ["KVM"]
    host("sys/class/net/tap0/tun_flags")
    assert host.needs()["options"] == ["KVM", "TUN", "VHOST_NET"]


def test_without_vhost_net_now_none_is_needed(host):
    host("sys/class/net/tap0/tun_flags")
    assert host.needs()["options"] == ["KVM", "TUN"]


@pytest.mark.parametrize(
    ("kind", "option"), [("macvtap", "MACVTAP"), ("macvlan", "MACVLAN"), ("vlan", "VLAN_8021Q"), ("bond", "BONDING"), ("vxlan", "VXLAN")]
)
def test_a_network_device_tells_what_it_needs(host, kind, option):
    host("sys/class/net/eth0/uevent", "INTERFACE=eth0\nIFINDEX=2\n")
    assert host.needs()["options"] == ["KVM"]
    for name in ("a", "b"):
        host(f"sys/class/net/{name}/uevent", f"DEVTYPE={kind}\nINTERFACE={name}\n")
    assert host.needs()["options"] == ["KVM", option]


def test_a_bridge_counts_with_something_on_it(host):
    host("sys/class/net/docker0/uevent", "DEVTYPE=bridge\n")
    assert host.needs()["options"] == ["KVM"]
    host("sys/class/net/br0/uevent", "DEVTYPE=bridge\n")
    host("sys/class/net/br0/brif/tap0/state")
    assert host.needs()["options"] == ["KVM", "BRIDGE"]


def test_modules_that_are_held_are_needed_and_missed(host, install):
    host("sys/module/vhost_vsock/refcnt", "0\n")
    host("sys/module/dm_multipath/parameters/x")  # built in
    assert host.needs()["options"] == ["KVM"]
    host("sys/module/nbd/refcnt", "1\n")
    host("sys/module/vhost_vsock/refcnt", "2\n")
    needed = host.needs()
    assert needed["options"] == ["KVM", "BLK_DEV_NBD", "VHOST_VSOCK"]
    install()
    config = {**MODULAR, "BLK_DEV_NBD": "y", "VHOST_VSOCK": "m"}
    assert install.absent(config, needed) == ["vhost_vsock"]


def test_the_network_cards_of_the_host(host):
    for card, driver in (("eth0", "mlx5_core"), ("eth1", "mlx5_core"), ("eth2", "e1000e")):
        host(f"sys/class/net/{card}/device/driver/module", link=f"sys/module/{driver}")
    host("sys/class/net/eth3/device/driver/bind")  # built in
    host("sys/class/net/br0/mtu")
    assert host.needs()["cards"] == ["e1000e", "mlx5_core"]


def test_what_the_root_file_system_is_on(host):
    """Without an initial RAM disk its device is called /dev/root."""
    host("proc/mounts", "proc /proc proc rw 0 0\nrootfs / rootfs rw 0 0\n/dev/root / ext4 rw 0 0\n/dev/vdb /srv xfs rw 0 0\n")
    host(host.root, link="sys/devices/pci0000:00/0000:00:02.0/virtio0/block/vda/vda1")
    host("sys/devices/pci0000:00/0000:00:02.0/driver", link="sys/bus/pci/drivers/virtio-pci")
    host("sys/devices/pci0000:00/0000:00:02.0/virtio0/driver", link="sys/bus/virtio/drivers/virtio_blk")
    assert host.needs()["root"] == ["EXT4_FS", "VIRTIO_BLK", "VIRTIO_PCI"]


def test_a_root_file_system_that_only_an_initial_ram_disk_knows(host):
    host("proc/mounts", "rpool/ROOT/pve-1 / zfs rw 0 0\n")
    assert host.needs()["root"] == []


def test_a_root_file_system_on_lvm_on_luks_on_raid(host):
    """What is below a device counts as well: its parts are in "slaves"."""
    host("proc/mounts", "/dev/mapper/vg-root / ext4 rw 0 0\n")
    host(host.root, link="sys/devices/virtual/block/dm-1")
    host("sys/devices/virtual/block/dm-1/dm/uuid", "LVM-abc\n")
    host("sys/devices/virtual/block/dm-1/slaves/dm-0", link="sys/devices/virtual/block/dm-0")
    host("sys/devices/virtual/block/dm-0/dm/uuid", "CRYPT-LUKS2-abc-luks\n")
    host("sys/devices/virtual/block/dm-0/slaves/md0", link="sys/devices/virtual/block/md0")
    for disk in ("vda", "vdb"):
        block = f"sys/devices/pci0000:00/0000:00:02.0/virtio0/block/{disk}"
        host(f"sys/devices/virtual/block/md0/slaves/{disk}1", link=f"{block}/{disk}1")
    host("sys/devices/pci0000:00/0000:00:02.0/virtio0/driver", link="sys/bus/virtio/drivers/virtio_blk")
    assert host.needs()["root"] == ["EXT4_FS", "BLK_DEV_DM", "DM_CRYPT", "BLK_DEV_MD", "VIRTIO_BLK"]


def test_the_modules_that_guests_use_now(host):
    host("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n")
    host("sys/class/net/tap0/tun_flags")
    for name in ("kvm", "kvm_amd", "vhost_net", "vhost_vsock"):
        host(f"sys/module/{name}/initstate", "live\n")
        host(f"sys/module/{name}/refcnt", "0\n")
    host("sys/module/tun/parameters/x")  # built in
    assert host.loaded() == ["kvm", "kvm_amd", "vhost_net"]
