# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table says which code a guest gets."""

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _away as _libvirt_away
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _away as _qemu_away
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _unit


@pytest.mark.parametrize(("provider", "away"), [("qemu", _qemu_away), ("libvirt", _libvirt_away)])
def test_a_guest_leaves_as_its_provider_knows_how(provider, away):
    assert _providers.of({"provider": provider}).away is away


def test_the_unit_of_a_guest_is_examined_and_that_of_a_domain_which_is_ours_is_not():
    unit = {"name": "web", "unit": "web.service", "pid": 7, "ram": [], "argv": ["qemu"]}
    shown = {"ExecStartPre": "{ path=/bin/true ; argv[]=/bin/true ; ignore_errors=no }"}
    guest, domain = _providers.of({"provider": "qemu"}), _providers.of({"provider": "libvirt"})
    assert "unit" in {why["code"] for why in guest.unit_reasons(unit, shown)} and domain.unit_reasons(unit, shown) == []
    assert [why["code"] for why in guest.unit_warnings(unit, shown)] == ["start-runs-again"] and domain.unit_warnings(unit, shown) == []
    assert set(guest.unit_properties) == set(_unit.PROPERTIES) and domain.unit_properties == ()
