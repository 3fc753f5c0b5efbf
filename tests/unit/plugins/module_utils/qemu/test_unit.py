# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest's unit would find the guest's memory; the tests of all other reasons and warnings are in guests/test_reasons.py."""

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _unit

OWN = {"MainPID": "7", "DevicePolicy": "auto", "DeviceAllow": ""}


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({}, ""),
        ({"DeviceAllow": "/dev/liveupdate rw /dev/kvm rw"}, ""),
        ({"DeviceAllow": "/dev/kvm rw char-misc rw"}, ""),
        ({"DeviceAllow": "/dev/kvm rw"}, "may not open /dev/liveupdate"),
        ({"DevicePolicy": "closed"}, "may not open /dev/liveupdate"),
        ({"MainPID": "6"}, "process 7, is not the main process of web1.service"),
    ],
)
def test_a_unit_that_would_not_find_its_guests_memory_is_told_before(properties, says):
    found = _unit.start_reasons("web1.service", 7, {**OWN, **properties})
    assert [reason["code"] for reason in found] == ["unit"] * bool(says)
    assert all(says in reason["message"] for reason in found)
