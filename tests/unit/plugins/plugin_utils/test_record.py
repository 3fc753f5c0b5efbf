# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._record import record
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import result

HOST = {"boot_id": "b1", "kernel": {"release": "7.2.13"}, "target": {"current": False}, "guests": [{"name": "web"}, {"name": "db"}]}
OVER = [{"way": "migrate", "why": "it has a host device"}]
WEB = {"name": "web", "way": "preserve", "why": "", "passed_over": OVER}
PLAN = {"verdict": "go", "guests": [WEB, {"name": "db", "way": "save", "why": "", "passed_over": []}]}
IMAGE = {"path": "/boot/k", "release": "7.3.4", "version": "#1", "size": 9, "sha256": "aa", "initrd_sha256": None}
OLD = {"release": "7.2.13", "version": "#1", "cmdline": "quiet"}
JOURNAL = {"id": "u1", "image": IMAGE, "kernel": OLD, "guests": ["web"]}
JUMP = {"outcome": "jumped", "journal": JOURNAL, "kernel_after": "7.3.4", "boot_id_after": "b2"}
BACK = {"guest": "web", "state": "restored", "update_id": "u1", "times": {"paused": 2.0, "resumed": 5.5}, "memory_verified": "full"}
AWAY = [{"name": "db", "left": "saved", "where": "here", "msg": "is back"}]


def test_a_record_says_who_what_and_how():
    done = result(HOST, PLAN, JUMP, [{"last_update": BACK}], away=AWAY, taken_over="bob on ctl; its process has ended")
    told = record(done, JUMP, {"user": "alice", "awx_user": "", "awx_job": 7}, 0.0)
    assert told["at"] == "1970-01-01T00:00:00+00:00" and told["by"] == {"user": "alice", "awx_job": "7"}
    assert told["taken_over"] == "bob on ctl; its process has ended"
    assert (told["outcome"], told["kernel_before"], told["kernel_after"], told["update_id"]) == ("updated", "7.2.13", "7.3.4", "u1")
    assert told["image"] == {"path": "/boot/k", "release": "7.3.4", "version": "#1", "sha256": "aa", "initrd_sha256": None}
    assert told["image_before"] == OLD and told["guests_lost"] == []
    web = {"way": "preserve", "passed_over": OVER, "state": "restored", "why": "", "pause": 3.5, "memory_verified": "full"}
    assert told["guests"] == {
        "web": web,
        "db": {
            "way": "save",
            "passed_over": [],
            "state": "saved",
            "why": "is back",
            "pause": None,
            "memory_verified": "none",
            "back": True,
        },
    }
    assert "\n" not in json.dumps(told)


def test_an_update_that_did_not_jump_has_a_record():
    told = record(result(HOST, PLAN, why="web: no", step="Preserve"), {}, {}, 0.0)
    assert (told["outcome"], told["why"], told["step"], told["image"], told["image_before"]) == ("undone", "web: no", "Preserve", {}, {})


@pytest.mark.parametrize(
    ("target", "signed"), [({"sha256": "aa", "signed": True}, True), ({"sha256": "bb", "signed": True}, None), ({}, None)]
)
def test_whether_the_new_kernel_is_signed_is_known_of_the_same_file_only(target, signed):
    assert record(result(HOST, PLAN, JUMP), JUMP, {}, 0.0, target)["image"].get("signed") is signed
    assert record(result(HOST, PLAN), {}, {}, 0.0, target)["image"] == {}
    without = {**JUMP, "journal": {**JOURNAL, "image": {"path": "/boot/k"}}}
    assert record(result(HOST, PLAN, without), without, {}, 0.0, {})["image"] == {"path": "/boot/k"}


def test_a_plan_that_is_not_of_this_update_says_nothing_of_its_guests():
    """An earlier run made the update, and ended after the jump. What this run planned is about another update."""
    plan = {
        **PLAN,
        "verdict": "current",
        "unfinished": JUMP,
        "guests": [{**WEB, "way": "refuse"}, {"name": "db", "way": "save", "passed_over": OVER}],
    }
    told = record(result(HOST, plan, JUMP, [{"last_update": BACK}]), JUMP, {}, 0.0)["guests"]
    assert [(told[name]["way"], told[name]["passed_over"]) for name in ("web", "db")] == [("preserve", []), ("", [])]


def test_guests_that_are_lost_are_in_the_record_also_if_they_do_not_run():
    cold = {**JUMP, "outcome": "rebooted", "kernel_after": "7.2.13"}
    plan = {**PLAN, "verdict": "unfinished", "unfinished": cold, "staying": ["web", "off"]}
    told = record(result(HOST, plan, cold, [], "a cold boot", step="Stop"), cold, {}, 0.0)
    assert (told["outcome"], told["guests_lost"]) == ("failed", ["web", "off"])
