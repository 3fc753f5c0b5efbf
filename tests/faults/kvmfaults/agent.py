# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""On the host: wait for a step of an update, say so on the console, then run a command. It imports nothing, because it is copied there.

agent.py MARK STEP [--freeze SECONDS] -- COMMAND

With --freeze the process that carries the update out is stopped (SIGSTOP) in this step, so that the step lasts: until the command has
ended, and SECONDS more. It acts once, even if an undo starts its unit again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

STATE, RUN = "/var/lib/kvm-liveupdate", "/run/kvm-liveupdate"
DOMAINS = "/run/libvirt/qemu"  # libvirt's record of each domain that runs
JUMP = "/sys/fs/cgroup/system.slice/kvm-liveupdate-jump.service/cgroup.procs"
CONSOLE = "/dev/console"
GUARD = "/run/lab-fault-{}"  # exists once this injection acts or waits
LIMIT_S = 1800.0
STARTS_S = 30.0
# Often enough for a step that lasts a second. A look takes several milliseconds of an emulated processor, so until services stop, where
# steps are long, there are fewer.
POLL_S = 0.01
FAR_POLL_S = 0.2
IN_ORDER = ("committed", "stopping", "saving", "jumping")


def record(path: str) -> dict[str, object]:
    """The record at a path. Empty if there is none, or if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def version(path: str) -> tuple[int, int] | None:
    """What tells two versions of a file apart; None for no file."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


class Watched:
    """A record that is read again only when it has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.first = self._version = version(path)
        self._content = record(path)

    def now(self) -> dict[str, object]:
        """The record."""
        seen = version(self.path)
        if seen != self._version:
            self._version, self._content = seen, record(self.path)
        return self._content

    def is_new(self) -> bool:
        """Whether it was written since this process began."""
        return version(self.path) not in (None, self.first)


class Update:
    """The update that begins after this process."""

    def __init__(self, state: str = STATE, run: str = RUN, domains: str = DOMAINS) -> None:
        self._state, self._run, self._domains = state, run, domains
        self._journal = Watched(f"{state}/update.json")
        self._before = self._journal.now().get("id")
        self._image = Watched(f"{run}/image.json")
        self._holds = {name: version(f"{run}/guests/{name}") for name in self._held()}

    def _held(self) -> list[str]:
        try:
            return [name for name in os.listdir(f"{self._run}/guests") if name.endswith(".held")]
        except OSError:
            return []

    def _guests(self) -> set[str]:
        """The guests that run: each of a unit has a record, and each domain an entry of libvirt."""
        names: set[str] = set()
        for folder, suffix in ((f"{self._run}/guests", ".json"), (self._domains, ".xml")):
            try:
                names |= {name[: -len(suffix)] for name in os.listdir(folder) if name.endswith(suffix)}
            except OSError:
                continue
        return names

    def state(self) -> str:
        """The state of its record; empty before its commit."""
        journal = self._journal.now()
        return "" if journal.get("id") == self._before else str(journal.get("state", ""))

    def reached(self, step: str) -> bool:
        """Whether the update has reached this step."""
        if step == "now":
            return True
        state = self.state()
        if step == "staged":
            return self._image.is_new() or bool(state)
        if step == "preserved":
            return self.preserved() or bool(state)
        if step.startswith("saved:"):
            saved = record(f"{self._state}/guests/{step[6:]}.json")
            return state in IN_ORDER and saved.get("state") == "saved" and saved.get("update_id") == self._journal.now().get("id")
        if step == "aborted":
            return state == "aborted"
        return state in IN_ORDER[IN_ORDER.index(step) :]

    def preserved(self) -> bool:
        """Whether all guests that run are held since this process began."""
        held = {name[:-5] for name in self._held() if version(f"{self._run}/guests/{name}") != self._holds.get(name)}
        return bool(held) and self._guests() <= held


def wait(update: Update, step: str) -> bool:
    """Wait for a step. False if the update ends without it, or at the limit."""
    until = time.monotonic() + LIMIT_S
    while not update.reached(step):
        if (update.state() == "aborted" and step != "aborted") or time.monotonic() > until:
            return False
        time.sleep(POLL_S if update.state() in IN_ORDER[1:] else FAR_POLL_S)
    return True


def jumpers() -> list[int]:
    """The processes of the unit that carries the update out. The first one is its main process."""
    try:
        with open(JUMP, encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:
        return []


def say(text: str) -> None:
    """Write a line to the console, where the lab sees it without a connection.

    Twice: the kernel may write one of its own lines into it, and the end of a login there makes a write fail.
    """
    for _time in range(2):
        with contextlib.suppress(OSError):
            handle = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY)
            try:
                os.write(handle, f"\r\nlab-fault {text}\r\n".encode())
            finally:
                os.close(handle)


def act(mark: str, command: str, freeze: float | None) -> None:
    """Run the command. freeze: the step lasts until the command has ended, and so many seconds more."""
    until = time.monotonic() + STARTS_S
    while freeze is not None and not jumpers() and time.monotonic() < until:  # right after the commit it is about to start
        time.sleep(POLL_S)
    stopped = [] if freeze is None else jumpers()[:1]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        say(f"{mark} acts")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        print(command, done, flush=True)
        if done.returncode > 0:  # a signal is the end of the unit or of the host
            say(f"{mark} failed: exit code {done.returncode}: {' / '.join(done.stderr.split(chr(10))[-3:]).strip(' /')[:200]}")
        time.sleep(freeze or 0.0)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def main(words: list[str]) -> int:
    """Wait, then act once."""
    mark, step, *options = words[: words.index("--")]
    command = " ".join(words[words.index("--") + 1 :])
    freeze = float(options[1]) if options[:1] == ["--freeze"] else None
    update = Update()
    try:
        os.close(os.open(GUARD.format(mark), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return 0
    say(f"{mark} waits")
    if not wait(update, step):
        say(f"{mark} never")
        return 0
    act(mark, command, freeze)
    say(f"{mark} done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
