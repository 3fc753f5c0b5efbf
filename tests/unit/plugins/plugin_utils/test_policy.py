# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _policy
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._policy import Policy, PolicyError, Rung

WEB = {
    "name": "web",
    "memory_mib": 4096,
    "devices": ["disk:virtio", "interface:bridge"],
    "labels": {"tier": "gold"},
    "reasons": [{"code": "hostdev", "message": "m", "remedy": "r"}],
    "ladder": None,
}


def ways(ladder):
    return [rung.way for rung in ladder.rungs]


def rule(match, *ladder):
    return {"match": match, "ladder": list(ladder or ["save"])}


@pytest.mark.parametrize(
    ("match", "true"),
    [
        ("memory_mib > `2048`", True),
        ("memory_mib > `8192`", False),
        ("labels.tier == 'gold'", True),
        ("labels.owner == 'me'", False),
        ("labels.owner", False),
        ("contains(devices, 'disk:virtio')", True),
        ("reasons[?code == 'hostdev']", True),
        ("reasons[?code == 'vdpa']", False),
        ("starts_with(name, 'we') && !ladder", True),
        ("length(devices)", True),
        ("`0`", True),  # as in JMESPath itself
        ("''", False),
        ("`{}`", False),
    ],
)
def test_an_expression_matches_when_it_is_true_in_jmespaths_sense(match, true):
    assert ways(Policy([rule(match)]).ladder(WEB)) == (["save"] if true else ["preserve", "refuse"])


def test_the_first_rule_that_matches_counts_and_is_named():
    found = Policy([rule("name == 'db'", "refuse"), rule("name == 'web'", "save", "refuse"), rule("`true`", "shutdown")]).ladder(WEB)
    assert (ways(found), found.by) == (["save", "refuse"], "rule 2 of hypervisor_update_policy")


def test_the_inventory_goes_before_the_metadata_and_these_before_the_rules():
    rules, tagged = [rule("`true`", "save")], {**WEB, "ladder": ["shutdown"]}
    assert [
        (ways(found), found.by)
        for found in (
            Policy(rules, guests={"web": ["refuse"]}).ladder(tagged),
            Policy(rules, guests={"db": ["refuse"]}).ladder(tagged),
            Policy(rules).ladder(WEB),
            Policy([], ["migrate"]).ladder(WEB),
        )
    ] == [
        (["refuse"], "hypervisor_update_guests"),
        (["shutdown"], "its metadata"),
        (["save"], "rule 1 of hypervisor_update_policy"),
        (["migrate"], ""),
    ]


def test_a_migration_says_where_to_and_whether_the_guest_comes_back():
    (there, stays, nowhere) = (
        Policy([], [{"migrate": {"to": "uri"}}, {"migrate": {"to": "uri", "back": False}}, "migrate"]).ladder(WEB).rungs
    )
    assert (there, stays, nowhere) == (Rung("migrate", "uri", True), Rung("migrate", "uri", False), Rung("migrate", "", True))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rules": "all"}, "hypervisor_update_policy is 'all'; write a list of rules, e.g."),
        ({"rules": [rule("name"), "web"]}, "rule 2 of hypervisor_update_policy is 'web'; a rule has match and ladder"),
        ({"rules": [{"match": "name"}]}, "rule 1 of hypervisor_update_policy is {'match': 'name'}; a rule has match and ladder"),
        ({"rules": [{**rule("name"), "note": 1}]}, "'note': 1}; a rule has match and ladder and nothing else"),
        ({"rules": [rule(7)]}, "rule 1 of hypervisor_update_policy: match is 7; write a JMESPath expression"),
        ({"rules": [rule(" ")]}, "rule 1 of hypervisor_update_policy: match is ' '"),
        ({"rules": [rule("name"), rule("memory_mib >")]}, "rule 2 of hypervisor_update_policy: match is not a JMESPath expression: "),
        ({"rules": [rule("memory_mib > 2048")]}, "write numbers in backticks"),
        ({"rules": [rule("nothing(name)")]}, "'nothing(name)' cannot be applied to guest web: Unknown function: nothing()"),
        ({"rules": [rule("contains(memory_mib, 'x')")]}, "cannot be applied to guest web: In function contains()"),
        (
            {"rules": [rule("name", "sav")]},
            "rule 1 of hypervisor_update_policy: 'sav' is not a way; the ways are preserve, mig",
        ),
        ({"rules": [{"match": "name", "ladder": []}]}, "rule 1 of hypervisor_update_policy: the ladder is []; write a list of ways"),
        ({"default": "preserve"}, "hypervisor_update_ladder: the ladder is 'preserve'; write a list"),
        ({"default": [{"save": {}}]}, "hypervisor_update_ladder: {'save': {}} is not a way"),
        ({"default": [None]}, "hypervisor_update_ladder: None is not a way"),
        ({"default": [{"migrate": "hv2"}]}, "hypervisor_update_ladder: migrate is 'hv2'; write {to: URI"),
        ({"default": [{"migrate": {"where": "hv2"}}]}, "migrate is {'where': 'hv2'}; write {to: URI"),
        ({"default": [{"migrate": {"to": ["hv2"]}}]}, "migrate is {'to': ['hv2']}; write {to: URI"),
        ({"default": [{"migrate": {"to": "hv2", "back": "perhaps"}}]}, "back is 'perhaps'; write true or false"),
        ({"guests": ["web"]}, "hypervisor_update_guests is ['web']; write the names of guests with their ladders"),
        ({"guests": {"db": ["stay"]}}, "hypervisor_update_guests, db: 'stay' is not a way"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(given, says):
    with pytest.raises(PolicyError) as err:
        Policy(**given).ladder(WEB)
    assert says in str(err.value)


def test_metadata_that_cannot_be_read_name_the_guest():
    with pytest.raises(PolicyError, match="the metadata of guest web: 'sav' is not a way"):
        Policy().ladder({**WEB, "ladder": ["sav"]})


def test_a_missing_library_is_named_only_when_there_are_rules(monkeypatch):
    monkeypatch.setattr(_policy, "jmespath", None)
    assert ways(Policy().ladder(WEB)) == ["preserve", "refuse"]
    with pytest.raises(
        PolicyError,
        match=r"rule 1 of hypervisor_update_policy needs the Python library jmespath .*: pip install jmespath",
    ):
        Policy([rule("name")])
