# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The folder with the RAM files of domains. PRIVATE to the collection.

A compromised QEMU can change its own command line, and it owns the folder of its RAM file and the folder above. So root uses such a file
only below the folder that libvirt uses for RAM, and through descriptors of folders that were opened without following links.

Source: libvirt src/qemu/qemu_conf.c (qemuGetMemoryBackingDomainPath), src/qemu/qemu_driver.c (qemuStateInitialize), openat(2).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from .._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("DIRECTORY", "configured", "directory", "entry", "is_in_place", "is_named", "unname")

DIRECTORY = "/run/kvm-liveupdate-ram"
_DEFAULT = "/var/lib/libvirt/qemu/ram"
_CONFIGURATION = "/etc/libvirt/qemu.conf"
_BELOW = "libvirt/qemu"


def directory() -> str:
    """The folder in which libvirt stores RAM on this host, also after the next boot (memory_backing_dir)."""
    return configured("memory_backing_dir") or _DEFAULT


def configured(key: str) -> str:
    """The text that qemu.conf sets for a key; empty if it sets none."""
    try:
        with open(_CONFIGURATION, encoding="utf-8", errors="surrogateescape") as file:
            found = re.findall(rf'^[ \t]*{key}[ \t]*=[ \t]*"([^"]+)"', file.read(), re.MULTILINE)
    except OSError:
        found = []
    return str(found[-1]) if found else ""


def is_in_place(path: str, place: str) -> bool:
    """Whether this is the path of a RAM file that libvirt makes below ``place``: a file in the folder of its domain. Pure."""
    above, _slash, file = path.rpartition("/")
    above, _slash, domain = above.rpartition("/")
    return above == os.path.join(place.rstrip("/"), _BELOW) and not {file, domain} & {"", ".", ".."}


@contextlib.contextmanager
def entry(path: str) -> t.Iterator[int]:
    """A descriptor of the folder ``path``. Its last part must not be a link; the rest of the path comes from root."""
    above, name = os.path.split(path)
    handle = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        yield folder
    finally:
        os.close(folder)


def is_named(path: str, seen: os.stat_result) -> bool:
    """Whether the RAM file ``seen`` has this name. The path comes from QEMU, so root looks only in the folder of RAM files."""
    if not is_in_place(path, directory()):
        return False
    try:
        with entry(os.path.dirname(path)) as folder:
            there = os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (seen.st_dev, seen.st_ino)


def unname(path: str, fd: int) -> None:
    """Remove the name of the RAM file that is open as ``fd``, if it still has one. Raises if the path is in another place."""
    if not is_in_place(path, directory()):
        raise LiveUpdateError(f"its RAM file {path} is not below {directory()} (memory_backing_dir in qemu.conf); restart the domain")
    opened = os.fstat(fd)
    with contextlib.suppress(FileNotFoundError), entry(os.path.dirname(path)) as folder:
        there = os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino):
            os.unlink(os.path.basename(path), dir_fd=folder)
