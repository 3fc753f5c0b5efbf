# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The complete user interface of the kernel's Live Update Orchestrator (LUO). PRIVATE to the collection.

Source: include/uapi/linux/liveupdate.h and kernel/liveupdate/luo_{core,session,file}.c of Linux 7.2 and 7.3.

A session is *outgoing* if this kernel created it, and *incoming* if the previous kernel did. When the last descriptor of an outgoing
session is closed, its memory is no longer preserved. When that of an incoming session is closed, the kernel discards what was not
retrieved. File descriptors returned here are close-on-exec.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from .. import _limits
from .._errors import LiveUpdateError

__all__ = (
    "DEVICE",
    "NAME_MAX",
    "create_session",
    "finish",
    "get_name",
    "is_gone",
    "is_incoming",
    "preserve_fd",
    "retrieve_fd",
    "retrieve_session",
)

DEVICE = "/dev/liveupdate"
_CLASS = "/sys/class/misc/liveupdate"  # exists if the kernel has the device, even if a unit's private /dev does not have it
# The kernel allows 63 bytes. But before kernel 7.2, systemd reads names from /proc, which cuts them after 38.
NAME_MAX = 38
BUSY_LIMIT_S = _limits.DEVICE_BUSY

_NAME = struct.Struct("=Ii64s")  # size, fd, name: create, retrieve; with fd read as a reserved word: get name
_FD = struct.Struct("=IiQ")  # size, fd, token: preserve, retrieve
_FINISH = struct.Struct("=II")  # size, reserved

_TYPE = 0xBA << 8
_CREATE_SESSION = _TYPE | 0x00
_RETRIEVE_SESSION = _TYPE | 0x01
_PRESERVE_FD = _TYPE | 0x40
_RETRIEVE_FD = _TYPE | 0x41
_FINISH_SESSION = _TYPE | 0x42
_GET_NAME = _TYPE | 0x43

_SENTENCES = {
    ("open", errno.ENOENT): "the kernel has no live update device: it needs CONFIG_LIVEUPDATE=y and the kernel parameters"
    " kho=on and liveupdate=on. The playbook kvm.liveupdate.setup adds them, with one ordinary reboot",
    ("open", errno.EACCES): "only root may use it; run this as root",
    ("open", errno.EPERM): "only root may use it; run this as root",
    ("open", errno.EBUSY): "another process has it open, and only one may; find that process with 'fuser -v /dev/liveupdate'",
    ("open", errno.EIO): "this kernel could not read what the previous kernel handed over (see 'dmesg | grep -i luo');"
    " the device cannot be used until the next reboot",
    ("create", errno.EEXIST): "a session with this name exists already; release that session first",
    ("create", errno.EINVAL): "the kernel does not accept this name",
    ("create", errno.ENOMEM): "the kernel has no memory or no session left; release other sessions",
    ("retrieve session", errno.ENOENT): "the previous kernel did not hand over a session with this name, or the session is already"
    " finished",
    ("retrieve session", errno.EINVAL): "another process has already retrieved the session and has it open",
    ("preserve", errno.ENOENT): "the kernel cannot preserve this kind of file: only memfds and unlinked tmpfs files, not"
    " hugetlb memory, named files or anonymous memory",
    ("preserve", errno.EBUSY): "this memory is already preserved, or it was retrieved from a session that is not finished",
    ("preserve", errno.EEXIST): "this session already uses the token",
    ("preserve", errno.EINVAL): "the session came from the previous kernel; preserve the memory in a new session",
    ("preserve", errno.EFBIG): "the memory file is too large; the kernel preserves less than 1 TiB in one file",
    ("preserve", errno.ENOMEM): "the kernel ran out of memory while it allocated and pinned the pages; free memory on the host",
    ("preserve", errno.ENOSPC): "the session contains as many files as the kernel allows",
    ("preserve", errno.EOPNOTSUPP): "the memfd has a seal that the kernel cannot preserve",
    ("retrieve", errno.ENOENT): "the session has no file with this token",
    ("retrieve", errno.EINVAL): "the session was created by this kernel; memory can be retrieved only after the jump",
    ("retrieve", errno.ENOMEM): "the kernel ran out of memory, or the memory limit of the calling unit is too low."
    " A failed retrieve cannot be repeated",
    ("finish", errno.EINVAL): "the session was created by this kernel; close it instead of finishing it",
}


def _error(verb: str, what: str, err: OSError) -> LiveUpdateError:
    sentence = _SENTENCES.get((verb, err.errno or 0), os.strerror(err.errno or 0))
    name = errno.errorcode.get(err.errno or 0, str(err.errno))
    return LiveUpdateError(f"{verb} {what}: {sentence} ({name})", errno=name, verb=verb)


def _ioctl(verb: str, what: str, fd: int, request: int, arguments: bytearray) -> None:
    try:
        fcntl.ioctl(fd, request, arguments)
    except OSError as err:
        raise _error(verb, what, err) from err


def _open(device: str) -> int:
    """Open the device. Only one process can have it open, and PID 1 uses it too, so this retries for a while if it is busy."""
    limit = time.monotonic() + BUSY_LIMIT_S
    while True:
        try:
            return os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            if err.errno != errno.EBUSY or time.monotonic() > limit:
                raise _error("open", device, err) from err
        time.sleep(0.02)


def _named(verb: str, request: int, name: str, device: str) -> int:
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_MAX:
        raise LiveUpdateError(f"session name {name!r} has {len(encoded)} bytes; use 1 to {NAME_MAX} bytes, the limit of systemd")
    arguments = bytearray(_NAME.pack(_NAME.size, -1, encoded))
    handle = _open(device)
    try:
        _ioctl(verb, f"session {name}" if verb == "create" else name, handle, request, arguments)
    finally:
        os.close(handle)
    return int(_NAME.unpack(arguments)[1])


def create_session(name: str, device: str = DEVICE) -> int:
    """Create an outgoing session and return its descriptor."""
    return _named("create", _CREATE_SESSION, name, device)


def retrieve_session(name: str, device: str = DEVICE) -> int:
    """Return the descriptor of the incoming session ``name``. This is possible only once."""
    return _named("retrieve session", _RETRIEVE_SESSION, name, device)


def is_gone(err: LiveUpdateError, known: str = _CLASS) -> bool:
    """Whether :func:`retrieve_session` failed because this kernel will never have such a session. Any other failure may be temporary.

    EIO: the kernel could not read what was handed over. ENOENT: it has no such session, or no live update at all.
    """
    name = err.details.get("errno")
    return name == "EIO" or (name == "ENOENT" and (err.details.get("verb") != "open" or not os.path.exists(known)))


def preserve_fd(session: int, fd: int, token: int) -> None:
    """Preserve the file behind ``fd`` under ``token`` (0 to 2**64-1). Its size is frozen and its holes are filled."""
    _ioctl("preserve", f"token {token}", session, _PRESERVE_FD, bytearray(_FD.pack(_FD.size, fd, token)))


def retrieve_fd(session: int, token: int) -> int:
    """Return a descriptor of the file preserved under ``token``; its pages are charged to the caller's cgroup."""
    arguments = bytearray(_FD.pack(_FD.size, -1, token))
    _ioctl("retrieve", f"token {token}", session, _RETRIEVE_FD, arguments)
    return int(_FD.unpack(arguments)[1])


def is_incoming(session: int) -> bool:
    """Whether the session came from the previous kernel. This asks for a token that is never used, which has no effect."""
    try:
        fcntl.ioctl(session, _RETRIEVE_FD, bytearray(_FD.pack(_FD.size, -1, 2**64 - 1)))
    except OSError as err:
        return err.errno != errno.EINVAL
    return True


def finish(session: int) -> None:
    """End an incoming session: what was not retrieved is discarded, what was can be preserved again."""
    _ioctl("finish", "session", session, _FINISH_SESSION, bytearray(_FINISH.pack(_FINISH.size, 0)))


def get_name(session: int) -> str:
    """Return the session's name (Linux 7.2 and later)."""
    arguments = bytearray(_NAME.pack(_NAME.size, 0, b""))
    _ioctl("get name of", "session", session, _GET_NAME, arguments)
    return str(_NAME.unpack(arguments)[2].rstrip(b"\0").decode())
