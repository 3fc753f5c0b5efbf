# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ethernet frames as a guest of the lab sends them to the collector."""

from __future__ import annotations

import socket
import struct

GUEST, GUEST_MAC = "10.77.0.112", bytes.fromhex("52540077020c")
COLLECTOR, COLLECTOR_MAC = "10.77.0.254", bytes.fromhex("5254007700fe")


def arp_request(wanted: str = COLLECTOR, what: int = 1) -> bytes:
    """A guest asks for a MAC address."""
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, what) + GUEST_MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(wanted)
    return b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + packet


def datagram(content: bytes, target: str = COLLECTOR, port: int = 4077, options: bytes = b"", fragment: int = 0x4000) -> bytes:
    """A guest sends a datagram. The frame is padded to the smallest size of Ethernet."""
    udp = struct.pack("!HHHH", 40000, port, 8 + len(content), 0) + content
    size = 20 + len(options) + len(udp)
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, size, 7, fragment, 64, 17, 0)
    packet = head + socket.inet_aton(GUEST) + socket.inet_aton(target) + options + udp
    return (COLLECTOR_MAC + GUEST_MAC + b"\x08\x00" + packet).ljust(60, b"\0")
