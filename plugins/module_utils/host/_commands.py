# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run programs and read their output. PRIVATE to the collection."""

from __future__ import annotations

import os
import time

from .. import _limits
from .._errors import LiveUpdateError

__all__ = ("cannot_start", "end_by", "left", "no_answer", "run", "too_late")

COMMAND_LIMIT_S = _limits.COMMAND
# The output of commands is compared with English words.
_PLAIN_WORDS = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}

_last_moment: float | None = None
_of_what = ""


def end_by(moment: float | None, of_what: str = "") -> None:
    """From now on end every wait for a command or an answer at ``moment`` (CLOCK_MONOTONIC), whatever its own limit; None ends this.

    ``of_what`` names this limit in messages: "no answer within" it.
    """
    global _last_moment, _of_what  # pylint: disable=global-statement  # the code that runs commands need not know the limit of the update
    _last_moment, _of_what = moment, of_what


def left(limit: float) -> float:
    """How many seconds something with this limit may still take; zero if the moment of :func:`end_by` is over."""
    return limit if _last_moment is None else max(min(limit, _last_moment - time.monotonic()), 0.0)


def no_answer(waited: float) -> str:
    """Why the wait for an answer ended, after ``waited`` seconds: as the end of a sentence."""
    if _last_moment is not None and time.monotonic() >= _last_moment:
        return f"no answer within {_of_what or 'the limit of this step'}"
    return f"no answer within {waited:g} s"


def too_late() -> str:
    """Why something is not even begun: the moment of :func:`end_by` is over. As the end of a sentence."""
    return f"the time limit is over ({_of_what or 'the limit of this step'})"


def cannot_start(err: OSError) -> str:
    """Why a program that is installed was not started: as the end of a sentence."""
    return f"cannot be started on this host: {err.strerror}; check the free memory and the number of processes of the host"


def run(*command: str, timeout: float = COMMAND_LIMIT_S) -> str:
    """Run a command and return its standard output. A failure or the limit raises an error, with what the command printed."""
    import subprocess  # slow to import, and the boot path runs no commands

    timeout = left(timeout)
    if not timeout:
        raise LiveUpdateError(f"{' '.join(command)}: not run: {too_late()}")
    try:
        # pylint: disable-next=ansible-bad-function  # the host runtime has no AnsibleModule.run_command
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout,
            check=False,
            env={**os.environ, **_PLAIN_WORDS},
        )
    except FileNotFoundError as err:
        raise LiveUpdateError(f"{command[0]}: command not found on this host; install the package that provides it") from err
    except OSError as err:  # too many processes or open files, no memory
        raise LiveUpdateError(f"{' '.join(command)}: {cannot_start(err)}") from err
    except subprocess.TimeoutExpired as err:
        raise LiveUpdateError(f"{' '.join(command)}: {no_answer(round(timeout, 1))}") from err
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or "it printed nothing"
        raise LiveUpdateError(f"{' '.join(command)}: exit code {done.returncode}: {said}")
    return done.stdout
