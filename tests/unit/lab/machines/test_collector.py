# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine on the segment that takes in the ticks of guests without a line of their own."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from frames import COLLECTOR, COLLECTOR_MAC, GUEST, GUEST_MAC, arp_request, datagram
from kvmlab.machines import collector

INIT = Path(__file__).parents[3] / "lab" / "guest" / "init.c"


def test_a_datagram_to_the_collector_has_ticks() -> None:
    assert collector.ticks(datagram(b"TICK n=1\n")) == (GUEST, b"TICK n=1\n")
    assert collector.ticks(datagram(b"")) == (GUEST, b"")
    assert collector.ticks(datagram(b"TICK n=1\n", options=bytes(8))) == (GUEST, b"TICK n=1\n")


@pytest.mark.parametrize(
    "frame",
    [
        datagram(b"TICK", target="10.77.0.1"),
        datagram(b"TICK", port=7),
        datagram(b"TICK", fragment=0x2000),
        datagram(b"TICK", fragment=1),
        datagram(b"TICK" * 20)[:60],
        datagram(b"TICK").replace(b"\x40\x11", b"\x40\x06"),
        datagram(b"TICK").replace(b"\x08\x00\x45", b"\x86\xdd\x60"),
        arp_request(),
        b"",
        datagram(b"TICK")[:30],
        datagram(b"TICK")[:14] + b"\x4f" + datagram(b"TICK")[15:],
    ],
)
def test_any_other_frame_has_none(frame: bytes) -> None:
    assert collector.ticks(frame) is None


def test_only_a_request_for_its_own_address_is_for_the_collector() -> None:
    assert collector.is_asked_for(arp_request())
    assert not collector.is_asked_for(arp_request("10.77.0.1"))
    assert not collector.is_asked_for(arp_request(what=2))
    assert not collector.is_asked_for(arp_request()[:40])
    assert not collector.is_asked_for(datagram(b"TICK"))


@pytest.mark.parametrize("frame", [arp_request(), datagram(b"TICK")])
def test_a_guest_is_told_where_the_collector_is(frame: bytes) -> None:
    told = collector.introduction(frame)
    assert len(told) == 60
    assert told[:14] == GUEST_MAC + COLLECTOR_MAC + b"\x08\x06"
    assert told[20:22] == b"\x00\x02"
    assert told[22:42] == COLLECTOR_MAC + socket.inet_aton(COLLECTOR) + GUEST_MAC + socket.inet_aton(GUEST)


def test_the_guests_use_the_collectors_port() -> None:
    (port,) = re.findall(r"^#define HEART_PORT (\d+)$", INIT.read_text(), re.MULTILINE)
    assert int(port) == collector.PORT
