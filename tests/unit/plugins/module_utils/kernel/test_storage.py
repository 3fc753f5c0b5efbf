# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which drivers the storage of a host needs, and whether a kernel has them."""

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _modules, _proof, _storage

RUNNING, TARGET = "7.2.13", "7.3.4"
CONFIG = {"MODULES": "y"}
MEGARAID = "pci:v00001000d0000005Dsv00001000sd00009361bc01sc04i00"
DISK = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/host0/target0:2:0/0:2:0:0/block/sda"


class Host:
    """Files and links below a directory: /proc, /sys, and the lists of the kernels' modules."""

    def __init__(self, path):
        self.path, self.mounts, self.files = path, [], {RUNNING: {}, TARGET: {}}
        self.put("proc/sys/kernel/osrelease", RUNNING)

    def put(self, path, content=""):
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{content}\n")

    def link(self, path, to):
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.path / to).mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.path / to, place.parent))

    def loaded(self, *names):
        for name in names:
            self.put(f"sys/module/{name}/initstate", "live")

    def modules(self, release, names=(), builtin=(), aliases="", modinfo=""):
        """What depmod and the build of a kernel list. Each name in ``names`` is a file too."""
        folder = self.path / "usr/lib/modules" / release
        (folder / "kernel").mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"kernel/{name}.ko.zst").touch()
        (folder / "modules.dep").write_text("".join(f"kernel/{name}.ko.zst:\n" for name in names))
        (folder / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
        (folder / "modules.alias").write_text("# Aliases\n" + "".join(f"alias {line}\n" for line in aliases.splitlines()))
        (folder / "modules.builtin.modinfo").write_text(modinfo.replace("\n", "\0"))

    def mount(self, number, point, kind, source, options="rw"):
        self.mounts.append(f"{20 + len(self.mounts)} 1 {number} / {point} rw,relatime shared:1 - {kind} {source} {options}\n")
        (self.path / "proc/self").mkdir(exist_ok=True)
        (self.path / "proc/self/mountinfo").write_text("".join(self.mounts))

    def disk(self, number, path):
        """A block device at this path in sysfs."""
        for place in (f"sys/dev/block/{number}", f"sys/class/block/{os.path.basename(path)}"):
            self.link(place, path)

    def driver(self, device, bus, driver, module, modalias=""):
        self.link(f"{device}/driver", f"sys/bus/{bus}/drivers/{driver}")
        if modalias:
            self.put(f"{device}/modalias", modalias)
        if module and not (self.path / f"sys/bus/{bus}/drivers/{driver}/module").exists():
            self.link(f"sys/bus/{bus}/drivers/{driver}/module", f"sys/module/{module}")

    def raid_controller(self):
        """A disk sda on a MegaRAID behind a bridge of PCI, with a partition sda1."""
        self.disk("8:0", DISK)
        self.disk("8:1", f"{DISK}/sda1")
        self.put(f"{DISK}/sda1/partition", "1")
        self.driver(os.path.dirname(os.path.dirname(DISK)), "scsi", "sd", "sd_mod", "scsi:t-0x00")
        self.driver("sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0", "pci", "megaraid_sas", "megaraid_sas", MEGARAID)
        self.driver("sys/devices/pci0000:00/0000:00:01.0", "pci", "pcieport", "pcieportdrv", "pci:v00008086d00001901bc06sc04i00")
        self.put("sys/devices/pci0000:00/0000:00:01.0/class", "0x060400")
        self.put("sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class", "0x010400")
        self.put("sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/host0/scsi_host/host0/proc_name", "megaraid_sas")
        self.loaded("sd_mod", "megaraid_sas", "pcieportdrv")

    def needs(self):
        return _storage.needs(str(self.path))

    def names(self, root=None):
        """The modules that are needed; ``root``: those that the root file system needs, or does not."""
        return sorted({need["module"] for need in self.needs() if root in (None, need["root"])})

    def lacking(self, config=None, inside=None):
        """What the new kernel lacks, in the reasons of the proof: pairs of code and verdict, and the text of all reasons."""
        contents = {"modules": {TARGET: list(inside)}, "systemd": ""} if inside else {}
        config = CONFIG if config is None else config
        facts = {
            "initrd": "/boot/initrd.img" if inside is not None else None,
            "fault": "",
            "contents": contents,
            "without": inside is None,
            "came_with_one": inside is not None,
            "needs": {"options": [], "root": [], "cards": []},
            "folder": _modules.folder(TARGET, str(self.path)),
            "absent": [],
            "storage": _storage.served(config, TARGET, self.needs(), str(self.path)),
        }
        target = {"release": TARGET, "config": {**config, "KVM": "y"}, "boot": facts}
        reasons = _proof._starts(target, "it") + _proof._has_storage(target, "it")
        return [(why["code"], why["verdict"]) for why in reasons], " ".join(f"{why['message']} -> {why['remedy']}" for why in reasons)


@pytest.fixture(name="host")
def a_host(tmp_path):
    return Host(tmp_path)


REFUSED = [("storage-driver", "refused")]


def test_a_kernel_that_has_kvm_alone(host):
    """The root file system on a RAID controller, guests on ZFS and XFS: the first kernel was called proven."""
    host.raid_controller()
    host.loaded("ext4", "xfs", "zfs")
    host.mount("8:1", "/", "ext4", "/dev/sda1")
    host.mount("8:0", "/srv/guests", "xfs", "/dev/sda")
    host.mount("0:50", "/tank", "zfs", "tank")
    assert host.names(root=True) == ["ext4", "megaraid_sas", "sd_mod"]
    assert host.names(root=False) == ["xfs", "zfs"]
    host.modules(TARGET, ["kvm", "kvm-intel"])
    told, text = host.lacking({**CONFIG, "EXT4_FS": "y", "BLK_DEV_SD": "y"}, inside=["ext4"])
    assert told == REFUSED
    assert "megaraid_sas (sda1 of /), xfs (/srv/guests), zfs (/tank). They are neither in" in text and "dkms autoinstall -k 7.3.4" in text
    host.modules(TARGET, ["kvm", "megaraid_sas", "xfs", "zfs", "ext4", "sd_mod"])
    assert host.lacking(inside=["ext4", "sd_mod", "megaraid_sas"]) == ([], "")


def test_what_the_root_file_system_needs_has_to_be_in_the_initial_ram_disk(host):
    host.raid_controller()
    host.loaded("zfs")
    host.mount("0:50", "/", "zfs", "rpool/ROOT/pve-1")
    host.put("run/udev/data/b8:1", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=rpool")
    host.modules(TARGET, ["zfs", "megaraid_sas", "sd_mod"])
    assert host.names(root=True) == ["megaraid_sas", "sd_mod", "zfs"]
    told, text = host.lacking(inside=["ext4", "zfs"])
    assert told == [("root-driver", "refused")] and "lacks the modules megaraid_sas, sd_mod, which" in text
    assert host.lacking(inside=["zfs", "megaraid_sas", "sd_mod"]) == ([], "")
    assert host.lacking(inside=[]) == ([], "")  # it cannot be read
    told, text = host.lacking()
    assert told == [("root-driver", "refused")] and "no initial RAM disk and no built-in drivers megaraid_sas, sd_mod, zfs" in text
    host.modules(TARGET, builtin=["zfs", "megaraid_sas", "sd_mod"])
    assert host.lacking() == host.lacking(inside=["ext4"]) == ([], "")


def test_another_pool_s_disks_are_not_the_root_s(host):
    host.raid_controller()
    host.loaded("zfs", "ahci")
    host.disk("8:16", "sys/devices/pci0000:00/0000:00:02.0/ata1/host1/target1:0:0/1:0:0:0/block/sdb")
    host.driver("sys/devices/pci0000:00/0000:00:02.0", "pci", "ahci", "ahci")
    host.put("run/udev/data/b8:1", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=rpool")
    host.put("run/udev/data/b8:16", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank")
    host.mount("0:50", "/", "zfs", "rpool/ROOT/pve-1")
    assert host.names() == ["megaraid_sas", "sd_mod", "zfs"]
    host.mount("0:51", "/tank", "zfs", "tank/guests")
    assert host.names(root=False) == ["ahci"]


def test_what_is_loaded_from_the_initial_ram_disk_is_there_for_all(host):
    host.raid_controller()
    host.mount("8:1", "/", "tmpfs", "tmpfs")
    host.mount("8:0", "/srv", "tmpfs", "tmpfs")
    host.modules(TARGET)
    assert host.lacking(inside=["sd_mod", "megaraid_sas"]) == ([], "")


def test_a_driver_of_another_name_for_the_same_device(host):
    host.raid_controller()
    host.mount("8:1", "/srv", "ext4", "/dev/sda1")
    host.modules(RUNNING, ["megaraid_sas"], aliases="pci:v00001000d0000005Dsv*sd*bc*sc*i* megaraid_sas")
    host.modules(TARGET, ["mega-raid", "sd_mod", "ext4"], aliases="pci:v00001000d0000005Dsv*sd*bc*sc*i* mega-raid")
    assert host.lacking(inside=[]) == ([], "")
    host.modules(TARGET, ["sd_mod", "ext4"], aliases="pci:v00001000d0000005Dsv*sd*bc*sc*i* mega-raid")  # the file is not there
    assert host.lacking(inside=[])[0] == REFUSED


def test_a_driver_that_no_longer_supports_the_device(host):
    """Distributions take old devices away from a driver."""
    host.raid_controller()
    host.mount("8:1", "/srv", "ext4", "/dev/sda1")
    aliases = "pci:v00001000d0000005Dsv*sd*bc*sc*i* megaraid_sas\n"
    host.modules(RUNNING, ["megaraid_sas"], aliases=aliases)
    host.modules(TARGET, ["megaraid_sas", "sd_mod", "ext4"], aliases="pci:v00001000d000000E1sv*sd*bc*sc*i* megaraid_sas")
    told, text = host.lacking(inside=["megaraid_sas"])
    assert told == REFUSED and "do not support devices of this host any more: megaraid_sas (sda1 of /srv)" in text
    # Without an alias for PCI the lists do not tell.
    host.modules(TARGET, ["megaraid_sas", "sd_mod", "ext4"], aliases="fs-x x")
    assert host.lacking(inside=[]) == ([], "")
    # An operator has told the running driver to take the device (new_id in sysfs): neither kernel lists that.
    host.modules(RUNNING, ["megaraid_sas"])
    host.modules(TARGET, ["megaraid_sas", "sd_mod", "ext4"], aliases="pci:v00001000d000000E1sv*sd*bc*sc*i* megaraid_sas")
    assert host.lacking(inside=[]) == ([], "")


def test_a_driver_that_is_built_in(host):
    host.raid_controller()
    host.loaded("zfs")
    host.mount("8:1", "/tank", "zfs", "tank")
    host.put("run/udev/data/b8:1", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank")
    host.modules(TARGET, builtin=["scsi/megaraid_sas", "sd_mod", "pool"], modinfo="pool.alias=fs-zfs\npool.license=CDDL\n")
    assert host.lacking(inside=[]) == ([], "")
    host.modules(TARGET, builtin=["scsi/megaraid_sas", "pool"])
    told, text = host.lacking(inside=[])
    assert told == REFUSED and "sd_mod (sda1 of /tank), zfs (/tank)" in text
    host.modules(TARGET, builtin=["megaraid_sas", "zfs"])
    assert host.lacking({**CONFIG, "BLK_DEV_SD": "y"}, inside=[]) == ([], "")


def test_a_built_in_driver_that_no_list_has_is_not_judged(host):
    """A bool of Kconfig has no entry in modules.builtin. Its driver may have a link to a module all the same."""
    block = "sys/devices/platform/soc/flash0/block/flash0"
    host.disk("31:0", block)
    host.driver("sys/devices/platform/soc/flash0", "platform", "flash", "flash_core", "platform:flash")
    host.driver("sys/devices/platform/soc", "platform", "bus", "")
    host.mount("31:0", "/srv", "ext4", "/dev/flash0")
    host.modules(RUNNING, builtin=["ext4"])
    host.modules(TARGET, builtin=["ext4"])
    assert host.lacking(inside=[]) == ([], "")
    host.modules(RUNNING, builtin=["ext4", "flash_core"])
    assert host.lacking(inside=[])[0] == REFUSED


def test_a_driver_without_a_link_to_its_module(host):
    host.disk("254:0", "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda")
    host.driver("sys/devices/pci0000:00/0000:00:02.0/virtio1", "virtio", "virtio_blk", "", "virtio:d00000002v00001AF4")
    host.driver("sys/devices/pci0000:00/0000:00:02.0", "pci", "virtio-pci", "", "pci:v00001AF4d00001042")
    host.mount("254:0", "/srv", "ext4", "/dev/vda")
    assert host.names() == ["ext4", "virtio_blk", "virtio_pci"]
    assert host.lacking({"MODULES": "n", "EXT4_FS": "y", "VIRTIO_BLK": "y", "VIRTIO_PCI": "y"}) == ([], "")
    assert host.lacking({"MODULES": "n", "EXT4_FS": "y", "VIRTIO_BLK": "y", "VIRTIO_PCI": "n"})[0] == REFUSED


def test_a_kernel_without_modules_is_judged_by_its_configuration(host):
    host.raid_controller()
    host.loaded("zfs", "xfs")
    host.mount("8:1", "/srv", "xfs", "/dev/sda1")
    whole = {"MODULES": "n", "XFS_FS": "y", "MEGARAID_SAS": "y", "BLK_DEV_SD": "y"}
    assert host.lacking(whole) == ([], "")
    assert host.lacking({**whole, "MEGARAID_SAS": "n"})[0] == REFUSED
    host.mount("0:50", "/tank", "zfs", "tank")
    told, text = host.lacking(whole)
    assert told == [("storage-driver", "unknown")] and "without modules" in text and "zfs (/tank)" in text
    assert host.lacking({}) == ([], "")  # a configuration that cannot be read is a reason by itself


def test_below_mappings_and_raid(host):
    """LVM on LUKS on a RAID of a disk of virtio and one of the controller, each with a partition."""
    host.raid_controller()
    host.disk("253:1", "sys/devices/virtual/block/dm-1")
    for name, identity, part in (("dm-1", "LVM-x", "dm-0"), ("dm-0", "CRYPT-LUKS2-x", "md0")):
        host.put(f"sys/devices/virtual/block/{name}/dm/uuid", identity)
        host.link(f"sys/devices/virtual/block/{name}/slaves/{part}", f"sys/devices/virtual/block/{part}")
    host.put("sys/devices/virtual/block/md0/md/level", "raid5")
    host.link("sys/devices/virtual/block/md0/slaves/sda1", f"{DISK}/sda1")
    other = "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda"
    host.link("sys/devices/virtual/block/md0/slaves/vda1", f"{other}/vda1")
    host.put(f"{other}/vda1/partition", "1")
    host.driver("sys/devices/pci0000:00/0000:00:02.0/virtio1", "virtio", "virtio_blk", "virtio_blk")
    host.mount("253:1", "/", "xfs", "/dev/mapper/vg-root")
    assert host.names(root=True) == ["dm_crypt", "dm_mod", "md_mod", "megaraid_sas", "raid456", "sd_mod", "virtio_blk", "xfs"]


@pytest.mark.parametrize(
    ("identity", "name", "module"),
    [
        ("LVM-x-tpool", "vg-pool-tpool", "dm_thin_pool"),
        ("LVM-x-corig", "vg-root_corig", "dm_cache"),
        ("LVM-x-cvol", "vg-fast_cvol-cdata", "dm_cache"),
        ("LVM-x-real", "vg-root-real", "dm_snapshot"),
        ("LVM-x", "vg-root_rimage_0", "dm_raid"),
        ("LVM-x", "vg-root_mimage_1", "dm_mirror"),
        ("LVM-x", "vg-real", ""),
        ("CRYPT-LUKS2-x-cow", "x", ""),
    ],
)
def test_a_root_file_system_on_a_volume_that_is_not_plain(host, identity, name, module):
    """The module has to be in the initial RAM disk. That of a volume of the guests does not."""
    for number, point, volume, part in (("253:0", "/", "dm-0", "dm-1"), ("253:2", "/srv", "dm-2", "dm-3")):
        host.disk(number, f"sys/devices/virtual/block/{volume}")
        host.put(f"sys/devices/virtual/block/{volume}/dm/uuid", "LVM-y")
        host.link(f"sys/devices/virtual/block/{volume}/slaves/{part}", f"sys/devices/virtual/block/{part}")
        host.mount(number, point, "xfs", f"/dev/mapper/{volume}")
    for part, told in (("dm-1", (identity, name)), ("dm-3", ("LVM-z-cow", "vg-srv-cow"))):
        host.put(f"sys/devices/virtual/block/{part}/dm/uuid", told[0])
        host.put(f"sys/devices/virtual/block/{part}/dm/name", told[1])
    named = {found for found in host.names(root=True) if found not in ("dm_mod", "dm_crypt", "xfs")}
    assert named == ({module} if module else set())
    assert "dm_snapshot" in host.names()
    host.modules(TARGET, ["dm_mod", "dm_crypt", "dm_snapshot", "xfs", *([module] if module else [])])
    host.loaded("dm_mod", "dm_crypt", "dm_snapshot", "xfs", *([module] if module else []))
    assert host.lacking(inside=["dm_mod", "dm_crypt", "xfs"])[0] == ([("root-driver", "refused")] if module else [])


@pytest.mark.parametrize(
    ("identity", "crypttab", "locked"),
    [
        ("CRYPT-LUKS2-x", "", "at /"),
        ("CRYPT-LUKS2-x", "root_crypt UUID=1 none luks", True),
        ("CRYPT-LUKS2-x", "# root_crypt UUID=1 /etc/keys/root.key luks", "at /"),
        ("CRYPT-LUKS2-x", "root_crypt UUID=1 none luks,noauto", "at /"),
        ("CRYPT-LUKS2-x", "root_crypt UUID=1 none nofail", "at /"),
        ("CRYPT-LUKS2-x", "root_crypt UUID=1", True),
        ("CRYPT-LUKS2-x", "root_crypt UUID=1 - tpm2-device=auto", True),
        ("CRYPT-LUKS2-x", "other UUID=1 /etc/keys/root.key", "at /"),
        ("CRYPT-LUKS2-x", "other UUID=2 none\nroot_crypt UUID=1 /etc/keys/root.key luks", False),
        ("CRYPT-VERITY-x", "", False),
        ("LVM-x", "", False),
    ],
)
@pytest.mark.parametrize("point", ["/", "/srv"])
def test_an_encrypted_disk_without_a_key_file_is_locked_after_the_jump(host, identity, crypttab, locked, point):
    """A boot asks for no disk but the root that crypttab does not name, or that somebody unlocks by hand."""
    host.disk("253:0", "sys/devices/virtual/block/dm-0")
    host.put("sys/devices/virtual/block/dm-0/dm/uuid", identity)
    host.put("sys/devices/virtual/block/dm-0/dm/name", "root_crypt")
    host.put("etc/crypttab", crypttab)
    host.mount("253:0", point, "xfs", "/dev/mapper/root_crypt")
    told = [need["locked"] for need in host.needs() if "locked" in need]
    assert told == ([{"root_crypt": f"dm-0 of {point}"}] if locked is True or (locked and point == "/") else [])
    kept = _storage.served(CONFIG, TARGET, host.needs(), str(host.path))
    assert [need["locked"] for need in kept if "locked" in need] == told


def test_what_an_encrypted_disk_is_for_is_the_root_first(host):
    """A key on the command line of the kernel is for the root, whatever else is on its disk."""
    host.disk("253:0", "sys/devices/virtual/block/dm-0")
    host.put("sys/devices/virtual/block/dm-0/dm/uuid", "CRYPT-LUKS2-x")
    host.put("sys/devices/virtual/block/dm-0/dm/name", "pv")
    host.put("etc/crypttab", "pv UUID=1 none\n")
    for point in ("/", "/home"):
        host.mount("253:0", point, "xfs", "/dev/mapper/pv")
    assert [need["locked"] for need in host.needs() if "locked" in need] == [{"pv": "dm-0 of /"}]
    host.put("etc/cryptsetup-keys.d/pv.key", "key")
    assert not [need for need in host.needs() if "locked" in need]


def test_multipath_and_its_choosers_of_paths(host):
    host.raid_controller()
    host.put("sys/devices/virtual/block/dm-3/dm/uuid", "mpath-36001")
    host.put("sys/devices/virtual/block/dm-3/dm/name", "mpatha")
    host.link("sys/devices/virtual/block/dm-3/slaves/sda", DISK)
    host.disk("253:3", "sys/devices/virtual/block/dm-3")
    for name, used, held_by in (("dm_service_time", 1, []), ("dm_round_robin", 0, []), ("dm_bufio", 1, ["dm_thin_pool"])):
        host.put(f"sys/module/{name}/refcnt", used)
        for holder in held_by:
            host.link(f"sys/module/{name}/holders/{holder}", f"sys/module/{holder}")
    host.mount("0:40", "/srv", "btrfs", "/dev/mapper/mpatha")
    (host.path / "dev/mapper").mkdir(parents=True)
    (host.path / "dev/mapper/mpatha").touch()
    assert host.names() == ["btrfs", "dm_mod", "dm_multipath", "dm_service_time", "megaraid_sas", "sd_mod"]


def test_a_file_system_on_several_devices(host):
    """It has no number of a device, and names one of them."""
    host.raid_controller()
    host.disk("254:0", "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda")
    host.driver("sys/devices/pci0000:00/0000:00:02.0/virtio1", "virtio", "virtio_blk", "virtio_blk")
    for name in ("sda1", "vda"):
        host.link(f"sys/fs/btrfs/aa-bb/devices/{name}", f"sys/class/block/{name}")
    host.mount("0:40", "/", "btrfs", "/dev/vda")
    assert host.names(root=True) == ["btrfs", "megaraid_sas", "sd_mod", "virtio_blk"]


@pytest.mark.parametrize("multipath", [False, True])
def test_nvme(host, multipath):
    card = "sys/devices/pci0000:00/0000:00:03.0/nvme/nvme0"
    host.driver("sys/devices/pci0000:00/0000:00:03.0", "pci", "nvme", "nvme", "pci:v0000144Dd0000A808")
    host.put(f"{card}/transport", "pcie")
    disk = "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1" if multipath else f"{card}/nvme0n1"
    host.disk("259:0", disk)
    if multipath:
        remote = "sys/devices/virtual/nvme-fabrics/ctl/nvme1"
        host.put(f"{remote}/transport", "tcp")
        for link, to in (("nvme0", card), ("nvme1", remote)):
            host.link(f"sys/devices/virtual/nvme-subsystem/nvme-subsys0/{link}", to)
    host.mount("259:0", "/srv", "xfs", "/dev/nvme0n1")
    assert host.names() == (["nvme", "nvme_tcp", "xfs"] if multipath else ["nvme", "xfs"])


def test_a_host_of_scsi_without_a_device(host):
    host.disk("8:16", "sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sdb")
    host.driver("sys/devices/platform/host2/session1/target2:0:0/2:0:0:1", "scsi", "sd", "sd_mod", "scsi:t-0x00")
    host.put("sys/devices/platform/host2/scsi_host/host2/proc_name", "iscsi-tcp")
    host.mount("8:16", "/srv", "gfs2", "/dev/sdb")
    assert host.names() == ["gfs2", "sd_mod"]
    host.loaded("iscsi_tcp")
    assert host.names() == ["gfs2", "iscsi_tcp", "sd_mod"]


@pytest.mark.parametrize(
    ("kind", "source", "options", "names"),
    [
        ("nfs4", "server:/srv", "rw,vers=4.2", ["nfs", "nfsv4"]),
        ("nfs", "server:/srv", "rw,vers=3,nolock", ["nfs", "nfsv3"]),
        ("ceph", "192.0.2.1:6789:/", "rw", ["ceph"]),
        ("fuse.glusterfs", "server:/vol", "rw", ["fuse"]),
        ("ext3", "/dev/none", "rw", ["ext4"]),
        ("lustre", "mgs@tcp:/fs", "rw", ["lustre"]),
        ("tmpfs", "tmpfs", "rw", []),
        ("overlay", "overlay", "rw", []),
        ("squashfs", "/dev/loop0", "ro", []),
    ],
)
def test_file_systems_without_a_device(host, kind, source, options, names):
    host.mount("0:60", "/srv", kind, source, options)
    assert host.names() == names


def test_what_a_login_mounts_does_not_count(host):
    host.mount("0:61", "/run/user/1000/doc", "fuse.portal", "portal")
    assert host.names() == []


def test_a_type_of_which_nothing_is_known_is_not_judged(host):
    host.mount("0:60", "/srv", "gpfs", "gpfs1")
    host.modules(TARGET)
    assert host.lacking(inside=[]) == ([], "")


def test_the_root_file_system_on_nfs(host):
    host.loaded("nfs", "nfsv4")
    host.mount("0:20", "/", "rootfs", "rootfs")
    host.mount("0:21", "/", "nfs4", "server:/root", "rw,vers=4.1")
    assert host.names(root=True) == ["nfs", "nfsv4"]
    host.modules(TARGET, ["nfs", "nfsv4"])
    assert host.lacking(inside=["nfs", "nfsv4", "e1000e"]) == ([], "")
    assert host.lacking(inside=["nfs", "e1000e"])[0] == [("root-driver", "refused")]
    assert host.lacking({"MODULES": "y", "NFS_FS": "y", "NFS_V4": "y"}) == ([], "")


@pytest.mark.parametrize("root", ["nfs", "iscsi"])
def test_the_network_card_of_a_root_file_system_on_a_server(host, root):
    """Its driver has to be in the initial RAM disk. A card without a link, and a root on a disk, need none there."""
    for name, slot, state in (("eth0", "03", "up"), ("eth1", "04", "down")):
        card = f"sys/devices/pci0000:00/0000:00:{slot}.0"
        host.link(f"sys/class/net/{name}", f"{card}/net/{name}")
        host.put(f"{card}/net/{name}/operstate", state)
        host.link(f"{card}/net/{name}/device", card)
        host.driver(card, "pci", f"driver-{name}", f"driver_{name}", f"pci:v000015B3d000010{slot}")
    host.loaded("nfs", "xfs", "sd_mod", "iscsi_tcp", "driver_eth0", "driver_eth1")
    if root == "nfs":
        host.mount("0:21", "/", "nfs", "server:/root")
    else:
        host.disk("8:16", "sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sdb")
        host.driver("sys/devices/platform/host2/session1/target2:0:0/2:0:0:1", "scsi", "sd", "sd_mod", "scsi:t-0x00")
        host.put("sys/devices/platform/host2/scsi_host/host2/proc_name", "iscsi-tcp")
        host.mount("8:16", "/", "xfs", "/dev/sdb")
    there = ["nfs"] if root == "nfs" else ["iscsi_tcp", "sd_mod", "xfs"]
    assert host.names(root=True) == sorted(["driver_eth0", *there])
    host.modules(TARGET, ["driver_eth0", *there])
    told, text = host.lacking(inside=there)
    assert told == [("root-driver", "refused")] and "lacks the modules driver_eth0, which the root file system" in text
    assert host.lacking(inside=["driver_eth0", *there]) == ([], "")


def test_a_disk_that_a_guest_has_open(host, monkeypatch):
    """It is mounted nowhere."""
    host.raid_controller()
    for fd, path in (("9", "anon_inode:kvm-vm"), ("11", "/dev/disk/by-id/wwn-1"), ("12", "/srv/x.img"), ("13", "/dev/net/tun")):
        (host.path / "proc/77/fd").mkdir(parents=True, exist_ok=True)
        (host.path / "proc/77/fd" / fd).symlink_to(path)
    (host.path / "proc/78/fd").mkdir(parents=True)
    (host.path / "proc/78/fd/3").symlink_to("/dev/vdz")
    monkeypatch.setattr(_storage, "_number", lambda path: {"11": "8:0", "3": "254:0"}.get(os.path.basename(path), ""))
    assert _processes.VM_LINK == "anon_inode:kvm-vm"
    found = host.needs()
    assert [need["module"] for need in found] == ["megaraid_sas", "sd_mod"]
    assert {need["what"] for need in found} == {"/dev/disk/by-id/wwn-1, a disk of a guest"} and not any(need["root"] for need in found)


def test_a_volume_of_zfs_that_a_guest_has_open(host, monkeypatch):
    host.raid_controller()
    host.disk("230:0", "sys/devices/virtual/block/zd0")
    host.put("run/udev/data/b8:1", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank")
    (host.path / "proc/77/fd").mkdir(parents=True)
    for fd, path in (("9", "anon_inode:kvm-vm"), ("11", "/dev/zd0")):
        (host.path / "proc/77/fd" / fd).symlink_to(path)
    monkeypatch.setattr(_storage, "_number", lambda _path: "230:0")
    assert host.names() == ["megaraid_sas", "sd_mod", "zfs"]


def test_the_number_of_a_block_device(tmp_path):
    assert _storage._number(str(tmp_path)) == _storage._number(str(tmp_path / "none")) == ""


def test_this_machine():
    """Whatever it runs on: the look reads it, and a kernel with all that it uses lacks nothing."""
    found = _storage.needs()
    config = dict.fromkeys(_storage.OPTIONS.values(), "y")
    unknown = [need["module"] for need in found if need["module"] not in _storage.OPTIONS]
    assert [need["module"] for need in _storage.served(config, "none", found) if not need["builtin"]] == [
        name for name in unknown if any(need["known"] for need in found if need["module"] == name)
    ]
