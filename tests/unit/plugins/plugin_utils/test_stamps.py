# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _stamps

HOST_TIMES = {"committed": 100.0, "stopping": 103.0, "saving": 106.0, "jumping": 107.0, "kernel": 108.0, "userspace": 111.0, "units": 112.5}
GUEST_TIMES = {"paused": 106.1, "saved": 106.6, "start": 115.0, "retrieved": 115.5, "qemu": 117.0, "loaded": 117.2, "resumed": 117.25}
UPDATED = {
    "outcome": "updated",
    "why": "",
    "kernel_before": "7.2.13",
    "kernel_after": "7.3.4",
    "times": HOST_TIMES,
    "guests": {"web": {"state": "restored", "times": GUEST_TIMES}},
}


def test_the_parts_sum_up_to_the_pause():
    guest = UPDATED["guests"]["web"]
    found = _stamps.parts(UPDATED, guest)
    assert [name for name, _length in found] == [
        "save the state",
        "stop the old system",
        "start the new kernel",
        "systemd loads its units",
        "start the restore",
        "retrieve the memory",
        "start QEMU",
        "load the state",
        "resume",
    ]
    assert sum(length for _name, length in found) == pytest.approx(_stamps.blackout(guest)) == pytest.approx(11.15)


def test_an_initial_ram_disk_is_a_part_of_its_own():
    host = {**UPDATED, "times": {**HOST_TIMES, "initrd": 108.75}}
    guest = copy.deepcopy(UPDATED["guests"]["web"])
    found = dict(_stamps.parts(host, guest))
    assert found["start the new kernel"] == pytest.approx(0.75) and found["initial RAM disk"] == pytest.approx(2.25)
    assert sum(found.values()) == pytest.approx(11.15) and list(found)[2:4] == ["start the new kernel", "initial RAM disk"]
    assert _stamps.host_times({**host, "guests": {"web": {"clock_step": 0.5}}})["initrd"] == pytest.approx(108.25)


def test_the_step_of_the_clock_is_taken_off_the_new_kernels_stamps():
    host = copy.deepcopy(UPDATED)
    host["guests"]["web"]["clock_step"] = -0.4
    lengths = dict(_stamps.parts(host, host["guests"]["web"]))
    assert lengths["stop the old system"] == pytest.approx(1.8) and lengths["start the new kernel"] == pytest.approx(3.0)
    assert lengths["systemd loads its units"] == pytest.approx(1.5)
    assert sum(lengths.values()) == pytest.approx(11.15)


@pytest.mark.parametrize("missing", ["kernel", "userspace", "units", "saved", "start", "retrieved", "qemu", "loaded"])
def test_a_stamp_that_is_missing_joins_two_parts(missing):
    host = copy.deepcopy(UPDATED)
    host["times"].pop(missing, None)
    host["guests"]["web"]["times"].pop(missing, None)
    found = _stamps.parts(host, host["guests"]["web"])
    assert len(found) == 8 and any(" + " in name for name, _length in found)
    assert sum(length for _name, length in found) == pytest.approx(11.15)


def test_a_domain_waits_for_libvirt_and_no_other_guest_does():
    times = {**GUEST_TIMES, "libvirt": 116.5}
    lengths = dict(_stamps.parts(UPDATED, {"times": {name: at for name, at in times.items() if name not in ("qemu", "loaded")}}))
    assert lengths["wait for libvirt"] == pytest.approx(1.0)
    assert lengths["start QEMU + load the state + resume"] == pytest.approx(0.75)
    assert sum(lengths.values()) == pytest.approx(11.15)


def test_a_guest_that_was_not_carried_over_has_no_pause():
    assert _stamps.blackout({}) is None and _stamps.parts(UPDATED, {"times": {"paused": 1.0}}) == []


def test_the_memory_is_a_part_of_its_own_only_where_it_was_checked():
    host = copy.deepcopy(UPDATED)
    host["guests"]["web"]["times"].update(read=106.8, checked=115.9)
    lengths = dict(_stamps.parts(host, host["guests"]["web"]))
    assert lengths["read the memory"] == pytest.approx(0.2) and lengths["check the memory"] == pytest.approx(0.4)
    assert lengths["stop the old system"] == pytest.approx(1.2) and lengths["start QEMU"] == pytest.approx(1.1)
    assert sum(lengths.values()) == pytest.approx(11.15)
