# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Live Update Orchestrator's user interface, whole. PRIVATE to the collection.

Source: include/uapi/linux/liveupdate.h and kernel/liveupdate/luo_{core,session,file}.c of Linux 7.2 and 7.3.

A session is *outgoing* when this kernel created it and *incoming* when the kernel before the jump did. Closing the last
descriptor of an outgoing session gives up what it preserved; closing that of an incoming one discards what was not
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
_CLASS = "/sys/class/misc/liveupdate"  # there whenever the kernel has the device, also where a unit's own /dev has not
# The kernel takes 63 bytes; systemd before kernel 7.2 reads names through /proc, which cuts them after 38.
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
    ("open", errno.ENOENT): "the kernel has no live update device: it needs CONFIG_LIVEUPDATE and the command line"
    " options kho=on and liveupdate=on, which the role hypervisor_setup can add at the price of one ordinary reboot",
    ("open", errno.EACCES): "only root may use it",
    ("open", errno.EPERM): "only root may use it",
    ("open", errno.EBUSY): "another process keeps it open (one opener at a time); find it with 'fuser -v /dev/liveupdate'",
    ("open", errno.EIO): "this kernel could not read what the kernel before it handed over (see 'dmesg | grep -i luo');"
    " the device stays unusable until the next reboot",
    ("create", errno.EEXIST): "a session of that name exists already; release it first",
    ("create", errno.EINVAL): "the kernel does not take that name",
    ("create", errno.ENOMEM): "the kernel is out of memory or sessions",
    ("retrieve session", errno.ENOENT): "the kernel before this one did not hand over a session of that name, or it was finished already",
    ("retrieve session", errno.EINVAL): "it was retrieved already and is still open in another process",
    ("preserve", errno.ENOENT): "the kernel cannot preserve that kind of file: only memfds and unlinked tmpfs files, not"
    " hugetlb memory, named files or anonymous memory",
    ("preserve", errno.EBUSY): "the same memory is preserved already, or was retrieved and its session is not finished",
    ("preserve", errno.EEXIST): "the token is used already in this session",
    ("preserve", errno.EINVAL): "the session came from the kernel before this one; preserving needs a new session",
    ("preserve", errno.EFBIG): "the memory is larger than the kernel can describe (under 1 TiB for one file)",
    ("preserve", errno.ENOMEM): "the kernel ran out of memory while it filled and pinned the pages",
    ("preserve", errno.ENOSPC): "the session holds as many files as this kernel allows",
    ("preserve", errno.EOPNOTSUPP): "the memfd has a seal that the kernel does not know",
    ("retrieve", errno.ENOENT): "the session holds nothing under that token",
    ("retrieve", errno.EINVAL): "the session was created by this kernel; there is nothing to retrieve before the jump",
    ("retrieve", errno.ENOMEM): "the kernel ran out of memory, or the limit of the calling unit's memory cgroup is"
    " smaller than the memory; a failed retrieve cannot be repeated",
    ("finish", errno.EINVAL): "the session was created by this kernel; close it instead",
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
    """Open the device; it has one opener at a time and PID 1 uses it too, so a busy one is tried again for a while."""
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
        raise LiveUpdateError(f"session name {name!r} has {len(encoded)} bytes: use 1 to {NAME_MAX} (systemd cannot carry a longer one)")
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
    """Return the descriptor of the incoming session ``name``; it can be had once."""
    return _named("retrieve session", _RETRIEVE_SESSION, name, device)


def is_gone(err: LiveUpdateError, known: str = _CLASS) -> bool:
    """Whether :func:`retrieve_session` failed because this kernel has no such session, now or later; any other failure may pass.

    EIO: it could not read what was handed over. ENOENT: it has no such session, or no live update at all.
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
    """Whether the session came from the kernel before this one. Asks for a token that nobody uses, to no effect."""
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
