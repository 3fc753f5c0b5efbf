# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small client for QEMU's monitor (QMP), for one command at a time. PRIVATE to the collection.

Source: QEMU's docs/interop/qmp-spec.rst and qapi/{migration,run-state}.json. Standard library only: it runs early in the
boot, between a guest's pause and its resume.
"""

from __future__ import annotations

import json
import os
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands, _files, _systemd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import typing as t  # not at run time: slow to import

__all__ = ("GO_ON_LIMIT_S", "OVER", "START_LIMIT_S", "Monitor", "go_on", "load", "write_state")

ANSWER_LIMIT_S = _limits.QEMU_ANSWER
# Of a migration (qapi/migration.json, MigrationStatus).
OVER = ("none", "completed", "failed", "cancelled")

START_LIMIT_S = _limits.QEMU_START
SAVE_LIMIT_S = _limits.QEMU_SAVE
LOAD_LIMIT_S = _limits.QEMU_LOAD
GO_ON_LIMIT_S = _limits.DISK_LOCKS


class Monitor:
    """A monitor connection. Use as a context manager. It waits ``wait_s`` for the socket to appear, and ``answer_s`` for each answer."""

    def __init__(self, path: str, wait_s: float = 0.0, answer_s: float = ANSWER_LIMIT_S) -> None:
        self._path, self._answer_s = path, answer_s
        self._socket = self._connect(wait_s)
        self._file = self._socket.makefile("rb")
        self._read()  # the greeting
        self.execute("qmp_capabilities")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()
        self._socket.close()

    def _connect(self, wait_s: float) -> socket.socket:
        import socket  # slow to import; the guest's QEMU starts at the same time

        limit = time.monotonic() + _commands.left(wait_s)
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(self._left())
            try:
                connection.connect(self._path)
                return connection
            except OSError as err:
                connection.close()
                if time.monotonic() >= limit:
                    raise LiveUpdateError(f"monitor {self._path}: {err.strerror}; check that QEMU runs") from err
            time.sleep(0.03)  # each try takes processor time from the QEMU that starts

    def _left(self) -> float:
        """The limit for the next answer; raises if no time is left."""
        left = _commands.left(self._answer_s)
        if not left:
            raise LiveUpdateError(f"monitor {self._path}: not asked: {_commands.too_late()}")
        return left

    def _read(self) -> dict:
        left = self._left()
        try:
            self._socket.settimeout(left)
            line = self._file.readline()
        except ConnectionError as err:
            raise LiveUpdateError(f"monitor {self._path}: QEMU closed the connection ({err.strerror})") from err
        except OSError as err:
            raise LiveUpdateError(f"monitor {self._path}: {_commands.no_answer(round(left, 1))} ({err})") from err
        if not line.endswith(b"\n"):
            raise LiveUpdateError(f"monitor {self._path}: QEMU closed the connection")
        return dict(json.loads(line))

    def execute(self, command: str, **arguments: object) -> object:
        """Run one command and return its result; this skips events. Underscores become dashes.

        An error has the detail ``refused`` if QEMU answered with it. Without this detail it is unknown what QEMU did.
        """
        message: dict = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._left()
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as err:
            raise LiveUpdateError(f"monitor {self._path}: {command}: {err.strerror}") from err
        while True:
            answer = self._read()
            if "error" in answer:
                raise LiveUpdateError(f"monitor {self._path}: {command}: {answer['error'].get('desc', answer['error'])}", refused=command)
            if "return" in answer:
                return answer["return"]

    def query(self, command: str) -> dict:
        """Run a query that returns an object."""
        answer = self.execute(command)
        return dict(answer) if isinstance(answer, dict) else {}

    def status(self) -> str:
        """The run state: running, paused, postmigrate, inmigrate, ..."""
        return str(self.query("query-status")["status"])

    def ignore_shared(self, state: bool) -> None:
        """Switch QEMU's x-ignore-shared, which leaves shared, file-backed RAM out of the migration stream."""
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": state}])

    def end_migration(self, limit_s: float) -> None:
        """Cancel a running migration, if there is one, and wait for its end."""
        limit = time.monotonic() + _commands.left(limit_s)
        while self.query("query-migrate").get("status", "none") not in OVER or self.status() == "finish-migrate":
            if time.monotonic() > limit:
                raise LiveUpdateError(f"monitor {self._path}: QEMU did not end its migration within {limit_s:g} s after it was cancelled")
            self.execute("migrate_cancel")
            time.sleep(0.05)

    def wait_migration(self, limit_s: float) -> dict:
        """Wait until the migration completes; anything else is an error with QEMU's message."""
        limit = time.monotonic() + _commands.left(limit_s)
        while True:
            answer = self.query("query-migrate")
            status = answer.get("status", "none")
            if status == "completed":
                return answer
            if status in ("failed", "cancelled", "cancelling"):
                raise LiveUpdateError(f"monitor {self._path}: migration {status}: {answer.get('error-desc', 'no reason given')}")
            if time.monotonic() > limit:
                raise LiveUpdateError(f"monitor {self._path}: migration still {status}, {_commands.no_answer(limit_s)}")
            time.sleep(0.005)


def write_state(monitor: Monitor, path: str, begin: t.Callable[[], None] = lambda: None) -> float:
    """Pause the guest and write its state without its RAM; returns when it was paused. ``begin`` is called before the write begins.

    QEMU writes into an existing file, which only root can read: the state contains the registers of the guest's processors. A guest that
    another program migrates is not paused.
    """
    os.close(_files.create(path))
    _refuse_migrated(monitor, ("running", "paused"))
    monitor.execute("stop")
    paused = time.time()
    _refuse_migrated(monitor, ("paused",))  # its migration may have ended just now
    begin()
    monitor.ignore_shared(True)
    monitor.execute("migrate", uri=f"file:{path}")
    monitor.wait_migration(SAVE_LIMIT_S)
    return paused


def _refuse_migrated(monitor: Monitor, states: t.Collection[str]) -> None:
    """Raise if another program migrates or saves the guest, or has done so."""
    status, state = monitor.query("query-migrate").get("status", "none"), monitor.status()
    if status not in OVER:
        raise LiveUpdateError(
            f"another program migrates or saves it (run state {state}, migration {status}); wait until that migration or save has ended"
        )
    if state == "postmigrate":
        raise LiveUpdateError(
            f"another program has migrated or saved it (run state {state}). If it runs on no other host, resume it in its QEMU monitor"
            " (cont)"
        )
    if state not in states:
        raise LiveUpdateError(f"its QEMU is {state}, not {' or '.join(states)}; stop programs that manage this guest")


def go_on(monitor: Monitor, begin: t.Callable[[], None] = lambda: None, refused: t.Callable[[], None] = lambda: None) -> bool:
    """Resume a loaded guest. False if QEMU refused, so that the guest has not run. Any other failure is an error.

    Only now QEMU opens the disks for writing, and their locks may need a moment to be released. This calls ``begin`` before each try, and
    ``refused`` after each try that QEMU refused. Between the two calls it is unknown whether the guest has run.
    """
    limit = time.monotonic() + GO_ON_LIMIT_S
    while True:
        begin()
        try:
            monitor.execute("cont")
            return True
        except LiveUpdateError as err:
            if "refused" not in err.details or monitor.status() != "paused":
                raise
            refused()
            if time.monotonic() > limit:
                _systemd.log(str(err))
                return False
        time.sleep(0.1)


def load(monitor: Monitor, path: str, limit_s: float = LOAD_LIMIT_S) -> None:
    """Load a device state into a QEMU that waits for one; the guest is paused afterwards."""
    monitor.ignore_shared(True)
    monitor.execute("migrate-incoming", uri=f"file:{path}")
    monitor.wait_migration(limit_s)
    limit = time.monotonic() + limit_s
    while monitor.status() == "inmigrate":
        if time.monotonic() > limit:
            raise LiveUpdateError(f"QEMU is still loading {path} after {limit_s:g} s")
        time.sleep(0.005)
    monitor.ignore_shared(False)
