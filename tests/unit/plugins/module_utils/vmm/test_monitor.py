# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said to QEMU in which order, and that a monitor that does not answer keeps nobody longer than there is time."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor
from made_up_clock import Clock


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


class Qemu:
    """A QEMU at a socket. ``answers`` has lists by command, the last one for ever; ``heard`` is each message that came."""

    def __init__(self, path):
        self.path, self.heard, self.answers = path, [], {}
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                peer = self.server.accept()[0]
            except OSError:
                return
            with peer, peer.makefile("rwb", 0) as stream:
                stream.write(b'{"QMP": {}}\n')
                for line in stream:
                    message = json.loads(line)
                    self.heard.append(message)
                    known = self.answers.get(message["execute"], [{}])
                    answer = known.pop(0) if len(known) > 1 else known[0]
                    if answer is None:
                        break
                    told = answer if isinstance(answer, dict) and "error" in answer else {"return": answer}
                    stream.write(b'{"event": "RESUME"}\n' + json.dumps(told).encode() + b"\n")


@pytest.fixture(name="qemu")
def qemu_at_a_socket(tmp_path):
    made = Qemu(str(tmp_path / "qmp"))
    yield made
    made.server.close()


@pytest.fixture(name="clock")
def clock_that_only_sleeps_move(monkeypatch):
    clock = Clock(monkeypatch, _monitor)
    monkeypatch.setattr(_monitor.time, "time", lambda: 5.0)
    return clock


def said(qemu):
    """What was asked after the greeting, each with its arguments."""
    assert qemu.heard[0] == {"execute": "qmp_capabilities"}
    return [(message["execute"], message.get("arguments")) for message in qemu.heard[1:]]


SHARED = [("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": state}]}) for state in (False, True)]


def test_a_command_is_sent_as_qemu_reads_it_and_events_are_no_answers(qemu):
    qemu.answers = {"query-status": [{"status": "running"}], "query-block": [[1, 2]]}
    before = len(os.listdir("/proc/self/fd"))
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        assert monitor.status() == "running" and monitor.execute("query-block") == [1, 2] and monitor.query("query-block") == {}
        monitor.execute("migrate", uri="file:/x", some_word=1)
    assert qemu.heard == [
        {"execute": "qmp_capabilities"},
        {"execute": "query-status"},
        {"execute": "query-block"},
        {"execute": "query-block"},
        {"execute": "migrate", "arguments": {"uri": "file:/x", "some-word": 1}},
    ]
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the other end


def test_what_qemu_refuses_is_told_from_what_nobody_knows(qemu):
    qemu.answers = {"cont": [{"error": {"desc": "Failed to get lock"}}, {"error": {"class": "x"}}], "stop": [None]}
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        with pytest.raises(LiveUpdateError, match="cont: Failed to get lock") as told:
            monitor.execute("cont")
        assert told.value.details == {"refused": "cont"}
        with pytest.raises(LiveUpdateError, match=r"cont: \{'class': 'x'\}"):
            monitor.execute("cont")
        with pytest.raises(LiveUpdateError, match="QEMU closed the connection") as told:
            monitor.execute("stop")
        assert not told.value.details
        monitor._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LiveUpdateError, match="cont: Broken pipe") as told:
            monitor.execute("cont")
        assert not told.value.details


@pytest.mark.parametrize("breaks", ["reset", "in the middle of an answer"])
def test_a_connection_that_breaks_is_told_and_not_taken_for_a_slow_qemu(tmp_path, breaks):
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve():
            peer = server.accept()[0]
            with peer:
                peer.sendall(b'{"QMP": {}}\n')
                peer.recv(1 << 16)  # qmp_capabilities; only its answer lets the client send the next command
                peer.sendall(b'{"return": {}}\n' + (b'{"retu' if breaks != "reset" else b""))
                peer.recv(1 << 16, socket.MSG_PEEK if breaks == "reset" else 0)  # with a command unread, the close is a reset

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with _monitor.Monitor(path, answer_s=10.0) as monitor:
            told = r"monitor .*: QEMU closed the connection" + (r" \(Connection reset by peer\)" if breaks == "reset" else "$")
            with pytest.raises(LiveUpdateError, match=told):
                monitor.execute("stop")
        thread.join(10)


def test_a_monitor_is_waited_for_as_long_as_is_asked_for(tmp_path, clock):
    path = str(tmp_path / "none")
    with pytest.raises(LiveUpdateError, match=r"No such file or directory; check that QEMU runs"):
        _monitor.Monitor(path)
    assert clock.slept == []
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LiveUpdateError, match="check that QEMU runs"):
        _monitor.Monitor(path, wait_s=3.0)
    assert set(clock.slept) == {0.03} and 3.0 <= sum(clock.slept) < 3.06
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_monitor_that_comes_in_time_is_used(tmp_path, clock):
    made = []
    clock.at = {3: lambda: made.append(Qemu(str(tmp_path / "late")))}
    with _monitor.Monitor(str(tmp_path / "late"), wait_s=30.0) as monitor:
        monitor.execute("stop")
    assert len(clock.slept) == 3
    made[0].server.close()


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([{"status": "setup"}, {"status": "active"}, {}, {"status": "completed", "ram": 1}], ""),
        ([{"status": "active"}, {"status": "failed", "error-desc": "no room"}], "migration failed: no room"),
        ([{"status": "cancelling"}], "migration cancelling: no reason given"),
        ([{"status": "cancelled"}], "migration cancelled: no reason given"),
        ([{"status": "active"}], r"migration still active, no answer within 2 s"),
        ([{}], r"migration still none, no answer within 2 s"),
    ],
)
def test_a_migration_is_waited_for_until_it_ends_or_its_limit(qemu, clock, answers, says):
    qemu.answers = {"query-migrate": answers}
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        if not says:
            assert monitor.wait_migration(2.0) == {"status": "completed", "ram": 1} and clock.slept == [0.005] * 3
            return
        with pytest.raises(LiveUpdateError, match=says):
            monitor.wait_migration(2.0)
    assert ("still" in says) == (2.0 < sum(clock.slept) < 2.02)


def test_a_guest_is_paused_and_its_state_written_without_its_ram(qemu, clock, tmp_path):
    qemu.answers = {"query-migrate": [{"status": "completed"}], "query-status": [{"status": "running"}, {"status": "paused"}]}
    begun = []
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        assert _monitor.write_state(monitor, str(tmp_path / "state"), lambda: begun.append(len(qemu.heard))) == 5.0
    seen = [("query-migrate", None), ("query-status", None)]
    migrated = [("migrate", {"uri": f"file:{tmp_path}/state"}), ("query-migrate", None)]
    assert said(qemu) == [*seen, ("stop", None), *seen, SHARED[True], *migrated]
    assert begun == [6]  # the greeting's answer and these five come before it
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("migrations", "states", "stopped"),
    [
        (["active"], ["running"], False),
        (["completed"], ["postmigrate"], False),
        (["none", "active"], ["running", "paused"], True),
        (["none", "completed"], ["running", "postmigrate"], True),
        (["none", "none"], ["running", "running"], True),
    ],
)
def test_the_state_of_a_guest_that_another_program_migrates_is_not_written(qemu, tmp_path, migrations, states, stopped):
    qemu.answers = {
        "query-migrate": [{"status": status} for status in migrations],
        "query-status": [{"status": state} for state in states],
    }
    how = rf"run state {states[-1]}, migration {migrations[-1]}"
    says = rf"another program migrates or saves it \({how}\); wait until that migration or save has ended$"
    if migrations[-1] == "completed":
        says = r"another program has migrated or saved it \(run state postmigrate\)\. If it runs on no other host, resume it .* \(cont\)$"
    elif migrations[-1] == "none":
        says = "its QEMU is running, not paused; stop programs that manage this guest$"
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor, pytest.raises(LiveUpdateError, match=says):
        _monitor.write_state(monitor, str(tmp_path / "state"), lambda: pytest.fail("it is not written"))
    asked = [command for command, _arguments in said(qemu)]
    assert ("stop" in asked) is stopped and not {"migrate", "migrate-set-capabilities"} & set(asked)


@pytest.mark.parametrize("loading", [0, 3])
def test_a_state_is_loaded_and_later_saves_have_the_ram_again(qemu, clock, loading):
    qemu.answers = {
        "query-migrate": [{"status": "completed"}],
        "query-status": [{"status": "inmigrate"}] * loading + [{"status": "paused"}],
    }
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        _monitor.load(monitor, "/state", 2.0)
    asked = [("migrate-incoming", {"uri": "file:/state"}), ("query-migrate", None), *[("query-status", None)] * (loading + 1)]
    assert said(qemu) == [SHARED[True], *asked, SHARED[False]] and clock.slept == [0.005] * loading


def test_a_state_that_is_never_loaded_is_told_at_the_limit(qemu, clock):
    qemu.answers = {"query-migrate": [{"status": "completed"}], "query-status": [{"status": "inmigrate"}]}
    with (
        _monitor.Monitor(qemu.path, answer_s=3.0) as monitor,
        pytest.raises(LiveUpdateError, match="QEMU is still loading /state after 2 s"),
    ):
        _monitor.load(monitor, "/state", 2.0)
    assert 2.0 < sum(clock.slept) < 2.02


@pytest.mark.parametrize("refusals", [0, 2])
def test_before_and_after_each_try_to_resume_a_guest_it_is_told(qemu, clock, refusals):
    done = []
    qemu.answers = {"cont": [{"error": {"desc": "locked"}}] * refusals + [{}], "query-status": [{"status": "paused"}]}
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        assert _monitor.go_on(monitor, lambda: done.append("begin"), lambda: done.append("refused")) is True
    assert done == ["begin", "refused"] * refusals + ["begin"] and clock.slept == [0.1] * refusals


def test_a_guest_that_qemu_does_not_resume_is_given_up_at_the_limit(qemu, clock, monkeypatch, capsys):
    monkeypatch.setattr(_monitor, "GO_ON_LIMIT_S", 2.0)
    qemu.answers = {"cont": [{"error": {"desc": "locked"}}], "query-status": [{"status": "paused"}]}
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        assert _monitor.go_on(monitor) is False
    assert 2.0 < sum(clock.slept) < 2.2 and capsys.readouterr().err.count("cont: locked") == 1


@pytest.mark.parametrize(
    ("migrations", "states", "cancels"),
    [
        ([{}], ["paused"], 0),
        ([{"status": "completed"}], ["postmigrate"], 0),
        ([{"status": "active"}, {"status": "cancelling"}, {"status": "cancelled"}], ["paused"], 2),
        ([{"status": "failed"}], ["finish-migrate", "finish-migrate", "paused"], 2),
    ],
)
def test_a_migration_is_cancelled_until_it_is_over(qemu, clock, migrations, states, cancels):
    qemu.answers = {"query-migrate": migrations, "query-status": [{"status": state} for state in states]}
    with _monitor.Monitor(qemu.path, answer_s=3.0) as monitor:
        monitor.end_migration(2.0)
    assert [command for command, _told in said(qemu)].count("migrate_cancel") == cancels and clock.slept == [0.05] * cancels


def test_a_migration_that_cannot_be_cancelled_is_told_at_the_limit(qemu, clock):
    qemu.answers = {"query-migrate": [{"status": "active"}]}
    with (
        _monitor.Monitor(qemu.path, answer_s=3.0) as monitor,
        pytest.raises(LiveUpdateError, match="did not end its migration within 2 s after"),
    ):
        monitor.end_migration(2.0)
    assert 2.0 < sum(clock.slept) < 2.2
