# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Correcting a domain's clock through its guest agent, once it has resumed. PRIVATE to the collection.

A guest's clocks stand still during its pause; its hardware clock, which QEMU keeps, does not. The agent may be missing, hang or
refuse: everything here has a limit, and the worst outcome is a sentence in the guest's journal.

What peers on the network have to be told (where the guest's MAC address is) QEMU announces by itself at the end of a state load.
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
    """Set the running domain's clock by its hardware clock; what became of that, for the guest's journal. Raises nothing."""
    until = time.monotonic() + LIMIT_S
    thawed = False
    try:
        uuid = _virsh.uuid_of(name)
        if not _is_connected(uuid, until):
            return {"clock": "no agent", "thawed": False}
        # Before the time: an agent that keeps file systems frozen answers nothing else. Whoever froze them ended with the old kernel.
        thawed = _thaw(uuid, until)
        _ask(until, "domtime", uuid, "--sync")
    except Exception as err:  # pylint: disable=broad-except  # the guest is back whatever its agent does
        return {"clock": f"failed: {str(err) or repr(err)}", "thawed": thawed}
    return {"clock": "synchronised", "thawed": thawed}


def _ask(until: float, *words: str) -> str:
    """What virsh says, within the limit of a call and of all calls together."""
    left = until - time.monotonic()
    if left <= 0:
        raise LiveUpdateError(f"no time left for virsh {words[0]}: the agent is given {LIMIT_S:g} s")
    return _virsh.virsh(*words, limit=min(left, CALL_LIMIT_S))


def _is_connected(uuid: str, until: float) -> bool:
    """Whether the guest's agent is there; waits a little for one that may still come."""
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
        return False  # not every agent knows of freezing; one that hangs shows in what comes next
    if not is_frozen(answer):
        return False
    _agent(uuid, until, "guest-fsfreeze-thaw")
    return True


def _agent(uuid: str, until: float, command: str) -> str:
    return _ask(until, "qemu-agent-command", uuid, "--timeout", str(ANSWER_LIMIT_S), json.dumps({"execute": command}))


def is_frozen(answer: str) -> bool:
    """Whether that is the answer of an agent that keeps file systems frozen. Pure."""
    return dict(json.loads(answer)).get("return") == "frozen"
