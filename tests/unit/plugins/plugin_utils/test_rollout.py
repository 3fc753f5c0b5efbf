# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _result
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._rollout import (
    RolloutError,
    asked,
    batches,
    gate,
    not_together,
    read_paused_max,
)


def hosts(number, **apart):
    return {f"h{index}": {"apart": apart.get(f"h{index}", ""), "plan": {}} for index in range(1, number + 1)}


def sizes(serial, number=20):
    return [len(batch) for batch in batches(hosts(number), serial)]


@pytest.mark.parametrize(
    ("serial", "made"),
    [
        ("", [1] * 20),
        (None, [1] * 20),
        (8, [8, 8, 4]),
        ("8", [8, 8, 4]),
        ([1, 5, "50%"], [1, 5, 10, 4]),
        ("1,5,50%", [1, 5, 10, 4]),
        ('[1, "95%"]', [1, 19]),
        (["1%", 100], [1, 19]),
    ],
)
def test_the_sizes_of_the_batches(serial, made):
    assert sizes(serial) == made


@pytest.mark.parametrize("serial", [0, -1, "0%", "all", [1, "x%"], True])
def test_a_size_that_is_no_number_is_refused(serial):
    with pytest.raises(RolloutError, match="write a number of hosts, 1 or more, a percentage"):
        sizes(serial)


def test_no_host_at_all():
    assert batches({}, 2) == []


def test_hosts_of_one_failure_domain_are_apart():
    racks = {"h1": "a", "h2": "a", "h3": ["b", "power1"], "h4": "b", "h5": "power1"}
    assert batches(hosts(7, **racks), 7) == [["h1", "h3", "h6", "h7"], ["h2", "h4", "h5"]]


def test_a_host_that_waits_for_a_later_batch_keeps_nobody_out_of_this_one():
    racks = {"h1": "a", "h2": ["a", "z"], "h3": "z", "h4": ""}
    assert batches(hosts(4, **racks), 4) == [["h1", "h3", "h4"], ["h2"]]


def test_a_failure_domain_is_a_name_also_if_it_is_a_number():
    racks = {"h1": 0, "h2": "0", "h3": [None, ""], "h4": [""]}
    assert batches(hosts(4, **racks), 4) == [["h1", "h3", "h4"], ["h2"]]


def members(**labels):
    """Hosts h1, h2 and so on with these members of a label, of each host in a dict."""
    some = hosts(max(len(values) for values in labels.values()))
    for label, values in labels.items():
        for host, value in zip(some.values(), values, strict=True):
            host["plan"].setdefault("members", {})[label] = value
    return some


def test_each_guest_of_a_host_counts():
    some = members(cluster=[{"x": ["a", "b"]}, {"x": ["c"]}])
    assert batches(some, 2, {"cluster": 2}) == [["h1"], ["h2"]] and batches(some, 2, {"cluster": 3}) == [["h1", "h2"]]


def test_the_same_value_of_two_labels_is_not_the_same_group():
    some = members(cluster=[{"x": ["a"]}, {}], quorum=[{}, {"x": ["b"]}])
    assert batches(some, 2, {"cluster": 1, "quorum": 1}) == [["h1", "h2"]]


def test_a_label_without_a_limit_keeps_nobody_apart():
    assert batches(members(cluster=[{"x": ["a"]}, {"x": ["b"]}]), 2, {"quorum": 1}) == [["h1", "h2"]]


def test_a_host_that_alone_pauses_too_many_is_alone_in_its_batch():
    """The plan refuses such a host. If it comes here all the same, the batches must have an end."""
    assert batches(members(cluster=[{"x": ["a", "b"]}, {"y": ["c"]}]), 2, {"cluster": 1}) == [["h1"], ["h2"]]


def test_guests_that_belong_apart_do_not_pause_together():
    some = hosts(4)
    for name, values in (("h1", {"x": ["a"]}), ("h2", {"x": ["b"], "y": ["c"]}), ("h3", {"y": ["d"]}), ("h4", {"x": ["f"]})):
        some[name]["plan"] = {"members": {"cluster": values}}
    assert batches(some, 4, {"cluster": 1}) == [["h1", "h3"], ["h2"], ["h4"]]
    assert batches(some, 4, {"cluster": "2"}) == [["h1", "h2", "h3"], ["h4"]]


def test_essential_guests_come_last_each_host_alone():
    some = hosts(4)
    some["h1"]["plan"] = some["h3"]["plan"] = {"essential": ["dns"]}
    assert batches(some, 4) == [["h2", "h4"], ["h1"], ["h3"]]


def moved(essential="", **apart):
    """The hosts of a batch: h1 and h2 have guests of one cluster. ``essential`` are those with an essential guest."""
    some = {name: {"apart": apart.get(name, ""), "plan": {"essential": []}} for name in ("h1", "h2", "h3")}
    for name in ("h1", "h2"):
        some[name]["plan"]["members"] = {"cluster": {"x": [f"db-{name}"]}}
    for name in essential.split():
        some[name]["plan"]["essential"] = ["dns"]
    return some


MOVED = "guests have moved since the batches were made: "
REPEAT = " - wait for the end of this run, then repeat the command"
NOT_BESIDE = "with hypervisor_update_paused_max and hypervisor_update_apart it cannot be updated together with {} any more"
LAST = "it runs dns of hypervisor_update_essential now, so it has to be updated last, alone"


@pytest.mark.parametrize(
    ("hosts", "limits", "more_follow", "who"),
    [
        ({}, {}, True, {}),
        (moved(), {"cluster": 2}, True, {}),
        (moved(), {"cluster": 1}, True, {"h2": NOT_BESIDE.format("h1, h3")}),
        (moved(h2="rack", h3="rack"), {"cluster": 2}, True, {"h3": NOT_BESIDE.format("h1, h2")}),
        (moved("h1"), {"cluster": 1}, False, {"h1": LAST}),
        (moved("h1"), {"cluster": 1}, True, {"h1": LAST}),
        ({"h1": moved("h1")["h1"]}, {}, False, {}),
        ({"h1": moved("h1")["h1"]}, {}, True, {"h1": LAST}),
        ({name: moved("h1 h2")[name] for name in ("h1", "h2")}, {}, False, {"h2": LAST}),
    ],
    ids=[
        "no host jumps",
        "nobody moved",
        "together they pause too many",
        "one failure domain",
        "an essential guest beside others",
        "an essential guest beside others, and more hosts follow",
        "alone and last",
        "alone, and others would follow",
        "two essential guests: one host is alone then",
    ],
)
def test_a_host_that_must_not_be_updated_with_its_batch_any_more(hosts, limits, more_follow, who):
    assert not_together(hosts, limits, more_follow) == {name: f"{MOVED}{why}{REPEAT}" for name, why in who.items()}


@pytest.mark.parametrize("given", [["cluster"], {"cluster": 0}, {"cluster": "many"}])
def test_a_limit_of_paused_guests_that_is_none_is_refused(given):
    with pytest.raises(RolloutError, match="hypervisor_update_paused_max"):
        read_paused_max(given)


def host(outcome, **more):
    return {"outcome": outcome, "over_budget": "", "step": "", "guests_lost": [], **more}


CLEAN = host("failed", step=_result.CHECK_MEMORY, guests_lost=["web"])
LIMITS = {"undone_max": 1, "lost_max": 1}


@pytest.mark.parametrize("last", [{}, {"h1": host("updated")}, {"h1": host("current")}, {"h1": host("undone")}, {"h1": CLEAN}])
def test_the_next_batch_begins(last):
    assert gate({}, last, **LIMITS)["stop"] == ""


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ({"h1": host("failed", step="Wait for the guests")}, "h1 failed"),
        ({"h1": host("lost"), "h2": host("refused")}, "h1 was lost, h2 was refused"),
        ({"h1": host("checked")}, "h1 did not finish its update"),
        ({"h1": host("updated", over_budget="guests paused longer")}, "h1: guests paused longer"),
        (
            {"h1": host("undone"), "h2": host("undone")},
            "hosts that were undone before the jump: h1, h2. hypervisor_update_undone_max allows 1",
        ),
        ({"h1": CLEAN, "h2": CLEAN}, "guests that lost their memory: 2. hypervisor_update_lost_max allows 1"),
        ({"h1": {**CLEAN, "late": ["the host does not enter the balancer"]}}, "h1 failed"),
    ],
)
def test_the_run_stops_after_what_went_wrong(last, why):
    told = gate({}, last, **LIMITS, asked="a file")
    assert (told["stop"], told["on_request"]) == (why, False)


def test_a_host_that_was_undone_because_the_window_had_closed_is_not_the_reason():
    assert gate({}, {"h1": host("undone")}, until=10.0, now=10.0)["on_request"]
    assert not gate({}, {"h1": host("failed")}, until=10.0, now=10.0)["on_request"]


def test_the_figures_of_all_batches_count():
    first = gate(None, {"h1": host("undone"), "h2": CLEAN}, **LIMITS)
    assert first["stop"] == "" and gate(first, {"h3": host("updated")}, **LIMITS)["stop"] == ""
    assert "h1, h3" in gate(first, {"h3": host("undone")}, **LIMITS)["stop"]
    assert "memory: 2" in gate(first, {"h3": CLEAN}, **LIMITS)["stop"]


def test_a_host_that_a_task_found_unreachable_stops_the_run():
    assert gate({}, {"h1": host("updated")}, gone=["h1"])["stop"] == "h1 did not finish its update"
    assert gate({}, {"h1": host("undone")}, undone_max=9, gone=["h1"])["stop"] == "h1 did not finish its update"
    assert gate({}, {"h1": host("lost")}, gone=["h1"])["stop"] == "h1 was lost"


def test_only_the_pause_of_an_update_that_is_done_stops_the_run():
    assert gate({}, {"h1": host("current", over_budget="too long")})["stop"] == ""


def test_guests_that_a_lost_host_lost_count_too():
    told = gate({}, {"h1": host("updated", guests_lost=["web"]), "h2": CLEAN}, lost_max=2)
    assert (told["lost"], told["stop"]) == (2, "")


@pytest.mark.parametrize(
    ("now", "asked", "why"),
    [(9.9, "", ""), (10.0, "a file", "the time of hypervisor_update_until has passed"), (9.9, "a file", "a file")],
)
def test_the_run_stops_when_the_operator_wants_it(now, asked, why):
    told = gate({}, {}, until=10.0, now=now, asked=asked)
    assert (told["stop"], told["on_request"]) == (why, bool(why))


def test_the_step_that_only_guests_fail_is_a_task_of_the_role():
    verify = Path(_result.__file__).parents[2] / "roles/hypervisor_update/tasks/verify.yml"
    assert f"- name: {_result.CHECK_MEMORY}\n" in verify.read_text(encoding="utf-8")


UNKNOWN = (
    "it is unknown whether the file /stop on ctl exists, because that host does not answer. Make it reachable, then repeat the command"
)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"skipped": True}, ""),
        ({"stat": {"exists": False}}, ""),
        ({"stat": {"exists": True}}, "the file /stop on ctl exists. Remove it, then repeat the command"),
        (
            {"failed": True, "msg": "no Python"},
            UNKNOWN,
        ),
        ({}, UNKNOWN),
        ({"unreachable": True}, UNKNOWN),
    ],
)
def test_a_request_to_stop_that_cannot_be_looked_for_counts_as_one(answer, why):
    assert asked(answer, "/stop on ctl") == why
