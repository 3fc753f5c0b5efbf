# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a failed task says. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

__all__ = ("AFTER_COLD_BOOT", "failure")

# What an operator does for guests whose memory is gone.
AFTER_COLD_BOOT = (
    "Its console and 'journalctl -b -1' may show why. Guests start from their disks. Those with on_loss=stop stay off if they were"
    " paused: run 'kvm-liveupdate discard NAME' and start each of them"
)
_NO_MESSAGE = "see the failed task above"


def failure(result: dict[str, t.Any], refusals: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """``why`` the task failed, a sentence, and ``lost``, whether it failed because the host did not answer.

    ``result`` is ansible_failed_result; a task with a loop has ``results``. ``refusals`` are those of the host's plan. If there are any,
    the task failed because of them. If a message has several lines, the last one is the reason.
    """
    failures = [item for item in result.get("results") or [result] if item.get("failed")]
    message = next((item["msg"] for item in failures if item.get("msg")), _NO_MESSAGE)
    last = message[-1] if isinstance(message, (list, tuple)) else message
    return {"why": "; ".join(refusals) or str(last), "lost": any("lost" in item for item in failures)}
