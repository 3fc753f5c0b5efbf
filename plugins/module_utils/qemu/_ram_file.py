# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create a new file for a guest's RAM, with huge pages if possible. PRIVATE to the collection.

The kernel preserves, hands over and retrieves memory page by page (mm/memfd_luo.c). With pages of 4 KiB the pause grows with the guest. A
memfd has larger pages only if the host enables them for all memfds (shmem_enabled; "never" by default). A separate tmpfs can always have
them (huge=within_size, tmpfs(5)). It is mounted nowhere and ends with its file (fsmount(2)).
"""

from __future__ import annotations

import os

from ..host import _systemd

__all__ = ("create",)

# The same on all architectures (arch/*/syscall.tbl), and include/uapi/linux/mount.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_STRING, _CREATE = 1, 6
_OPTIONS = {b"huge": b"within_size", b"size": b"0", b"mode": b"0700"}  # a size of 0 is no limit


def create(name: str, size: int) -> int:
    """The descriptor of a new file of this size without a name; close-on-exec."""
    fd = _on_huge_pages()
    if fd is None:
        remedy = "allow the unit CAP_SYS_ADMIN and SystemCallFilter=@mount, or set the host's shmem_enabled to within_size"
        _systemd.log(
            f"{name}: its RAM is not on a tmpfs of its own, because its unit may not mount one. It has pages of 4 KiB, so its pause"
            f" grows with its RAM; to avoid this, {remedy}"
        )
        fd = os.memfd_create(f"kvm-liveupdate:{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def _on_huge_pages() -> int | None:
    """None if it is not possible, for lack of privileges or kernel support.

    A child process tries it: a unit's SystemCallFilter= may kill the caller, and the guest must start in spite of that.
    """
    import socket

    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            socket.send_fds(there, [b"."], [_tmpfs_file()])
        finally:
            os._exit(0)
    with here, there:
        os.waitpid(child, 0)
        here.setblocking(False)
        try:
            fd = socket.recv_fds(here, 1, 1)[1][0]
        except BlockingIOError:
            return None
    os.set_inheritable(fd, False)
    return fd


def _tmpfs_file() -> int:
    """Raises OSError if the kernel does not support or allow it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: int | bytes | None) -> int:
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(word) if isinstance(word, int) else word for word in arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(result)

    context = call(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    for key, value in _OPTIONS.items():
        call(_FSCONFIG, context, _SET_STRING, key, value, 0)
    call(_FSCONFIG, context, _CREATE, None, None, 0)
    mount = call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=mount)
