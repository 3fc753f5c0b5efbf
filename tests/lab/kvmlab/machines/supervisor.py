# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The supervisor, one process for each host. It runs QEMU, logs the guests' heartbeats and passes network frames on.

"up" starts it in the background. SIGTERM stops the host. SIGUSR1 is a power cut: QEMU is killed and started again.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .. import limits
from ..run import die_with_parent
from . import collector
from .machine import HEARTBEATS, SEGMENT_IN, SEGMENT_OUT
from .process import Record, write_record

QUIT_LIMIT_S = 10.0
POLL_S = 0.25
# So often the collector shows itself to a host. A bridge that does not know where it is sends each tick to all guests of the host.
INTRODUCED_EVERY_S = 10.0
# The sockets that QEMU creates.
SOCKETS = ("qmp.sock", *(f"{name}.sock" for name in HEARTBEATS), SEGMENT_IN)


class Line:
    """The heartbeat of one guest: reads a socket and logs whole lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket: socket.socket | None = None
        self._rest = b""

    def connect(self) -> None:
        """Connect to QEMU's socket. It appears shortly after QEMU's start, so this may have to be tried again."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(f"{self.name}.sock")
        except OSError:
            stream.close()
            return
        self.socket = stream

    def read(self) -> None:
        """Read what has arrived. Log each complete line with the time of its arrival."""
        assert self.socket is not None
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        stamp = time_stamp()
        if not data:
            self.close()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            log_heartbeat(self.name, stamp, lines)

    def close(self) -> None:
        """Close the connection and log the incomplete last line."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        if self._rest:
            log_heartbeat(self.name, time_stamp(), [self._rest])
            self._rest = b""


class Segment:
    """The host's end of the segment, the network between the hosts. Each frame goes to all other hosts, or to the collector."""

    def __init__(self) -> None:
        Path(SEGMENT_OUT).unlink(missing_ok=True)
        self.socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(SEGMENT_OUT)
        self._own = Path.cwd().name
        self._introduced_at = 0.0

    def read(self) -> None:
        """Pass one frame on. A host that is down or too slow loses it, as on any network."""
        assert self.socket is not None
        frame = self.socket.recv(65536)
        ticks = collector.ticks(frame)
        if ticks:
            log_heartbeat(ticks[0], time_stamp(), ticks[1].splitlines())
        if collector.is_asked_for(frame) or (ticks and time.monotonic() > self._introduced_at + INTRODUCED_EVERY_S):
            self._introduced_at = time.monotonic()
            with suppress(OSError):
                self.socket.sendto(collector.introduction(frame), SEGMENT_IN)
        elif not ticks:
            self._pass_on(frame)

    def _pass_on(self, frame: bytes) -> None:
        """Send a frame to all other hosts."""
        assert self.socket is not None
        for path in Path("..").glob(f"hv*/{SEGMENT_IN}"):
            if path.parent.name != self._own:
                with suppress(OSError):
                    self.socket.sendto(frame, str(path))


class Supervisor:
    """Runs one host until it gets SIGTERM or the host powers itself off."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._stop = False
        self._power_cut = False
        self._lines = [Line(name) for name in HEARTBEATS]
        self._selector = selectors.DefaultSelector()
        segment = Segment()
        assert segment.socket is not None
        self._selector.register(segment.socket, selectors.EVENT_READ, segment)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, self._on_power_cut)

    def run(self) -> int:
        """Run QEMU, also again after a power cut. Returns QEMU's exit code, or 0 after SIGTERM."""
        while True:
            qemu = self._start()
            code = self._watch(qemu)
            self._drop_lines()
            if not self._power_cut:
                return code
            self._power_cut = False
            note("power cut: starting again")

    def _on_term(self, number: int, frame: object) -> None:
        self._stop = True

    def _on_power_cut(self, number: int, frame: object) -> None:
        self._power_cut = True

    def _start(self) -> subprocess.Popen[bytes]:
        """Start QEMU. It ends with this process."""
        for name in SOCKETS:
            Path(name).unlink(missing_ok=True)
        qemu = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stdout,
            stderr=sys.stdout,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        note(f"QEMU started, pid {qemu.pid}")
        return qemu

    def _watch(self, qemu: subprocess.Popen[bytes]) -> int:
        """Log heartbeats until QEMU has ended, by itself or because it was told to."""
        connect_until = time.monotonic() + limits.HOST_ENDS
        while qemu.poll() is None:
            if self._stop:
                quit_qemu(qemu)
                note("stopped on SIGTERM")
                return 0
            if self._power_cut:
                qemu.kill()
                qemu.wait(QUIT_LIMIT_S)
                break
            if time.monotonic() < connect_until:
                self._connect_lines()
            for ready, _ in self._selector.select(POLL_S):
                source: Line | Segment = ready.data
                source.read()
                if source.socket is None:
                    self._selector.unregister(ready.fileobj)
        note(f"QEMU ended with exit code {qemu.returncode}")
        return qemu.returncode

    def _connect_lines(self) -> None:
        """Connect the lines that are not connected yet."""
        for line in self._lines:
            if line.socket is None:
                line.connect()
                if line.socket is not None:
                    self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _drop_lines(self) -> None:
        """Read what is left in the connections of a QEMU that has ended, then close them."""
        for line in self._lines:
            while line.socket is not None:
                connection = line.socket
                line.read()
                if line.socket is None:
                    self._selector.unregister(connection)


def quit_qemu(qemu: subprocess.Popen[bytes]) -> None:
    """End QEMU with SIGTERM, so that it closes its disk. Kill it if that takes too long."""
    qemu.terminate()
    try:
        qemu.wait(QUIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        note(f"QEMU did not quit within {QUIT_LIMIT_S:.0f} s, killing it")
        qemu.kill()
        qemu.wait(QUIT_LIMIT_S)


def time_stamp() -> str:
    """This moment, by this machine's two clocks."""
    return f"{time.monotonic():.6f} {time.time():.6f}"


def log_heartbeat(name: str, stamp: str, lines: list[bytes]) -> None:
    """Append what a guest has said to the log of its heartbeat. Other bytes than ASCII are escaped."""
    with open(f"heartbeat-{name}.log", "a", encoding="ascii") as log:
        for line in lines:
            log.write(f"{stamp} {line.rstrip(chr(13).encode()).decode('ascii', 'backslashreplace')}\n")


def note(text: str) -> None:
    """Write one line to the supervisor's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Run the host whose folder is the current one."""
    record = Path("supervisor.json")
    write_record(record, Record.of_this_process())
    machine = json.loads(Path("machine.json").read_text())
    try:
        return Supervisor(machine["command"]).run()
    finally:
        for name in (*SOCKETS, SEGMENT_OUT):
            Path(name).unlink(missing_ok=True)
        record.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
