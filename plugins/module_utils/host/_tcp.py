# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the process that listens at a TCP port of this host. PRIVATE to the collection.

A peer is HOST:PORT; an IPv6 address may have brackets. This asks no name server, which might not answer: this host's names are in files.
Source: the kernel's Documentation/networking/proc_net_tcp.rst, hosts(5).
"""

from __future__ import annotations

import os
import struct

__all__ = ("is_here", "listener", "listening", "port_of", "served")

_LISTENS = "0A"  # include/net/tcp_states.h, TCP_LISTEN
_LOCAL_NAMES = ("", "localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost")


def port_of(peer: str) -> int:
    """The port; 0 if it is neither a number nor the name of a service."""
    port = peer.rpartition(":")[2]
    if port.isdigit():
        return int(port)
    import socket

    try:
        return socket.getservbyname(port, "tcp")
    except OSError:
        return 0


def is_here(peer: str, root: str = "/") -> bool:
    """Whether the peer is this host: a loopback address, or one of its own addresses."""
    return bool(_addresses(peer, root))


def _addresses(peer: str, root: str) -> list[str]:
    """The addresses of this host that belong to the peer's name; none for another host."""
    host = peer.rpartition(":")[0].strip("[]").lower()
    if host in _LOCAL_NAMES:
        return ["127.0.0.1", "::1"]
    named = [host, *_of_name(host, root)]
    if host in (os.uname().nodename.lower(), os.uname().nodename.partition(".")[0].lower()):
        named += ["127.0.0.1", "127.0.1.1", "::1"]
    return [address for address in named if _is_own(address)]


def _of_name(host: str, root: str) -> list[str]:
    try:
        with open(os.path.join(root, "etc/hosts"), encoding="utf-8", errors="replace") as file:
            rows = [line.partition("#")[0].lower().split() for line in file]
    except OSError:
        return []
    return [row[0] for row in rows if host in row[1:]]


def _is_own(address: str) -> bool:
    """Whether this host can bind to the address: that works only for its own addresses. A name is not an address."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
        return True
    except OSError:
        return False


def listening(root: str = "/") -> list[tuple[str, int, str]]:
    """Address, port and inode of each TCP socket at which a process listens."""
    return [(address, port, inode) for address, port, inode, state in _sockets(root) if state == _LISTENS]


def _sockets(root: str, port: int = 0) -> list[tuple[str, int, str, str]]:
    """Local address, local port, inode and state of each TCP socket of this host, or of those at one local port."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            with open(os.path.join(root, "proc/net", name), encoding="ascii") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue  # no IPv6
        end = f":{port:04X}" if port else ""  # a busy host has 100,000 connections, so only those that count are decoded
        found += [(*_decoded(row[1]), row[9], row[3]) for row in rows[1:] if len(row) > 9 and row[1].endswith(end)]
    return found


def _decoded(local: str) -> tuple[str, int]:
    """Read an address, which is written as words of 32 bits in the host's byte order."""
    import socket

    words, _colon, port = local.partition(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed), int(port, 16)


def listener(peer: str, root: str = "/") -> str:
    """The inode of the socket that listens at a peer on this host; empty if none does."""
    return next((inode for inode, state in _at(peer, root) if state == _LISTENS), "")


def served(peer: str, root: str = "/") -> list[str]:
    """The inodes of the sockets at a peer on this host: the one that listens, and those of the connections that it accepted."""
    return [inode for inode, _state in _at(peer, root)]


def _at(peer: str, root: str) -> list[tuple[str, str]]:
    """Inode and state of each socket of this host at this address and port."""
    wanted, port = _addresses(peer, root), port_of(peer)
    any_of = {"0.0.0.0", "::"} if any(":" not in address for address in wanted) else {"::"}
    mapped = {f"::ffff:{address}" for address in wanted}
    fitting = {*wanted, *mapped, *any_of}
    there = [(address, inode, state) for address, _port, inode, state in _sockets(root, port)]
    return [(inode, state) for address, inode, state in there if address in fitting or "0.0.0.0" in wanted]
