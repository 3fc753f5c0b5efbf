# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A monitor that does not answer keeps nobody longer than there is time."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor


@pytest.fixture(name="monitor")
def monitor_that_greets_and_then_is_silent(tmp_path):
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve():
            peer = server.accept()[0]
            peer.sendall(b'{"QMP": {}}\n{"return": {}}\n{"return": {"status": "active"}}\n')
            peer.recv(1 << 16)
            opened.append(peer)

        opened: list = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(10)
        for peer in opened:
            peer.close()


@pytest.fixture(name="last_moment")
def a_last_moment():
    _commands.end_by(time.monotonic() + 1.0, "the pause")
    yield
    _commands.end_by(None)


def test_an_answer_is_not_waited_for_beyond_the_last_moment(monitor, last_moment):
    begun = time.monotonic()
    with _monitor.Monitor(monitor, answer_s=50.0) as qmp:
        with pytest.raises(LiveUpdateError, match="no answer within the pause"):
            qmp.wait_migration(50.0)
        with pytest.raises(LiveUpdateError, match=r"not asked: the time limit is over \(the pause\)"):
            qmp.execute("cont")
    assert time.monotonic() - begun < 25


def test_nothing_is_asked_when_the_time_is_over(monitor, last_moment):
    """QEMU might do it all the same."""
    with _monitor.Monitor(monitor, answer_s=50.0) as qmp:
        sent = []
        qmp._socket = type("Socket", (), {"sendall": sent.append, "settimeout": lambda *_: None, "close": lambda *_: None})()
        time.sleep(1.1)
        with pytest.raises(LiveUpdateError, match="not asked"):
            qmp.execute("stop")
    assert not sent


def test_a_monitor_that_is_not_there_is_waited_for_until_the_last_moment_only(tmp_path, last_moment):
    begun = time.monotonic()
    with pytest.raises(LiveUpdateError, match=r"is QEMU running|not asked"):
        _monitor.Monitor(str(tmp_path / "none"), wait_s=50.0)
    assert time.monotonic() - begun < 25


def test_without_a_last_moment_the_own_limit_counts(monitor):
    with _monitor.Monitor(monitor, answer_s=0.3) as qmp:
        assert qmp.status() == "active"
        with pytest.raises(LiveUpdateError, match=r"no answer within 0\.3 s"):
            qmp.execute("cont")
