# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._refusals import against_host, against_kernel, without_memory


def reasons(*codes):
    return [{"code": code, "message": f"says {code}", "remedy": "mend it"} for code in codes]


def proof(verdict, *codes):
    return {"proof": {"pair": "a-b", "there": {"verdict": verdict, "reasons": reasons(*codes)}}}


@pytest.mark.parametrize(
    ("codes", "check_mode", "told"),
    [
        ((), False, []),
        (("memory-limit", "memory-wrong", "not-back"), False, []),
        (("no-device", "not-back", "systemd"), False, ["says no-device - mend it", "says systemd - mend it"]),
        (("runtime", "cmdline"), False, ["says runtime - mend it", "says cmdline - mend it"]),
        (("runtime", "cmdline", "systemd"), True, ["says systemd - mend it"]),
    ],
    ids=["ready", "about guests", "about the host", "not done by setup", "not done yet in check mode"],
)
def test_a_host_is_refused_for_what_setup_does_not_end(codes, check_mode, told):
    assert against_host({"reasons": reasons(*codes)}, check_mode) == told


@pytest.mark.parametrize(
    ("host", "options", "told"),
    [
        ({}, {}, []),
        (proof("proven"), {}, []),
        (proof("refused", "modules", "kvm-off"), {"accept_unknown": ["a-b"]}, ["says modules - mend it", "says kvm-off - mend it"]),
        (proof("unknown", "config-unread"), {"accept_unknown": ["a-b"]}, []),
        (proof("refused", "initrd-missing"), {}, ["says initrd-missing - mend it"]),
        (proof("refused", "initrd-missing", "modules"), {"initrd_to_build": True}, ["says modules - mend it"]),
    ],
    ids=["it runs", "proven", "refused whatever is accepted", "unknown, accepted", "no initrd", "no initrd yet"],
)
def test_a_kernel_is_refused_without_a_proof(host, options, told):
    assert against_kernel(host, **options) == told


def test_a_kernel_of_which_too_little_is_known_is_refused_with_the_way_to_accept_it():
    first, consent = against_kernel(proof("unknown", "config-unread"), ["b-a"])
    assert first == "says config-unread - mend it" and "hypervisor_update_accept_unknown: [a-b]" in consent


def test_only_a_guest_that_this_update_restored_has_its_memory():
    restored = {"state": "restored", "update_id": "u1"}
    guests = [
        {"name": "web", "last_update": restored},
        {"name": "lost", "last_update": {**restored, "state": "lost", "why": "a power cut"}},
        {"name": "old", "last_update": {**restored, "update_id": "u0"}},
        {"name": "new", "last_update": {}},
        {"name": "unknown"},
    ]
    never = "runs without its memory: this update did not restore it"
    assert without_memory(guests, "u1") == [
        "guest lost runs without its memory: a power cut",
        *(f"guest {name} {never}" for name in ("old", "new", "unknown")),
    ]
