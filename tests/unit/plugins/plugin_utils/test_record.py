# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._record import record
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import result

HOST = {"boot_id": "b1", "kernel": {"release": "7.2.13"}, "target": {"current": False}, "guests": [{"name": "web"}, {"name": "db"}]}
PLAN = {"verdict": "go", "guests": [{"name": "web", "way": "preserve", "why": ""}, {"name": "db", "way": "save", "why": ""}]}
IMAGE = {"path": "/boot/k", "release": "7.3.4", "version": "#1", "size": 9, "sha256": "aa", "initrd_sha256": None}
JUMP = {"outcome": "jumped", "journal": {"id": "u1", "image": IMAGE}, "kernel_after": "7.3.4", "boot_id_after": "b2"}
BACK = {"guest": "web", "state": "restored", "update_id": "u1", "times": {"paused": 2.0, "resumed": 5.5}, "memory_verified": "full"}
AWAY = [{"name": "db", "left": "saved", "where": "here", "msg": "is back"}]


def test_a_record_says_who_what_and_how():
    done = result(HOST, PLAN, JUMP, [{"last_update": BACK}], away=AWAY, taken_over="bob on ctl; its process has ended")
    told = record(done, JUMP, {"user": "alice", "awx_user": "", "awx_job": 7}, 0.0)
    assert told["at"] == "1970-01-01T00:00:00+00:00" and told["by"] == {"user": "alice", "awx_job": "7"}
    assert told["taken_over"] == "bob on ctl; its process has ended"
    assert (told["outcome"], told["kernel_before"], told["kernel_after"], told["update_id"]) == ("updated", "7.2.13", "7.3.4", "u1")
    assert told["image"] == {"path": "/boot/k", "release": "7.3.4", "version": "#1", "sha256": "aa", "initrd_sha256": None}
    assert told["guests"] == {
        "web": {"way": "preserve", "state": "restored", "why": "", "pause": 3.5, "memory_verified": "full"},
        "db": {"way": "save", "state": "saved", "why": "is back", "pause": None, "memory_verified": "none", "back": True},
    }
    assert "\n" not in json.dumps(told)


def test_an_update_that_did_not_jump_has_a_record():
    told = record(result(HOST, PLAN, why="web: no", step="Preserve"), {}, {}, 0.0)
    assert (told["outcome"], told["why"], told["step"], told["image"]) == ("undone", "web: no", "Preserve", {})
