# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a long command with a log, a time limit and lines of progress. On failure, show the end of the log."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import LabError

PROGRESS_EVERY_S = 10.0
PR_SET_PDEATHSIG = 1
CONTROL = re.compile(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b\x0c\x0e-\x1f]")

_libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """Print one line of progress and flush it, so that it also appears at once in a pipe."""
    print(text, file=sys.stderr, flush=True)


def tail(path: Path, lines: int = 20) -> str:
    """The last non-empty lines of a text file, without terminal control sequences."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 16384))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    plain = (line.rstrip() for line in CONTROL.sub("", text).replace("\r", "\n").splitlines())
    return "\n".join([line for line in plain if line][-lines:])


def die_with_parent(death_signal: int = signal.SIGTERM) -> Callable[[], None]:
    """A preexec function: the kernel sends death_signal to the child when the parent ends, even if the parent is killed."""

    def arm() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)

    return arm


def end_group(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """End a child and its process group: SIGTERM first, SIGKILL after grace_s."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def run_logged(
    command: Sequence[str | Path],
    *,
    what: str,
    log: Path,
    limit_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    progress: Callable[[], str] | None = None,
) -> None:
    """Run a command and append its output to log. Raise LabError if it fails or takes longer than limit_s."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("ab") as stream:
        stream.write(("+ " + " ".join(words) + "\n").encode())
        stream.flush()
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except FileNotFoundError as error:
            raise LabError(f"{what}: {words[0]} is not installed (tests/lab/packages.txt lists what the lab needs)") from error
        try:
            _wait(process, what, log, started, limit_s, progress)
        finally:
            end_group(process)
    if process.returncode != 0:
        raise LabError(f"{what} failed with exit code {process.returncode}. The end of {log}:\n{tail(log)}")


def _wait(
    process: subprocess.Popen[bytes],
    what: str,
    log: Path,
    started: float,
    limit_s: float,
    progress: Callable[[], str] | None,
) -> None:
    """Wait for the child. Print its progress every few seconds."""
    next_line = started + PROGRESS_EVERY_S
    while True:
        try:
            process.wait(0.5)
            return
        except subprocess.TimeoutExpired:
            pass
        now = time.monotonic()
        if now - started > limit_s:
            raise LabError(f"{what} did not end within {limit_s:.0f} s. The end of {log}:\n{tail(log)}")
        if now >= next_line:
            next_line = now + PROGRESS_EVERY_S
            detail = (progress() if progress else tail(log, 1)).strip()
            say(f"  {what}: {now - started:.0f} s" + ("" if detail.startswith("+ ") else f", {detail[:110]}"))
