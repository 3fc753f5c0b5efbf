# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.action.kexec import Look, _verdict, read_look

BOOT = "0f3c6ae2-5a7e-4d5c-9f34-2a1f6b7c8d9e"
SEEN = BOOT, ("7.3.4", "#1 SMP")
STARTED = "KernelTimestamp=Tue 2026-11-24 09:19:46.303854 UTC\nUserspaceTimestamp=Tue 2026-11-24 09:19:47.500000 UTC\n"
LOADED = "UnitsLoadFinishTimestamp=Tue 2026-11-24 09:19:48.250000 UTC\n"
STAMPS = {"kernel": 1795511986.303854, "userspace": 1795511987.5}
ALL_STAMPS = {**STAMPS, "units": 1795511988.25}


@pytest.mark.parametrize(
    ("output", "look"),
    [
        (f"{BOOT}\n7.3.4\n#1 SMP\n{STARTED}" + '{"id": "u",\n "state": "jumping"}', Look(*SEEN, STAMPS, {"id": "u", "state": "jumping"})),
        (f"{BOOT}\n7.3.4\n#1 SMP\n{STARTED}{LOADED}" + '{"id": "u"}', Look(*SEEN, ALL_STAMPS, {"id": "u"})),
        (f"{BOOT}\n7.3.4\n#1 SMP\n" + '{"id": "u"}', Look(*SEEN, {}, {"id": "u"})),
        (f"{BOOT}\n7.3.4\n#1 SMP\n{STARTED}", Look(*SEEN, STAMPS, {})),
        (f"{BOOT}\n7.3.4\n#1 SMP\n" + '{"torn', Look(*SEEN, {}, {})),
        ("", None),
        (f"{BOOT}\n", None),
        ("System is going down.\n7.3.4\n#1\n", None),
        (f"{BOOT}x\n7.3.4\n#1\n", None),
    ],
)
def test_only_a_uuid_counts_as_a_boot_id(output, look):
    assert read_look(output) == look


def test_another_kernel_is_a_failure():
    update = {"image": {"release": "7.3.4", "version": "#1 SMP"}}
    assert "failed" not in _verdict(update, Look(*SEEN, {}, {}), 12.0)
    for kernel in (("7.2.13", "#1 SMP"), ("7.3.4", "#2 SMP")):
        verdict = _verdict(update, Look(BOOT, kernel, {}, {}), 12.0)
        assert verdict["failed"] and verdict["boot_id_after"] == BOOT and "memory is gone" in verdict["msg"]
