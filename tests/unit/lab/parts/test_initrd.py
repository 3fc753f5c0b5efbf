# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images of hosts with an initial RAM disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvmlab import cache
from kvmlab.parts import image, initrd, kinds, rootfs
from kvmlab.parts.kernel import Kernel
from kvmlab.parts.keys import Keys
from kvmlab.parts.kinds import KINDS, USUAL
from kvmlab.parts.packages import HOST_SUITES, Resolution

WITH_INITRD = [kind for kind in KINDS.values() if kind.initrd]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_usual_hosts_are_what_they_were() -> None:
    assert [(KINDS[name].suite, KINDS[name].packages, KINDS[name].lvm) for name in USUAL] == [("forky", (), False), ("trixie", (), False)]
    resolution = Resolution(0.0, "", {"forky": "a"}, ())
    assert rootfs.inputs_of("forky", resolution, KINDS["forky"].packages) == rootfs.inputs_of("forky", resolution)


def test_each_kind_is_of_a_known_suite_and_program() -> None:
    assert all(name == kind.name and kind.suite in HOST_SUITES for name, kind in KINDS.items())
    assert {kind.initrd for kind in WITH_INITRD} == set(initrd.MAKERS)
    assert all(kind.initrd in kind.packages for kind in WITH_INITRD)
    assert all("lvm2" in kind.packages for kind in KINDS.values() if kind.lvm)


def test_the_initial_ram_disk_is_where_the_boot_loader_looks_for_it(tmp_path: Path) -> None:
    (tmp_path / "release").write_text("7.2.13-modular\n")
    assert initrd._path(Path("/"), Kernel(tmp_path)) == Path("/boot/initrd.img-7.2.13-modular")
    assert [word.format(release="R") for word in initrd.MAKERS[kinds.DRACUT]][-2:] == ["/boot/initrd.img-R", "R"]


def test_images_of_different_kinds_differ(tmp_path: Path) -> None:
    for name in ("client", "host"):
        (tmp_path / f"{name}.pub").write_text("ssh-ed25519 AAAA lab\n")
    root_tar, kernels = tmp_path / "rootfs/root.tar", (Kernel(cache.root() / "old"), Kernel(cache.root() / "new"))
    guest, keys = (Kernel(cache.root() / "plain"), tmp_path / "guest/initramfs"), Keys(tmp_path)
    inputs = [initrd.inputs_of(kind, root_tar, kernels, guest, keys) for kind in WITH_INITRD]
    inputs.append(image.inputs_of(root_tar, kernels, guest[1], keys))
    assert len({cache.key(each) for each in inputs}) == 3  # both dracut kinds differ in their root file systems only


def test_the_initial_ram_disk_is_told_which_volume_it_activates() -> None:
    assert initrd.LVM_SETTINGS == 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX rd.lvm.lv=lab/root"\n'


def test_grub_is_installed_only_where_lvm_finds_nothing_to_complain_of() -> None:
    steps = initrd.CHECK_SCRIPT.splitlines()[2].split(" && ")
    assert steps == ["pvck /dev/vda1", "vgck lab", "pvs", "lvs", "exec /lab-install-boot-loader"]
