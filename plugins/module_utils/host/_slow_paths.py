# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Access paths that may not answer, for example on a network file system without its server. PRIVATE to the collection.

Only the server can end such an access. So a child process does it, and is left behind if it hangs.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("PATH_LIMIT_S", "Silent", "look")

PATH_LIMIT_S = _limits.PATHS
LONGEST_S = _limits.PATHS_LONGEST
_POLL_S = 0.5
_MANY_FDS = 1 << 16


class Silent(LiveUpdateError):
    """A path does not answer: ``path``. The text says which limit ended the look."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text, path=path)
        self.path = path


def look(work: t.Callable[[t.Callable[[str], None]], t.Any]) -> t.Any:
    """Run ``work`` in a child process and return its result, through JSON. With its argument ``work`` names each path before it looks.

    Raises :class:`Silent` if one path takes PATH_LIMIT_S or all together take LONGEST_S, and LiveUpdateError if ``work`` fails. Only
    LONGEST_S counts the time in which the child waits for a processor: the looks at many guests may run on a host that has none left.
    """
    import json
    import select
    import signal

    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _work(work, writing)
    os.close(writing)
    until, silent, text, poll = time.monotonic() + LONGEST_S, 0.0, b"", select.poll()
    poll.register(reading)
    try:
        while silent < PATH_LIMIT_S and time.monotonic() < until:
            if not poll.poll(_POLL_S * 1000):
                silent += 0.0 if _wants_to_run(child) else _POLL_S
                continue
            part = os.read(reading, 1 << 16)
            if not part:
                break
            text, silent = text + part, 0.0
        else:
            os.kill(child, signal.SIGKILL)
            path = os.fsdecode(text.rpartition(b"\0")[0].rpartition(b"\0")[2]) or "a path"
            if silent < PATH_LIMIT_S:
                raise Silent(path, f"the check of all paths of the guest takes longer than {LONGEST_S:g} s; the last one was {path}")
            raise Silent(path, f"{path} does not answer within {PATH_LIMIT_S:g} s")
    finally:
        os.close(reading)
        _reap(child)
    kind, answer = json.loads(text.rpartition(b"\0")[2] or '["failed", "it ended"]')
    if kind == "failed":
        raise LiveUpdateError(f"its paths cannot be examined: {answer}")
    return answer


def _wants_to_run(child: int) -> bool:
    """Whether a process runs or waits for a processor (proc(5), the state in /proc/PID/stat)."""
    with open(f"/proc/{child}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] == b"R"


def _reap(child: int) -> None:
    """Wait a moment for the child. One that hangs ends when its path answers, or with this process."""
    until = time.monotonic() + 1.0
    while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < until:
        time.sleep(0.001)


def _work(work: t.Callable[[t.Callable[[str], None]], t.Any], writing: int) -> t.NoReturn:
    """The child. It may live longer than its parent, so it keeps nothing of the parent open: no locks, no sessions, no output."""
    import json

    try:
        os.dup2(writing, 3, inheritable=False)
        os.closerange(4, _MANY_FDS)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            answer = ["done", work(lambda path: _write(os.fsencode(path) + b"\0"))]
        except Exception as err:  # pylint: disable=broad-except  # the parent gets every failure
            answer = ["failed", f"{type(err).__name__}: {err}"]
        _write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(3, data) :]
