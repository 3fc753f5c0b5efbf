# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the kernel modules that this host needs, and check whether a kernel has them. PRIVATE to the collection.

Source: depmod(8), modules.dep(5), Documentation/kbuild/kbuild.rst (modules.builtin), Documentation/ABI/testing/sysfs-class-net.
"""

from __future__ import annotations

import glob
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("OPTIONS", "ROOT_MODULES", "absent", "folder", "listed", "loaded", "names", "needs")

# Kinds of network devices (DEVTYPE in uevent), with their build options and modules.
_NETWORKS = {
    "bond": ("BONDING", "bonding"),
    "bridge": ("BRIDGE", "bridge"),
    "macvlan": ("MACVLAN", "macvlan"),
    "macvtap": ("MACVTAP", "macvtap"),
    "vlan": ("VLAN_8021Q", "8021q"),
    "vxlan": ("VXLAN", "vxlan"),
    "wireguard": ("WIREGUARD", "wireguard"),
}
# Modules with a use count, by their build options: for guests' devices, and for the storage of their disks.
_HELD = {
    "BLK_DEV_DRBD": "drbd",
    "BLK_DEV_NBD": "nbd",
    "BLK_DEV_RBD": "rbd",
    "DM_CACHE": "dm_cache",
    "DM_CRYPT": "dm_crypt",
    "DM_MULTIPATH": "dm_multipath",
    "DM_RAID": "dm_raid",
    "DM_SNAPSHOT": "dm_snapshot",
    "DM_THIN_PROVISIONING": "dm_thin_pool",
    "ISCSI_TCP": "iscsi_tcp",
    "NVME_RDMA": "nvme_rdma",
    "NVME_TCP": "nvme_tcp",
    "OPENVSWITCH": "openvswitch",
    "VHOST_SCSI": "vhost_scsi",
    "VHOST_VSOCK": "vhost_vsock",
}
# Build options and the modules that they become.
OPTIONS = {
    "KVM": "kvm",
    "KVM_AMD": "kvm_amd",
    "KVM_INTEL": "kvm_intel",
    "TUN": "tun",
    "VHOST_NET": "vhost_net",
    **dict(_NETWORKS.values()),
    **_HELD,
}
_VENDORS = {"AuthenticAMD": "KVM_AMD", "HygonGenuine": "KVM_AMD", "GenuineIntel": "KVM_INTEL"}
# Drivers that the root file system may need, and their build options.
_DRIVERS = {
    "ahci": "SATA_AHCI",
    "nvme": "BLK_DEV_NVME",
    "sd": "BLK_DEV_SD",
    "virtio_blk": "VIRTIO_BLK",
    "virtio-mmio": "VIRTIO_MMIO",
    "virtio-pci": "VIRTIO_PCI",
    "virtio_scsi": "SCSI_VIRTIO",
}
_FILE_SYSTEMS = {"btrfs": "BTRFS_FS", "ext4": "EXT4_FS", "xfs": "XFS_FS"}
# Devices that consist of others, by the start of their names, and mappings by the start of their UUIDs (sysfs, dm/uuid).
_COMPOSED = {"dm-": "BLK_DEV_DM", "md": "BLK_DEV_MD"}
_MAPPINGS = {"CRYPT-": "DM_CRYPT", "mpath-": "DM_MULTIPATH"}
# The options that the root file system may need, and their modules.
ROOT_MODULES = {
    "BLK_DEV_DM": "dm_mod",
    "BLK_DEV_MD": "md_mod",
    "BLK_DEV_NVME": "nvme",
    "BLK_DEV_SD": "sd_mod",
    "BTRFS_FS": "btrfs",
    "DM_CRYPT": "dm_crypt",
    "DM_MULTIPATH": "dm_multipath",
    "EXT4_FS": "ext4",
    "SATA_AHCI": "ahci",
    "SCSI_VIRTIO": "virtio_scsi",
    "VIRTIO_BLK": "virtio_blk",
    "VIRTIO_MMIO": "virtio_mmio",
    "VIRTIO_PCI": "virtio_pci",
    "XFS_FS": "xfs",
}


def needs(root: str = "/") -> dict:
    """What this host needs from a kernel, by what it uses now.

    ``options``: the build options of :data:`OPTIONS` that guests need. ``root``: those that the root file system needs. ``cards``: the
    modules of its network cards, if the running kernel has them as modules.
    """
    return {"options": _guest_options(root), "root": _root_options(root), "cards": _cards(root)}


def _guest_options(root: str) -> list[str]:
    found = ["KVM"]
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", _text(root, "proc/cpuinfo"), re.MULTILINE)
    if vendor and vendor[1] in _VENDORS:
        found.append(_VENDORS[vendor[1]])
    # A tap device belongs to a guest. Its QEMU also uses vhost_net, if available.
    if glob.glob(os.path.join(glob.escape(root), "sys/class/net/*/tun_flags")):
        found.append("TUN")
        if os.path.exists(os.path.join(root, "sys/module/vhost_net")):
            found.append("VHOST_NET")
    return found + _network_options(root) + [option for option, module in _HELD.items() if _is_held(root, module)]


def _network_options(root: str) -> list[str]:
    """The build options for the host's network devices. A bridge without ports may be unused."""
    kinds = set()
    for uevent in glob.glob(os.path.join(glob.escape(root), "sys/class/net/*/uevent")):
        kind = re.search(r"^DEVTYPE=(\w+)$", _text(root, uevent), re.MULTILINE)
        if kind and (kind[1] != "bridge" or glob.glob(os.path.join(glob.escape(os.path.dirname(uevent)), "brif/*"))):
            kinds.add(kind[1])
    return [option for kind, (option, _module) in _NETWORKS.items() if kind in kinds]


def _is_held(root: str, module: str) -> bool:
    """Whether a module is in use (Documentation/ABI/testing/sysfs-module, refcnt). This is unknown for a built-in one."""
    return _text(root, f"sys/module/{module}/refcnt").strip() not in ("", "0")


def _root_options(root: str) -> list[str]:
    kinds = [line.split()[2] for line in _text(root, "proc/mounts").splitlines() if line.split()[1:2] == ["/"]]
    found = [_FILE_SYSTEMS[kind] for kind in kinds[-1:] if kind in _FILE_SYSTEMS]
    device = os.stat(root).st_dev  # the name in proc/mounts may be /dev/root
    place = os.path.join(root, f"sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return list(dict.fromkeys(found + _device_options(root, place)))


def _device_options(root: str, place: str) -> list[str]:
    """The build options for a block device and for all devices below it: LVM, LUKS and RAID have others as their parts."""
    path = os.path.realpath(place)
    name, identity = os.path.basename(path), _text(root, os.path.join(path, "dm/uuid"))
    found = [option for start, option in _COMPOSED.items() if name.startswith(start)]
    found += [option for start, option in _MAPPINGS.items() if identity.startswith(start)]
    for part in sorted(glob.glob(os.path.join(glob.escape(path), "slaves/*"))):
        found += _device_options(root, part)
    top = os.path.realpath(os.path.join(root, "sys/devices"))
    while path.startswith(top + os.sep):
        driver = os.path.basename(os.path.realpath(os.path.join(path, "driver")))
        if driver in _DRIVERS and os.path.islink(os.path.join(path, "driver")):
            found.append(_DRIVERS[driver])
        path = os.path.dirname(path)
    return found


def loaded(root: str = "/") -> list[str]:
    """The modules that this host's guests use now. Those that are built into the kernel are not among them."""
    wanted = [OPTIONS[option] for option in _guest_options(root)]
    # Only what was loaded has this file (kernel/module/sysfs.c).
    return [name for name in wanted if os.path.exists(os.path.join(root, "sys/module", name, "initstate"))]


def _cards(root: str) -> list[str]:
    links = glob.glob(os.path.join(glob.escape(root), "sys/class/net/*/device/driver/module"))
    return sorted({os.path.basename(os.path.realpath(link)) for link in links})


def _text(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def folder(release: str, root: str = "/") -> str:
    """The folder of a release's modules, also if it does not exist."""
    places = [os.path.join(root, place, release) for place in ("usr/lib/modules", "lib/modules")]
    return next((place for place in places if os.path.isdir(place)), places[0])


def absent(config: dict[str, str], release: str, needed: dict, root: str = "/") -> list[str]:
    """The modules that a kernel with this build configuration needs on this host and that are missing in its folder.

    ``needed`` is from :func:`needs`.
    """
    place = folder(release, root)
    wanted = [OPTIONS[option] for option in needed["options"] if config.get(option) == "m"]
    # A kernel without modules has its network drivers built in. Other kernels list built-in drivers beside their modules.
    cards = needed["cards"] if config.get("MODULES") == "y" else []
    if not wanted and not cards:
        return []
    there, builtin = listed(place), names(_text(place, "modules.builtin").splitlines())
    return [name for name in [*wanted, *cards] if name not in there and (name in wanted or name not in builtin)]


def listed(place: str) -> set[str]:
    """The modules that depmod has listed and that exist."""
    paths = [line.partition(":")[0] for line in _text(place, "modules.dep").splitlines()]
    return names(path for path in paths if os.path.exists(os.path.join(place, path)))


def names(paths: Iterable[str]) -> set[str]:
    """The names of modules by their paths: kernel/arch/x86/kvm/kvm-amd.ko.zst is kvm_amd."""
    return {os.path.basename(path).partition(".ko")[0].replace("-", "_") for path in paths}
