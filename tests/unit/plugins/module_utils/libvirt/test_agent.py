# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _agent, _virsh

OTHER = "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0' state='connected'/></channel>"


def xml(state: str) -> str:
    target = f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{state}/></channel>"
    return f"<domain type='kvm' id='1'><devices>{OTHER}{target}</devices></domain>"


NONE = f"<domain><devices>{OTHER}</devices></domain>"
CONNECTED = xml(" state='connected'")
DISCONNECTED = xml(" state='disconnected'")


@pytest.fixture(name="agent")
def scripted_agent(monkeypatch):
    """An agent behind virsh: the domain's XML by and by, and an answer or an error to each command. Time passes by sleeping."""

    class Agent:
        def __init__(self):
            self.xml, self.answers, self.asked, self.now = [CONNECTED], {}, [], 0.0

        def virsh(self, verb, name, *words, limit):
            assert name == "app"
            assert 0 < limit <= _agent.CALL_LIMIT_S
            if verb == "dumpxml":
                return self.xml.pop(0) if len(self.xml) > 1 else self.xml[0]
            what = json.loads(words[-1])["execute"] if verb == "qemu-agent-command" else " ".join((verb, *words))
            self.asked.append(what)
            answer = self.answers.get(what, "")
            if isinstance(answer, float):
                self.now += min(answer, limit)
                raise LiveUpdateError(f"{what}: no answer within {limit:g} s")
            if isinstance(answer, Exception):
                raise answer
            return answer

        def sleep(self, seconds):
            self.now += seconds

    made = Agent()
    made.answers["guest-fsfreeze-status"] = '{"return":"thawed"}\n'
    monkeypatch.setattr(_virsh, "virsh", made.virsh)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


@pytest.mark.parametrize(
    ("text", "state"), [(NONE, ""), (CONNECTED, "connected"), (DISCONNECTED, "disconnected"), (xml(""), "unknown"), ("<domain/>", "")]
)
def test_the_state_of_the_channel_is_read(text, state):
    assert _agent.channel_state(text) == state


@pytest.mark.parametrize(("answer", "frozen"), [('{"return":"frozen"}', True), ('{"return":"thawed"}\n', False), ('{"error":{}}', False)])
def test_the_agents_answer_is_read(answer, frozen):
    assert _agent.is_frozen(answer) is frozen


def test_the_clock_is_set(agent):
    assert _agent.correct_clock("app") == {"clock": "synchronised", "thawed": False}
    assert agent.asked == ["guest-fsfreeze-status", "domtime --sync"]


def test_a_frozen_guest_is_thawed_before(agent):
    agent.answers["guest-fsfreeze-status"] = '{"return":"frozen"}'
    assert _agent.correct_clock("app") == {"clock": "synchronised", "thawed": True}
    assert agent.asked == ["guest-fsfreeze-status", "guest-fsfreeze-thaw", "domtime --sync"]


def test_a_guest_that_cannot_be_thawed_keeps_its_clock(agent):
    agent.answers["guest-fsfreeze-status"] = '{"return":"frozen"}'
    agent.answers["guest-fsfreeze-thaw"] = LiveUpdateError("thaw: refused")
    assert _agent.correct_clock("app") == {"clock": "failed: thaw: refused", "thawed": False}


def test_an_agent_that_knows_nothing_of_freezing_is_no_failure(agent):
    agent.answers["guest-fsfreeze-status"] = LiveUpdateError("CommandNotFound")
    assert _agent.correct_clock("app")["clock"] == "synchronised"


def test_a_channel_that_connects_a_little_later_is_waited_for(agent):
    agent.xml = [DISCONNECTED, DISCONNECTED, CONNECTED]
    assert _agent.correct_clock("app")["clock"] == "synchronised"


def test_a_domain_without_a_channel_is_not_waited_for(agent):
    agent.xml = [NONE]
    assert _agent.correct_clock("app") == {"clock": "no agent", "thawed": False}
    assert agent.now == 0
    assert not agent.asked


def test_a_guest_without_an_agent_is_waited_for_with_a_limit(agent):
    agent.xml = [DISCONNECTED]
    assert _agent.correct_clock("app") == {"clock": "no agent", "thawed": False}
    assert agent.now <= _agent.CONNECT_LIMIT_S + 1
    assert not agent.asked


def test_an_agent_that_hangs_is_given_up(agent):
    agent.xml = [DISCONNECTED] * 20 + [CONNECTED]
    agent.answers = {"guest-fsfreeze-status": 60.0, "domtime --sync": 60.0}
    assert _agent.correct_clock("app") == {"clock": "failed: domtime --sync: no answer within 10 s", "thawed": False}
    assert agent.now <= _agent.LIMIT_S


def test_all_calls_together_have_a_limit(agent, monkeypatch):
    monkeypatch.setattr(_agent, "LIMIT_S", 10.0)
    agent.answers["guest-fsfreeze-status"] = 60.0
    assert _agent.correct_clock("app")["clock"].startswith("failed: virsh domtime was not run")


@pytest.mark.parametrize("answer", ["no JSON", "3", ""])
def test_nonsense_is_a_failure_in_words(agent, answer):
    agent.answers["guest-fsfreeze-status"] = answer
    outcome = _agent.correct_clock("app")
    assert outcome["clock"].startswith("failed: ") and len(outcome["clock"]) > len("failed: ")
    assert not outcome["thawed"]
