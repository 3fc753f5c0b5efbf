# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _guest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _trial

REASON = {"code": "cmdline", "message": "it lacks a word", "remedy": "run the setup"}
GONE = {"code": "interface-gone", "message": "network interface ens4 (0000:00:04.0), driver virtio_net, is gone", "remedy": "bind it"}


def host(*guests, current=False, reasons=(), away=()):
    return {
        "guests": [{"name": name} for name in guests],
        "away": [{"guest": name} for name in away],
        "target": {"release": "7.3.4", "current": current},
        "kernel": {"release": "7.3.4" if current else "7.2.13"},
        "reasons": list(reasons),
    }


def compared(*findings, times=(), notes=()):
    return {"findings": list(findings), "notes": list(notes), "times": list(times), "guest": {"runs": True}, "devices": {"before": {}}}


def time(device, seconds, at_most=False):
    return {"device": device, "seconds": seconds, "at_most": at_most}


UPDATED = {
    "outcome": "updated",
    "why": "",
    "kernel_before": "7.2.13",
    "kernel_after": "7.3.4",
    "update_id": "u1",
    "guests": {_trial.GUEST: {"times": {"paused": 1.0, "resumed": 9.6}}},
}
LEASE = {"run": "x/1/2", "by": "bob on ctl2", "begun": 1, "since": 1, "seconds": 60, "left": 50.0, "until": "soon"}
BEGINS = {"refusals": [], "begins": True, "continues": False}


def test_the_guest_has_the_name_that_the_module_gives_it():
    assert _trial.GUEST == _guest.NAME


@pytest.mark.parametrize(
    ("seen", "begins", "continues"),
    [
        (host(), True, False),
        (host(_trial.GUEST), True, False),
        (host(_trial.GUEST, current=True), False, True),
        ({**host(_trial.GUEST, current=True), "lease": {**LEASE, "own": True}}, False, True),
        ({**host(_trial.GUEST, current=True), "lease": {**LEASE, "ended": True}}, False, True),
        # After the jump a reason against the next update says nothing about this trial.
        (host(_trial.GUEST, current=True, reasons=[REASON]), False, True),
    ],
)
def test_a_drained_host_is_tried(seen, begins, continues):
    assert _trial.planned(seen) == {"refusals": [], "begins": begins, "continues": continues}


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (host("web"), "a trial needs a host without guests, and web runs here - migrate or stop them"),
        (host("web", _trial.GUEST, "db", current=True), "and web, db run here - migrate or stop them, or choose another host"),
        (host(away=["db"]), "an earlier update sent db away and did not bring back all of them"),
        (host(current=True), "the host runs Linux 7.3.4 already, and a trial jumps into another kernel - set hypervisor_update_kernel"),
        (host(reasons=[REASON]), "it lacks a word - run the setup"),
        ({**host(_trial.GUEST), "lease": LEASE}, "bob on ctl2"),  # it may be their guest
        ({**host(_trial.GUEST, current=True), "lease": LEASE}, "bob on ctl2"),
    ],
)
def test_any_other_host_is_refused(seen, says):
    made = _trial.planned(seen)
    assert not made["begins"] and not made["continues"]
    (told,) = made["refusals"]
    assert says in told
    found = _trial.result(seen, plan=made, why="refused")
    assert (found["outcome"], found["why"]) == ("refused", told)


def test_a_trial_without_findings_has_passed():
    times = [time("PCI device 0000:00:04.0", 3.0, True), time("link of ens4", 14.2), time("disk sda", None)]
    found = _trial.result(host(), plan=BEGINS, update=UPDATED, compared=compared(times=times, notes=["new disk vdb (x)"]))
    assert (found["outcome"], found["kernel_before"], found["kernel_after"], found["update_id"]) == ("passed", "7.2.13", "7.3.4", "u1")
    told = _trial.summary({"hv1": found})
    assert told["failed"] == [] and told["lines"]["hv1"] == [
        "hv1: passed: Linux 7.2.13 -> 7.3.4, all devices and links are back, the last 14.2 s after the start of the new kernel"
        " (link of ens4); the throw-away guest kept its memory, its pause was 8.6 s",
        "hv1: note: new disk vdb (x)",
    ]
    assert told["brief"] == {
        "outcome": "passed",
        "why": "",
        "hosts": {"passed": 1},
        "findings": 0,
        "last_back": 14.2,
        "failed": [],
    }


@pytest.mark.parametrize(
    ("times", "says"),
    [([], "links are back;"), ([time("disk sda", 3.0, True)], "links are back, within 3.0 s after the start of the new kernel;")],
)
def test_the_line_says_what_is_known_of_the_time(times, says):
    found = _trial.result(host(), plan=BEGINS, update={**UPDATED, "guests": {}}, compared=compared(times=times))
    (line,) = _trial.summary({"hv1": found})["lines"]["hv1"]
    assert says in line and line.endswith("the throw-away guest kept its memory")


def test_each_finding_has_its_own_line_and_the_host_fails():
    found = _trial.result(host(), plan=BEGINS, update=UPDATED, compared=compared(GONE))
    told = _trial.summary({"hv1": found})
    assert found["outcome"] == "findings" and told["failed"] == ["hv1"]
    assert told["lines"]["hv1"] == [
        "hv1: not passed: Linux 7.2.13 -> 7.3.4, 1 finding",
        "hv1: network interface ens4 (0000:00:04.0), driver virtio_net, is gone - bind it",
    ]
    assert (told["brief"]["outcome"], told["brief"]["findings"], told["brief"]["failed"]) == ("failed", 1, ["hv1"])


@pytest.mark.parametrize("end", ["undone", "lost", "refused"])
def test_an_update_that_did_not_jump_says_why(end):
    update = {**UPDATED, "outcome": end, "kernel_after": "7.2.13", "guests": {}}
    found = _trial.result(host(), plan=BEGINS, update=update, why="guest liveupdate-trial: EBUSY")
    (line,) = _trial.summary({"hv1": found})["lines"]["hv1"]
    assert found["outcome"] == end and line == f"hv1: {_trial.OUTCOMES[end]}: guest liveupdate-trial: EBUSY"


def test_a_host_that_is_lost_may_lack_its_network():
    update = {**UPDATED, "outcome": "lost", "kernel_after": "", "guests": {}}
    found = _trial.result(host(), plan=BEGINS, update=update, why="the host did not come back", kept=True)
    first, second = _trial.summary({"hv1": found})["lines"]["hv1"]
    assert first == "hv1: lost during the jump: the host did not come back" and "its network did not come back" in second


def test_a_failure_after_the_jump_keeps_the_findings_and_says_how_to_remove_the_guest():
    update = {**UPDATED, "outcome": "failed"}
    found = _trial.result(host(), plan=BEGINS, update=update, compared=compared(GONE), why="not restored", kept=True)
    lines = _trial.summary({"hv1": found})["lines"]["hv1"]
    assert found["outcome"] == "failed" and lines[0] == "hv1: failed: not restored"
    assert "is gone" in lines[1] and lines[2].endswith("ansible hv1 -b -m kvm.liveupdate.trial -a state=absent")


def test_a_host_that_was_not_examined_is_refused_and_one_that_did_not_compare_failed():
    assert _trial.result({}, why="hv1 cannot be reached")["outcome"] == "refused"
    assert _trial.result(host(), plan=BEGINS, why="no QEMU")["outcome"] == "failed"
    assert _trial.result(host(), plan=BEGINS)["outcome"] == "failed"


def test_check_mode_only_says_that_a_trial_is_possible():
    found = _trial.result(host(), plan=BEGINS, check_mode=True)
    told = _trial.summary({"hv1": found})
    assert told["lines"] == {"hv1": ["hv1: examined only: a trial is possible"]} and told["failed"] == []
    assert told["brief"]["outcome"] == "checked"


def test_a_host_that_was_not_begun_has_a_line_and_does_not_fail_for_itself():
    found = _trial.result(host("web"), plan=_trial.planned(host("web")))
    told = _trial.summary({"hv1": found}, names=["hv1", "hv2"])
    assert told["lines"]["hv2"] == ["hv2: not tried, the run stopped before this host"] and told["failed"] == ["hv1"]


def test_a_host_without_a_result_fails_if_nothing_stopped_the_run():
    """For example if its options are wrong."""
    told = _trial.summary({}, names=["hv1"])
    assert told["lines"] == {"hv1": ["hv1: no result, see the failed task above"]} and told["failed"] == ["hv1"]


def test_the_brief_is_small_for_many_hosts():
    found = _trial.result(host(), plan=BEGINS, update=UPDATED, compared=compared(*[GONE] * 50))
    assert len(json.dumps(_trial.summary({f"hv{number}": found for number in range(500)})["brief"])) < 2000
