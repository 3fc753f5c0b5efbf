# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the setup adds to a host with libvirt: the mount for RAM, the hook, the AppArmor rule. PRIVATE to the collection."""

from __future__ import annotations

import os

from ..host import _units
from . import _ram

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = (
    "APPARMOR_ABSTRACTION",
    "APPARMOR_RULE",
    "RAM_DIRECTORY",
    "RAM_MOUNT",
    "RAM_OPTIONS",
    "RAM_SIZE",
    "has_libvirt",
    "in_run",
    "lacks_mount",
    "would_hide",
)

# A file that every domain's profile includes, and a folder that this file includes (AppArmor 3 and later).
APPARMOR_ABSTRACTION = "/etc/apparmor.d/abstractions/libvirt-qemu"
APPARMOR_RULE = APPARMOR_ABSTRACTION + ".d/kvm-liveupdate"

# The domains' RAM has a file system of its own, so that nothing else can fill it.
RAM_DIRECTORY = _ram.DIRECTORY
RAM_MOUNT = "run-kvm\\x2dliveupdate\\x2dram.mount"
RAM_SIZE = f"{_units.FOLDER}/{RAM_MOUNT}.d/50-size.conf"
RAM_OPTIONS = "mode=0755,size={size},huge=within_size"


def has_libvirt(root: str = "/") -> bool:
    """Whether libvirt runs QEMU domains on this host."""
    return os.path.isdir(os.path.join(root, "etc/libvirt"))


def lacks_mount() -> bool:
    """Whether libvirt is to put RAM into our directory, and nothing is mounted there: the RAM would be in /run, which is small."""
    return os.path.normpath(_ram.directory()) == RAM_DIRECTORY and not os.path.ismount(RAM_DIRECTORY)


def in_run(records: t.Iterable[dict]) -> list[str]:
    """The guests of these whose RAM files are in our directory while nothing is mounted there: they fill /run."""
    if os.path.ismount(RAM_DIRECTORY):
        return []
    return [
        record["name"]
        for record in records
        if any(_ram.is_in_place(backend["path"], RAM_DIRECTORY) for backend in record.get("backends", ()))
    ]


def would_hide() -> list[str]:
    """The files that a mount on our directory would hide. Libvirt could not remove them then, and their RAM would stay in use."""
    if os.path.ismount(RAM_DIRECTORY):
        return []
    return sorted(os.path.join(folder, file) for folder, _folders, files in os.walk(RAM_DIRECTORY) for file in files)
