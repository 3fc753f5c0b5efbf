# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _initrd
from archives import cpio

RELEASE = "7.3.4"


@pytest.fixture(name="host")
def files_of_a_host(tmp_path):
    """Puts files below a directory: content, or the file that a link points to."""

    def put(path, content=b"", link=None):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if link:
            place.symlink_to(os.path.relpath(tmp_path / link, place.parent))
        else:
            place.write_bytes(content)
        return str(place)

    put.find = lambda kernel: _initrd.find(str(tmp_path / kernel), RELEASE, str(tmp_path))
    put.path = lambda path: str(tmp_path / path)
    return put


@pytest.mark.parametrize(
    ("kernel", "initrd"),
    [
        ("boot/vmlinuz-7.3.4", "boot/initrd.img-7.3.4"),  # Debian, Ubuntu
        ("boot/vmlinuz-7.3.4", "boot/initramfs-7.3.4.img"),  # Fedora, RHEL
        ("boot/vmlinuz-7.3.4", "boot/initrd-7.3.4"),  # openSUSE
        ("boot/vmlinuz-linux", "boot/initramfs-linux.img"),  # Arch
        ("boot/vmlinuz-linux-lts", "boot/initramfs-linux-lts.img"),
        ("efi/0a1b/7.3.4/linux", "efi/0a1b/7.3.4/initrd"),  # kernel-install
        ("boot/efi/0a1b/7.3.4/linux", "boot/efi/0a1b/7.3.4/initrd.img-7.3.4"),
        ("srv/kernels/vmlinuz-7.3.4", "srv/kernels/initrd.img-7.3.4"),
    ],
)
def test_the_initrd_lies_beside_the_kernel(host, kernel, initrd):
    host(kernel)
    host("boot/initrd.img-7.2.13")
    assert host.find(kernel) is None
    assert host(initrd) == host.find(kernel)


def test_a_kernel_that_is_a_link_has_its_initrd_beside_the_link_or_beside_the_file(host):
    """openSUSE: /boot/vmlinuz-R is a link to the package's file; Debian: /vmlinuz is one to /boot/vmlinuz-R."""
    host("usr/lib/modules/7.3.4/vmlinuz")
    host("boot/vmlinuz-7.3.4", link="usr/lib/modules/7.3.4/vmlinuz")
    assert host("boot/initrd-7.3.4") == host.find("boot/vmlinuz-7.3.4")
    host("opt/vmlinuz", link="usr/lib/modules/7.3.4/vmlinuz")
    os.unlink(host.path("boot/initrd-7.3.4"))
    assert host("opt/initrd-7.3.4") == host.find("opt/vmlinuz")
    host("vmlinuz", link="srv/vmlinuz-7.3.4")
    host("srv/vmlinuz-7.3.4")
    assert host("srv/initrd.img-7.3.4") == host.find("vmlinuz")


@pytest.mark.parametrize(
    "initrd",
    ["boot/initrd.img-7.3.4", "boot/initramfs-7.3.4.img", "boot/initrd-7.3.4", "efi/0a1b/7.3.4/initrd", "boot/0a1b/7.3.4/initrd.img-7.3.4"],
)
def test_a_kernel_named_by_its_package_s_path(host, initrd):
    kernel = "usr/lib/modules/7.3.4/vmlinuz"
    host(kernel)
    host("boot/0a1b/7.2.13/linux")
    host("boot/0a1b/7.2.13/initrd")
    if initrd.split("/")[-2] == RELEASE:
        host(os.path.dirname(initrd) + "/linux")
    assert host.find(kernel) is None
    assert host(initrd) == host.find(kernel)


def test_on_arch_the_names_without_a_release_belong_to_the_copy_in_boot(host):
    kernel = "usr/lib/modules/7.3.4/vmlinuz"
    host(kernel, b"new")
    host("usr/lib/modules/7.3.4/pkgbase", b"linux\n")
    initrd = host("boot/initramfs-linux.img")
    host("boot/vmlinuz-linux", b"old")
    assert host.find(kernel) is None
    host("boot/vmlinuz-linux", b"new")
    assert host.find(kernel) == initrd


def entry(host, name, **keys):
    host(f"boot/loader/entries/{name}.conf", "".join(f"{key}  {value}\n" for key, value in keys.items()).encode())


def test_a_boot_loader_s_own_entry_comes_first(host):
    host("boot/vmlinuz-7.3.4")
    host("boot/initramfs-7.3.4.img")
    entry(host, "0-other", title="x", linux="/vmlinuz-7.2.13", initrd="/initramfs-7.2.13.img")
    entry(host, "1-mine", linux="/vmlinuz-7.3.4", version=RELEASE, initrd="/special.img $tuned_initrd")
    assert host.find("boot/vmlinuz-7.3.4") == host.path("boot/initramfs-7.3.4.img")
    assert host("boot/special.img") == host.find("boot/vmlinuz-7.3.4")


def test_of_several_in_an_entry_the_last_is_not_microcode(host):
    host("boot/vmlinuz-linux")
    host("boot/amd-ucode.img")
    host("boot/loader/entries/arch.conf", b"linux /vmlinuz-linux\ninitrd /amd-ucode.img\ninitrd /own.img\n")
    assert host("boot/own.img") == host.find("boot/vmlinuz-linux")


def test_an_entry_is_of_this_release_where_the_package_s_file_is_named(host):
    host("usr/lib/modules/7.3.4/vmlinuz")
    host("boot/efi/m/linux-a")
    host("boot/efi/m/initrd-a")
    host("boot/efi/loader/entries/a.conf", b"version 7.3.4\nlinux /m/linux-a\ninitrd /m/initrd-a\n")
    host("boot/efi/m/linux-0")
    host("boot/efi/m/initrd-0")
    host("boot/efi/loader/entries/0.conf", b"version 7.2.13\nlinux /m/linux-0\ninitrd /m/initrd-0\n")
    host("boot/efi/loader/entries/b.conf", b"\xff\n")
    assert host.find("usr/lib/modules/7.3.4/vmlinuz") == host.path("boot/efi/m/initrd-a")


def test_an_entry_of_a_boot_that_is_no_partition(host):
    host("boot/vmlinuz-7.3.4")
    entry(host, "a", linux="/boot/vmlinuz-7.3.4", initrd="/boot/a.img")
    assert host("boot/a.img") == host.find("boot/vmlinuz-7.3.4")


@pytest.mark.parametrize("release", ["", "..", "../../etc", "a/b"])
def test_a_release_that_is_no_file_name(host, release):
    host("boot/vmlinuz-7.3.4")
    assert _initrd.find(host.path("boot/vmlinuz-7.3.4"), release, host.path("")) is None


def test_what_is_given_is_taken(host):
    kernel, initrd = host("boot/vmlinuz-7.3.4"), host("boot/initrd.img-7.3.4")
    assert _initrd.of(kernel, RELEASE, None, host.path("")) == _initrd.of(kernel, RELEASE, "", host.path("")) == initrd
    assert _initrd.of(kernel, RELEASE, "none", host.path("")) is None
    assert _initrd.of(kernel, RELEASE, "/boot/mine", host.path("")) == "/boot/mine"


@pytest.mark.parametrize(("at", "answer"), [(None, False), (0x218, True), (0x21C, True), (0x0C0, True), (0x0C4, True), (0x1F1, False)])
def test_whether_the_running_kernel_came_with_one(host, at, answer):
    """struct boot_params: ramdisk_image, ramdisk_size and their upper halves."""
    data = bytearray(4096)
    if at is not None:
        data[at] = 0x12
    host("sys/kernel/boot_params/data", bytes(data))
    assert _initrd.came_with_one(host.path("")) is answer


def test_whether_it_came_with_one_is_not_always_to_be_seen(host):
    assert _initrd.came_with_one(host.path("")) is None
    host("sys/kernel/boot_params/data", b"short")
    assert _initrd.came_with_one(host.path("")) is None


@pytest.mark.parametrize(
    ("cmdline", "answer"),
    [
        ("root=/dev/vda1", True),
        ("root=/dev/nvme0n1p2 rw", True),
        ("root=PARTUUID=0a1b-01", True),
        ("root=PARTLABEL=system", True),
        ("root=254:1", True),
        ("root=UUID=0a1b", False),
        ("root=/dev/vda1 root=UUID=0a1b", False),
        ("root=LABEL=system", False),
        ("root=/dev/mapper/vg-root", False),
        ("root=/dev/disk/by-uuid/0a1b", False),
        ("root=ZFS=rpool/ROOT/pve-1", False),
        ("quiet -- root=/dev/vda1", False),
        ("", False),
    ],
)
def test_which_root_a_kernel_alone_mounts(cmdline, answer):
    assert _initrd.kernel_mounts(cmdline) is answer


MICROCODE = cpio("kernel/x86/microcode/AuthenticAMD.bin") + bytes(300)
MAIN = cpio("init", "usr/lib/modules/x.ko")
PACKED = {
    "gzip": gzip.compress(MAIN),
    "xz": lzma.compress(MAIN, check=lzma.CHECK_CRC32),
    "lzma": lzma.compress(MAIN, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(MAIN),
}


def program(command, data):
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


@pytest.fixture(params=[*PACKED, "zstd", "zstd without a size", "lz4", "none"])
def packed(request):
    commands = {"zstd": ["zstd", "-19", "--check"], "zstd without a size": ["zstd", "-1", "--no-check"], "lz4": ["lz4", "-l", "-9"]}
    if request.param in commands:
        return program(commands[request.param], MAIN)
    return PACKED.get(request.param, MAIN)


@pytest.fixture(name="judge")
def what_is_wrong_with(tmp_path):
    path = tmp_path / "initrd"

    def judge(content):
        path.write_bytes(content)
        return _initrd.fault(str(path))

    return judge


def test_whole_archives_are_taken(judge, packed):
    assert judge(packed) == ""
    assert judge(MICROCODE + packed) == ""
    assert judge(MICROCODE + cpio("kernel/firmware/acpi/dsdt.aml") + packed + bytes(513)) == ""
    if not packed.startswith(b"\x02\x21\x4c\x18"):  # nothing tells where such a frame ends; the kernel does not know either
        assert judge(packed + PACKED["gzip"] + cpio("etc/more")) == ""


def test_an_archive_that_is_cut_off_anywhere_is_not(judge, packed):
    whole = MICROCODE + packed
    for left in (len(MICROCODE) + 3, len(MICROCODE) + 200, len(whole) - len(packed) // 2, len(whole) - 5):
        assert judge(whole[:left])
    assert judge(MICROCODE) == judge(MICROCODE[:-300]) == "it contains no init"
    assert judge(MICROCODE[:3000]) == judge(MICROCODE[:50]) == "it is cut off"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (bytes(9000), "it contains no init"),
        (b"<html>not found</html>" * 300, "from byte 0 of 6600 on, it is neither an archive nor compressed (the next bytes are 3c68746d)"),
        (
            MAIN + b"garbage",
            f"from byte {len(MAIN)} of {len(MAIN) + 7} on, it is neither an archive nor compressed (the next bytes are 67617262)",
        ),
        (
            PACKED["gzip"] + b"garbage",
            f"from byte {len(PACKED['gzip'])} of {len(PACKED['gzip']) + 7} on, it is neither an archive nor compressed (the next"
            " bytes are 67617262)",
        ),
        (cpio("etc/passwd"), "it contains no init"),
        (MAIN.replace(b"070701", b"07070x", 2).replace(b"07070x", b"070701", 1), "it is damaged"),
        (cpio("init", size=9), "besides microcode it has only 249 bytes, too few for an init"),
        (
            gzip.compress(MAIN)[:-8] + b"\1" * 8,
            "the gzip data in it is cut off or damaged: Error -3 while decompressing data: incorrect data check",
        ),
    ],
)
def test_what_is_no_initial_ram_disk(judge, content, says):
    assert judge(content) == says


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(
        LiveUpdateError, match=r"^initial RAM disk .*/none: No such file or directory; use the path of an initial RAM disk on the host$"
    ):
        _initrd.fault(f"{tmp_path}/none")


MODULES = (
    "usr/lib/modules/7.3.4/kernel/drivers/md/dm-mod.ko.zst",
    "./lib/modules/7.3.4/kernel/fs/ext4/ext4.ko",
    "lib/modules/7.2.13/a.ko.xz",
)
WITH_SYSTEMD = cpio("init", *MODULES, "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-262.so", "usr/lib/modules/7.3.4/modules.dep")
INSIDE = {"compressed": [], "modules": {"7.2.13": ["a"], "7.3.4": ["dm_mod", "ext4"]}, "systemd": "262"}


@pytest.fixture(name="look")
def what_is_in(tmp_path):
    path = tmp_path / "initrd"

    def look(content):
        path.write_bytes(content)
        assert _initrd.fault(str(path)) == ""
        return _initrd.contents(str(path))

    return look


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "lz4", "none"])
def test_its_modules_and_its_systemd_are_read(look, compression):
    packers = {"gzip": gzip.compress, "xz": lzma.compress, "none": lambda data: data}
    packers |= {tool: lambda data, tool=tool: program([tool, "-l"] if tool == "lz4" else [tool], data) for tool in ("zstd", "lz4")}
    inside = {**INSIDE, "compressed": [] if compression == "none" else [compression]}
    assert look(MICROCODE + packers[compression](WITH_SYSTEMD)) == inside
    assert look(packers[compression](WITH_SYSTEMD + bytes(700))) == inside


def test_all_archives_of_it_are_read(look):
    """initramfs-tools puts modules, which are compressed already, into one that is not."""
    assert look(cpio("kernel/x86/x.bin", MODULES[1]) + bytes(512) + gzip.compress(cpio("init", MODULES[0]))) == {
        "compressed": ["gzip"],
        "modules": {"7.3.4": ["dm_mod", "ext4"]},
        "systemd": "",
    }


def test_what_cannot_be_unpacked_here_is_unknown(look, monkeypatch, tmp_path):
    packed = program(["zstd"], WITH_SYSTEMD)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 9))
    assert look(packed) == {"compressed": ["zstd"], "modules": {}, "systemd": None}
    noise = gzip.compress(random.Random(1).randbytes(9000))
    assert look(noise) == {"compressed": ["gzip"], "modules": {}, "systemd": None}
