# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kinds of hosts that the lab has."""

from __future__ import annotations

from dataclasses import dataclass

DRACUT = "dracut"
INITRAMFS_TOOLS = "initramfs-tools"
# Debian packages that a host with an initial RAM disk needs besides the usual ones.
_PACKAGES = {"": (), DRACUT: ("dracut", "zstd"), INITRAMFS_TOOLS: ("busybox", "initramfs-tools", "zstd")}
_LVM_PACKAGES = ("lvm2",)


@dataclass(frozen=True)
class Kind:
    """What a host runs.

    suite: the Debian release. forky's systemd passes sessions through a kexec itself. trixie's needs a process that holds them.
    initrd: the program that makes the initial RAM disks, or nothing. A host with one has modular kernels.
    lvm: the root file system is on a logical volume.
    """

    name: str
    suite: str
    initrd: str = ""
    lvm: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """The Debian packages that it has besides those of its suite."""
        return (*_PACKAGES[self.initrd], *(_LVM_PACKAGES if self.lvm else ()))


KINDS = {
    kind.name: kind
    for kind in (
        Kind("forky", "forky"),
        Kind("trixie", "trixie"),
        Kind("forky-dracut", "forky", DRACUT, lvm=True),
        Kind("forky-initramfs", "forky", INITRAMFS_TOOLS),
        Kind("trixie-dracut", "trixie", DRACUT, lvm=True),
    )
}
# Without modules and an initial RAM disk, so that a host boots in seconds on an emulated processor.
USUAL = ("forky", "trixie")
