# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One host: its port, and what an error shows of its logs."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvmlab.machines import host


def test_a_port_that_another_host_is_about_to_take_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([40001, 40002])
    monkeypatch.setattr(host.socket.socket, "bind", lambda self, address: None)
    monkeypatch.setattr(host.socket.socket, "getsockname", lambda self: ("127.0.0.1", next(ports)))
    assert host.free_port({40001}) == 40002


def test_a_hosts_last_words_are_not_drowned(tmp_path: Path) -> None:
    noise = "warning: TCG doesn't support requested feature: CPUID\n" * 30
    (tmp_path / "supervisor.log").write_text("10:00:00 QEMU started, pid 7\n" + noise + "could not set up host forwarding\n")
    words = host.Host(tmp_path).last_words()
    assert "QEMU started" in words
    assert "could not set up host forwarding" in words
    assert "TCG" not in words
