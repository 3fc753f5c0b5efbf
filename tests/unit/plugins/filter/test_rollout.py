# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of the rollout: they read what people and AWX write, and the clock."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kvm.liveupdate.plugins.filter import _update_gate
from ansible_collections.kvm.liveupdate.plugins.filter._update_batches import update_batches
from ansible_collections.kvm.liveupdate.plugins.filter._update_gate import update_gate
from ansible_collections.kvm.liveupdate.plugins.filter._update_not_together import update_not_together

HOSTS = [{"name": name, "plan": {}, "apart": ""} for name in ("h1", "h2", "h3")]
UNDONE = {"outcome": "undone", "over_budget": "", "step": "", "guests_lost": []}


def test_each_host_has_the_number_of_its_batch():
    assert update_batches(HOSTS, serial="1,2", until="2026-12-01T04:00+01:00") == {"h1": 1, "h2": 2, "h3": 2}
    assert update_batches(HOSTS, serial="", until="") == {"h1": 1, "h2": 2, "h3": 3}


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ({"until": "tomorrow"}, "hypervisor_update_until (until of the module kexec) is 'tomorrow'"),
        ({"until": "2026-12-01T04:00"}, "with the offset from UTC"),
        ({"serial": "0"}, "hypervisor_update_serial is '0'"),
        ({"paused_max": {"cluster": 0}}, "hypervisor_update_paused_max, cluster: 0"),
    ],
)
def test_a_mistake_stops_the_run_before_a_batch_begins(mistake, says):
    with pytest.raises(AnsibleFilterError, match="the batches cannot be made: ") as error:
        update_batches(HOSTS, **mistake)
    assert says in str(error.value)


def test_a_batch_is_checked_again_with_the_newest_plans():
    together = [{**host, "plan": {"members": {"cluster": {"x": [host["name"]]}}}} for host in HOSTS[:2]]
    assert update_not_together(together, {"cluster": "2"}) == {} and list(update_not_together(together, {"cluster": "1"})) == ["h2"]
    last = [{**HOSTS[0], "plan": {"essential": ["dns"]}}]
    assert update_not_together(last) == {} and list(update_not_together(last, more_follow=True)) == ["h1"]


def test_the_gate_takes_limits_as_text_and_empty_ones_as_0():
    assert update_gate({"h1": UNDONE}, undone_max="1", lost_max="0")["stop"] == ""
    assert update_gate({"h1": UNDONE}, undone_max="", lost_max=None)["stop"].startswith("hosts that were undone")


def test_the_gate_looks_at_the_clock(monkeypatch):
    until = "1970-01-01T01:00:10+01:00"
    for now, stops in ((9.9, False), (10.0, True)):
        monkeypatch.setattr(_update_gate.time, "time", lambda now=now: now)
        assert bool(update_gate({}, until=until)["stop"]) is stops
    assert update_gate({}, until="")["stop"] == ""


def test_the_gate_hears_a_request_and_no_request_where_nobody_looked():
    assert update_gate({})["stop"] == "" and update_gate({}, request=None)["stop"] == ""
    told = update_gate({}, request={"stat": {"exists": True}}, file="/stop on ctl")
    assert told["on_request"] and told["stop"].startswith("the file /stop on ctl exists")
