# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import subprocess
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _batch


def ask(*commands, limit=20):
    return _batch.ask(commands, limit)


def test_one_process_answers_all_and_a_command_that_fails_fails_alone(libvirt):
    libvirt.add("app", 1, dumpxml="<domain>\n  <title>Büro; error: 'none'</title>\n</domain>\n")
    xml, failed, state = ask(("dumpxml", "app"), ("dumpxml", "nobody"), ("domstate", "app"))
    assert xml.value() == "<domain>\n  <title>Büro; error: 'none'</title>\n</domain>\n"
    assert failed.error == "failed to get domain 'nobody'" and failed.asked
    assert state.value() == "running\n\n"
    assert libvirt.processes() == 1
    with pytest.raises(LiveUpdateError, match="failed to get domain 'nobody'"):
        failed.value()


def test_a_warning_is_no_failure():
    (answer,) = _batch.answers_of(["domstate 'a'"], "MARK", ("runningMARK", "2026: warning: slow\nerror: MARK\n"), [1.0], "")
    assert (answer.text, answer.error, answer.ended) == ("running", "", 1.0)


@pytest.mark.parametrize("word", ["it's; echo x", '{"a": "b\\"c"}', "", " two  words ", "#", "\\"])
def test_any_word_arrives_as_it_is(libvirt, word):
    (answer,) = ask(("echo", word))
    assert answer.text == word


def test_who_does_not_answer_is_known_and_what_came_before_is_kept(libvirt):
    libvirt.add("app", 1)
    libvirt.add("hung", 2, dumpxml="HANGS")
    begun = time.monotonic()
    answers = ask(("domstate", "app"), ("dumpxml", "hung"), ("domstate", "app"), limit=5)
    assert time.monotonic() - begun < 30
    assert [answer.asked for answer in answers] == [True, True, False]
    assert answers[0].value() == "running\n\n"
    assert answers[1].error == answers[2].error == "virsh dumpxml hung: virsh: no answer within 5 s"


def test_each_answer_has_the_time_of_its_end(libvirt):
    libvirt.add("hung", 1, dumpxml="HANGS")
    before = time.time()
    first, _last = ask(("echo",), ("dumpxml", "hung"), limit=5)
    assert before <= first.ended <= time.time() - 0.5


def test_a_libvirt_that_cannot_be_reached_is_the_error_of_each():
    said = "error: failed to connect to the hypervisor\nerror: no such file\n"
    answers = _batch.answers_of(["domstate 'a'", "domstate 'b'"], "MARK", ("", said), [], "")
    assert {answer.error for answer in answers} == {"virsh domstate a: failed to connect to the hypervisor; no such file"}


def test_more_commands_than_fit_into_one_argument_are_split():
    commands = ["x" * 60] * 5
    found = _batch.groups(commands, longest=300)
    assert [len(group) for group in found] == [2, 2, 1]
    assert [command for group in found for command in group] == commands
    assert _batch.groups([]) == []


def test_a_host_without_virsh_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LiveUpdateError, match="virsh: not found on this host"):
        ask(("list",))


def test_a_virsh_that_the_host_cannot_start_is_the_error_of_each_command(monkeypatch):
    """Whoever asks goes on, and asks again."""

    def no_process(*_command, **_keys):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", no_process)
    answers = ask(("domstate", "a"), ("resume", "a"))
    why = "Resource temporarily unavailable; check the free memory and the number of processes of the host"
    assert [answer.error for answer in answers] == [f"virsh domstate a: cannot be started on this host: {why}"] * 2
    assert [answer.asked for answer in answers] == [True, False]


def test_nobody_waits_for_virsh_beyond_the_last_moment(libvirt):
    """And nothing is asked when that is over: virsh might do it before it is ended."""
    libvirt.add("app", 1, dumpxml="HANGS")
    uuid = libvirt.domains[0]["uuid"]
    _commands.end_by(time.monotonic() + 2, "the pause")
    try:
        (answer,) = _batch.ask([("dumpxml", uuid)], 60)
        asked = libvirt.processes()
        late = _batch.ask([("suspend", uuid), ("resume", uuid)], 60)
    finally:
        _commands.end_by(None)
    assert "no answer within the pause" in answer.error
    assert all("not asked: the time limit is over (the pause)" in each.error for each in late)
    assert libvirt.processes() == asked and [each.asked for each in late] == [True, False]
