# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils.budget import over_budget


@pytest.mark.parametrize(
    ("expected", "pauses", "limit"),
    [
        (99.0, {"web": 99.0}, 0.0),
        (None, {}, 10.0),
        (10.0, {}, 10.0),
        (10.0, {"web": 10.0}, 10.0),
        (99.0, {"web": 9.0}, 10.0),
    ],
    ids=["no limit", "nothing known", "expected at the limit", "paused up to the limit", "better than expected"],
)
def test_within_the_budget(expected, pauses, limit):
    assert over_budget(expected, pauses, limit) == ""


def test_what_is_expected_counts_before():
    assert over_budget(12.34, {}, 10) == (
        "its guests would be paused for 12.3 s, as in their last update, and 10 s are allowed (hypervisor_update_blackout_max):"
        " allow more, or give the guests that cannot wait another ladder (hypervisor_update_guests)"
    )


def test_what_was_measured_counts_afterwards():
    assert over_budget(1.0, {"web": 10.1, "db": 12.0, "mail": 9.0}, 10.0) == (
        "guests were paused for too long, 10 s are allowed (hypervisor_update_blackout_max): db for 12.0 s, web for 10.1 s"
    )


def test_not_all_of_many_are_named():
    assert over_budget(None, {f"web{number}": 20.0 + number for number in range(8)}, 10.0).endswith("web3 for 23.0 s and 3 others")
