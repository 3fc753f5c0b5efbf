# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files in the folder of libvirt's managed saves. PRIVATE to the collection.

QEMU's user owns that folder and the one above it (qemu_driver.c, qemuStateInitialize). A compromised QEMU can create links there that
lead root to any file of the host. So root works there through a descriptor of the folder, and follows no link.

Source: openat(2), renameat(2).
"""

from __future__ import annotations

import contextlib
import os
import stat

from .._errors import LiveUpdateError, typed
from . import _ram

__all__ = ("discard", "open_existing", "put", "remove")


def open_existing(path: str, flags: int) -> int:
    """The descriptor of an existing regular file with one name only; close-on-exec. Raises for anything else."""
    with _ram.entry(os.path.dirname(path)) as folder:
        handle = os.open(os.path.basename(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    seen = os.fstat(handle)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
        os.close(handle)
        raise LiveUpdateError(f"{path} is not a regular file, or has a second hard link; find out what created it, and remove it")
    return handle


def put(path: str, content: bytes) -> None:
    """Write a file atomically, readable by root only; durable when this returns. It replaces a file or link of this name."""
    name = os.path.basename(path)
    part = f"{name}.part"
    with _ram.entry(os.path.dirname(path)) as folder:
        _unlink(part, folder)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            _unlink(part, folder)
            raise
        os.fsync(folder)


def remove(path: str) -> None:
    """Remove a file durably; without effect when there is none."""
    with contextlib.suppress(FileNotFoundError), _ram.entry(os.path.dirname(path)) as folder:
        os.unlink(os.path.basename(path), dir_fd=folder)
        os.fsync(folder)


def discard(name: str, path: str) -> None:
    """As :func:`remove`, for an image from which the domain ``name`` may not start; an error names it.

    ``virsh managedsave-remove`` does nothing if libvirt does not know of the image: it was written behind its back. But a start uses it.
    """
    try:
        remove(path)
    except OSError as err:
        raise LiveUpdateError(
            f"guest {name}: the saved image {path}, which lacks the guest's RAM, cannot be removed: {err}. Correct this, then run"
            f" 'kvm-liveupdate discard {typed(name)}'. The guest can start only after that"
        ) from err


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
