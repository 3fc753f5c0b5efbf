# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check whether a file or a socket exists again after a boot. For both providers. PRIVATE to the collection."""

from __future__ import annotations

import os
import stat

from .._errors import reason
from ..host import _links, _processes, _slow_paths, _systemd, _tcp
from . import _block

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("link_warnings", "makes", "paths", "peer_warnings", "servers", "sockets")

_MEMORY = ("ramfs", "tmpfs")
_ALWAYS_EMPTY = ("/dev/shm/", "/run/")
_ALWAYS_THERE = ("/dev", "/dev/shm", "/run", "/run/lock", "/tmp", "/var/tmp")
# Folders of tmpfiles.d(5). Of two files with the same name the later one counts.
_TMPFILES = ("usr/lib/tmpfiles.d", "usr/local/lib/tmpfiles.d", "run/tmpfiles.d", "etc/tmpfiles.d")
_MAKES_FOLDERS, _MAKES_FILES = "dDvqQ", "bcCfFLp"  # types of its lines
# With these unit file states a boot can start the service.
_LASTING = ("alias", "enabled", "generated", "indirect", "linked", "static")


def peer_warnings(wanted: list[dict], root: str = "/") -> list[dict]:
    """A warning for each TCP peer of a guest on another host: its connection does not survive the jump."""
    return [
        reason(
            "peer-remote",
            f"its connection to {socket['path']} breaks at the jump and is opened again: {socket['what']}",
            "make sure that the other end then runs and accepts a second connection",
        )
        for socket in wanted
        if not socket["path"].startswith("/") and not _tcp.is_here(socket["path"], root)
    ]


def link_warnings(wanted: dict[str, str], root: str = "/") -> list[dict]:
    """A warning for each network interface of the host that no boot sets up; ``wanted`` says what for."""
    return [
        reason(
            "network-by-hand",
            f"{wanted[name]} uses the network interface {name}, and no file of the host's network configuration names it, so the guest may"
            " have no network after the jump",
            f"let the host set {name} up at each boot (systemd-networkd, /etc/network/interfaces, netplan, NetworkManager)",
        )
        for name in _links.by_hand(list(wanted), root)
    ]


def paths(files: list[dict], pid: int, mounts: str = "/proc/self/mountinfo") -> dict[str, str]:
    """The problem of each file that has one, by its path.

    ``gone``: it does not exist. ``memory``: it does not exist after a boot. ``by-hand``: it is a block device that a boot does not set up.
    ``replaced``: QEMU has another file open. ``silent``: its storage does not answer. A ``folder`` is one in which QEMU creates something.
    A ``pipe`` may also be two, with ``.in`` and ``.out`` after its name.
    """
    if not files:
        return {}
    try:
        found: dict[str, str] = _slow_paths.look(lambda say: _wrong(files, pid, mounts, say))
    except _slow_paths.Silent as err:
        named = [file["path"] for file in files]
        return {err.path if err.path in named else named[0]: "silent"}
    made = makes([file["path"] for file in files if file.get("folder") and found.get(file["path"]) in ("gone", "memory")])
    return {path: wrong for path, wrong in found.items() if path not in made}


def makes(folders: list[str], own: t.Collection[str] = (), root: str = "/") -> set[str]:
    """Those of these folders that a boot creates: systemd-tmpfiles does, or a service that a boot starts.

    ``own`` are folders that the guest's unit creates.
    """
    wanted = {folder: os.path.realpath(folder) for folder in folders}
    made = [f"{path}/" for path in (*_ALWAYS_THERE, *own)]
    made += [path if kind in _MAKES_FILES else f"{path}/" for kind, path in _tmpfiles(root) if kind in _MAKES_FOLDERS + _MAKES_FILES]
    found = {folder for folder, path in wanted.items() if any(there.startswith(f"{path}/") for there in made)}
    if found != set(folders):  # this collects all properties of all services
        made = [f"/run/{name}/" for name in _systemd.runtime_directories(_LASTING)]
        found |= {folder for folder, path in wanted.items() if any(there.startswith(f"{path}/") for there in made)}
    return found


def _wrong(files: list[dict], pid: int, mounts: str, say: t.Callable[[str], None]) -> dict[str, str]:
    in_memory, emptied = _memory_devices(mounts), _emptied()
    opened = _opened(pid, say)
    found = {}
    for file in files:
        say(file["path"])
        path = os.path.realpath(file["path"])
        try:
            seen = os.stat(f"{path}.in" if file.get("pipe") and not os.path.exists(path) else path)
        except FileNotFoundError:
            found[file["path"]] = "gone"
            continue
        except OSError:
            continue  # on storage that root cannot access (NFS)
        is_device = stat.S_ISBLK(seen.st_mode) or stat.S_ISCHR(seen.st_mode)
        if file.get("folder") and os.path.ismount(path):
            continue
        if not is_device and (seen.st_dev in in_memory or path.startswith(emptied)):
            found[file["path"]] = "memory"
        elif stat.S_ISBLK(seen.st_mode) and _block.is_by_hand(seen.st_rdev):
            found[file["path"]] = "by-hand"
        elif file["open"] and opened and _identity(seen) not in opened:
            found[file["path"]] = "replaced"
    return found


def _memory_devices(mounts: str) -> set[int]:
    """The file systems that are in memory (proc(5), mountinfo)."""
    found = set()
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _dash, rest = line.partition(" - ")
            if rest.split()[0] in _MEMORY:
                major, minor = fields.split()[2].split(":")
                found.add(os.makedev(int(major), int(minor)))
    return found


def _emptied(root: str = "/") -> tuple[str, ...]:
    """Folders whose files a boot removes, on any file system: /tmp only if tmpfiles.d(5) says so (a line of type D)."""
    return (*_ALWAYS_EMPTY, "/tmp/") if ("D", "/tmp") in _tmpfiles(root) else _ALWAYS_EMPTY


def _tmpfiles(root: str) -> list[tuple[str, str]]:
    """The lines of tmpfiles.d(5), as type and path."""
    configs: dict[str, str] = {}
    for folder in _TMPFILES:
        path = os.path.join(root, folder)
        if os.path.isdir(path):
            configs.update({name: os.path.join(path, name) for name in os.listdir(path) if name.endswith(".conf")})
    found = []
    for config in configs.values():
        try:
            with open(config, encoding="utf-8", errors="surrogateescape") as file:
                rows = [line.split()[:2] for line in file]
        except OSError:
            continue
        found += [(row[0][0], _tmpfile(row[1])) for row in rows if len(row) == 2]
    return found


def _tmpfile(path: str) -> str:
    path = path.strip("\"'").replace("%t", "/run")
    return os.path.normpath(f"/run/{path[len('/var/run/') :]}" if path.startswith("/var/run/") else path)


def _identity(seen: os.stat_result) -> tuple[int, int]:
    """A device is identified by its number, because libvirt makes separate device nodes for QEMU."""
    return (-1, seen.st_rdev) if stat.S_ISBLK(seen.st_mode) else (seen.st_dev, seen.st_ino)


def _opened(pid: int, say: t.Callable[[str], None]) -> set[tuple[int, int]]:
    """The files that a process has open; empty if this is unknown."""
    found = set()
    for fd, link in _processes.fd_links(pid).items():
        say(link)
        try:
            found.add(_identity(os.stat(f"/proc/{pid}/fd/{fd}")))
        except OSError:
            continue  # closed meanwhile
    return found


def sockets(wanted: list[dict], root: str = "/", brought: t.Collection[str] = ()) -> dict[str, str]:
    """The unit of the process that listens at each socket, by path, if a boot starts that unit again; else empty.

    It is "elsewhere" for a socket of another host, and "kernel" for a TCP port at which the kernel listens (an iSCSI target). ``brought``
    are units that start with the guest, so they need not be enabled.
    """
    if not wanted:
        return {}
    listening = _listening(root)
    owners = {}
    for socket in wanted:
        path, is_tcp = socket["path"], not socket["path"].startswith("/")
        if is_tcp and not _tcp.is_here(path, root):
            owners[path] = "elsewhere"
            continue
        inode, pids = _listener(path, listening, root)
        if is_tcp and inode and not pids:
            owners[path] = "kernel"
            continue
        # PID 1 listens for the service of a socket unit.
        owners[path] = "init.scope" if 1 in pids else next((unit for unit in map(_processes.unit_of, pids) if unit), "")
    services = sorted({unit for unit in owners.values() if unit.endswith(".service") and not unit.startswith("user@")})
    states = _systemd.show_each(services, "UnitFileState")
    lasting = {"init.scope", "elsewhere", "kernel", *(unit for unit in services if states[unit].get("UnitFileState") in _LASTING)}
    lasting |= {unit for unit in services if unit in brought and states[unit].get("UnitFileState") not in ("", "transient")}
    return {path: unit if unit in lasting else "" for path, unit in owners.items()}


def servers(wanted: list[dict], root: str = "/") -> list[str]:
    """The services that serve these sockets, so that running guests need them: their processes listen there, or have a connection.

    For a socket unit with ``Accept=yes`` PID 1 listens, and each connection has a service of its own (systemd.socket(5)).
    """
    if not wanted:
        return []
    sockets_of_host = _unix_sockets(root)
    inodes: set[str] = set()
    for path in (socket["path"] for socket in wanted):
        if path.startswith("/"):
            there = os.path.realpath(path)
            inodes.update(inode for name, inode, _listens in sockets_of_host if name == there)
        elif _tcp.is_here(path, root):
            inodes.update(_tcp.served(path, root))
    links = {f"socket:[{inode}]" for inode in inodes}
    pids = [pid for pid in _processes.pids(root) if not links.isdisjoint(_processes.fd_links(pid, root).values())]
    return sorted({unit for unit in map(_processes.unit_of, pids) if unit and unit.endswith(".service")})


def _listener(path: str, listening: dict[str, str], root: str) -> tuple[str, list[int]]:
    """The inode of the socket that listens at this path or HOST:PORT, and the processes that have it open."""
    inode = listening.get(os.path.realpath(path), "") if path.startswith("/") else _tcp.listener(path, root)
    return inode, [pid for pid, _fd in _processes.holders(f"socket:[{inode}]", root)]


def _listening(root: str) -> dict[str, str]:
    """The inode of each UNIX socket at which a process listens, by its path."""
    return {path: inode for path, inode, listens in _unix_sockets(root) if listens}


def _unix_sockets(root: str) -> list[tuple[str, str, bool]]:
    """Path and inode of each UNIX socket with a path, and whether a process listens there (proc(5), /proc/net/unix; flag __SO_ACCEPTCON).

    The socket of a connection has the path at which it was accepted. The socket of the process that connected has none.
    """
    with open(os.path.join(root, "proc/net/unix"), encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in (line.rstrip("\n").split(None, 7) for line in file) if len(row) == 8 and row[7].startswith("/")]
    real = {path: os.path.realpath(path) for path in {row[7] for row in rows}}  # most paths are there many times
    return [(real[row[7]], row[6], row[3] == "00010000") for row in rows]
