# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU opens at its start according to its command line: disks, files, sockets, folders. PRIVATE to the collection.

Paths are as QEMU sees them. This code does not access them. Source: qemu(1), QEMU's block/nbd.c and chardev/char.c.
"""

from __future__ import annotations

import os
import re
import stat

from ..host import _processes
from . import _options
from ._options import Option

__all__ = (
    "CHARACTER_DEVICES",
    "READ",
    "connections",
    "devices",
    "images",
    "is_output",
    "is_read_only",
    "local_file",
    "needed",
    "outputs",
    "peers",
    "pipes",
    "ports",
    "read_at_start",
)

# Options that name a file which QEMU reads at its start, and the keys with the file.
READ = {
    "bios": ("",),
    "dtb": ("",),
    "fw_cfg": ("file",),
    "initrd": ("",),
    "kernel": ("",),
    "object": ("file", "dir", "filename"),
    "option-rom": ("romfile",),
    "smbios": ("file", "path"),
    "acpitable": ("file", "data"),
    "spice": ("x509-dir",),
    "vnc": ("tls-creds-dir",),
    "netdev": ("script",),
    "nic": ("script",),
    "net": ("script",),
    "plugin": ("file",),
}
CHARACTER_DEVICES = ("chardev", "debugcon", "monitor", "parallel", "qmp", "qmp-pretty", "serial")
_READ_BY_DEVICES = ("romfile", "file", "sdrfile", "frudatafile")
_WRITES = ("filter-dump",)  # objects whose file is what they write
_TCP_PORTS = {"nbd": "10809", "iscsi": "3260", "http": "80", "https": "443", "ftp": "21", "ftps": "990", "ssh": "22"}  # of disks
_PORTS = ("serial", "parallel", "tty", "parport")
_NETWORKS = ("netdev", "nic", "net")
_NO_FILES = ("/dev/", "/proc/", "/sys/", "/memfd:")


def images(options: list[Option], folder: str = "/") -> list[str]:
    """The files and block devices of the disks. A relative path is relative to ``folder``, where QEMU started."""
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    disks = [option for option in options if option.name in ("drive", "blockdev")]
    named = dict.fromkeys(local_file(disk, nodes) for disk in disks)
    return [os.path.join(folder, path) for path in named if path.startswith("/") or (path and ":" not in path)]


def is_read_only(disk: Option) -> bool:
    """Whether the guest cannot write to this disk."""
    return disk.get("media") == "cdrom" or disk.is_on("readonly") or disk.is_on("read-only")


def local_file(disk: Option, nodes: dict[str, Option]) -> str:
    """The file or block device of the host with a disk's image, or empty. ``nodes`` are the ``-blockdev`` options by their names."""
    for key, value in disk.keys.items():
        last = key.rpartition(".")[2]
        if set(key.split(".")[:-1]) <= {"file"} and last in ("file", "filename"):
            if last == "file" and value in nodes:
                return local_file(nodes[value], {name: node for name, node in nodes.items() if node is not disk})
            if last == "filename":
                return value
            if disk.name == "drive":
                return _local(value)
    return ""


def _local(name: str) -> str:
    """The file behind a name in ``-drive file=``. It may begin with a protocol (block.c, path_has_protocol), also "json:"."""
    if name.startswith("json:"):
        try:
            return local_file(Option("drive", _options.keys_of("blockdev", name[len("json:") :]), name), {})
        except ValueError:
            return ""
    protocol, colon, rest = name.partition(":")
    if not colon or "/" in protocol:
        return name
    return rest if protocol in ("file", "host_device", "host_cdrom") else ""


def read_at_start(options: list[Option], argv: list[str]) -> list[str]:
    """The files that QEMU reads at its start and closes again, except names without a folder, which QEMU looks for in its own folders.

    A folder that is a FAT disk is one of them, and the first word of a helper, which is a command.
    """
    named = [option.get(key) for option in options for key in READ.get(option.name, ()) if option.get("qom-type") not in _WRITES]
    named += [word for option in options if option.name in _NETWORKS for word in option.get("helper").split()[:1]]
    named += [option.get(key) for option in options if option.name == "device" for key in _READ_BY_DEVICES]
    named += [path for option in options if option.name in ("drive", "blockdev") for path in _read_for_disk(option)]
    named += [word for name, word in _options.split(argv) if name == "readconfig"]
    return [path for path in dict.fromkeys(named) if path.startswith("/") and not path.startswith("/dev/")]


def _read_for_disk(option: Option) -> list[str]:
    """The folder of a FAT disk (``fat:rw:/srv/d``, or as a key), and the configuration of a Ceph disk (``rbd:pool/image:conf=FILE``)."""
    found = []
    for key, value in option.keys.items():
        above, last = key[: -len(key.rpartition(".")[2])], key.rpartition(".")[2]
        protocol, _colon, rest = value.partition(":")
        if last in ("file", "filename") and protocol in ("fat", "rbd", "json"):
            if protocol == "json":
                found += _read_for_disk(Option(option.name, _json_keys(rest), value))
            elif protocol == "fat":
                found.append(rest.rpartition(":")[2])
            else:
                found += [re.sub(r"\\(.)", r"\1", path) for path in re.findall(r":conf=((?:[^:\\]|\\.)*)", value)]
        elif (last, option.get(f"{above}driver")) in (("dir", "vvfat"), ("conf", "rbd")):
            found.append(value)
    return found


def _json_keys(text: str) -> dict[str, str]:
    try:
        return _options.keys_of("blockdev", text)
    except ValueError:
        return {}


def connections(options: list[Option]) -> dict[str, str]:
    """The Unix sockets that QEMU connects to and cannot start without: path -> what for."""
    found = {}
    for option in options:
        path = ""
        if option.name in CHARACTER_DEVICES and not _is_server(option) and not _connects_later(option):
            path = _socket_of(option)
        elif option.name in _NETWORKS and not _is_server(option) and not _connects_later(option):
            path = {"stream": option.get("addr.path"), "vde": f"{option.get('sock')}/ctl"}.get(option.get("type"), "")
        elif option.name in ("drive", "blockdev"):
            path = _disk_socket(option)
        elif option.name == "object" and option.get("qom-type") == "pr-manager-helper":
            path = option.get("path")
        if path.startswith("/"):
            found[path] = option.text
    return found


def peers(options: list[Option]) -> dict[str, str]:
    """The TCP peers, as HOST:PORT, that QEMU connects to and cannot start without: peer -> what for."""
    found = {}
    for option in options:
        if option.name in ("drive", "blockdev"):
            peer = _disk_peer(option)
        elif option.name not in (*CHARACTER_DEVICES, *_NETWORKS) or _is_server(option) or _connects_later(option):
            continue
        elif option.name in _NETWORKS:
            peer = {"stream": _peer(option, "addr."), "socket": option.get("connect")}.get(option.get("type"), "")
        else:
            peer = _peer(option, "backend.data.addr.data." if option.get("backend.type") == "socket" else "")
        if peer:
            found[peer] = option.text
    return found


def _peer(option: Option, prefix: str) -> str:
    port = option.get(f"{prefix}port")
    is_socket = prefix or option.get("backend") == "socket"
    return f"{option.get(f'{prefix}host')}:{port}" if port and is_socket else ""


def _disk_peer(option: Option) -> str:
    """The server of a disk: nbd:HOST:PORT, a URI such as nbd://HOST:PORT/NAME, or as keys."""
    for key, value in option.keys.items():
        above, last = key[: -len(key.rpartition(".")[2])], key.rpartition(".")[2]
        if last in ("file", "filename", "url"):
            short = re.match(r"nbd:(?!unix:)(\[[^\]]*\]|[^:/]*):(\d+)", value)
            uri = re.match(r"(\w+)(?:\+tcp)?://(?:[^@/]*@)?(\[[^\]]*\]|[^:/?]*)(?::(\d+))?", value)
            if short:
                return f"{short[1]}:{short[2]}"
            if uri and uri[1] in _TCP_PORTS:
                return f"{uri[2]}:{uri[3] or _TCP_PORTS[uri[1]]}"
        if last == "portal":
            return value if re.search(r":\d+$", value) else f"{value}:{_TCP_PORTS['iscsi']}"
        driver = option.get(f"{above}driver") or option.get(f"{above[: -len('server.')]}driver")
        if last == "host" and driver in _TCP_PORTS:
            return f"{value}:{option.get(f'{above}port') or _TCP_PORTS[driver]}"
    return ""


def outputs(options: list[Option]) -> list[str]:
    """The files that QEMU creates or writes at its start, and the sockets at which it listens: their folders must exist."""
    found = []
    for option in options:
        if option.name in CHARACTER_DEVICES:
            found += [option.get("logfile"), option.get("backend.data.logfile")]
            if _backend(option) == "file":
                found += [option.get("path"), option.get("backend.data.out")]
            elif _is_server(option):
                found.append(_socket_of(option))
        elif option.name in _NETWORKS and option.get("type") in ("stream", "dgram"):
            found += [option.get("local.path"), option.get("addr.path") if _is_server(option) else ""]
        elif option.name in ("pidfile", "D"):
            found.append(option.get(""))
        elif option.name == "object" and option.get("qom-type") in _WRITES:
            found.append(option.get("file"))
        elif option.name == "vnc":
            found.append(option.get("vnc").partition("unix:")[2])
        elif option.name == "spice" and option.is_on("unix"):
            found.append(option.get("addr"))
    return [path for path in dict.fromkeys(found) if path.startswith("/")]


def ports(options: list[Option]) -> list[str]:
    """The serial ports, terminals and input devices of the host that QEMU opens, and its sources of random numbers."""
    backed = [option for option in options if option.name in CHARACTER_DEVICES and _backend(option) in _PORTS]
    found = [option.get(key) for option in backed for key in ("path", "backend.data.device")]
    found += [option.get("filename") for option in options if option.name == "object" and option.get("qom-type") == "rng-random"]
    found += [option.get("evdev") for option in options if option.name in ("object", "device")]
    return [path for path in dict.fromkeys(found) if path.startswith("/dev/")]


def pipes(options: list[Option]) -> list[str]:
    """The pipes that QEMU opens: each is one pipe, or two with ``.in`` and ``.out`` after its name."""
    backed = [option for option in options if option.name in CHARACTER_DEVICES and _backend(option) == "pipe"]
    return [path for option in backed for path in (option.get("path"), option.get("backend.data.device")) if path.startswith("/")]


def _backend(option: Option) -> str:
    return option.get("backend") or option.get("backend.type")


def _is_server(option: Option) -> bool:
    if option.get("backend.type") == "socket":
        return option.get("backend.data.server") != "off"
    return option.is_on("server")


def _connects_later(option: Option) -> bool:
    """Whether QEMU starts without the other end, and connects later."""
    keys = [f"{place}{key}" for place in ("", "backend.data.") for key in ("reconnect", "reconnect-ms")]
    return any(option.get(key, "0") not in ("", "0") for key in keys)


def _socket_of(option: Option) -> str:
    if option.get("backend.type") == "socket":
        return option.get("backend.data.addr.data.path")
    return option.get("path") if option.get("backend") == "socket" and not option.is_on("abstract") else ""


def _disk_socket(option: Option) -> str:
    """The socket of an NBD server: nbd:unix:PATH[:exportname=NAME], nbd+unix:///NAME?socket=PATH, or as keys."""
    for key, value in option.keys.items():
        last = key.rpartition(".")[2]
        if last in ("file", "filename"):
            short = re.match(r"nbd:unix:([^:]+)", value) or re.match(r"nbd\+unix://[^?]*\?(?:.*&)?socket=([^&]+)", value)
            if short:
                return short[1]
        elif key.endswith("server.path") or (last == "path" and option.get(f"{key[: -len('path')]}driver") == "nbd"):
            return value
    return ""


def devices(pid: int, argv: list[str]) -> list[str]:
    """The paths of disks that may lead to a device: those below /dev, and links elsewhere if QEMU has a disk below /dev open.

    The caller accesses no other paths, because their storage may not answer. ``pid`` is the running QEMU.
    """
    named, opened = images(_options.read(argv)[0], _processes.folder_of(pid)), _processes.open_paths(pid)
    paths = {path for path, _flags in opened.values()}
    has_disk = any(path.startswith("/dev/") and _is_disk(pid, fd, path) for fd, (path, _flags) in opened.items())
    return [path for path in named if path.startswith("/dev/") or (has_disk and path not in paths)]


def _is_disk(pid: int, fd: int, path: str) -> bool:
    try:
        return path.startswith("/dev/sg") or stat.S_ISBLK(os.stat(f"/proc/{pid}/fd/{fd}").st_mode)
    except OSError:
        return False  # closed meanwhile


def needed(pid: int, argv: list[str]) -> list[str]:
    """The paths that must exist before a QEMU with this command line starts again; ``pid`` is the running QEMU.

    These are the paths on the command line and the files that it has open below its disks. This does not access them, because that may
    never return.
    """
    options = _options.read(argv)[0]
    opened = list(_processes.open_paths(pid).values())
    written = {value for option in options if option.name not in ("drive", "blockdev", *READ) for value in option.keys.values()}
    named = [*images(options, _processes.folder_of(pid)), *read_at_start(options, argv), *connections(options), *ports(options)]
    named += [next((path for path, _flags in opened if path == f"{pipe}.in"), pipe) for pipe in pipes(options)]
    named += [os.path.dirname(path) for path in outputs(options)]
    named += [path for path, flags in opened if not path.startswith(_NO_FILES) and path not in written and not is_output(flags)]
    return list(dict.fromkeys(named))


def is_output(flags: int) -> bool:
    """Whether a file that is opened with these flags (open(2)) is only written to: a log or a console, which may be renamed and removed."""
    return flags & os.O_ACCMODE == os.O_WRONLY or bool(flags & os.O_APPEND)
