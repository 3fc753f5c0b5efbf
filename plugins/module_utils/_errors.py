# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only error class of the collection, and reasons. PRIVATE to the collection."""

from __future__ import annotations

__all__ = ("LiveUpdateError", "reason", "told", "typed")


class LiveUpdateError(Exception):
    """Something was refused or failed.

    The message says what, on which object, the value seen and the remedy. A module that fails with it also returns the ``details``.
    """

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def reason(code: str, message: str, remedy: str) -> dict:
    """A reason why something is refused, or a warning: a ``code`` for programs, a ``message`` and a ``remedy`` for people."""
    return {"code": code, "message": message, "remedy": remedy}


def told(why: dict) -> str:
    """A reason as a sentence."""
    return f"{why['message']} - {why['remedy']}"


def typed(word: str) -> str:
    """A word of a command that a message names, as it is typed into a shell: the unit of the guest db-1 has a backslash in its name."""
    import shlex  # for messages only

    return shlex.quote(word)
