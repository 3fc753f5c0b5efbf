# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._patterns import matching

HERE = ["web1", "web2", "db1", "a[1]"]


@pytest.mark.parametrize(
    ("patterns", "names", "unmatched"),
    [
        ([], [], []),
        (["db1", "nobody"], ["db1", "nobody"], []),
        (["web*"], ["web1", "web2"], []),
        (["web[2-9]", "?b1"], ["web2", "db1"], []),
        (["db1", "*1", "db?"], ["db1", "web1"], []),
        (["WEB*", "mail*"], [], ["WEB*", "mail*"]),
        (["a[1]"], ["a[1]"], []),
        (["all"], HERE, []),
        (["db1", "all"], ["db1", "web1", "web2", "a[1]"], []),
    ],
)
def test_names_and_patterns(patterns, names, unmatched):
    assert matching(patterns, HERE, word="all") == {"names": names, "unmatched": unmatched}


def test_all_is_a_name_like_others_where_it_is_not_asked_for():
    assert matching(["all"], HERE) == {"names": ["all"], "unmatched": []}


def test_all_of_nothing_is_nothing():
    assert matching(["all"], [], word="all") == {"names": [], "unmatched": ["all"]}
    assert matching(["all"], ["all", "web"], word="all")["names"] == ["all", "web"]
