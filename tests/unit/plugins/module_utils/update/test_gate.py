# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the gate finds against a jump, and how many steps it takes at the same time; whole updates that it ends are in test_jump.py."""

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _gate

READY = {"image": {"path": "/boot/k"}, "guests": {"web": {}}, "holds": {"web": {"hold": "h"}}, "not_back": [], "strangers": []}
STRANGER = {"name": "pid-7", "pid": 7, "reasons": [{"code": "not-managed", "message": "no monitor is known", "remedy": "wrap it"}]}


@pytest.mark.parametrize(
    ("names", "seen", "says"),
    [
        (["web"], {}, ""),
        (["web"], {"image": {}}, "no kernel is staged in this boot"),
        (["web", "db"], {}, "guest db no longer runs"),
        ([], {}, "guest web runs but is not part of this update"),
        (["web"], {"holds": {}}, "guest web: its RAM is not preserved"),
        (["web"], {"strangers": [STRANGER]}, "pid-7 (process 7) is a virtual machine that would be lost: no monitor is known"),
        (["web"], {"not_back": [{"code": "not-back", "message": "app was saved", "remedy": "start it"}]}, "app was saved - start it"),
    ],
)
def test_the_gate_names_what_would_be_lost(names, seen, says):
    problems = _gate.gate(names, {**READY, **seen})
    assert len(problems) == bool(says) and all(says in problem for problem in problems)


CALM = {unit: {"ActiveState": "inactive"} for unit in _gate.CLUSTERS}


@pytest.mark.parametrize(
    ("keep", "shown", "says"),
    [
        (["iscsid.service"], {"iscsid.service": {"LoadState": "loaded"}}, ""),
        (["iscsid"], {"iscsid": {"LoadState": "loaded"}}, "'iscsid' is not a full unit name; write for example iscsid.service"),
        (["icsid.service"], {"icsid.service": {"LoadState": "not-found"}}, "unit icsid.service does not exist on this host"),
        ([], {"pacemaker.service": {"ActiveState": "active"}}, "the cluster manager pacemaker.service runs"),
        (["pacemaker.service"], {"pacemaker.service": {"LoadState": "loaded", "ActiveState": "active"}}, ""),
    ],
)
def test_units_that_are_mistyped_or_would_stop_guests_forbid_the_jump(keep, shown, says):
    problems = _gate.unit_problems(keep, {**CALM, **shown})
    assert len(problems) == bool(says) and all(says in problem for problem in problems)


@pytest.mark.parametrize(("most", "at_once"), [(0, 6), (2, 2)])
def test_no_more_steps_at_once_than_asked_for(most, at_once):
    together, lock, under_way, seen = threading.Barrier(at_once, timeout=10), threading.Lock(), set(), set()

    def step(item):
        with lock:
            under_way.add(item)
            seen.add(len(under_way))
        together.wait()
        time.sleep(0.05)  # so that one more than may be would be seen
        with lock:
            under_way.remove(item)
        return -item

    assert [job.result() for job in _gate.at_once(step, range(6), most)] == [0, -1, -2, -3, -4, -5]
    assert max(seen) == at_once
    assert _gate.at_once(step, []) == []
