# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records of processes: id and start time. The start time tells a process from a later one with the same id."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """A process, by id and start time."""

    pid: int
    start: int

    @classmethod
    def of_this_process(cls) -> Record:
        """The record of the calling process."""
        return cls(os.getpid(), start_of(os.getpid()) or 0)

    def alive(self) -> bool:
        """Whether this process runs, and not another one with its id."""
        return start_of(self.pid) == self.start

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this process. Thanks to the pidfd, no other process with its id can get the signal."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)

    def wait_gone(self, limit_s: float) -> bool:
        """Wait until the process is gone. Returns False if it still runs after limit_s."""
        until = time.monotonic() + limit_s
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot. None if there is no such process, or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def write_record(path: Path, record: Record) -> None:
    """Write a record in one step: a reader sees all of it or nothing."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(json.dumps(asdict(record)) + "\n")
    partial.rename(path)


def read_record(path: Path) -> Record | None:
    """The record in a file, or None."""
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def kill_tree(pid: int) -> None:
    """Kill a child of this process and all its descendants. The child is stopped first, so that it starts no more of them."""
    os.kill(pid, signal.SIGSTOP)
    for each in (pid, *descendants(pid, parents())):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def parents() -> dict[int, int]:
    """The parent of each process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


def descendants(pid: int, parent_of: Mapping[int, int]) -> list[int]:
    """The children of a process, their children and so on. Pure."""
    children = [child for child, parent in parent_of.items() if parent == pid]
    return children + [each for child in children for each in descendants(child, parent_of)]
