# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._failure import AFTER_COLD_BOOT
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._report import figures
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import CHECK_MEMORY, outcome, result, summary

HOST = {
    "boot_id": "b1",
    "kernel": {"release": "7.2.13"},
    "target": {"current": False, "release": "7.3.4"},
    "guests": [{"name": "web", "reasons": []}],
}
JUMP = {"outcome": "jumped", "journal": {"id": "u1"}, "kernel_after": "7.3.4", "boot_id_after": "b2", "times": {"committed": 1.0}}
RESTORED = {"guest": "web", "state": "restored", "update_id": "u1", "times": {"paused": 2.0, "resumed": 5.0}, "clock_step": 0.1}


WEB = {"name": "web", "way": "preserve", "why": "stays in memory"}
GO = {"verdict": "go", "refusals": [], "over_budget": "", "kernel": "7.3.4", "guests": [WEB], "staying": ["web"], "leaving": []}
GO["expected_pause"] = 3.5
CURRENT = {**GO, "verdict": "current"}
UNFINISHED = {**GO, "verdict": "unfinished"}
COLD = {"outcome": "rebooted", "journal": {"id": "u1"}, "kernel_before": "7.2.13", "kernel_after": "7.2.13", "msg": "a cold boot"}
REFUSE = {**GO, "verdict": "refuse", "refusals": ["guest web: no - yes"], "guests": [{**WEB, "way": "refuse", "why": "stops the update"}]}


@pytest.mark.parametrize(
    ("host", "plan", "jump", "why", "check_mode", "end"),
    [
        (HOST, GO, JUMP, "", False, "updated"),
        (HOST, GO, {"changed": True}, "", True, "checked"),
        (HOST, GO, {}, "", False, "checked"),
        (HOST, CURRENT, {}, "", False, "current"),
        (HOST, CURRENT, {}, "", True, "current"),
        (HOST, UNFINISHED, {}, "", False, "checked"),
        (HOST, UNFINISHED, COLD, "a cold boot", False, "failed"),
        (HOST, REFUSE, {}, "", False, "refused"),
        (HOST, {}, {}, "the policy cannot be read", False, "refused"),
        ({"unreachable": True}, {}, {}, "no answer", False, "refused"),
        ({"failed": True}, GO, {}, "", False, "refused"),
        (HOST, CURRENT, {}, "not the boot default", False, "failed"),
        (HOST, GO, {}, "guest db cannot be brought back", False, "failed"),
        (HOST, GO, {"outcome": "gone"}, "did not come back", False, "failed"),
        (HOST, GO, JUMP, "guest web: not back", False, "failed"),
        ({}, {}, {}, "", False, "failed"),
    ],
)
def test_outcome(host, plan, jump, why, check_mode, end):
    assert outcome(host, plan, jump, why, check_mode) == end


STEP = "Preserve | Hold the guests' RAM"


def test_a_host_that_runs_the_kernel_already_fails_with_the_tasks_after_its_update():
    """It was not undone, so hypervisor_update_undone_max does not tolerate it."""
    found = result(HOST, CURRENT, why="the balancer does not answer", step="Enable the host")
    assert (found["outcome"], found["step"]) == ("failed", "Enable the host")


@pytest.mark.parametrize(
    ("host", "jump", "lost", "undo", "end"),
    [
        (HOST, {}, False, "", "undone"),
        (HOST, {"outcome": "aborted"}, False, "", "undone"),
        (HOST, {"failed": True}, False, "", "undone"),
        (HOST, {}, False, "guest web: its session is stuck", "failed"),
        (HOST, {}, True, "", "lost"),
        (HOST, {"outcome": "aborted"}, True, "hv1 cannot be reached", "lost"),
        (HOST, {"outcome": "lost"}, True, "", "lost"),
        (HOST, {"outcome": "lost"}, False, "", "failed"),
        (HOST, {"outcome": "stuck"}, False, "", "failed"),
        (HOST, JUMP, True, "", "lost"),
        (HOST, JUMP, False, "", "failed"),
        ({}, {}, True, "", "lost"),
    ],
)
def test_an_update_that_had_begun_is_never_called_examined(host, jump, lost, undo, end):
    found = result(host, GO, jump, why="no", step=STEP, lost=lost, undo=undo)
    assert (found["outcome"], found["step"]) == (end, STEP) and found["why"].startswith("no")
    assert undo in found["why"]
    shown = str(figures({"hv1": found}))
    assert "The update had begun. It ended at" in shown and "examined only" not in shown and "No host was touched" not in shown


@pytest.mark.parametrize(
    ("plan", "jump", "more", "end", "why"),
    [
        (GO, JUMP, {"late": ["bad after"]}, "failed", "bad after"),
        (CURRENT, {}, {"late": ["bad after"]}, "failed", "bad after"),
        (GO, JUMP, {"late": ["one", "two", "one"]}, "failed", "one; then this failed too: two"),
        (GO, JUMP, {"why": "web is lost", "late": ["bad after"]}, "failed", "web is lost; then this failed too: bad after"),
        (GO, {}, {"why": "no room", "late": ["bad after"]}, "failed", "no room; then this failed too: bad after"),
        (GO, {}, {"why": "no room", "late": ["no room"]}, "failed", "no room"),
        (
            *(GO, {}, {"why": "no room", "undo": "stuck", "late": ["bad"]}, "failed"),
            "no room; not everything was undone: stuck; then this failed too: bad",
        ),
        (GO, {}, {"why": "no room"}, "undone", "no room"),
    ],
)
def test_what_fails_after_the_update_fails_the_host_and_is_told_after_the_first_reason(plan, jump, more, end, why):
    found = result(HOST, plan, jump, [{"last_update": RESTORED}], step=STEP, blackout_max=2.5, **more)
    assert (found["outcome"], found["why"], found["late"]) == (end, why, more.get("late", []))


def test_a_host_that_does_not_answer_after_its_update_is_lost():
    found = result(HOST, GO, JUMP, [{"last_update": RESTORED}], late=["no route"], step="Renew the lease", lost=True)
    assert found["outcome"] == "lost" and found["why"].startswith("no route. The host came back with kernel 7.3.4")
    assert result(HOST, GO, JUMP, [{"last_update": RESTORED}])["late"] == []


@pytest.mark.parametrize(
    ("jump", "step", "told"),
    [
        ({}, STEP, "The update had begun, but its guests were not paused yet"),
        ({}, "", "The update had not begun"),
        ({"outcome": "lost"}, STEP, "Its guests may be paused, or may run on the new kernel already"),
        ({"outcome": "gone"}, STEP, "Its guests may be paused, or may run on the new kernel already"),
        (JUMP, STEP, "The host came back with kernel 7.3.4, and the guests that stayed in memory come back by themselves"),
        ({"outcome": "aborted"}, STEP, "The host undid the update, and its guests continued to run"),
        ({"outcome": "half_undone"}, STEP, "The host undid the update, but some of its guests may be paused"),
        ({"outcome": "stuck"}, STEP, "Its guests may be paused. Check its console. When it answers again, run 'kvm-liveupdate recover' on"),
    ],
)
def test_a_lost_host_says_where_its_guests_may_be(jump, step, told):
    found = result(HOST, GO, jump, why="hv1 cannot be reached", step=step, lost=True)
    assert found["why"].startswith(f"hv1 cannot be reached. {told}") and "Check its console" in found["why"]
    assert found["guests"]["web"]["why"] == "unknown, the host was lost; planned: stays in memory"


@pytest.mark.parametrize("jump", [JUMP, COLD, {"outcome": "lost"}])
def test_a_lost_host_names_its_guests_that_are_away(jump):
    """They run on another host or are off, and nothing but a run brings them back. One that moved for good is not meant."""
    there = "qemu+ssh://hv2/system"
    leaving = [
        {"name": name, "destination": there if name in ("db", "moved") else None, "back": name != "moved"}
        for name in ("db", "big", "moved")
    ]
    sent = [
        {"name": name, "left": left} for name, left in (("db", "migrated"), ("big", "shut down"), ("moved", "migrated"), ("old", "saved"))
    ]
    away = [{**guest, "where": guest["left"]} for guest in sent] + [{"name": "old", "left": "saved", "where": "here"}]
    found = result(HOST, {**GO, "leaving": leaving}, jump, why="hv1 cannot be reached", step=STEP, lost=True, away=away)["why"]
    named = f"These guests are away, and do not come back by themselves: db (migrated to {there}), big (shut down)."
    assert f"{named} The next run of the update brings them back" in found
    assert "are away, and" not in result(HOST, GO, jump, why="hv1 cannot be reached", step=STEP, lost=True, away=away[3:])["why"]


@pytest.mark.parametrize("why", ["hv1 cannot be reached", f"the host did a cold boot. {AFTER_COLD_BOOT}"])
def test_a_host_that_is_lost_after_a_cold_boot_says_once_what_to_do_for_its_guests(why):
    """With on_loss=stop they stay off."""
    found = result(HOST, GO, COLD, why=why, step=STEP, lost=True)["why"]
    assert found.count(AFTER_COLD_BOOT) == 1 and "come back by themselves" not in found and "Guests that lost their memory: web" in found


def test_a_host_that_is_lost_after_it_got_stuck_does_not_say_that_its_guests_ran():
    found = result(HOST, GO, {"outcome": "stuck"}, why="hv1 cannot be reached", step=STEP, lost=True)["why"]
    assert "were not paused yet" not in found and "repeat the update" in found


@pytest.mark.parametrize(
    ("jump", "lost", "after"),
    [
        ({"outcome": "lost"}, True, ("", "")),
        ({"outcome": "gone"}, True, ("", "")),
        ({"outcome": "gone"}, False, ("7.2.13", "b1")),
        ({}, True, ("7.2.13", "b1")),
        (JUMP, True, ("7.3.4", "b2")),
    ],
)
def test_the_kernel_of_a_host_that_may_have_jumped_is_unknown(jump, lost, after):
    found = result(HOST, GO, jump, why="no", step=STEP, lost=lost)
    assert (found["kernel_after"], found["boot_id_after"]) == after
    assert ("unknown" in figures({"hv1": found})["hosts"][0]["cells"]) is (after[0] == "")


def test_what_is_known_of_a_guest_of_a_lost_host_stays():
    found = result(HOST, GO, JUMP, [{"last_update": RESTORED}], why="hv1 cannot be reached", step=STEP, lost=True)
    assert found["guests"]["web"]["state"] == "restored" and found["guests"]["web"]["why"] == ""


UPDATED = result(HOST, GO, JUMP, [{"last_update": RESTORED}])
SLOW = result(HOST, GO, JUMP, [{"last_update": RESTORED}], blackout_max=2.5)
AWAY = result(
    HOST, GO, JUMP, [{"last_update": RESTORED}], away=[{"guest": "db", "name": "db", "left": "saved", "where": "here", "msg": "is back"}]
)
RUNS = result({**HOST, "kernel": {"release": "7.3.4"}}, CURRENT)
FIT = result(HOST, GO)
LEFT_OUT = result(HOST, REFUSE, left_out=True)
REFUSED = result(HOST, REFUSE)
UNDONE = result(HOST, GO, why="guest web:\nsave", step=STEP)
ALONE = ". No host was touched. To skip such hosts, set hypervisor_update_leave_out to true"
EMPTY = ". The run updated no host"
MIXED = {**GO, "expected_pause": None, "staying": ["web", "db"], "leaving": [{"name": "big"}]}


@pytest.mark.parametrize(
    ("host", "check_mode", "line"),
    [
        (UPDATED, False, "updated 7.2.13 -> 7.3.4, 1 guest kept, longest pause 3.0 s"),
        (AWAY, False, "updated 7.2.13 -> 7.3.4, 1 guest kept, longest pause 3.0 s, 1 guest sent away, 1 back"),
        (SLOW, False, f"updated 7.2.13 -> 7.3.4, 1 guest kept, longest pause 3.0 s; {SLOW['over_budget']}"),
        (result({**HOST, "guests": []}, {**GO, "guests": []}, JUMP), False, "updated 7.2.13 -> 7.3.4, 0 guests kept"),
        (RUNS, False, "runs 7.3.4 already"),
        (FIT, False, "not touched, the run stopped before this host"),
        (FIT, True, "can be updated 7.2.13 -> 7.3.4, 1 guest kept, expected pause 3.5 s"),
        (result(HOST, MIXED), True, "can be updated 7.2.13 -> 7.3.4, 2 guests kept, 1 guest sent away, expected pause unknown"),
        (result(HOST, {**GO, "staying": []}), True, "can be updated 7.2.13 -> 7.3.4, 0 guests kept"),
        (result(HOST, {**GO, "unproven": "not yet"}), True, f"{summary({'hv1': FIT}, True)['lines']['hv1'][5:]}. WARNING: not yet"),
        (
            result(HOST, UNFINISHED),
            True,
            "an earlier update lost the memory of 1 guest. A run without --check reports this. Then the host can be updated",
        ),
        (REFUSED, False, f"refused, not touched: guest web: no - yes{ALONE}"),
        (LEFT_OUT, False, f"skipped, not touched: guest web: no - yes{EMPTY}"),
        (UNDONE, False, f'undone before the jump at "{STEP}": guest web: save'),
    ],
)
def test_one_line_says_what_became_of_a_host(host, check_mode, line):
    assert summary({"hv1": host}, check_mode)["lines"] == {"hv1": f"hv1: {line}"}


@pytest.mark.parametrize(
    ("hosts", "check_mode", "failed"),
    [
        ([UPDATED, RUNS], False, []),
        ([RUNS, RUNS], False, []),
        ([UPDATED, LEFT_OUT], False, []),
        ([RUNS, LEFT_OUT], False, ["hv2"]),
        ([LEFT_OUT, LEFT_OUT], False, ["hv1", "hv2"]),
        ([LEFT_OUT, FIT], True, []),
        ([LEFT_OUT, RUNS], True, ["hv1"]),
        ([UPDATED, UNDONE], False, ["hv2"]),
        ([LEFT_OUT, UNDONE], False, ["hv2"]),
        ([FIT, REFUSED], False, ["hv2"]),
        ([SLOW, FIT], False, ["hv1"]),
        ([], False, []),
    ],
)
def test_which_hosts_fail_at_the_end(hosts, check_mode, failed):
    assert summary({f"hv{number}": host for number, host in enumerate(hosts, 1)}, check_mode)["failed"] == failed


def test_a_host_that_the_run_lost_from_sight_fails_and_says_why():
    """Whatever was known of it before, and whether the gate stopped the run for it."""
    lost = result(HOST, GO, why="hv4 cannot be reached", step=STEP, lost=True)
    hosts = {"hv1": FIT, "hv2": UPDATED, "hv3": UNDONE, "hv4": lost, "hv5": FIT}
    told = summary(hosts, gate={"stop": "hv1 did not finish its update", "on_request": False}, gone=["hv1", "hv2", "hv3", "hv4"])
    assert [host["outcome"] for host in told["hosts"].values()] == ["failed", "failed", "failed", "lost", "checked"]
    assert told["lines"]["hv1"].startswith("hv1: failed: a task could not reach this host, or the host that it is delegated to. ")
    assert told["hosts"]["hv2"]["why"] == told["hosts"]["hv1"]["why"]
    assert told["hosts"]["hv3"]["why"].startswith("guest web:\nsave; then this failed too: a task could not reach this host")
    assert told["lines"]["hv5"].endswith("the run stopped before this host: hv1 did not finish its update")
    assert told["failed"] == ["hv1", "hv2", "hv3", "hv4"] and told["brief"]["outcome"] == "failed"


def test_a_host_of_another_run_is_not_to_be_skipped():
    busy = result(HOST, {**REFUSE, "refusals": ["another run updates this host"], "other_run": "another run updates this host"})
    lines = summary({"hv1": busy, "hv2": REFUSED})["lines"]
    assert lines["hv1"] == "hv1: refused, not touched: another run updates this host" and lines["hv2"].endswith(ALONE)


def test_a_refusal_after_others_were_updated_does_not_say_that_none_was_touched():
    assert "No host was touched" not in summary({"hv1": UPDATED, "hv2": REFUSED})["lines"]["hv2"]


@pytest.mark.parametrize(("host", "plan"), [(HOST, REFUSE), ({"unreachable": True, "msg": "no answer"}, {})])
def test_a_host_that_is_left_out_says_so_and_why(host, plan):
    found = result(host, plan, why="hv1 is left as it is", left_out=True)
    assert (found["outcome"], found["why"], found["plan"]) == ("left_out", "hv1 is left as it is", plan)
    (shown,) = figures({"hv1": found})["hosts"]
    assert shown["cells"][1] == "skipped, not touched" and shown["why"] == "hv1 is left as it is"


def test_the_plan_is_in_the_result_and_its_pause_on_the_page():
    found = result(HOST, GO, check_mode=True)
    assert found["plan"] == GO and found["expected_pause"] == 3.5
    (shown,) = figures({"hv1": found})["hosts"]
    assert shown["cells"][5] == "3.5 s" and shown["others"] == [{"guest": "web", "why": "stays in memory"}]


def test_an_updated_host():
    found = result(HOST, GO, JUMP, [{"last_update": RESTORED}])
    assert (found["kernel_before"], found["kernel_after"], found["boot_id_before"], found["boot_id_after"]) == (
        "7.2.13",
        "7.3.4",
        "b1",
        "b2",
    )
    assert found["guests"] == {
        "web": {"state": "restored", "why": "", "times": RESTORED["times"], "clock_step": 0.1, "memory_verified": "none", "warnings": []}
    }


@pytest.mark.parametrize(
    ("last", "verified", "warned", "why"),
    [
        ({"memory_check": "full", "memory_verified": "full"}, "full", 0, ""),
        ({"memory_check": "sample", "memory_verified": "none"}, "none", 1, ""),
        ({"memory_check": "none", "memory_verified": "none"}, "none", 0, ""),
        ({"memory_check": "full", "state": "saved", "memory_wrong": "1 of 2"}, "none", 0, "not the same as before the jump: 1 of 2"),
        ({"memory_check": "full", "state": "lost", "memory_wrong": "1 of 2", "why": "a power cut"}, "none", 0, "a power cut"),
    ],
)
def test_the_result_says_of_each_guest_how_its_memory_was_checked(last, verified, warned, why):
    guests = [{"name": "web", "last_update": {**RESTORED, "unit": "web.service", **last}}]
    found = result(HOST, GO, JUMP, guests)["guests"]["web"]
    assert (found["memory_verified"], len(found["warnings"])) == (verified, warned) and why in found["why"]
    assert not warned or "was not checked after the jump, although hypervisor_update_verify_memory is sample - see" in found["warnings"][0]


@pytest.mark.parametrize("guests", [[{"last_update": RESTORED}], []])
def test_warnings_are_told_whatever_became_of_the_guest(guests):
    warning = {"code": "vsock", "message": "its vsock <connections> are reset", "remedy": "connect again"}
    found = result({**HOST, "guests": [{"name": "web", "reasons": [], "warnings": [warning]}]}, GO, JUMP, guests)
    assert found["guests"]["web"]["warnings"] == ["its vsock <connections> are reset - connect again"]
    assert found["outcome"] == "updated" and found["why"] == ""
    (shown,) = figures({"hv1": found})["hosts"]
    assert shown["warnings"] == [{"guest": "web", "warning": "its vsock <connections> are reset - connect again"}]


def test_guests_that_left_say_how_and_whether_they_are_back():
    sent = [
        {"name": "db", "left": "saved", "where": "saved", "msg": "guest db is saved to disk"},
        {"name": "off", "left": "", "where": "off", "msg": "does not run"},
    ]
    returned = [
        {"name": "db", "left": "saved", "where": "here", "msg": "guest db is back, it was saved"},
        {"name": "web", "failed": True, "left": "", "where": "", "msg": "guest web: no such bridge"},
        {"name": "earlier", "left": "migrated", "where": "migrated", "msg": "guest earlier stays"},
    ]
    host = {**HOST, "guests": [{"name": "web", "reasons": []}, {"name": "db", "reasons": [{"message": "huge pages"}]}]}
    found = result(host, GO, JUMP, away=[*sent, *returned])["guests"]
    seen = {name: (guest["state"], guest.get("back"), guest["why"]) for name, guest in found.items()}
    assert seen == {
        "web": ("", False, "guest web: no such bridge"),
        "db": ("saved", True, "guest db is back, it was saved"),
        "earlier": ("migrated", False, "guest earlier stays"),
    }
    (shown,) = figures({"hv1": result(host, GO, JUMP, away=sent + returned)})["hosts"]
    assert {"guest": "db", "why": "guest db is back, it was saved"} in shown["others"]


def test_a_guest_that_did_not_leave_is_what_it_was():
    sent = [{"name": "web", "failed": True, "left": "", "where": "", "msg": "guest web: still running 300 s after"}]
    found = result(
        HOST,
        GO,
        why="guest web: still running",
        step="Send away",
        away=[*sent, {"name": "web", "left": "", "where": "here", "msg": "is not away"}],
    )
    assert found["outcome"] == "undone" and found["guests"]["web"]["why"] == "guest web: still running 300 s after"


def test_the_record_of_an_earlier_update_is_not_taken_for_this_one():
    found = result(HOST, GO, JUMP, [{"last_update": {**RESTORED, "update_id": "u0"}}])
    assert found["guests"]["web"]["times"] == {}


def test_a_refused_host_says_why_and_stays_what_it_is():
    found = result(HOST, REFUSE)
    assert (found["why"], found["kernel_after"], found["guests"]["web"]["why"]) == ("guest web: no - yes", "7.2.13", "stops the update")


def test_a_host_that_cannot_be_examined_says_why():
    found = result({"failed": True, "msg": "systemctl: not found"}, GO)
    assert (found["outcome"], found["why"], found["guests"]) == ("refused", "systemctl: not found", {})


def test_a_host_that_is_current_has_no_plans_for_its_guests():
    assert result(HOST, CURRENT)["guests"]["web"]["why"] == ""


@pytest.mark.parametrize("check_mode", [True, False])
def test_the_plan_alone_decides_whether_the_expected_pause_is_too_long(check_mode):
    plan = {**REFUSE, "refusals": ["too long"], "over_budget": "too long"}
    found = result(HOST, plan, check_mode=check_mode, blackout_max=3.4)
    assert (found["outcome"], found["why"], found["over_budget"]) == ("refused", "too long", "too long")
    assert (found["expected_pause"], found["blackout_max"]) == (3.5, 3.4)
    assert result(HOST, GO, check_mode=check_mode, blackout_max=1.0)["outcome"] == "checked"


def test_a_host_is_updated_though_its_guests_were_paused_for_too_long():
    found = result(HOST, GO, JUMP, [{"last_update": RESTORED}], blackout_max=2.5)
    assert found["outcome"] == "updated" and found["why"] == found["over_budget"] and "web 3.0 s" in found["why"]


def test_a_failure_is_the_first_reason_whatever_the_budget():
    found = result(HOST, GO, JUMP, [{"last_update": RESTORED}], why="guest db: not back", blackout_max=2.5)
    assert (found["outcome"], found["why"]) == ("failed", "guest db: not back")


def test_a_host_on_the_kernel_already_has_no_budget():
    found = result(HOST, CURRENT, blackout_max=1.0)
    assert (found["outcome"], found["why"], found["over_budget"]) == ("current", "", "")


@pytest.mark.parametrize("host", [HOST, {}])
@pytest.mark.parametrize("plan", [GO, {}])
@pytest.mark.parametrize("jump", [JUMP, {}])
@pytest.mark.parametrize("guests", [[{"last_update": RESTORED}], [{}], []])
def test_every_result_has_figures(host, plan, jump, guests):
    (shown,) = figures({"hv1": result(host, plan, jump, guests, "a reason")})["hosts"]
    assert shown["why"] == "a reason" and bool(shown["timeline"]) == bool(shown["pauses"])


def test_guests_that_lost_their_memory_are_counted_where_that_was_checked():
    assert result(HOST, GO, JUMP, why="guest web runs without its memory", step=CHECK_MEMORY)["guests_lost"] == ["web"]
    assert result(HOST, GO, JUMP, [{"last_update": RESTORED}], why="no", step=CHECK_MEMORY)["guests_lost"] == []
    assert UPDATED["guests_lost"] == UNDONE["guests_lost"] == []


@pytest.mark.parametrize("plan", [GO, CURRENT, UNFINISHED], ids=["in the run of the jump", "in a later run", "on the old kernel"])
def test_guests_that_a_cold_boot_lost_are_named_at_whatever_step_that_shows(plan):
    plan = {**plan, "staying": ["web", "off", "back"]}
    host = {**HOST, "guests": [{"name": "web"}, {"name": "back"}]}
    lost = {**RESTORED, "state": "lost", "why": "its memory is gone"}
    found = result(host, plan, COLD, [{"last_update": lost}, {"last_update": {**RESTORED, "guest": "back"}}], "a cold boot", step="Stop")
    assert (found["outcome"], found["guests_lost"]) == ("failed", ["web", "off"])
    assert found["why"] == "a cold boot. Guests that lost their memory: web, off"
    assert found["guests"]["web"]["why"] == "its memory is gone"


@pytest.mark.parametrize(("on_request", "end", "failed"), [(True, "left_out", ["hv1"]), (False, "checked", ["hv1"])])
def test_hosts_that_were_not_begun_say_why(on_request, end, failed):
    told = summary({"hv1": SLOW, "hv2": FIT}, gate={"stop": "somebody asked", "on_request": on_request})
    assert told["hosts"]["hv2"]["outcome"] == end and told["lines"]["hv2"].endswith(": somebody asked") and told["failed"] == failed
    assert summary({"hv2": FIT}, gate={"stop": "", "on_request": False})["hosts"]["hv2"] == FIT


@pytest.mark.parametrize(
    ("hosts", "check_mode", "end"),
    [([UPDATED, RUNS], False, "updated"), ([UPDATED, FIT], False, "stopped"), ([FIT], True, "checked"), ([FIT, UNDONE], False, "failed")],
)
def test_the_statistic_of_a_run(hosts, check_mode, end):
    told = summary({f"hv{number}": host for number, host in enumerate(hosts, 1)}, check_mode)["brief"]
    assert told["outcome"] == end and bool(told["why"]) is (end in ("stopped", "failed"))
    assert told["longest_pause"] == (3.0 if UPDATED in hosts else None)


def test_the_statistic_is_small_for_many_hosts():
    told = summary({f"hv{number}": {**UNDONE, "why": "x" * 999, "kernel_after": f"7.{number}"} for number in range(500)})["brief"]
    assert len(str(told)) < 1500 and told["hosts"] == {"undone": 500} and len(told["failed"]) == len(told["kernels"]) == 20


def test_an_update_that_a_later_run_finishes_is_updated():
    host = {**HOST, "kernel": {"release": "7.3.4"}, "boot_id": "b2"}
    jump = {**JUMP, "kernel_before": "7.2.13", "boot_id_before": "b1"}
    found = result(host, CURRENT, jump, [{"name": "web", "last_update": RESTORED}], taken_over="alice on ctl; its process has ended")
    assert found["outcome"] == "updated" and found["guests"]["web"]["state"] == "restored"
    assert (found["kernel_before"], found["boot_id_before"], found["kernel_after"]) == ("7.2.13", "b1", "7.3.4")
    assert found["taken_over"] == "alice on ctl; its process has ended"
    assert result(host, CURRENT, jump, [], "it runs without its memory", step=CHECK_MEMORY)["guests_lost"] == ["web"]
