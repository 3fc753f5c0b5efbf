# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._budget import check_seconds, expected_too_long, paused_too_long


@pytest.mark.parametrize(
    ("expected", "limit"),
    [(99.0, 0.0), (None, 10.0), (10.0, 10.0)],
    ids=["no limit", "nothing known", "at the limit"],
)
def test_what_is_expected_is_not_too_long(expected, limit):
    assert expected_too_long(expected, limit) == ""


@pytest.mark.parametrize(("pause", "limit"), [(99.0, 0.0), (10.0, 10.0)], ids=["no limit", "up to the limit"])
def test_a_pause_is_not_too_long(pause, limit):
    assert paused_too_long({"web": pause}, limit) == paused_too_long({}, limit) == ""


def test_what_is_expected_may_be_too_long():
    assert expected_too_long(12.34, 10) == (
        "expected pause: 12.3 s (as in the last update). hypervisor_update_blackout_max allows 10 s - raise it, or give the guests"
        " that cannot wait another ladder (hypervisor_update_guests)"
    )


@pytest.mark.parametrize(
    ("sizes", "at_once", "seconds"),
    [
        ({}, 4, 0.0),
        ({"qemu": [1024]}, 4, 1.0),
        ({"qemu": [1024, 3072]}, 4, 3.0),
        ({"qemu": [1024, 3072]}, 1, 4.0),
        ({"qemu": [1024] * 8}, 2, 4.0),
        ({"qemu": [1024] * 8}, 16, 1.0),
        ({"qemu": [1024], "libvirt": [1024]}, 2, 1.5),
    ],
)
def test_a_full_check_takes_as_long_as_the_largest_guest_or_as_the_processors_need(sizes, at_once, seconds):
    """Each guest is read twice."""
    assert check_seconds(sizes, {"bytes_per_second": float(2 << 30), "at_once": at_once}) == seconds
    assert check_seconds(sizes, {}) == 0.0


def test_guests_that_paused_too_long_are_named_the_longest_first():
    assert paused_too_long({"web": 10.1, "db": 12.0, "mail": 9.0}, 10.0) == (
        "guests paused longer than hypervisor_update_blackout_max allows (10 s): db 12.0 s, web 10.1 s"
    )


def test_not_all_of_many_are_named():
    assert paused_too_long({f"web{number}": 20.0 + number for number in range(8)}, 10.0).endswith("web3 23.0 s and 3 more")
