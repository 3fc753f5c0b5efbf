# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's supervisor, with a stand-in for QEMU that speaks on the same sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvmlab.machines.host import Host
from kvmlab.machines.machine import SEGMENT_IN, SEGMENT_OUT
from kvmlab.machines.process import Record, descendants, kill_tree, parents, read_record, start_of, write_record
from kvmlab.machines.supervisor import Segment

LAB = Path(__file__).parents[3] / "lab"
LIMIT_S = 20.0
BOOT = "61f624b4-1e38-4c1c-9ef3-f73d4589b6bc"

# Ticks on ttyS1 from 1 on, in pieces.
STAND_IN = f"""
import os, socket, time

def server(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name + ".sock")
    listener.listen(1)
    return listener

open("qemu.pid", "w").write(str(os.getpid()))
lines = [server(name) for name in ("ttyS1", "ttyS2", "ttyS3")]
stream, _ = lines[0].accept()
for number in range(1, 10000):
    text = f"TICK n={{number}} mono={{number}}.000000 boot={BOOT} sum={{1:016x}} pass={{number}}\\r\\n".encode()
    stream.sendall(text[:20])
    time.sleep(0.01)
    stream.sendall(text[20:])
    if os.path.exists("off"):
        stream.sendall(b"TICK n=torn \\xff")
        os._exit(0)
"""


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, with a limit."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A supervised host."""
    folder = tmp_path / "hv1"
    folder.mkdir()
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "machine.json").write_text(json.dumps({"command": [sys.executable, "stand_in.py"], "ssh_port": 1, "image": "none"}))
    (folder / "disk.raw").touch()
    with (folder / "supervisor.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvmlab.machines.supervisor"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(LAB)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    host = Host(folder)
    try:
        until(lambda: host.record)
        yield host
    finally:
        process.kill()
        process.wait(LIMIT_S)


def qemu(host: Host) -> Record | None:
    """The stand-in that runs now."""
    try:
        pid = int((host.folder / "qemu.pid").read_text())
    except (OSError, ValueError):
        return None
    start = start_of(pid)
    return Record(pid, start) if start else None


def test_heartbeats_are_stamped_as_they_arrive(host: Host) -> None:
    began = time.monotonic(), time.time()
    until(lambda: len(host.heartbeat(1)) >= 5)
    ticks = host.heartbeat(1)
    assert [tick.number for tick in ticks] == list(range(1, len(ticks) + 1))
    assert all(began[0] - 5 < tick.arrived <= time.monotonic() for tick in ticks)
    assert all(abs((tick.wall - began[1]) - (tick.arrived - began[0])) < 1 for tick in ticks)
    assert host.heartbeat(2) == []


def test_down_ends_both_and_leaves_only_logs(host: Host) -> None:
    until(lambda: host.heartbeat(1))
    running = qemu(host)
    assert running
    host.stop()
    host.ensure_stopped(forget=True)
    assert not running.alive()
    assert host.record is None
    left = {path.name for path in host.folder.iterdir()}
    assert left == {"stand_in.py", "qemu.pid", "supervisor.log", "heartbeat-ttyS1.log"}
    assert host.heartbeat(1)


def test_a_killed_supervisor_takes_qemu_along(host: Host) -> None:
    until(lambda: host.heartbeat(1))
    record, running = host.record, qemu(host)
    assert record and running
    record.send(signal.SIGKILL)
    until(lambda: not running.alive())
    assert host.record is None


def test_a_power_cut_starts_qemu_again(host: Host) -> None:
    until(lambda: host.heartbeat(1))
    record, first = host.record, qemu(host)
    assert record and first
    record.send(signal.SIGUSR1)
    until(lambda: (again := qemu(host)) and again != first)
    assert not first.alive()
    assert host.record == record
    until(lambda: [tick.number for tick in host.heartbeat(1)].count(1) == 2)


def test_a_host_that_powers_itself_off_is_down_and_its_last_words_are_kept(host: Host) -> None:
    until(lambda: host.heartbeat(1))
    (host.folder / "off").touch()
    until(lambda: host.record is None)
    assert (host.folder / "heartbeat-ttyS1.log").read_text().endswith("TICK n=torn \\xff\n")
    assert (host.folder / "disk.raw").exists()


def test_a_record_is_of_one_process_only(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    mine = Record.of_this_process()
    write_record(path, mine)
    assert read_record(path) == mine
    assert mine.alive()
    recycled = Record(mine.pid, mine.start - 1)
    assert not recycled.alive()
    assert recycled.send(signal.SIGKILL) is False
    assert read_record(tmp_path / "none.json") is None
    path.write_text('{"pid": 1')
    assert read_record(path) is None


def test_all_descendants_of_a_process_are_found() -> None:
    assert sorted(descendants(10, {11: 10, 12: 11, 13: 10, 14: 1, 15: 14})) == [11, 12, 13]
    assert os.getpid() in descendants(os.getppid(), parents())


def test_a_killed_tree_leaves_nobody(tmp_path: Path) -> None:
    """Also those who have a session of their own."""
    command = f"setsid sh -c 'echo $$ > {tmp_path}/pid; sleep 60' & sleep 60"
    process = subprocess.Popen(["sh", "-c", command])
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    other = int((tmp_path / "pid").read_text())
    kill_tree(process.pid)
    assert process.wait(LIMIT_S) == -signal.SIGKILL
    until(lambda: start_of(other) is None)


def test_a_frame_goes_to_all_other_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one of them is down and has left its socket behind."""
    cards = {}
    for name in ("hv1", "hv2", "hv3", "hv4"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)  # the path of a socket is short
        cards[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        cards[name].bind(SEGMENT_IN)
    cards["hv3"].close()
    monkeypatch.chdir(tmp_path / "hv1")
    segment = Segment()
    cards["hv1"].sendto(b"frame", SEGMENT_OUT)
    segment.read()
    assert cards["hv2"].recv(100) == cards["hv4"].recv(100) == b"frame"
    with pytest.raises(BlockingIOError):
        cards["hv1"].recv(100)
