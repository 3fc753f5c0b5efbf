# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import gzip
import itertools
import os
import random
import struct

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image, _proof, _running
from archives import cpio

CONFIG = {"KEXEC_FILE": "y", "KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y", "KVM": "m", "RD_GZIP": "y"}
ABI = {"kho": "kho-v4", "luo": "luo-v5", "memfd": "memfd-v2"}
BUILD_ID = bytes(range(20))
NOTE = struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID
RUNNING = {
    "path": "/boot/vmlinuz-7.2.13",
    "kind": "bzImage",
    "arch": "x86_64",
    "release": "7.2.13",
    "version": "#1 SMP PREEMPT Thu",
    "above_4g": True,
    "init_size": 60 << 20,
    "page_size": 4096,
    "signed": False,
    "abi": ABI,
    "build_id": BUILD_ID.hex(),
    "build_ids": [BUILD_ID.hex()],
    "config": CONFIG,
    "config_source": "image",
    "cmdline": "root=/dev/vda1 kho=on liveupdate=on",
    "lockdown": None,
    "memory": 2 << 30,
    "scratch": [96 << 20, 64 << 20],
    "unread": {},
}
TARGET = {
    **{key: value for key, value in RUNNING.items() if key not in ("build_id", "lockdown", "memory", "scratch")},
    "path": "/boot/vmlinuz-7.3.4",
    "release": "7.3.4",
    "sha256": "ab" * 32,
    "initrd_size": 30 << 20,
}
PAIR = "000102030405-abababababab"
# debugfs of a 7.2.13 kernel: kho/out/fdt, cut off at the size that the tree had early, and kho/out/sub_fdts/LUO.
FDT = bytes.fromhex(
    "d00dfeed0000011d00000038000000e40000002800000011000000100000000000000039000000ac0000000000000000000000000000000000000001"
    "00000000000000030000000700000015"
    "6b686f2d763400000000000300000008000000000000a0090100000000000000000000014c554f00000000030000000800"
)
LUO = bytes.fromhex("6c756f2d7635000001000000000000000000000000000000006081810100000000")


def change(side, **changes):
    """The side with other values; None for an option of ``config`` takes it away."""
    changed = copy.deepcopy(side)
    for key, value in changes.items():
        if isinstance(changed.get(key), dict) and isinstance(value, dict):
            changed[key].update(value)
            changed[key] = {name: one for name, one in changed[key].items() if one is not None or key == "abi"}
        else:
            changed[key] = value
    return changed


def outcome(way):
    return way["verdict"], [reason["code"] for reason in way["reasons"]]


def message(way, code):
    found = next(reason for reason in way["reasons"] if reason["code"] == code)
    assert set(found) == {"code", "message", "remedy", "verdict"}
    return f"{found['message']} -> {found['remedy']}"


def test_two_kernels_that_speak_the_same_are_proven_both_ways():
    assert _proof.compare(RUNNING, TARGET) == {
        "pair": PAIR,
        "there": {"verdict": "proven", "reasons": []},
        "back": {"verdict": "proven", "reasons": []},
    }


HERE, THERE = "the running kernel 7.2.13", "kernel /boot/vmlinuz-7.3.4"
REBOOT = "or migrate or shut down the guests and update this host with an ordinary reboot"
NEEDED = f"use a kernel with CONFIG_KEXEC_HANDOVER=y, CONFIG_LIVEUPDATE=y and CONFIG_LIVEUPDATE_MEMFD=y, {REBOOT}"
CMDLINE = "to it; the playbook kvm.liveupdate.setup does this for the kernels that the host boots"
KEEP = "keep the image of the running kernel in /boot, mount debugfs, and use an image that contains one string of each kind"


@pytest.mark.parametrize(
    ("changes", "there", "back"),
    [
        (
            {"abi": {"kho": "kho-v5"}},
            (
                "refused",
                "abi-kho",
                f"{HERE} preserves memory in the format kho-v4, but {THERE} reads only kho-v5: it boots as if nothing was preserved, and"
                f" every guest is lost without an error -> use a kernel with kho-v4, {REBOOT}",
            ),
            (
                "refused",
                "abi-kho",
                f"{THERE} preserves memory in the format kho-v5, but {HERE} reads only kho-v4: it boots as if nothing was preserved, and"
                f" every guest is lost without an error -> use a kernel with kho-v5, {REBOOT}",
            ),
        ),
        (
            {"abi": {"luo": "luo-v6"}},
            (
                "refused",
                "abi-luo",
                f"{HERE} preserves memory in the format luo-v5, but {THERE} reads only luo-v6: it panics while it boots, and every guest"
                f" is lost -> use a kernel with luo-v5, {REBOOT}",
            ),
            (
                "refused",
                "abi-luo",
                f"{THERE} preserves memory in the format luo-v6, but {HERE} reads only luo-v5: it panics while it boots, and every guest"
                f" is lost -> use a kernel with luo-v6, {REBOOT}",
            ),
        ),
        (
            {"abi": {"memfd": "memfd-v3"}},
            (
                "refused",
                "abi-memfd",
                f"{HERE} preserves memory in the format memfd-v2, but {THERE} reads only memfd-v3: it boots, but every open of"
                f" /dev/liveupdate fails with EIO: no guest can get its memory back -> use a kernel with memfd-v2, {REBOOT}",
            ),
            (
                "refused",
                "abi-memfd",
                f"{THERE} preserves memory in the format memfd-v3, but {HERE} reads only memfd-v2: it boots, but every open of"
                f" /dev/liveupdate fails with EIO: no guest can get its memory back -> use a kernel with memfd-v3, {REBOOT}",
            ),
        ),
        (
            {"abi": dict.fromkeys(ABI), "config": {"KEXEC_HANDOVER": "n", "LIVEUPDATE": None, "LIVEUPDATE_MEMFD": None}},
            (
                "refused",
                "kexec-handover-off",
                f"{THERE} is built without KEXEC_HANDOVER (its configuration has no CONFIG_KEXEC_HANDOVER=y): it ignores the preserved"
                f" memory, and every guest is lost without an error -> {NEEDED}",
            ),
            (
                "refused",
                "kexec-handover-off",
                f"{THERE} is built without KEXEC_HANDOVER (its configuration has no CONFIG_KEXEC_HANDOVER=y): it cannot preserve memory"
                f" -> {NEEDED}",
            ),
        ),
        (
            {"abi": {"luo": None, "memfd": None}, "config": {"LIVEUPDATE": "n", "LIVEUPDATE_MEMFD": None}},
            (
                "refused",
                "liveupdate-off",
                f"{THERE} is built without LIVEUPDATE (its configuration has no CONFIG_LIVEUPDATE=y): it boots, but nothing can use or"
                f" free the preserved memory: every guest is lost -> {NEEDED}",
            ),
            (
                "refused",
                "liveupdate-off",
                f"{THERE} is built without LIVEUPDATE (its configuration has no CONFIG_LIVEUPDATE=y): it cannot preserve memory ->"
                f" {NEEDED}",
            ),
        ),
        (
            {"abi": {"memfd": None}, "config": {"LIVEUPDATE_MEMFD": "n"}},
            (
                "refused",
                "liveupdate-memfd-off",
                f"{THERE} is built without LIVEUPDATE_MEMFD (its configuration has no CONFIG_LIVEUPDATE_MEMFD=y): it boots, but every"
                f" open of /dev/liveupdate fails with EIO: no guest can get its memory back -> {NEEDED}",
            ),
            (
                "refused",
                "liveupdate-memfd-off",
                f"{THERE} is built without LIVEUPDATE_MEMFD (its configuration has no CONFIG_LIVEUPDATE_MEMFD=y): it cannot preserve"
                f" memory -> {NEEDED}",
            ),
        ),
        # The first kernels with live update had no option of its own for memfd.
        ({"config": {"LIVEUPDATE_MEMFD": None}}, None, None),
        (
            {"abi": {"memfd": None}, "config": {"LIVEUPDATE_MEMFD": None}},
            ("refused", "liveupdate-memfd-off", None),
            ("refused", "liveupdate-memfd-off", None),
        ),
        (
            {"abi": {"luo": None}},
            (
                "unknown",
                "abi-luo-unread",
                f"the luo format version of {THERE} is unknown: CONFIG_LIVEUPDATE is on, but it contains no string luo-vN -> {KEEP}",
            ),
            ("unknown", "abi-luo-unread", None),
        ),
        (
            {"abi": {"kho": None}, "unread": {"kho": "several strings kho-vN are in it: kho-v3, kho-v4"}},
            (
                "unknown",
                "abi-kho-unread",
                f"the kho format version of {THERE} is unknown: several strings kho-vN are in it: kho-v3, kho-v4 -> {KEEP}",
            ),
            ("unknown", "abi-kho-unread", None),
        ),
        (
            {"cmdline": "root=/dev/vda1 liveupdate=on"},
            (
                "refused",
                "cmdline-kho",
                f"the command line of {THERE} lacks kho=on: this kernel ignores the preserved memory, and every guest is lost -> add"
                f" kho=on {CMDLINE}",
            ),
            (
                "refused",
                "cmdline-kho",
                f"the command line of {THERE} lacks kho=on: this kernel cannot preserve memory -> add kho=on {CMDLINE}",
            ),
        ),
        (
            {"cmdline": "kho=on liveupdate=off"},
            (
                "refused",
                "cmdline-liveupdate",
                f"the command line of {THERE} lacks liveupdate=on: this kernel has no /dev/liveupdate, so no guest can get its memory"
                f" back -> add liveupdate=on {CMDLINE}",
            ),
            ("refused", "cmdline-liveupdate", None),
        ),
        (
            {"config": {"CMDLINE_OVERRIDE": "y", "CMDLINE_BOOL": "y", "CMDLINE": "root=/dev/vda1 liveupdate=on"}},
            (
                "refused",
                "cmdline-kho",
                f"the command line of {THERE} lacks kho=on: this kernel ignores the preserved memory, and every guest is lost -> use a"
                " kernel without a fixed command line (CONFIG_CMDLINE_OVERRIDE, CONFIG_CMDLINE_FORCE)",
            ),
            ("refused", "cmdline-kho", None),
        ),
        ({"config": {"CMDLINE_BOOL": "y", "CMDLINE": "kho=on liveupdate=on"}, "cmdline": "root=/dev/vda1"}, None, None),
        ({"config": {"CMDLINE_BOOL": "y", "CMDLINE": "quiet"}}, None, None),
        (
            {"cmdline": None},
            (
                "unknown",
                "cmdline-unread",
                f"the command line of {THERE} is unknown -> give its command line (hypervisor_update_cmdline)",
            ),
            ("unknown", "cmdline-unread", None),
        ),
        (
            {"arch": "aarch64"},
            ("refused", "arch", f"{THERE} is for aarch64, but {HERE} is for x86_64 -> use a kernel for x86_64"),
            ("refused", "arch", f"{HERE} is for x86_64, but {THERE} is for aarch64 -> use a kernel for aarch64"),
        ),
        (
            {"arch": None},
            ("unknown", "arch-unread", f"the architecture of {THERE} is unknown -> use a kernel image that can be read"),
            ("unknown", "arch-unread", f"the architecture of {THERE} is unknown -> use a kernel image that can be read"),
        ),
        (
            {"page_size": 65536},
            (
                "refused",
                "page-size",
                f"{THERE} has pages of 65536 bytes, but {HERE} has pages of 4096: it would misread the memory -> use a kernel with pages"
                " of 4096 bytes",
            ),
            ("refused", "page-size", None),
        ),
        (
            {"page_size": None},
            ("unknown", "page-size-unread", f"the page size of {THERE} is unknown -> use the bootable image, not a vmlinux"),
            ("unknown", "page-size-unread", None),
        ),
        (
            {"above_4g": False},
            (
                "refused",
                "not-relocatable",
                f"{THERE} cannot be loaded above 4 GiB (its boot header says so), so kexec_file_load refuses it -> use a 64-bit kernel"
                " with CONFIG_RELOCATABLE=y",
            ),
            None,
        ),
        (
            {"kind": "vmlinux", "above_4g": None},
            (
                "refused",
                "image-kind",
                f"{THERE} is of the kind vmlinux, which kexec_file_load does not accept -> use the bzImage or arm64 Image that was built"
                " from it",
            ),
            None,
        ),
        (
            {"kind": "uki"},
            (
                "refused",
                "image-kind",
                f"{THERE} is of the kind uki, which kexec_file_load does not accept -> extract its kernel ('objcopy -O binary"
                " --only-section=.linux FILE KERNEL') and its .initrd, and use these",
            ),
            None,
        ),
        (
            {"kind": "zboot", "above_4g": None},
            (
                "refused",
                "image-kind",
                f"{THERE} is of the kind zboot, which kexec_file_load does not accept -> use the arm64 Image in it,"
                " arch/arm64/boot/Image of the kernel build",
            ),
            None,
        ),
        (
            {"config": {"KEXEC_FILE": "n"}},
            None,
            (
                "refused",
                "kexec-file-off",
                f"{THERE} is built without CONFIG_KEXEC_FILE: it has no kexec_file_load, the only call that carries memory over -> use a"
                f" kernel with CONFIG_KEXEC_FILE=y, {REBOOT}",
            ),
        ),
        (
            {"init_size": 100 << 20, "cmdline": "kho=on liveupdate=on crashkernel=192M"},
            (
                "refused",
                "scratch",
                f"{THERE} has no room for crashkernel and the kernel: it needs the kernel 100, its initrd 30, crashkernel 192 MiB, each"
                " in one piece, and the scratch areas of KHO have 96, 64 MiB -> set a larger hypervisor_setup_scratch and run the"
                " playbook kvm.liveupdate.setup, which reboots the host; or reserve less with crashkernel=",
            ),
            None,
        ),
        (
            {"config": {"KVM": "n"}},
            (
                "refused",
                "kvm-off",
                f"{THERE} is built without CONFIG_KVM: no guest can run on it -> use a kernel with CONFIG_KVM=m or y",
            ),
            None,
        ),
        (
            {"config": None, "unread": {"config": "it holds none"}},
            (
                "unknown",
                "config-unread",
                f"the build configuration of {THERE} is unknown: it holds none -> put its configuration beside it as config-RELEASE, or"
                " build it with CONFIG_IKCONFIG=y",
            ),
            None,
        ),
    ],
)
def test_every_reason_both_ways(changes, there, back):
    verdicts = _proof.compare(RUNNING, change(TARGET, **changes))
    for way, expected in ((verdicts["there"], there), (verdicts["back"], back)):
        if expected is None:
            assert outcome(way) == ("proven", [])
            continue
        verdict, code, text = expected
        assert outcome(way) == (verdict, [code])
        assert text is None or message(way, code) == text


NEEDS = {"options": ["KVM"], "root": [], "cards": []}
BOOT = {
    "initrd": "/boot/initrd.img-7.3.4",
    "fault": "",
    "without": False,
    "came_with_one": True,
    "needs": NEEDS,
    "folder": "/usr/lib/modules/7.3.4",
    "absent": [],
    "storage": [],
}


def inside(release, *modules):
    return {"modules": {release: list(modules)}, "systemd": "262"}


LOST = "the kernel panics while it boots, and every guest is lost"
BUILD = "update-initramfs -c -k 7.3.4, dracut --kver 7.3.4, or mkinitcpio -P"
GIVE = f"build one ({BUILD}), or set hypervisor_update_initrd to its path; if this kernel needs no initial RAM disk, set it to none"


@pytest.mark.parametrize(
    ("boot", "cmdline", "code", "text"),
    [
        ({}, "root=UUID=1", None, None),
        (
            {"initrd": None},
            "root=/dev/vda1",
            "initrd-missing",
            f"no initial RAM disk is found for {THERE}, and the running kernel started with one: {LOST} -> {GIVE}",
        ),
        (
            {"initrd": None, "came_with_one": None},
            "root=/dev/vda1",
            "initrd-missing",
            f"no initial RAM disk is found for {THERE}, and it is unknown whether the running kernel used one: {LOST} -> {GIVE}",
        ),
        (
            {"initrd": None, "came_with_one": False},
            "root=UUID=1",
            "initrd-missing",
            f"no initial RAM disk is found for {THERE}, and a kernel cannot find root=UUID=1 without one: {LOST} -> {GIVE}",
        ),
        (
            {"initrd": None, "came_with_one": False},
            "",
            "initrd-missing",
            f"no initial RAM disk is found for {THERE}, and its command line has no root=: {LOST} -> {GIVE}",
        ),
        ({"initrd": None, "came_with_one": False}, "root=/dev/vda1", None, None),
        ({"initrd": None, "without": True}, "root=UUID=1", None, None),
        (
            {"fault": "it is cut off"},
            "root=UUID=1",
            "initrd-damaged",
            f"the initial RAM disk /boot/initrd.img-7.3.4 of {THERE} is damaged or incomplete: it is cut off; {LOST} -> build it again"
            f" ({BUILD})",
        ),
        (
            {"absent": ["kvm", "e1000"]},
            "root=UUID=1",
            "modules",
            f"{THERE} needs the modules kvm, e1000 on this host, but /usr/lib/modules/7.3.4 does not contain them: guests cannot be"
            " restored, or cannot be reached -> install the package with the modules of this kernel (Debian: linux-modules-7.3.4;"
            " Ubuntu: also linux-modules-extra-7.3.4; Fedora: kernel-modules), or copy them and run depmod 7.3.4",
        ),
        (
            {"needs": {**NEEDS, "root": ["EXT4_FS"]}},
            "root=UUID=1",
            "root-driver",
            f"{THERE} has CONFIG_EXT4_FS=n, but the root file system of this host needs that driver: {LOST} -> use a kernel with"
            " CONFIG_EXT4_FS=y or m",
        ),
        ({"needs": {**NEEDS, "root": ["VIRTIO_BLK"]}}, "root=UUID=1", None, None),
        ({"needs": {**NEEDS, "root": ["VIRTIO_BLK"]}, "contents": inside("7.3.4", "virtio_blk", "ext4")}, "root=UUID=1", None, None),
        ({"needs": {**NEEDS, "root": ["BLK_DEV_SD"]}, "contents": inside("7.3.4", "ext4")}, "root=UUID=1", None, None),
        ({"needs": {**NEEDS, "root": ["VIRTIO_BLK"]}, "contents": {"modules": {}, "systemd": ""}}, "root=UUID=1", None, None),
        (
            {"needs": {**NEEDS, "root": ["VIRTIO_BLK"]}, "contents": inside("7.3.4", "ext4")},
            "root=UUID=1",
            "root-driver",
            f"the initial RAM disk /boot/initrd.img-7.3.4 of {THERE} lacks the modules virtio_blk, which the root file system of this host"
            f" needs: {LOST} -> build it again for this host ({BUILD})",
        ),
        ({"contents": {"compressed": ["gzip"], "modules": {}, "systemd": None}}, "root=UUID=1", None, None),
        (
            {"contents": {**inside("7.3.4", "ext4"), "compressed": ["gzip", "zstd"]}},
            "root=UUID=1",
            "initrd-compression",
            f"the initial RAM disk /boot/initrd.img-7.3.4 is compressed with zstd, but {THERE} is built without CONFIG_RD_ZSTD: {LOST} ->"
            f" set the compression of your initial RAM disks to one that this kernel has, and build it again ({BUILD})",
        ),
        (
            {"contents": inside("7.2.13", "virtio_blk", "ext4")},
            "root=UUID=1",
            "initrd-release",
            f"the initial RAM disk /boot/initrd.img-7.3.4 has modules of 7.2.13 only, and {THERE} cannot load them: {LOST} -> set"
            f" hypervisor_update_initrd to the one of this kernel, or build it again ({BUILD})",
        ),
        (
            {"needs": {**NEEDS, "root": ["VIRTIO_BLK"]}, "initrd": None, "without": True},
            "root=/dev/vda1",
            "root-driver",
            f"{THERE} has CONFIG_VIRTIO_BLK=m and no initial RAM disk, but the root file system of this host needs that driver: {LOST}"
            " -> use a kernel with CONFIG_VIRTIO_BLK=y, or give it an initial RAM disk",
        ),
        ({"needs": {**NEEDS, "root": ["BLK_DEV_SD"]}, "initrd": None, "without": True}, "root=/dev/sda1", None, None),
        (
            {"needs": {**NEEDS, "options": ["KVM", "KVM_AMD", "VHOST_NET"]}},
            "root=UUID=1",
            "kvm-amd-off",
            f"{THERE} is built without CONFIG_KVM_AMD: no guest can run on it -> use a kernel with CONFIG_KVM_AMD=m or y",
        ),
        (
            {"needs": {**NEEDS, "options": ["KVM", "TUN"]}},
            "root=UUID=1",
            "tun-off",
            f"{THERE} is built without CONFIG_TUN: guests with a tap device cannot be restored on it -> use a kernel with CONFIG_TUN=m"
            " or y",
        ),
        (
            {"needs": {**NEEDS, "options": ["KVM", "VHOST_VSOCK"]}},
            "root=UUID=1",
            "vhost-vsock-off",
            f"{THERE} is built without CONFIG_VHOST_VSOCK: this host uses the driver now, and without it guests may not be restored or"
            " reachable -> use a kernel with CONFIG_VHOST_VSOCK=m or y",
        ),
    ],
)
def test_what_this_host_needs_of_a_kernel(boot, cmdline, code, text):
    config = {"VIRTIO_BLK": "m", "BLK_DEV_SD": "y", "RD_GZIP": "y"}
    way = _proof.compare(RUNNING, change(TARGET, boot={**BOOT, **boot}, cmdline=f"{cmdline} kho=on liveupdate=on", config=config))["there"]
    assert outcome(way) == (("refused", [code]) if code else ("proven", []))
    assert code is None or message(way, code) == text


ZFS = {"module": "zfs", "alias": "fs-zfs", "what": "/tank", "root": False, "known": True, "supported": False}
ZFS |= {"names": [], "builtin": False, "dropped": False, "unsure": False}


@pytest.mark.parametrize(
    ("boot", "codes"),
    [
        ({}, ["storage-driver"]),
        ({"absent": ["zfs"]}, ["modules"]),
        ({"needs": {**NEEDS, "options": ["KVM", "DM_CRYPT"]}, "storage": [{**ZFS, "module": "dm_crypt"}]}, ["dm-crypt-off"]),
        (
            {"needs": {**NEEDS, "root": ["XFS_FS"]}, "storage": [{**ZFS, "module": "xfs"}], "contents": inside("7.3.4", "ext4")},
            ["root-driver"],
        ),
        ({"needs": {**NEEDS, "root": ["BLK_DEV_SD"]}, "storage": [{**ZFS, "module": "sd_mod"}]}, ["storage-driver"]),
        ({"storage": [{**ZFS, "root": True, "names": ["zfs"]}], "contents": inside("7.3.4", "ext4")}, ["root-driver"]),
        ({"storage": [ZFS, {**ZFS, "alias": "other"}]}, ["storage-driver"]),
    ],
)
def test_each_lack_is_told_once(boot, codes):
    target = change(TARGET, boot={**BOOT, "storage": [ZFS], **boot}, config={"BLK_DEV_SD": "m"})
    assert outcome(_proof.compare(RUNNING, target)["there"]) == ("refused", codes)


CRYPT = {**ZFS, "module": "dm_crypt", "alias": "", "what": "dm-0 of /", "root": True, "names": ["dm_crypt"]}
ASKS = f"It is unknown whether a boot of {THERE} unlocks"
ACCEPT = (
    "name a key file for each encrypted disk in /etc/crypttab; or move the guests away, accept this pair"
    " (hypervisor_update_accept_unknown), and make a trial of the host (kvm.liveupdate.trial). Update with the accepted pair only if"
    " the host comes back by itself"
)


@pytest.mark.parametrize(
    ("locked", "cmdline", "code", "text"),
    [
        ({}, "", None, None),
        (
            {"vda3_crypt": "dm-0 of /"},
            "",
            "root-encrypted",
            f"the root file system of this host is encrypted (vda3_crypt). {ASKS} it without a person. If it does not, all guests are"
            f" paused until somebody unlocks it -> {ACCEPT}",
        ),
        ({"vda3_crypt": "dm-0 of /"}, "rd.luks.key=/root.key", None, None),
        (
            {"vms": "dm-1 of /srv"},
            "rd.luks.key=/root.key",
            "disk-encrypted",
            f"these disks of this host are encrypted: vms (dm-1 of /srv). {ASKS} them without a person. If it does not, the guests that"
            f" need them are paused until somebody unlocks them -> {ACCEPT}",
        ),
    ],
)
def test_a_disk_that_a_person_may_have_to_unlock_is_unknown_until_the_pair_is_accepted(locked, cmdline, code, text):
    """The boot would wait at the console while all guests are paused."""
    boot = {**BOOT, "storage": [{**CRYPT, "locked": locked}]}
    proof = _proof.compare(RUNNING, change(TARGET, boot=boot, cmdline=f"{cmdline} kho=on liveupdate=on", config={"DM_CRYPT": "m"}))
    assert outcome(proof["there"]) == (("unknown", [code]) if code else ("proven", []))
    assert code is None or message(proof["there"], code) == text
    assert [reason["code"] for reason in _proof.objections(proof, [])] == ([code, "unproven"] if code else [])
    assert _proof.objections(proof, [proof["pair"]]) == []


def test_no_reason_is_made_for_drivers_that_are_there(monkeypatch):
    made = []
    monkeypatch.setattr(_proof, "_reason", lambda *given: made.append(given) or {})
    boot = {**BOOT, "needs": {**NEEDS, "root": ["VIRTIO_BLK"]}, "contents": inside("7.3.4", "virtio_blk")}
    target = change(TARGET, boot=boot, config={"VIRTIO_BLK": "m"})
    assert _proof._root_drivers(target, THERE, target["boot"]) == made == []


def test_a_string_that_is_not_there_settles_it_without_a_configuration():
    bare = change(TARGET, abi=dict.fromkeys(ABI), config=None, unread={"config": "none"})
    verdicts = _proof.compare(RUNNING, bare)
    assert outcome(verdicts["there"]) == ("refused", ["kexec-handover-off", "config-unread"])
    assert "(it contains no string kho-vN)" in message(verdicts["there"], "kexec-handover-off")
    assert outcome(verdicts["back"]) == ("refused", ["kexec-handover-off"])


def test_a_running_kernel_whose_image_is_gone():
    here = change(RUNNING, kind=None, above_4g=None, abi={"memfd": None}, unread={"image": "there is no /b", "memfd": "there is no /b"})
    verdicts = _proof.compare(here, TARGET)
    assert outcome(verdicts["there"]) == ("unknown", ["abi-memfd-unread"])
    assert outcome(verdicts["back"]) == ("unknown", ["image-unread", "abi-memfd-unread"])
    assert message(verdicts["back"], "image-unread") == (
        f"the image of {HERE} cannot be examined: there is no /b -> keep the image of each kernel in /boot while the kernel is in use"
    )


def test_what_the_running_kernel_lacks():
    here = change(RUNNING, cmdline="quiet", config={"KEXEC_FILE": "n", "LIVEUPDATE": "n"})
    verdicts = _proof.compare(here, TARGET)
    assert outcome(verdicts["there"]) == ("refused", ["kexec-file-off", "liveupdate-off", "cmdline-kho", "cmdline-liveupdate"])
    assert f"the command line of {HERE} lacks kho=on: this kernel cannot preserve memory" in message(verdicts["there"], "cmdline-kho")


@pytest.mark.parametrize(
    ("here", "signed", "why"),
    [
        ({"lockdown": "integrity"}, False, f"{HERE} is locked down (integrity)"),
        ({"lockdown": "confidentiality", "config": {"KEXEC_SIG": "y"}}, False, f"{HERE} is locked down (confidentiality)"),
        ({"config": {"KEXEC_SIG": "y", "KEXEC_SIG_FORCE": "y"}}, False, f"{HERE} is built with CONFIG_KEXEC_SIG_FORCE"),
        ({"lockdown": "integrity"}, True, None),
        ({"lockdown": "integrity"}, None, None),
        ({"lockdown": "none"}, False, None),
        # Without this option kexec_file_load never looks for a signature.
        ({"lockdown": "integrity", "config": {"KEXEC_SIG": "n"}}, False, None),
    ],
)
def test_a_kernel_without_the_signature_that_is_wanted(here, signed, why):
    way = _proof.compare(change(RUNNING, **here), change(TARGET, signed=signed))["there"]
    if why is None:
        assert outcome(way) == ("proven", [])
        return
    assert outcome(way) == ("refused", ["not-signed"])
    assert message(way, "not-signed") == (
        f"{THERE} has no signature, and {why}: kexec_file_load refuses it -> use a kernel that is signed with a key which the host trusts"
    )


def test_scratch_areas_that_cannot_be_seen_are_left_to_the_kernel():
    for scratch in (None, []):
        assert outcome(_proof.compare(change(RUNNING, scratch=scratch), change(TARGET, init_size=1 << 40))["there"]) == ("proven", [])


def test_the_pair_names_both_builds():
    assert _proof.compare(RUNNING, TARGET)["pair"] == PAIR
    assert _proof.compare(RUNNING, change(TARGET, sha256="cd" * 32))["pair"] == "000102030405-cdcdcdcdcdcd"
    nameless = change(RUNNING, build_id=None)
    other = change(nameless, version="#2 SMP")
    assert len({_proof.compare(side, TARGET)["pair"] for side in (RUNNING, nameless, other)}) == 3
    assert _proof.compare(nameless, TARGET) == _proof.compare(copy.deepcopy(nameless), TARGET)


def test_only_what_is_unknown_can_be_accepted_and_only_for_this_pair():
    proven, unknown, refused = (
        _proof.compare(RUNNING, target)
        for target in (TARGET, change(TARGET, cmdline=None), change(TARGET, cmdline=None, abi={"luo": "luo-v6"}))
    )
    assert _proof.objections(proven, []) == []
    assert [reason["code"] for reason in _proof.objections(unknown, [])] == ["cmdline-unread", "unproven"]
    assert [reason["code"] for reason in _proof.objections(unknown, ["000102030405-cdcdcdcdcdcd"])] == ["cmdline-unread", "unproven"]
    assert _proof.objections(unknown, ["x", PAIR]) == []
    for accepted in ([], [PAIR]):
        assert [reason["code"] for reason in _proof.objections(refused, accepted)] == ["abi-luo", "cmdline-unread"]
    consent = _proof.objections(unknown, [])[-1]
    assert f"{consent['message']} -> {consent['remedy']}" == (
        f"the jump is not proven for this pair of kernels, {PAIR} -> fix the problems above; or test the jump on a host without guests,"
        f" and then accept the pair with hypervisor_update_accept_unknown: [{PAIR}]"
    )


def test_all_differences_are_told_at_once():
    other = change(TARGET, abi={"kho": "kho-v5", "luo": "luo-v6", "memfd": "memfd-v3"}, cmdline="kho=on")
    assert outcome(_proof.compare(RUNNING, other)["there"]) == ("refused", ["abi-kho", "abi-luo", "abi-memfd", "cmdline-liveupdate"])


def test_total_and_deterministic():
    """Whatever is missing or other than expected: an answer, the same each time, and proven only if nothing is."""
    rng = random.Random(4)
    values = {
        "kind": ["bzImage", "vmlinux", "uki", None],
        "arch": ["x86_64", "aarch64", None],
        "above_4g": [True, False, None],
        "page_size": [4096, 65536, None],
        "abi": [ABI, {}, None, {**ABI, "luo": None}, {**ABI, "kho": "kho-v3"}],
        "config": [CONFIG, {}, None, {**CONFIG, "LIVEUPDATE": "n"}, {**CONFIG, "KVM": "n"}],
        "cmdline": ["kho=on liveupdate=on", "", None],
        "unread": [{}, None, {"luo": "why", "config": "why"}],
        "signed": [True, False, None],
        "lockdown": ["integrity", "none", None],
        "scratch": [[96 << 20], [], None],
        "init_size": [60 << 20, 200 << 20, None],
        "memory": [2 << 30, None],
    }
    sides = [{}, RUNNING, TARGET]
    for _case in range(60):
        side = {key: rng.choice(choices) for key, choices in values.items()}
        for key in rng.sample(sorted(values), rng.randrange(3)):
            del side[key]
        sides.append(side)
    for running, target in itertools.product(sides, sides):
        before = copy.deepcopy((running, target))
        verdicts = _proof.compare(running, target)
        assert verdicts == _proof.compare(running, target)
        assert (running, target) == before
        for way in (verdicts["there"], verdicts["back"]):
            seen = {reason["verdict"] for reason in way["reasons"]}
            assert way["verdict"] == ("refused" if "refused" in seen else "unknown" if seen else "proven")
            assert all(reason["code"] and reason["message"] and reason["remedy"] for reason in way["reasons"])
            if way["verdict"] == "proven":
                assert (running.get("abi"), target.get("abi")) == (ABI, ABI)
                assert running["cmdline"] and target["cmdline"] and running["arch"] == target["arch"]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host's files below a directory, and what its images are, by path."""
    images = {}

    def put(path, content):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def image(path, **changes):
        put(path, b"")
        images[str(tmp_path / path)] = changes

    def read(path, config=None, root="/", **_keep):
        assert (config, root) == (None, str(tmp_path))
        if "error" in images[path]:
            raise LiveUpdateError(images[path]["error"])
        return change({**RUNNING, "path": path, "cmdline": None}, **images[path])

    monkeypatch.setattr(_image, "read", read)
    put("proc/sys/kernel/osrelease", b"7.2.13\n")
    put("proc/sys/kernel/version", b"#1 SMP PREEMPT Thu\n")
    put("proc/sys/kernel/arch", b"x86_64\n")
    put("proc/cmdline", b"root=/dev/vda1 kho=on liveupdate=on\n")
    put("proc/meminfo", b"MemTotal:        2097152 kB\nMemAvailable:    1048576 kB\n")
    put("sys/kernel/notes", NOTE)
    put("sys/kernel/debug/kho/out/scratch_len", b"0x6000000\n0x4000000\n")
    put.image, put.root = image, str(tmp_path)
    return put


def test_running_side(host):
    host.image("boot/vmlinuz-7.2.13")
    side = _running.read(host.root)
    assert side == {**RUNNING, "path": f"{host.root}/boot/vmlinuz-7.2.13", "page_size": os.sysconf("SC_PAGE_SIZE")}
    assert _proof.compare(side, {**TARGET, "page_size": side["page_size"]})["back"]["verdict"] == "proven"


def test_running_side_with_everything_to_see(host):
    host.image("usr/lib/modules/7.2.13/vmlinuz")
    host("sys/kernel/debug/kho/out/fdt", FDT)
    host("sys/kernel/debug/kho/out/sub_fdts/LUO", LUO)
    host("proc/config.gz", gzip.compress(b"CONFIG_KVM=y\n"))
    side = _running.read(host.root)
    assert (side["abi"], side["unread"]) == (ABI, {})
    assert (side["config"], side["config_source"]) == ({"KVM": "y"}, f"{host.root}/proc/config.gz")


def test_running_side_by_debugfs_alone(host):
    host("sys/kernel/debug/kho/out/fdt", FDT)
    host("sys/kernel/debug/kho/out/sub_fdts/LUO", LUO)
    why = f"{host.root}/boot/vmlinuz-7.2.13 does not exist; {host.root}/usr/lib/modules/7.2.13/vmlinuz does not exist"
    side = _running.read(host.root)
    assert (side["kind"], side["config"], side["abi"]) == (None, None, {**ABI, "memfd": None})
    assert side["unread"] == {"image": why, "config": why, "memfd": why}


def test_after_a_jump_debugfs_has_only_what_came_in(host):
    host("sys/kernel/debug/kho/in/fdt", FDT)
    assert _running.read(host.root)["abi"] == {"kho": "kho-v4", "luo": None, "memfd": None}


@pytest.mark.parametrize(
    "blob",
    [b"", b"\xd0\x0d\xfe\xed", FDT[:64], FDT[:72], FDT[:56] + b"\0\0\0\x09" + FDT[60:], FDT.replace(b"kho-v4", b"xho-v4"), b"\xff" * 300],
)
def test_a_device_tree_that_says_nothing(host, blob):
    host("sys/kernel/debug/kho/out/fdt", blob)
    assert _running.read(host.root)["abi"]["kho"] is None


def test_no_device_tree_is_too_damaged(host):
    rng = random.Random(7)
    for _case in range(300):
        blob = bytearray(FDT)
        for _flip in range(rng.randint(1, 6)):
            blob[rng.randrange(4, len(blob))] ^= 1 << rng.randrange(8)
        host("sys/kernel/debug/kho/out/fdt", bytes(blob))
        assert _running._debugfs(host.root).get("kho", "kho-v").startswith("kho-v")


@pytest.mark.parametrize(
    ("content", "state"),
    [(b"none [integrity] confidentiality\n", "integrity"), (b"[none] integrity confidentiality\n", "none"), (b"", None), (b"x", None)],
)
def test_lockdown(host, content, state):
    host("sys/kernel/security/lockdown", content)
    assert _running.read(host.root)["lockdown"] == state


@pytest.fixture
def prove(host, tmp_path):
    """Holds a kernel with an initial RAM disk of some size against the host, which came up without one."""
    host.image("boot/vmlinuz-7.2.13")
    host("sys/kernel/boot_params/data", bytes(4096))
    host("usr/lib/modules/7.3.4/modules.dep", b"kernel/kvm.ko:\n")
    host("usr/lib/modules/7.3.4/kernel/kvm.ko", b"")
    image = change(TARGET, page_size=os.sysconf("SC_PAGE_SIZE"), config={"EXT4_FS": "m"})

    def do(initrd=None, cmdline="root=/dev/vda1 kho=on liveupdate=on", **more):
        path = tmp_path / "initrd"
        if initrd is not None:
            path.write_bytes(initrd)
        return _proof.prove(image, cmdline, str(path) if initrd is not None else None, host.root, **more)["there"]

    return do


def test_prove_counts_the_initrd_in(prove, host, tmp_path):
    whole = gzip.compress(random.Random(1).randbytes(9000))
    assert outcome(prove(whole)) == ("proven", [])
    assert outcome(prove(whole + bytes(97 << 20))) == ("refused", ["scratch"])
    assert outcome(prove(cmdline="root=/dev/vda1 kho=on")) == ("refused", ["cmdline-liveupdate"])
    with pytest.raises(LiveUpdateError, match=f"^initial RAM disk {tmp_path}/none: No such file or directory; use the path"):
        _proof.prove(TARGET, "", f"{tmp_path}/none", host.root)


def test_prove_looks_at_this_host(prove, host):
    assert outcome(prove()) == ("proven", [])
    assert outcome(prove(b"")) == ("refused", ["initrd-damaged"])
    host("sys/kernel/boot_params/data", b"\1" * 4096)
    assert outcome(prove()) == ("refused", ["initrd-missing"])
    assert outcome(prove(without=True)) == ("proven", [])
    host("proc/self/mountinfo", b"36 1 0:50 / /tank rw - zfs tank rw\n")
    host("sys/module/zfs/initstate", b"live\n")
    assert outcome(prove(without=True)) == ("unknown", ["storage-driver"])
    os.unlink(os.path.join(host.root, "usr/lib/modules/7.3.4/kernel/kvm.ko"))
    assert outcome(prove(without=True)) == ("refused", ["modules", "storage-driver"])


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        (["7.3.4/kernel/fs/ext4/ext4.ko", "7.3.4/kernel/nvme.ko"], None),
        (["7.3.4/kernel/nvme.ko"], ("root-driver", "lacks the modules ext4, which the root file system of this host needs")),
        (["7.2.13/kernel/fs/ext4/ext4.ko"], ("initrd-release", "has modules of 7.2.13 only")),
    ],
)
def test_prove_reads_what_is_in_the_initrd(prove, host, modules, told):
    """One that is whole, and lacks what the root file system needs, is a kernel that panics."""
    host("proc/mounts", b"/dev/vda1 / ext4 rw 0 0\n")
    host("usr/lib/modules/7.3.4/modules.dep", b"kernel/kvm.ko:\nkernel/fs/ext4/ext4.ko:\n")
    host("usr/lib/modules/7.3.4/kernel/fs/ext4/ext4.ko", b"")
    found = prove(cpio("init", *(f"usr/lib/modules/{module}" for module in modules)))
    assert outcome(found) == (("refused", [told[0]]) if told else ("proven", []))
    assert not told or told[1] in message(found, told[0])


def test_an_image_of_debugfs_that_says_more_than_one_version(host):
    host.image("boot/vmlinuz-7.2.13", abi={"luo": "luo-v5+x"})
    host("sys/kernel/debug/kho/out/sub_fdts/LUO", b"luo-v5+x\0")
    side = _running.read(host.root)
    assert side["abi"]["luo"] is None
    assert side["unread"] == {"luo": "debugfs shows luo-v5+x, which this version of the collection does not know"}


def test_an_image_that_contradicts_debugfs(host):
    host.image("boot/vmlinuz-7.2.13", abi={"luo": "luo-v4"})
    host("sys/kernel/debug/kho/out/sub_fdts/LUO", LUO)
    side = _running.read(host.root)
    assert side["abi"]["luo"] is None
    assert side["unread"] == {"luo": f"debugfs shows luo-v5, but the image {host.root}/boot/vmlinuz-7.2.13 has luo-v4"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"release": "7.2.14"}, "its release is 7.2.14, not 7.2.13"),
        ({"version": "#2 SMP"}, "its version is #2 SMP, not #1 SMP PREEMPT Thu"),
        ({"build_ids": ["ff" * 20]}, f"its build id is {'ff' * 20}, not {BUILD_ID.hex()}"),
        ({"build_ids": []}, f"its build id is none, not {BUILD_ID.hex()}"),
    ],
)
def test_an_image_of_another_build_does_not_count(host, changes, says):
    host.image("boot/vmlinuz-7.2.13", **changes)
    side = _running.read(host.root)
    assert side["kind"] is None
    assert side["unread"]["image"].startswith(
        f"kernel {host.root}/boot/vmlinuz-7.2.13 is another build than the running kernel: {says}; {host.root}/usr"
    )
    host.image("usr/lib/modules/7.2.13/vmlinuz")
    assert _running.read(host.root)["path"] == f"{host.root}/usr/lib/modules/7.2.13/vmlinuz"


def test_an_image_that_cannot_be_read_does_not_count(host):
    host.image("boot/vmlinuz-7.2.13", error="kernel /boot/vmlinuz-7.2.13: cut off")
    assert _running.read(host.root)["unread"]["memfd"].startswith("kernel /boot/vmlinuz-7.2.13: cut off; " + host.root)


def test_an_image_that_the_caller_knows(host):
    host.image("boot/vmlinuz-7.2.13", error="not looked at")
    host.image("srv/bzImage")
    assert _running.read(host.root, f"{host.root}/srv/bzImage")["path"] == f"{host.root}/srv/bzImage"


def test_a_kernel_without_notes_goes_by_release_and_version(host):
    host.image("boot/vmlinuz-7.2.13", build_ids=[])
    host("sys/kernel/notes", b"")
    assert _running.read(host.root)["kind"] == "bzImage"


def test_a_damaged_config_gz(host):
    host.image("boot/vmlinuz-7.2.13")
    host("proc/config.gz", b"\x1f\x8b\x08")
    side = _running.read(host.root)
    assert side["config"] == CONFIG
    assert "not a kernel configuration" in side["unread"]["config"]


def test_the_architecture_of_a_kernel_that_does_not_tell(host):
    os.unlink(os.path.join(host.root, "proc/sys/kernel/arch"))
    assert _running.read(host.root)["arch"] == os.uname().machine
