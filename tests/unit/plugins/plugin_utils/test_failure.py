# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._failure import failure

FAILED = {"failed": True, "msg": "the disk is full"}


@pytest.mark.parametrize(
    ("result", "refusals", "why"),
    [
        (FAILED, [], "the disk is full"),
        (FAILED, ["no kexec - reboot", "no systemd - upgrade"], "no kexec - reboot; no systemd - upgrade"),
        ({"failed": True, "msg": "one of 3", "results": [{"msg": "fine"}, {**FAILED, "failed": False}, FAILED]}, [], "the disk is full"),
        ({"failed": True, "msg": ["The update:", "the last line"]}, [], "the last line"),
        ({"failed": True}, [], "see the failed task above"),
        ({"failed": True, "msg": []}, [], "see the failed task above"),
    ],
    ids=["a task", "a refused host", "one item of a loop", "several lines", "no message", "an empty message"],
)
def test_why_a_task_failed(result, refusals, why):
    assert failure(result, refusals) == {"why": why, "lost": False}


def test_a_task_that_failed_without_an_answer_of_the_host_lost_it():
    assert failure({**FAILED, "lost": True})["lost"]
    assert failure({"failed": True, "results": [{"msg": "fine"}, {**FAILED, "lost": True}]})["lost"]
    assert not failure({"failed": True, "results": [{"msg": "fine", "lost": True}, FAILED]})["lost"]
