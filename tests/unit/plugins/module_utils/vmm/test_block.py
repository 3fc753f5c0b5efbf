# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _block


@pytest.fixture(name="disks")
def sysfs_with_disks(tmp_path, monkeypatch):
    """Has a path for each number 8:N; the files below it are given."""

    def add(path, number, **files):
        for file, text in files.items():
            there = tmp_path / f"8:{number}" / file.replace("__", "/")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(text + "\n")
        numbers[path] = os.makedev(8, number)

    numbers: dict = {}
    plain = os.stat

    def look(path, **keys):
        return SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=numbers[path]) if path in numbers else plain(path, **keys)

    monkeypatch.setattr(_block, "_SYSFS", str(tmp_path))
    monkeypatch.setattr(os, "stat", look)
    return add


def test_a_block_device_is_known_by_what_a_boot_does_not_change(disks):
    disks("/dev/sdb", 1, device__wwid="naa.5000", device__serial="s")
    disks("/dev/nvme0n1", 2, wwid="eui.1", device__serial="S1", nsid="1")
    disks("/dev/dm-0", 3, dm__uuid="LVM-a")
    disks("/dev/vda", 4, dm__uuid="")
    assert _block.identity("/dev/sdb") == ["device/wwid naa.5000"]
    assert _block.identity("/dev/nvme0n1") == ["wwid eui.1", "device/serial S1 1"]
    assert _block.identity("/dev/dm-0") == ["dm/uuid LVM-a"]
    assert _block.identity("/dev/vda") == _block.identity("/dev/null") == _block.identity("/never/there") == []


def test_a_scsi_device_is_known_by_what_a_boot_does_not_change(tmp_path, monkeypatch):
    """By its generic node, as scsi-generic has it; and a console is none."""
    folder = tmp_path / "devices" / "scsi_generic" / "sg3"
    (folder / "device").mkdir(parents=True)
    (folder / "device" / "wwid").write_text("naa.5000\n")
    (tmp_path / "21:3").symlink_to(folder)
    (tmp_path / "5:1").symlink_to(tmp_path)
    numbers = {"/dev/sg3": os.makedev(21, 3), "/srv/disk": os.makedev(21, 3), "/dev/console": os.makedev(5, 1)}
    monkeypatch.setattr(_block, "_SYSFS_CHARACTER", str(tmp_path))
    monkeypatch.setattr(_block, "os", SimpleNamespace(**vars(os)))
    monkeypatch.setattr(_block.os, "stat", lambda path: SimpleNamespace(st_mode=stat.S_IFCHR, st_rdev=numbers[path]))
    assert _block.identity("/dev/sg3") == _block.identity("/srv/disk") == ["device/wwid naa.5000"]
    assert _block.identity("/dev/console") == []
    assert _block.changed({"/srv/disk": ["device/wwid naa.6000"]}) == [
        "another device at /srv/disk (device/wwid naa.5000, not device/wwid naa.6000)"
    ]


def test_a_partition_is_one_of_its_disk(disks, tmp_path):
    disks("/dev/sdb", 1, wwid="w", sdb1__partition="1")
    disks("/dev/sdb1", 2)
    (tmp_path / "8:2").symlink_to("8:1/sdb1")
    assert _block.identity("/dev/sdb1") == ["wwid w part 1"]


def test_a_name_that_is_another_devices_now_is_told(disks):
    disks("/dev/sdb", 1, wwid="w1")
    disks("/dev/nvme0n1", 2, wwid="nvme.new", device__serial="S1", nsid="1")
    same = {"/dev/sdb": ["wwid w1"], "/dev/nvme0n1": ["wwid eui.1", "device/serial S1 1"], "/dev/kvm": [], "/dev/gone": ["wwid x"]}
    assert _block.changed(same) == []
    assert _block.changed({**same, "/dev/sdb": ["wwid w2"]}) == ["another device at /dev/sdb (wwid w1, not wwid w2)"]


def test_a_guest_whose_device_has_another_name_is_not_started_yet(disks):
    """It may get its name a moment later, as a multipath map does."""
    disks("/dev/sdb", 1, wwid="w1")
    _block.verify_devices("db-1", {"/dev/sdb": ["wwid w1"]})
    with pytest.raises(LiveUpdateError, match=r"guest db-1: .* at /dev/sdb \(wwid w1, not wwid w2\)\. .*\. The start is repeated") as told:
        _block.verify_devices("db-1", {"/dev/sdb": ["wwid w2"]})
    assert told.value.details == {"again": True}
