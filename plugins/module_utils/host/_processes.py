# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts about other processes from /proc, and how to copy a file descriptor from one. PRIVATE to the collection."""

from __future__ import annotations

import errno
import os

from .._errors import LiveUpdateError
from . import _files

__all__ = (
    "SESSION_LINK",
    "VM_LINK",
    "argv_of",
    "fd_links",
    "file_of",
    "flags_of",
    "folder_of",
    "guest_time",
    "holders",
    "interfaces",
    "lives",
    "may_begin_a_vm",
    "open_paths",
    "pids",
    "replaced_program",
    "start_time",
    "started_at",
    "take_fd",
    "unit_of",
    "user_of",
)

_SYS_PIDFD_GETFD = 438  # one number on every architecture, pidfd_getfd(2)
SESSION_LINK = "anon_inode:[luo_session] "
VM_LINK = "anon_inode:kvm-vm"
_KVM_DEVICE = "/kvm"
_TAP_LINK = "/dev/net/tun"
_IFF_PERSIST = 0x800  # of a tap that exists without a process (include/uapi/linux/if_tun.h)


def pids(root: str = "/") -> list[int]:
    """All process ids, in order."""
    return sorted(int(name) for name in os.listdir(os.path.join(root, "proc")) if name.isdigit())


def fd_links(pid: int, root: str = "/") -> dict[int, str]:
    """The target of each descriptor of a process, as /proc/PID/fd shows it. Empty if the process has ended."""
    base = os.path.join(root, f"proc/{pid}/fd")
    links = {}
    try:
        for name in os.listdir(base):
            try:
                links[int(name)] = os.readlink(os.path.join(base, name))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        return {}
    return links


def open_paths(pid: int) -> dict[int, tuple[str, int]]:
    """The files that a process has open and that still have a name, except input and output: path and flags (open(2)), by descriptor.

    This accesses no file system, because one that does not answer would block the caller.
    """
    found = {}
    for fd, link in sorted(fd_links(pid).items()):
        if fd > 2 and link.startswith("/") and not link.endswith(" (deleted)"):
            flags = flags_of(pid, fd)
            if flags is not None:
                found[fd] = (link, flags)
    return found


def flags_of(pid: int, fd: int) -> int | None:
    """The flags of a descriptor (open(2), fcntl(2)); None if it is closed."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
            return next((int(line.split()[1], 8) for line in info if line.startswith("flags:")), 0)
    except OSError:
        return None


def folder_of(pid: int) -> str:
    """The working directory of a process; the root if the process has ended."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def file_of(pid: int, fd: int) -> tuple[int, int]:
    """The file of a process's descriptor, as its device and inode; zeros if it is closed."""
    try:
        seen = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return 0, 0
    return seen.st_dev, seen.st_ino


def holders(link: str, root: str = "/") -> list[tuple[int, int]]:
    """Every (pid, fd) whose link in /proc is ``link``. For a session, these keep it alive."""
    return [(pid, fd) for pid in pids(root) for fd, seen in fd_links(pid, root).items() if seen == link]


def may_begin_a_vm(links: set[str]) -> bool:
    """Whether a process with these links has /dev/kvm open, so it can create a virtual machine. A container may see it as /kvm. Pure."""
    return any(link.endswith(_KVM_DEVICE) and link.startswith("/") for link in links)


def interfaces(pid: int, root: str = "/") -> list[str]:
    """The host's network interfaces that the taps of a process need: their bridges, and the taps that it did not make itself.

    Source: drivers/net/tun.c (fdinfo, tun_flags), sysfs.
    """
    found = set()
    for fd, link in fd_links(pid, root).items():
        if link != _TAP_LINK:
            continue
        try:
            with open(os.path.join(root, f"proc/{pid}/fdinfo/{fd}"), encoding="ascii") as info:
                tap = next(line.split()[1] for line in info if line.startswith("iff:"))
            device = os.path.join(root, "sys/class/net", tap)
            with open(os.path.join(device, "tun_flags"), encoding="ascii") as flags:
                if int(flags.read(), 16) & _IFF_PERSIST:
                    found.add(tap)
            found.add(os.path.basename(os.readlink(os.path.join(device, "master"))))
        except (OSError, StopIteration, IndexError):
            continue  # closed, without a name yet, or on no bridge
    return sorted(found)


def argv_of(pid: int) -> list[str]:
    """The process's command line (proc(5), cmdline). OSError when it is gone."""
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
        return file.read().split("\0")[:-1]


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since the boot (proc(5), stat field 22), to detect a reused ID. 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def lives(record: dict) -> bool:
    """Whether the process with this ``pid`` and start time ``started`` (:func:`start_time`) still runs."""
    return bool(record["started"]) and start_time(record["pid"]) == record["started"]


def guest_time(pid: int) -> int:
    """How long the process has run a guest, in clock ticks (proc(5), stat field 43). It stops with the guest. 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[40])
    except (OSError, IndexError):
        return 0


def started_at(pid: int) -> float:
    """When the process started, in seconds since the epoch by the present clock (proc(5), stat, btime). 0 if it has ended."""
    ticks = start_time(pid)
    with open("/proc/stat", encoding="ascii") as stat:
        booted = next(int(line.split()[1]) for line in stat if line.startswith("btime "))
    return booted + ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def replaced_program(pid: int) -> str:
    """The path of the program that the process runs, if the file there was replaced or removed; else empty.

    It is also the name with which the process was started, if that name now leads to another program: a changed link, as in alternatives.
    """
    link = f"/proc/{pid}/exe"
    try:
        path = os.readlink(link)
        runs = os.stat(link)
    except OSError:
        return ""
    path = path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path
    for place in (path, _started_by(pid)):
        try:
            there = os.stat(place) if place else runs
        except FileNotFoundError:
            return place
        if (runs.st_dev, runs.st_ino) != (there.st_dev, there.st_ino):
            return place
    return ""


def _started_by(pid: int) -> str:
    """The program to which the first word of a process's command line leads now; empty for a script, or if it cannot be run."""
    try:
        word = argv_of(pid)[0]
        with open(f"/proc/{pid}/environ", encoding="utf-8", errors="surrogateescape") as file:
            folders = next((value[len("PATH=") :] for value in file.read().split("\0") if value.startswith("PATH=")), os.defpath)
        places = [os.path.join(folder_of(pid), word)] if "/" in word else [os.path.join(folder, word) for folder in folders.split(":")]
        found = next((place for place in places if os.access(place, os.X_OK) and os.path.isfile(place)), "")
        if not found:
            return ""
        with open(_files.open_ordinary(found), "rb") as program:
            return found if program.read(4) == b"\x7fELF" else ""
    except (OSError, IndexError, ValueError):
        return ""


def unit_of(pid: int, root: str = "/") -> str | None:
    """The systemd system unit that a process belongs to, from its cgroup (version 2). None outside of any unit."""
    try:
        with open(os.path.join(root, f"proc/{pid}/cgroup"), encoding="utf-8", errors="surrogateescape") as cgroup:
            path = next((line.rstrip("\n")[3:] for line in cgroup if line.startswith("0::")), "")
    except OSError:
        return None
    names = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
    return names[0] if names else None


def user_of(pid: int) -> int | None:
    """The effective user ID of a process (proc(5), status); None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            return next((int(line.split()[2]) for line in status if line.startswith("Uid:")), None)
    except OSError:
        return None


def take_fd(pid: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor: pidfd_open(2), pidfd_getfd(2). Needs ptrace rights (root)."""
    import ctypes  # slow to import, and not needed on the boot path

    try:
        handle = os.pidfd_open(pid)
    except OSError as err:
        raise LiveUpdateError(f"process {pid} cannot be opened: {os.strerror(err.errno or 0)}; if it has ended, try again") from err
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        taken = libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), handle, fd, 0)
    finally:
        os.close(handle)
    if taken < 0:
        code = ctypes.get_errno()
        remedy = "run this as root" if code in (errno.EPERM, errno.EACCES) else "try again"
        raise LiveUpdateError(f"descriptor {fd} of process {pid} cannot be copied: {os.strerror(code)}; {remedy}")
    os.set_inheritable(taken, False)
    return int(taken)
