# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _tcp

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:11C7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0 100 0 0 10 0
   1: 0100007F:11C8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 100 0 0 10 0
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 79 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx rx
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 80 1
   1: 00000000000000000000000000000000:2A39 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 81 1
"""


@pytest.fixture(name="root")
def host_with_listeners(tmp_path):
    if sys.byteorder == "big":
        pytest.skip("the lines are those of a little-endian host")
    (tmp_path / "proc" / "net").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc" / "net" / "tcp").write_text(TCP)
    (tmp_path / "proc" / "net" / "tcp6").write_text(TCP6)
    (tmp_path / "etc" / "hosts").write_text("127.0.0.1 localhost\n127.0.0.9 disks  # ours\n192.0.2.9 far\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("peer", "inode"),
    [
        ("127.0.0.1:4551", "77"),
        ("localhost:4551", "77"),
        (":4551", "77"),
        ("disks:4551", ""),  # listens at another address
        ("disks:22", "79"),
        ("disks:ssh", "79"),
        ("0.0.0.0:4551", "77"),
        ("127.0.0.1:4552", ""),  # a connection, no listener
        ("[::1]:8080", "80"),
        ("127.0.0.1:10809", "81"),  # IPv6's any takes both
        ("far:22", ""),
    ],
)
def test_who_listens_for_a_peer(root, monkeypatch, peer, inode):
    monkeypatch.setattr(_tcp, "_is_own", lambda address: address in ("::1", "0.0.0.0") or address.startswith("127."))
    assert _tcp.listener(peer, root) == inode
    assert _tcp.served(peer, root) == (["78"] if peer == "127.0.0.1:4552" else [inode] if inode else [])


def test_what_is_this_host(root, monkeypatch):
    for peer in ("127.0.0.1:1", "127.3.2.1:1", ":1", "LocalHost:1", "disks:1"):
        assert _tcp.is_here(peer, root)
    for peer in ("192.0.2.9:1", "far:1", "example.org:1", "2001:db8::9:1"):
        assert not _tcp.is_here(peer, root)
    assert _tcp.is_here(f"{socket.gethostname()}:1", root)
    assert _tcp.port_of("a:17") == 17 and _tcp.port_of("a:never-a-service") == 0
