# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the drivers of the storage that this host uses, and check whether a kernel has them. PRIVATE to the collection.

A device says by its modalias which drivers fit. So a kernel may have another driver for it than the running one, or the same driver without
support for this device.

Source: proc_pid_mountinfo(5), Documentation/ABI/{stable/sysfs-block,testing/sysfs-block-dm}, Documentation/admin-guide/md.rst, depmod(8),
modules.dep(5), Documentation/kbuild/kbuild.rst (modules.builtin), the udev database, and drivers/nvme/host/core.c (links of a subsystem).
"""

from __future__ import annotations

import glob
import os
import re
import stat

from ..host import _processes
from . import _modules

__all__ = ("OPTIONS", "needs", "served")

# Modules of the kernel's own source, and their build options: what a kernel without lists of modules has.
OPTIONS = {
    "9p": "9P_FS",
    "aacraid": "SCSI_AACRAID",
    "ahci": "SATA_AHCI",
    "arcmsr": "SCSI_ARCMSR",
    "ata_piix": "ATA_PIIX",
    "bcache": "BCACHE",
    "btrfs": "BTRFS_FS",
    "ceph": "CEPH_FS",
    "cifs": "CIFS",
    "dm_crypt": "DM_CRYPT",
    "dm_mod": "BLK_DEV_DM",
    "dm_multipath": "DM_MULTIPATH",
    "drbd": "BLK_DEV_DRBD",
    "ext4": "EXT4_FS",
    "f2fs": "F2FS_FS",
    "fuse": "FUSE_FS",
    "gfs2": "GFS2_FS",
    "hpsa": "SCSI_HPSA",
    "hv_storvsc": "HYPERV_STORAGE",
    "iscsi_tcp": "ISCSI_TCP",
    "jfs": "JFS_FS",
    "lpfc": "SCSI_LPFC",
    "md_mod": "BLK_DEV_MD",
    "megaraid_sas": "MEGARAID_SAS",
    "mmc_block": "MMC_BLOCK",
    "mpi3mr": "SCSI_MPI3MR",
    "mpt3sas": "SCSI_MPT3SAS",
    "nbd": "BLK_DEV_NBD",
    "nfs": "NFS_FS",
    "nfsv3": "NFS_V3",
    "nfsv4": "NFS_V4",
    "nvme": "BLK_DEV_NVME",
    "nvme_fc": "NVME_FC",
    "nvme_rdma": "NVME_RDMA",
    "nvme_tcp": "NVME_TCP",
    "ocfs2": "OCFS2_FS",
    "qla2xxx": "SCSI_QLA_FC",
    "raid0": "MD_RAID0",
    "raid1": "MD_RAID1",
    "raid10": "MD_RAID10",
    "raid456": "MD_RAID456",
    "rbd": "BLK_DEV_RBD",
    "sd_mod": "BLK_DEV_SD",
    "smartpqi": "SCSI_SMARTPQI",
    "uas": "USB_UAS",
    "usb_storage": "USB_STORAGE",
    "vfat": "VFAT_FS",
    "virtio_blk": "VIRTIO_BLK",
    "virtio_mmio": "VIRTIO_MMIO",
    "virtio_pci": "VIRTIO_PCI",
    "virtio_scsi": "SCSI_VIRTIO",
    "virtiofs": "VIRTIO_FS",
    "vmd": "VMD",
    "vmw_pvscsi": "VMWARE_PVSCSI",
    "xen_blkfront": "XEN_BLKDEV_FRONTEND",
    "xfs": "XFS_FS",
}
# File systems that have nothing on a disk or a server, and images of programs and media: no guest lies there.
_NO_STORAGE_TEXT = """
aufs autofs bdev binder binfmt_misc bpf cgroup cgroup2 configfs cpuset cramfs debugfs devpts devtmpfs efivarfs erofs functionfs fusectl
hugetlbfs iso9660 mqueue nfsd nsfs overlay pidfs pipefs proc pstore ramfs resctrl rootfs rpc_pipefs securityfs selinuxfs smackfs sockfs
squashfs sysfs tmpfs tracefs udf xenfs
"""
_NO_STORAGE = frozenset(_NO_STORAGE_TEXT.split())
_OF_USERS = "/run/user/"  # portals and the like, in a login
# The modules of file systems that are called otherwise.
_TYPES = {"ext2": "ext4", "ext3": "ext4", "fuseblk": "fuse", "msdos": "vfat", "nfs4": "nfs", "smb3": "cifs"}
# Block devices that are made by software, by the kernel's names, and their modules.
_MADE = (
    (re.compile(r"dm-\d"), "dm_mod"),
    (re.compile(r"md[\d_]"), "md_mod"),
    (re.compile(r"bcache\d"), "bcache"),
    (re.compile(r"drbd\d"), "drbd"),
    (re.compile(r"nbd\d"), "nbd"),
    (re.compile(r"rbd\d"), "rbd"),
    (re.compile(r"zd\d"), "zfs"),
)
# Mappings by the start of their UUIDs.
_MAPPINGS = {"CRYPT-": "dm_crypt", "mpath-": "dm_multipath"}
# Parts of LVM's volumes, by the end of their UUIDs (lib/activate/dev_manager.c) or by names that LVM reserves (lvm(8)). The volume itself
# does not tell its kind.
_PARTS = (
    ("dm/uuid", re.compile(r"^LVM-.*-tpool$"), "dm_thin_pool"),
    ("dm/uuid", re.compile(r"^LVM-.*-(?:real|cow)$"), "dm_snapshot"),
    ("dm/name", re.compile(r"_(?:cdata|corig|cvol)(?:-|$)"), "dm_cache"),
    ("dm/name", re.compile(r"_rimage_\d+$"), "dm_raid"),
    ("dm/name", re.compile(r"_mimage_\d+$"), "dm_mirror"),
)
# What reaches its storage over the network.
_OVER_NETWORK = frozenset(("ceph", "cifs", "iscsi_tcp", "nbd", "nfs", "nvme_tcp", "rbd"))
_ENCRYPTED = re.compile("CRYPT-(?!VERITY|INTEGRITY)")  # the others of cryptsetup have no key
# Modules that are called otherwise than their drivers. A driver that is built in may have no link to its module.
_DRIVERS = {"mmcblk": "mmc_block", "sd": "sd_mod"}
_PCI_BRIDGE = "0x0604"  # it works without a driver


def needs(root: str = "/") -> list[dict]:
    """The drivers of the block devices and file systems that are mounted, or that virtual machines have open. Swap does not count.

    Each has its ``module``, the ``alias`` by which the kernel asks for it, ``what`` needs it, whether that is the ``root`` file system,
    ``known``: whether the running kernel has it as a module, or lists it as built in; and ``supported``: whether its lists say that this
    module has this alias. What cannot be seen is not there: a device without a driver, for example. That of encrypted devices has as
    ``locked`` those that a boot cannot unlock with a key file, each with what it is for: the root file system, a disk of a guest, or
    another one of which a boot asks for the passphrase (crypttab(5)).
    """
    look = _Look(root)
    for number, point, kind, source, options in _mounts(root):
        look.mount(number, point, kind, source, options)
    look.of_guests = True
    for name, place in _open_disks(root):
        look.block(place, f"{name}, a disk of a guest")
    look.mappings()
    return look.found()


class _Look:
    """One look at the storage of this host, which collects what it needs."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.wanted: dict[tuple[str, str], dict] = {}
        self.seen: set[tuple[str, bool, bool]] = set()
        self.lists = _Lists(_modules.folder(_text(root, "proc/sys/kernel/osrelease").strip() or "none", root))
        self.at_root = self.of_guests = False
        self.unlocked, self.asked_for = _crypttab(root)

    def found(self) -> list[dict]:
        """All needs, in order."""
        return [self.wanted[key] for key in sorted(self.wanted)]

    def want(self, module: str, alias: str, what: str) -> None:
        """Add a need."""
        module = module.replace("-", "_")
        need = self.wanted.setdefault(
            (module, alias),
            {
                "module": module,
                "alias": alias,
                "what": what,
                "root": False,
                "known": self.is_loaded(module) or module in self.lists.present,
                "supported": bool(alias) and module in self.lists.serving(alias),
            },
        )
        if self.at_root and not need["root"]:
            need.update(root=True, what=what)
            if module in _OVER_NETWORK:
                self.network(what)

    def network(self, what: str) -> None:
        """Add the drivers of the network cards that have a link. Which of them leads to the storage is not asked."""
        for place in sorted(glob.glob(os.path.join(glob.escape(self.root), "sys/class/net/*/device"))):
            card = os.path.dirname(place)
            if _text(card, "operstate").strip() == "up":
                self.devices(os.path.realpath(place), f"{os.path.basename(card)}, the network of {what}")

    def is_loaded(self, module: str) -> bool:
        """Whether this is a module that was loaded. Only such a one has this file (kernel/module/sysfs.c)."""
        return os.path.exists(os.path.join(self.root, "sys/module", module, "initstate"))

    def mount(self, number: str, point: str, kind: str, source: str, options: str) -> None:
        """Add what a mounted file system needs."""
        self.at_root = point == "/"
        kind = kind.partition(".")[0]  # fuse.sshfs
        if self.at_root or not (kind in _NO_STORAGE or point.startswith(_OF_USERS)):
            alias = f"fs-{kind}"
            names = sorted(name for name in self.lists.serving(alias) if self.is_loaded(name))
            self.want(names[0] if names else _TYPES.get(kind, kind), alias, point)
            version = re.search(r"(?:^|,)vers=(\d)", options)
            if kind in ("nfs", "nfs4") and version:
                self.want(f"nfsv{version[1]}", "", point)
            for place in self.places(number, kind, source):
                self.block(place, f"{os.path.basename(os.path.realpath(place))} of {point}")
        self.at_root = False

    def places(self, number: str, kind: str, source: str) -> list[str]:
        """The block devices of a file system, in sysfs. One on several devices has no device number of its own."""
        if kind == "zfs":
            return self.members(source.partition("/")[0])
        if not number.startswith("0:"):
            return [os.path.join(self.root, "sys/dev/block", number)]
        names = [self.name_of(path) for path in source.split(":") if path.startswith("/dev/")]
        if kind == "btrfs" and names:
            pattern = os.path.join(glob.escape(self.root), "sys/fs/btrfs/*/devices", glob.escape(names[0]))
            names = [name for path in glob.glob(pattern) for name in sorted(os.listdir(os.path.dirname(path)))] or names
        return [os.path.join(self.root, "sys/class/block", name) for name in names if name]

    def name_of(self, path: str) -> str:
        """The kernel's name of a block device, of which the path may be a link or the name of a mapping."""
        name = os.path.basename(os.path.realpath(os.path.join(self.root, path.lstrip("/"))))
        for file in glob.glob(os.path.join(glob.escape(self.root), "sys/class/block/dm-*/dm/name")):
            if path.startswith("/dev/mapper/") and _text(self.root, file).strip() == os.path.basename(path):
                return os.path.basename(os.path.dirname(os.path.dirname(file)))
        return name

    def members(self, pool: str) -> list[str]:
        """The block devices of a ZFS pool, of all pools for "": the kernel does not tell, but udev has read their labels."""
        found = []
        for path in sorted(glob.glob(os.path.join(glob.escape(self.root), "run/udev/data/b*:*"))):
            told = _text(self.root, path)
            if re.search(r"^E:ID_FS_TYPE=zfs_member$", told, re.MULTILINE) and (
                not pool or re.search(rf"^E:ID_FS_LABEL={re.escape(pool)}$", told, re.MULTILINE)
            ):
                found.append(os.path.join(self.root, "sys/dev/block", os.path.basename(path)[1:]))
        return found

    def block(self, place: str, what: str) -> None:
        """Add what a block device needs, and all devices below it: LVM, LUKS, RAID and multipath have others as their parts."""
        path = os.path.realpath(place)
        if os.path.exists(os.path.join(path, "partition")):
            path = os.path.dirname(path)
        look = (path, self.at_root, self.of_guests)
        if look in self.seen or not os.path.isdir(path):
            return
        self.seen.add(look)
        name = os.path.basename(path)
        for pattern, module in _MADE:
            if pattern.match(name):
                self.want(module, "", what)
        identity = _text(path, "dm/uuid")
        for start, module in _MAPPINGS.items():
            if identity.startswith(start):
                self.want(module, "", what)
        for file, pattern, module in _PARTS:
            if identity.startswith("LVM-") and pattern.search(_text(path, file).strip()):
                self.want(module, "", what)
        if _ENCRYPTED.match(identity):
            self.lock(_text(path, "dm/name").strip() or name, what)
        level = _text(path, "md/level").strip()
        if level.startswith("raid"):
            self.want("raid456" if level in ("raid4", "raid5", "raid6") else level, f"md-{level}", what)
        parts = sorted(glob.glob(os.path.join(glob.escape(path), "slaves/*")))
        for part in [*parts, *(self.members("") if name.startswith("zd") else [])]:
            self.block(part, what)
        self.devices(path, what)

    def lock(self, mapping: str, what: str) -> None:
        """Note an encrypted device that a boot may ask a person for."""
        needed = self.at_root or self.of_guests or mapping in self.asked_for
        if needed and mapping not in self.unlocked and not _has_key(self.root, mapping):
            locked = self.wanted["dm_crypt", ""].setdefault("locked", {})
            locked[mapping] = what if self.at_root else locked.get(mapping, what)  # the root is what counts most

    def devices(self, path: str, what: str) -> None:
        """Add the drivers of a device and of all above it, up to its bus."""
        top, hosts, drivers = os.path.realpath(os.path.join(self.root, "sys/devices")), set(), set()
        while path.startswith(top + os.sep):
            drivers.add(self.driver(path, what))
            name = os.path.basename(path)
            if re.fullmatch(r"host\d+", name):
                hosts.add(_text(path, "scsi_host", name, "proc_name").strip().replace("-", "_"))
            transport = _text(path, "transport").strip()
            if re.fullmatch(r"nvme\d+", name) and transport not in ("", "pcie"):
                self.want(f"nvme_{transport}", "", what)
            if name.startswith("nvme-subsys"):
                for link in sorted(glob.glob(os.path.join(glob.escape(path), "nvme*"))):
                    if os.path.islink(link):  # a path to the disk
                        self.devices(os.path.realpath(link), what)
            path = os.path.dirname(path)
        for module in sorted(hosts - drivers):
            if self.is_loaded(module):  # a host of SCSI without a device that has a driver: iscsi_tcp
                self.want(module, "", what)

    def driver(self, path: str, what: str) -> str:
        """Add the driver of one device, and return its module."""
        link = os.path.join(path, "driver")
        if not os.path.islink(link) or _text(path, "class").startswith(_PCI_BRIDGE):
            return ""
        driver, module = os.path.basename(os.path.realpath(link)), os.path.join(link, "module")
        name = os.path.basename(os.path.realpath(module)) if os.path.islink(module) else _DRIVERS.get(driver, driver)
        self.want(name, _text(path, "modalias").strip(), what)
        return name.replace("-", "_")

    def mappings(self) -> None:
        """Add the modules of device mapper that something uses, not only other modules: kinds of mappings, and choosers of paths."""
        for path in sorted(glob.glob(os.path.join(glob.escape(self.root), "sys/module/dm_*/refcnt"))):
            folder = os.path.dirname(path)
            used = _text(self.root, path).strip()
            if used.isdigit() and int(used) > len(glob.glob(os.path.join(glob.escape(folder), "holders/*"))):
                self.want(os.path.basename(folder), "", "device mapper")


def _mounts(root: str) -> list[tuple[str, str, str, str, str]]:
    """Each mount: the number of its device, where it is, type, source and options of its file system. Of two at "/" the last one counts."""
    found = []
    for line in _text(root, "proc/self/mountinfo").splitlines():
        fields = [re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field) for field in line.split(" ")]
        if "-" in fields[6:]:
            dash = fields.index("-", 6)
            found.append((fields[2], fields[4], fields[dash + 1], fields[dash + 2], fields[-1]))
    last = max((at for at, mount in enumerate(found) if mount[1] == "/"), default=-1)
    return [mount for at, mount in enumerate(found) if mount[1] != "/" or at == last]


def _crypttab(root: str) -> tuple[set[str], set[str]]:
    """The encrypted devices that a boot unlocks with a key file, and the others that it unlocks (crypttab(5)). A TPM may refuse after a
    kexec, which resets no PCR."""
    rows = [[*line.split(), "", "", ""] for line in _text(root, "etc/crypttab").splitlines() if line.split() and line.split()[0][0] != "#"]
    unlocked = {row[0] for row in rows if row[2].startswith("/")}
    return unlocked, {row[0] for row in rows if not {"noauto", "nofail"} & set(row[3].split(","))} - unlocked


def _has_key(root: str, mapping: str) -> bool:
    """Whether a boot finds a key file for this device by its name (crypttab(5))."""
    return os.path.exists(os.path.join(root, f"etc/cryptsetup-keys.d/{mapping}.key"))


def _open_disks(root: str) -> list[tuple[str, str]]:
    """The block devices that virtual machines have open: name, and place in sysfs."""
    found = {}
    for pid in _processes.pids(root):
        links = _processes.fd_links(pid, root)
        if _processes.VM_LINK not in links.values():
            continue
        for fd, link in links.items():
            number = _number(os.path.join(root, f"proc/{pid}/fd/{fd}")) if link.startswith("/dev/") else ""
            if number:
                found[link] = os.path.join(root, "sys/dev/block", number)
    return sorted(found.items())


def _number(path: str) -> str:
    """The number of a block device; empty if it is none."""
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    return f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}" if stat.S_ISBLK(seen.st_mode) else ""


def served(config: dict[str, str] | None, release: str, needed: list[dict], root: str = "/") -> list[dict]:
    """What a kernel has of these :func:`needs`, by its build configuration and the lists of its modules.

    Each need gets ``names``: the modules that serve it; ``builtin``: whether the kernel itself does; ``dropped``: whether the module is
    there, but does not support the device any more; and ``unsure``: whether nothing tells. Needs that cannot be judged are left out.
    """
    if not config:
        return []  # which is a reason by itself
    lists = _Lists(_modules.folder(release, root))
    found = []
    for need in needed:
        module, alias = need["module"], need["alias"]
        names, option = lists.serving(alias), OPTIONS.get(module, "")
        dropped = not names and module in lists.present and need["supported"] and lists.tells(module, alias)
        if not names and module in lists.present and not dropped:
            names = {module}
        builtin = bool(names & lists.builtin) or (not dropped and config.get(option) == "y")
        if names or builtin or need["known"] or option:
            unsure = not (names or builtin or option) and config.get("MODULES") != "y"
            found.append({**need, "names": sorted(names), "builtin": builtin, "dropped": dropped, "unsure": unsure})
    return found


class _Lists:
    """The lists of a kernel's modules: those that are ``present`` (files, and built in), those that are ``builtin``, and their aliases."""

    def __init__(self, place: str) -> None:
        self.builtin = _modules.names(_text(place, "modules.builtin").splitlines())
        self.present = _modules.listed(place) | self.builtin
        found = [line.split()[1:] for line in _text(place, "modules.alias").splitlines() if line.startswith("alias ")]
        for entry in _text(place, "modules.builtin.modinfo").split("\0"):
            key, _equals, pattern = entry.partition("=")
            if key.endswith(".alias"):
                found.append([pattern, key[: -len(".alias")]])
        # Tens of thousands. To compare their starts first is much quicker.
        self.aliases = [(re.split(r"[*?[]", pair[0])[0], pair[0], pair[1].replace("-", "_")) for pair in found if len(pair) == 2]

    def serving(self, alias: str) -> set[str]:
        """The modules that are present and have this alias."""
        from fnmatch import fnmatchcase

        return {
            name
            for start, pattern, name in self.aliases
            if alias and alias.startswith(start) and name in self.present and fnmatchcase(alias, pattern)
        }

    def tells(self, module: str, alias: str) -> bool:
        """Whether the lists say which devices of this bus the module supports. For built-in modules they may not."""
        bus = alias.partition(":")[0] + ":"
        return ":" in alias and any(name == module and pattern.startswith(bus) for _start, pattern, name in self.aliases)


def _text(*place: str) -> str:
    try:
        with open(os.path.join(*place), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
