# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Correct a domain's clock through its guest agent, after its resume. PRIVATE to the collection.

A guest's clocks stop during its pause. Its hardware clock, which QEMU emulates, does not stop. The agent may be missing, hang or refuse:
everything here has a limit, and the worst result is a sentence in the guest's journal.

The network needs no help: at the end of a state load QEMU itself announces the guest's MAC address.
"""

from __future__ import annotations

import json
import time

from .. import _limits
from .._errors import LiveUpdateError
from . import _virsh

__all__ = ("correct_clock",)

LIMIT_S = _limits.CLOCK
CALL_LIMIT_S = _limits.AGENT_CALL
ANSWER_LIMIT_S = _limits.AGENT_ANSWER
CONNECT_LIMIT_S = _limits.AGENT_CONNECT
RETRY_S = 0.5


def correct_clock(name: str) -> dict:
    """Set the running domain's clock by its hardware clock. Returns the result for the guest's journal. Raises nothing."""
    until = time.monotonic() + LIMIT_S
    thawed = False
    try:
        uuid = _virsh.uuid_of(name)
        if not _is_connected(uuid, until):
            return {"clock": "no agent", "thawed": False}
        # First this: with frozen file systems the agent refuses other commands. The program that froze them ended with the old kernel.
        thawed = _thaw(uuid, until)
        _ask(until, "domtime", uuid, "--sync")
    except Exception as err:  # pylint: disable=broad-except  # the guest is back whatever its agent does
        return {"clock": f"failed: {str(err) or repr(err)}", "thawed": thawed}
    return {"clock": "synchronised", "thawed": thawed}


def _ask(until: float, *words: str) -> str:
    """The output of virsh, within the limit of one call and of all calls together."""
    left = until - time.monotonic()
    if left <= 0:
        raise LiveUpdateError(f"virsh {words[0]} was not run, because the limit of {LIMIT_S:g} s for the guest agent is over")
    return _virsh.virsh(*words, limit=min(left, CALL_LIMIT_S))


def _is_connected(uuid: str, until: float) -> bool:
    """Whether the guest's agent is connected; waits a little for one that is not."""
    patience = time.monotonic() + CONNECT_LIMIT_S
    while True:
        state = channel_state(_ask(until, "dumpxml", uuid))
        if state in ("", "connected") or time.monotonic() > patience:
            return state == "connected"
        time.sleep(RETRY_S)


def channel_state(xml: str) -> str:
    """The state of the agent's channel in the XML of a running domain; empty when it has none. Pure."""
    from xml.etree import ElementTree  # slow to import

    target = ElementTree.fromstring(xml).find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    return "" if target is None else target.get("state", "unknown")


def _thaw(uuid: str, until: float) -> bool:
    """Thaw the guest's file systems when they are frozen."""
    try:
        answer = _agent(uuid, until, "guest-fsfreeze-status")
    except LiveUpdateError:
        return False  # not every agent supports freezing; if the agent hangs, the next command fails
    if not is_frozen(answer):
        return False
    _agent(uuid, until, "guest-fsfreeze-thaw")
    return True


def _agent(uuid: str, until: float, command: str) -> str:
    return _ask(until, "qemu-agent-command", uuid, "--timeout", str(ANSWER_LIMIT_S), json.dumps({"execute": command}))


def is_frozen(answer: str) -> bool:
    """Whether this answer of an agent means that file systems are frozen. Pure."""
    return dict(json.loads(answer)).get("return") == "frozen"
