# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collector: a machine on the segment that only takes in ticks of guests. The supervisor of each host plays it. Pure.

A host has only eight lines for heartbeats. The ticks of further guests are datagrams to the collector. They leave the host as Ethernet
frames and get their time stamp outside, as those on a line do.
"""

from __future__ import annotations

import socket
import struct

ADDRESS = "10.77.0.254"
MAC = "52:54:00:77:00:fe"
# The port in guest/init.c.
PORT = 4077

_ARP, _IPV4 = 0x0806, 0x0800
_REQUEST, _REPLY = 1, 2
_UDP = 17
# ARP for IPv4 on Ethernet (RFC 826): hardware, protocol, their lengths, what it is, then a MAC and an IP address of each side.
_ARP_FORMAT = "!HHBBH6s4s6s4s"
_ARP_HEAD = (1, _IPV4, 6, 4)
_ETHERNET_FORMAT = "!6s6sH"
_ETHERNET = struct.calcsize(_ETHERNET_FORMAT)
_SMALLEST_FRAME = 60
_IP_HEAD, _UDP_HEAD = 20, 8


def is_asked_for(frame: bytes) -> bool:
    """Whether a frame asks for the collector's MAC address."""
    if _kind(frame) != _ARP or len(frame) < _ETHERNET + struct.calcsize(_ARP_FORMAT):
        return False
    *head, what, _mac, _ip, _other_mac, wanted = struct.unpack_from(_ARP_FORMAT, frame, _ETHERNET)
    return (*head, what) == (*_ARP_HEAD, _REQUEST) and wanted == socket.inet_aton(ADDRESS)


def introduction(frame: bytes) -> bytes:
    """The frame that tells the sender of an ARP request or a datagram where the collector is. All bridges on its way see it, too."""
    asker = frame[6:12]
    place = _ETHERNET + (14 if _kind(frame) == _ARP else 12)
    mine = bytes.fromhex(MAC.replace(":", ""))
    answer = struct.pack(_ETHERNET_FORMAT, asker, mine, _ARP)
    answer += struct.pack(_ARP_FORMAT, *_ARP_HEAD, _REPLY, mine, socket.inet_aton(ADDRESS), asker, frame[place : place + 4])
    return answer.ljust(_SMALLEST_FRAME, b"\0")


def ticks(frame: bytes) -> tuple[str, bytes] | None:
    """The address of the guest and what it says, if the frame is a datagram of a guest to the collector. Else None."""
    packet = frame[_ETHERNET:]
    if _kind(frame) != _IPV4 or len(packet) < _IP_HEAD + _UDP_HEAD or packet[0] >> 4 != 4 or packet[9] != _UDP:
        return None
    (fragment,) = struct.unpack_from("!H", packet, 6)
    source, target = packet[12:16], packet[16:20]
    datagram = packet[(packet[0] & 15) * 4 :]
    if fragment & 0x3FFF or target != socket.inet_aton(ADDRESS) or len(datagram) < _UDP_HEAD:
        return None
    _from, to, length = struct.unpack_from("!HHH", datagram)
    if to != PORT or not _UDP_HEAD <= length <= len(datagram):
        return None
    return socket.inet_ntoa(source), datagram[_UDP_HEAD:length]


def _kind(frame: bytes) -> int:
    """The EtherType of a frame."""
    return int.from_bytes(frame[12:14], "big")
