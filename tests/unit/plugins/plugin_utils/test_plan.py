# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _needs, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv_reasons
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._plan import chosen, plan
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._policy import WAYS, Policy, PolicyError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REPO = Path(__file__).resolve().parents[4]
FREE = {"memory_mib": 1000, "saves_mib": 10000}
JUMP = "stop other services, jump to the new kernel"
URI = "qemu+ssh://hv2/system"
ALL = [{"migrate": {"to": URI}}, "save", "shutdown", "refuse"]


def reason(code):
    return {"code": code, "message": f"it has {code}", "remedy": f"remove {code}"}


def guest(name="web", provider="libvirt", reasons=(), **facts):
    return {
        "name": name,
        "provider": provider,
        "memory_mib": 2048,
        "fill_mib": 100,
        "devices": [],
        "labels": {},
        "ladder": None,
        "last_pause": None,
        "reasons": [reason(code) for code in reasons],
        "warnings": [],
        **facts,
    }


def host(*guests, **facts):
    return {"guests": list(guests), "reasons": [], "free": FREE, "target": {"release": "7.3.4", "current": False}, **facts}


def only(facts, ladder, **about):
    return plan(host(facts, **about), Policy([], ladder))["guests"][0]


STRANGER = {"name": "pid-7", "unit": "", "pid": 7, "reasons": [reason("ram-anonymous")], "warnings": []}


@pytest.mark.parametrize(
    ("facts", "ladder", "way", "why"),
    [
        (guest(), ["preserve", "refuse"], "preserve", "stays in memory"),
        (
            guest(reasons=["hostdev", "vdpa"]),
            ["preserve", "refuse"],
            "refuse",
            "stops the update. Not preserved: it has hostdev - remove hostdev; it has vdpa - remove vdpa",
        ),
        (
            guest(fill_mib=1001),
            ["preserve", "refuse"],
            "refuse",
            "stops the update. Not preserved: its RAM needs 1001 MiB of memory that it has not used yet, but only 1000 MiB are free -"
            " stop or move other guests first",
        ),
        (
            guest(reasons=["ram-anonymous"]),
            ["preserve", *ALL],
            "migrate",
            f"is migrated to {URI} and back afterwards. Not preserved: it has",
        ),
        (guest(), [{"migrate": {"to": URI, "back": False}}], "migrate", f"is migrated to {URI} and stays there"),
        (
            guest(),
            ["migrate", "refuse"],
            "refuse",
            "stops the update. Not migrated: the ladder names no destination - write {migr",
        ),
        (guest(provider="qemu"), ALL[:1], "refuse", "stops the update. Not migrated: libvirt does not run it"),
        (
            guest(reasons=["cache-unsafe"]),
            ALL,
            "save",
            "is saved to disk and restored afterwards. Not migrated: it has cache-unsafe",
        ),
        (guest(provider="qemu"), ["save"], "refuse", "stops the update. Not saved: libvirt does not run it"),
        (guest(memory_mib=None), ["save"], "refuse", "Not saved: the size of its RAM or the free disk space is unknown"),
        (
            guest(memory_mib=9745),
            ["save"],
            "refuse",
            "stops the update. Not saved: its RAM needs 10001 MiB on the disk of managed saves, but only 10000 MiB are free - free",
        ),
        (
            guest(provider="qemu", reasons=["qemu-blocker"]),
            ["preserve", *ALL],
            "shutdown",
            "is shut down and started again afterwards. Not pres",
        ),
        (guest(), ["refuse", "preserve"], "refuse", "stops the update"),
        (STRANGER, ALL, "refuse", "stops the update. Not preserved: it has ram-anonymous - remove ram-anonymous"),
        (
            {**STRANGER, "reasons": []},
            ["preserve", *ALL],
            "refuse",
            "stops the update. Not preserved: neither libvirt nor kvm-liveupdate runs it - make it",
        ),
    ],
)
def test_a_guest_takes_the_first_way_that_is_open_to_it(facts, ladder, way, why):
    found = only(facts, ladder)
    assert found["way"] == way and why in found["why"]


@pytest.mark.parametrize("code", ["hostdev", "qemu-blocker", "block-job", "launch-security", "shmem", "a-reason-of-tomorrow"])
def test_what_speaks_against_moving_or_is_unknown_leaves_the_shutdown(code):
    found = only(guest(reasons=[code]), ["preserve", *ALL])
    assert found["way"] == "shutdown"
    told = f"it has {code} - remove {code}"
    assert found["passed_over"] == [{"way": way, "why": told} for way in ("preserve", "migrate", "save")]


@pytest.mark.parametrize(
    "code", ["ram-anonymous", "ram-hugetlb", "hugepages", "confined", "unit", "memory-device", "qemu-replaced", "snapshot-format"]
)
def test_what_speaks_against_staying_only_speaks_neither_against_moving_nor_saving(code):
    assert only(guest(reasons=[code]), ALL)["way"] == "migrate"
    assert only(guest(reasons=[code]), ALL[1:])["way"] == "save"


NO_SHUTDOWN = (
    *("monitor", "run-state", "left-paused", "libvirt-job", "not-persistent", "unit-gone", "unit-other", "start-option", "server-waits"),
    *("disk-changed", "device-changed", "network-changed", "transient-disk", "argv-unread", "peer-gone", "socket", "file-gone"),
    *("file-silent", "file-volatile", "file-in-memory", "file-replaced", "network-transient", "network-no-autostart", "network-unknown"),
    *("pool-transient", "pool-no-autostart", "pool-unknown", "secret-gone", "secret-ephemeral", "secret-unknown", "name-long"),
    *("name-twice", "not-examined", "record-damaged", "unit-early", "disk-fdgroup"),
)
# With these a guest that is shut down starts again as it was.
SHUTDOWN = (
    *("ram-anonymous", "ram-backend", "ram-gone", "ram-on-disk", "ram-hugetlb", "hugepages", "ram-elsewhere", "ram-size", "inherited-fd"),
    *("privileges", "rom-replaced", "unit", "qemu-replaced", "memory-limit", "qemu-blocker", "block-job", "confined", "discard"),
    *("launch-security", "hostdev", "vhost-user", "vdpa", "filesystem", "shmem", "memory-device", "cache-unsafe", "disk-nvme"),
    *("disk-vhost-user", "disk-vdpa", "tpm-passthrough", "saves-link", "ignore-shared", "unit-action", "snapshot-format"),
)


@pytest.mark.parametrize("code", NO_SHUTDOWN)
@pytest.mark.parametrize("provider", ["qemu", "libvirt"])
def test_who_cannot_be_asked_or_does_not_start_again_as_it_is_is_not_shut_down(provider, code):
    found = only(guest(provider=provider, reasons=[code, "hostdev"]), ["preserve", *ALL])
    assert found["way"] == "refuse"
    assert found["passed_over"][-1] == {"way": "shutdown", "why": f"it has {code} - remove {code}"}


@pytest.mark.parametrize("code", SHUTDOWN)
def test_who_starts_again_as_it_was_may_be_shut_down(code):
    assert only(guest(reasons=[code]), ["preserve", "shutdown"])["way"] == "shutdown"


def test_it_is_known_of_each_reason_whether_it_keeps_from_a_shutdown():
    """All that an examination of a guest may find is documented, and all of that is above."""
    page = (REPO / "docs/docsite/rst/troubleshooting.rst").read_text()
    documented = {
        kind: {code for row in re.findall(r"^   \* - (.*)$", text, re.MULTILINE) for code in re.findall("``([a-z-]+)``", row)}
        for kind in ("guests", "warnings")
        for text in [page.partition(f"docsite.troubleshooting.{kind}:\n")[2].partition("\n.. _")[0]]
    }
    # Of a machine that no provider runs, and which is only ever refused.
    assert documented["guests"] == {*NO_SHUTDOWN, *SHUTDOWN, "not-managed"}
    found = {*_needs.OF_A_BOOT, *_argv_reasons._SAYS, *(row[0] for row in (*_reasons._REASONS, *_reasons._WARNINGS))}
    for file in (REPO / "plugins/module_utils").rglob("*.py"):
        if file.stem not in ("_readiness", "_proof") and file.parent.name != "trial":  # which judge hosts
            found.update(re.findall(r'reason\(\s*"([a-z-]+)"', file.read_text()))
            found.update(re.findall(r'"code": "([a-z-]+)"', file.read_text()))
    assert len(found) > 60 and found - {"not-back", "memory-wrong"} <= documented["guests"] | documented["warnings"]


def test_each_guest_finds_what_the_ones_before_it_have_left():
    made = plan(
        host(*(guest(name, fill_mib=400, memory_mib=4000) for name in "abcdef")), Policy([], ["preserve", "save", "shutdown", "refuse"])
    )
    assert [guest["way"] for guest in made["guests"]] == ["preserve", "preserve", "save", "save", "shutdown", "shutdown"]
    assert made["room"] == {"memory": {"needed_mib": 800, "free_mib": 1000}, "saves": {"needed_mib": 8512, "free_mib": 10000}}


def test_nobody_is_saved_where_the_room_is_not_known_and_who_stays_does_so_as_ever():
    assert only(guest(), ["save"], free={})["way"] == "refuse"
    assert only(guest(fill_mib=1 << 20), ["preserve"], free={})["way"] == "preserve"


def test_a_setting_that_chose_the_ladder_is_named():
    made = plan(host(guest()), Policy([{"match": "name == 'web'", "ladder": ["shutdown"]}]))
    assert made["guests"][0]["why"] == "is shut down and started again afterwards (rule 1 of hypervisor_update_policy)"
    assert made["guests"][0]["by"] == "rule 1 of hypervisor_update_policy"


def test_all_five_ways_in_one_plan():
    policy = Policy([], ["preserve"], {"b": [{"migrate": {"to": URI, "back": False}}], "c": ["save"], "d": ["shutdown"], "e": ["refuse"]})
    made = plan(host(*(guest(name) for name in "abcde")), policy)
    assert [guest["way"] for guest in made["guests"]] == list(WAYS)
    assert (made["verdict"], made["steps"]) == ("refuse", [])
    assert made["refusals"] == ["guest e stops the update (hypervisor_update_guests)"]
    del policy._guests["e"]
    made = plan(host(*(guest(name) for name in "abcde")), policy)
    assert made["verdict"] == "go" and made["refusals"] == []
    assert made["steps"] == [
        "stage Linux 7.3.4 with no initial RAM disk",
        f"migrate b to {URI}",
        "save c to disk",
        "shut down d",
        "preserve the RAM of a, e",
        "stop other services, pause and save a, e, jump to the new kernel",
        "compare a sample of the memory of a, e with that before the jump, and resume",
        "bring back c, d",
    ]


def test_who_moves_for_good_is_not_brought_back():
    made = plan(host(guest("a")), Policy([], [{"migrate": {"to": URI, "back": False}}]))
    assert made["steps"] == [
        "stage Linux 7.3.4 with no initial RAM disk",
        f"migrate a to {URI}",
        "stop other services, jump to the new kernel",
    ]


def test_a_host_without_guests_just_jumps():
    made = plan(host(), Policy())
    assert (made["verdict"], made["steps"]) == (
        "go",
        ["stage Linux 7.3.4 with no initial RAM disk", JUMP],
    )
    assert made["table"][:2] == ["The update to Linux 7.3.4:", "No guest runs."]


def test_services_that_will_be_stopped_are_named():
    names = [f"s{number}.service" for number in range(13)]
    (_stage, step) = plan(host(services_to_stop=names), Policy(), keep_units=["s0.service"])["steps"]
    assert step == f"stop other services (12: {', '.join(names[1:11])} and 2 more), jump to the new kernel"
    (_stage, step) = plan(host(services_to_stop=["cron.service"]), Policy())["steps"]
    assert step == "stop other services (1: cron.service), jump to the new kernel"


@pytest.mark.parametrize(("names", "told"), [(["db1"], "guest db1 is still away"), (["db1", "db2"], "guests db1, db2 are still away")])
def test_a_refused_host_names_the_guests_that_are_away_from_it(names, told):
    facts = host(guest(), reasons=[reason("not-back")], away=[{"guest": name, "way": "save", "state": "away"} for name in names])
    made = plan(facts, Policy())
    line = made["table"][2]
    assert line.startswith(told) and "kvm.liveupdate.guest_away with state=back brings" in line and made["refusals"][-1] == line
    assert not any("still away" in line for line in plan({**facts, "away": []}, Policy())["table"])


def test_a_reason_against_the_host_refuses_it():
    made = plan(host(guest(), reasons=[reason("kexec-disabled")]), Policy())
    assert made["verdict"] == "refuse" and made["refusals"] == ["it has kexec-disabled - remove kexec-disabled"]
    assert made["table"][:2] == ["The update to Linux 7.3.4 is refused.", "it has kexec-disabled - remove kexec-disabled"]


def test_the_plan_names_the_initial_ram_disk():
    target = {"release": "7.3.4", "initrd": "/boot/initrd.img-7.3.4", "current": False}
    assert plan(host(guest(), target=target), Policy())["steps"][0] == "stage Linux 7.3.4 with /boot/initrd.img-7.3.4"


NOT_INSTALLED = {"path": "/boot/vmlinuz-7.3.4", "installed": False, "release": None, "initrd": None, "current": False}
UNPROVEN = "WARNING: the new kernel is not installed yet. Whether it can take over is known when it is installed"


def test_a_kernel_that_is_installed_later_is_a_warning_and_all_else_is_planned():
    made = plan(host(guest(), target=NOT_INSTALLED), Policy())
    assert (made["verdict"], made["kernel"], made["staying"]) == ("go", "/boot/vmlinuz-7.3.4", ["web"])
    assert made["steps"][0] == "stage /boot/vmlinuz-7.3.4" and made["table"][0] == "The update to /boot/vmlinuz-7.3.4:"
    assert made["table"].count(UNPROVEN) == 1
    refused = plan(host(guest(reasons=["hostdev"]), reasons=[reason("kexec-disabled")], target=NOT_INSTALLED), Policy())
    assert refused["verdict"] == "refuse" and len(refused["refusals"]) == 2 and UNPROVEN in refused["table"]
    assert plan(host(guest()), Policy())["unproven"] == ""


def test_a_host_that_runs_the_kernel_already_is_left_alone():
    made = plan(host(guest(reasons=["hostdev"]), target={"release": "7.3.4", "current": True}), Policy())
    assert (made["verdict"], made["refusals"], made["steps"]) == ("current", [], [])
    assert made["table"] == ["The host runs Linux 7.3.4 already."]
    assert [guest["name"] for guest in made["guests"]] == ["web"]


def test_a_host_on_the_kernel_with_a_guest_that_is_not_back_is_not_done_with():
    assert plan(host(guest(), reasons=[reason("memory-wrong")], target={"current": True}), Policy())["verdict"] == "refuse"
    facts = host(guest(reasons=["hostdev"]), reasons=[reason("not-back"), reason("memory-limit")])
    made = plan({**facts, "target": {"release": "7.3.4", "current": True}}, Policy())
    assert (made["verdict"], made["refusals"]) == ("refuse", ["it has not-back - remove not-back"])
    assert len(plan(facts, Policy())["refusals"]) == 3


@pytest.mark.parametrize(("pauses", "expected"), [([None, None], None), ([3.5, None], 3.5), ([3.5, 12.25], 12.25)])
def test_the_expected_pause_is_the_longest_of_the_last_updates(pauses, expected):
    guests = [guest(str(number), last_pause=pause) for number, pause in enumerate(pauses)]
    leaves = guest("gone", last_pause=99.0)
    assert plan(host(*guests, leaves), Policy([], ["preserve"], {"gone": ["shutdown"]}))["expected_pause"] == expected


@pytest.mark.parametrize(
    ("blackout_max", "verdict", "line"),
    [
        (0.0, "go", "Expected pause: 7.2 s."),
        (7.25, "go", "Expected pause: 7.2 s (7.25 s allowed)."),
        (7.0, "refuse", "expected pause: 7.2 s (as in the last update). hypervisor_update_blackout_max allows 7 s - raise it"),
    ],
)
def test_a_host_is_refused_when_its_guests_would_pause_for_too_long(blackout_max, verdict, line):
    made = plan(host(guest(last_pause=7.25)), Policy(), blackout_max=blackout_max)
    assert made["verdict"] == verdict and any(line in told for told in made["table"])
    assert bool(made["over_budget"]) == (verdict == "refuse") and made["refusals"] == ([made["over_budget"]] if verdict == "refuse" else [])


SPEED = {"bytes_per_second": float(1 << 30), "at_once": 2}  # 2 GiB, there and back, take 4 s


@pytest.mark.parametrize(
    ("pauses", "blackout_max", "verdict", "expected", "line"),
    [
        ([7.25], 0.0, "go", 11.25, "Expected pause: 11.2 s, of which the full check of the memory takes about 4.0 s."),
        (
            [7.25],
            11.0,
            "refuse",
            11.25,
            "expected pause: 11.2 s (as in the last update, with about 4.0 s for the full check of the",
        ),
        ([7.25], 11.25, "go", 11.25, "takes about 4.0 s (11.25 s allowed)."),
        ([7.25, 3.0, None], 0.0, "go", 13.25, "Expected pause: 13.2 s, of which the full check of the memory takes about 6.0 s."),
        ([None], 0.0, "go", None, "on this host before. The full check of the memory alone takes about 4.0 s."),
        (
            [None],
            3.0,
            "refuse",
            None,
            "the full check of the memory alone takes about 4.0 s of the pause. hypervisor_update",
        ),
        ([None], 5.0, "go", None, "alone takes about 4.0 s (5 s allowed)."),
    ],
)
def test_a_full_check_of_the_memory_counts_as_a_part_of_the_pause(pauses, blackout_max, verdict, expected, line):
    guests = [guest(str(number), last_pause=pause) for number, pause in enumerate(pauses)]
    gone = guest("gone", last_pause=99.0, memory_mib=1 << 20)
    policy = Policy([], ["preserve"], {"gone": ["shutdown"]})
    made = plan(host(*guests, gone, memory_speed=SPEED), policy, blackout_max=blackout_max, verify_memory="full")
    assert (made["verdict"], made["expected_pause"]) == (verdict, expected)
    assert any(line in told for told in made["table"]), made["table"]
    assert not made["refusals"] or "set hypervisor_update_verify_memory to sample, raise it, or give" in made["refusals"][0]


def test_the_check_of_the_last_update_is_not_expected_again():
    facts = guest(last_pause=12.0, last_check=4.5)
    assert plan(host(facts), Policy())["expected_pause"] == 7.5
    assert plan(host(facts, memory_speed=SPEED), Policy(), verify_memory="full")["expected_pause"] == 11.5


@pytest.mark.parametrize(
    ("how", "step"),
    [
        ("none", "resume web"),
        ("sample", "compare a sample of the memory of web with that before the jump, and resume"),
        ("full", "compare all memory of web with that before the jump, and resume"),
    ],
)
def test_the_plan_says_how_the_memory_is_checked(how, step):
    assert plan(host(guest()), Policy(), verify_memory=how)["steps"][-1] == step


def test_only_who_stays_on_a_host_that_is_updated_has_a_budget():
    current = {"release": "7.3.4", "current": True}
    assert plan(host(guest(last_pause=9.0), target=current), Policy(), blackout_max=1.0)["verdict"] == "current"
    assert plan(host(guest(last_pause=9.0)), Policy([], ["shutdown"]), blackout_max=1.0)["verdict"] == "go"
    assert plan(host(guest(last_pause=None)), Policy(), blackout_max=1.0)["table"][-1].startswith("Expected pause: unknown, no preserved")


@pytest.mark.parametrize(
    ("ladder", "free", "line"),
    [
        ("save", {"saves_mib": 9000}, "Disk for managed saves: 2304 MiB needed, 9000 MiB free."),
        ("preserve", {}, "Memory: 100 MiB needed, free space unknown."),
    ],
)
def test_the_table_has_what_the_update_needs(ladder, free, line):
    table = plan(host(guest(), free=free), Policy([], [ladder]))["table"]
    assert line in table and sum("needed" in other for other in table) == 1


def test_the_table_is_for_people():
    facts = host(
        guest("web", last_pause=7.25, warnings=[reason("vsock")]), guest("database", reasons=["hostdev"], warnings=[reason("genid")])
    )
    assert plan(facts, Policy([], ["preserve", "shutdown"]))["table"] == [
        "The update to Linux 7.3.4:",
        "guest     way       why",
        "web       preserve  stays in memory",
        "database  shutdown  is shut down and started again afterwards. Not preserved: it has hostdev - remove hostdev",
        "WARNING web: it has vsock - remove vsock",
        "1. stage Linux 7.3.4 with no initial RAM disk",
        "2. shut down database",
        "3. preserve the RAM of web",
        "4. stop other services, pause and save web, jump to the new kernel",
        "5. compare a sample of the memory of web with that before the jump, and resume",
        "6. bring back database",
        "Memory: 100 MiB needed, 1000 MiB free.",
        "Expected pause: 7.2 s.",
    ]


def test_a_warning_that_several_guests_have_is_one_line():
    warned = {name: [reason("vsock"), reason("genid")][: 2 if name == "a" else 1] for name in "abc"}
    table = plan(host(*(guest(name, warnings=warnings) for name, warnings in warned.items())), Policy())["table"]
    assert [line for line in table if "WARNING" in line] == [
        "WARNING a, b, c: it has vsock - remove vsock",
        "WARNING a: it has genid - remove genid",
    ]


@pytest.mark.parametrize(
    ("outcome", "boot", "not_back", "told"),
    [
        ("aborted", "now", ["db", "web"], True),
        ("aborted", "before", ["db"], False),  # who knows what its owner has done since
        ("aborted", "now", ["web"], False),
        ("jumped", "now", ["db"], False),
    ],
)
def test_who_was_not_back_after_the_last_update_was_undone_is_named(outcome, boot, not_back, told):
    """The run of that update may have ended before it saw this. A guest that is still paused has a reason."""
    line = (
        "WARNING: the last update of this host was undone. These guests were not back after it, and do not run now: db. If they run nowhere"
    )
    last = {"outcome": outcome, "boot_id": boot, "not_back": not_back, "times": {}}
    table = plan(host(guest(), boot_id="now", last_update=last), Policy())["table"]
    assert any(other.startswith(line) for other in table) is told


def test_many_guests_are_counted():
    assert "preserve the RAM of a, b, c, d, e and 2 more" in plan(host(*(guest(name) for name in "abcdefg")), Policy())["steps"]


@pytest.mark.parametrize("facts", [None, {}, {"unreachable": True, "msg": "m"}, {"guests": []}, {"guests": {}, "reasons": []}])
def test_what_is_not_known_is_not_planned(facts):
    with pytest.raises(PolicyError, match="not what hypervisor_info returns"):
        plan(facts, Policy())


# The same examples in every run, and no judgement about a slow machine.
held = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CODES = ("hostdev", "ram-anonymous", "cache-unsafe", "monitor", "qemu-blocker", "not-persistent", "of-tomorrow")
MIGRATION = st.builds(lambda to, back: {"migrate": {"to": to, "back": back}}, st.sampled_from(("", URI)), st.booleans())
LADDERS = st.lists(st.sampled_from(WAYS) | MIGRATION, min_size=1, max_size=6)
MIB = st.none() | st.integers(0, 1 << 16)
GUESTS = st.lists(
    st.builds(
        guest,
        st.sampled_from("abcdef"),
        st.sampled_from(("libvirt", "qemu", None)),
        st.lists(st.sampled_from(CODES), max_size=3),
        memory_mib=MIB,
        fill_mib=MIB,
        ladder=st.none() | LADDERS,
        last_pause=st.none() | st.floats(0, 1e6),
        labels=st.dictionaries(st.sampled_from(("tier", "owner")), st.text(max_size=3)),
        devices=st.lists(st.sampled_from(("hostdev", "disk:virtio", "tpm"))),
    )
    | st.just(STRANGER),
    max_size=8,
)
HOSTS = st.builds(
    lambda guests, reasons, memory, saves, current: host(
        *guests,
        reasons=[reason(code) for code in reasons],
        free={"memory_mib": memory, "saves_mib": saves},
        target={"release": "7.3.4", "current": current},
    ),
    GUESTS,
    st.lists(st.sampled_from(CODES), max_size=2),
    MIB,
    MIB,
    st.booleans(),
)
MATCHES = (
    "`true`",
    "`false`",
    "memory_mib > `2048`",
    "labels.tier",
    "contains(devices, 'tpm')",
    "reasons[?code=='hostdev']",
    "provider == 'qemu'",
)
RULES = st.lists(st.fixed_dictionaries({"match": st.sampled_from(MATCHES), "ladder": LADDERS}), max_size=4)
SETTINGS = st.tuples(RULES, LADDERS, st.dictionaries(st.sampled_from("abc"), LADDERS))


@held
@given(HOSTS, SETTINGS)
def test_every_plan_keeps_its_promises(facts, asked_for):
    before = copy.deepcopy((facts, asked_for))
    made = plan(facts, Policy(*asked_for))
    assert made == plan(copy.deepcopy(facts), Policy(*copy.deepcopy(asked_for))), "the same facts, another plan"
    assert (facts, asked_for) == before, "what was given is changed"
    assert [guest["name"] for guest in made["guests"]] == [guest["name"] for guest in facts["guests"]], "a guest is dropped"
    for asked, planned in zip(facts["guests"], made["guests"], strict=True):
        way, provider, codes = planned["way"], asked.get("provider"), {found["code"] for found in asked["reasons"]}
        assert way in WAYS and planned["why"]
        assert provider or way == "refuse"
        assert way != "preserve" or not codes
        assert way not in ("migrate", "save") or (
            provider == "libvirt" and not codes & {"hostdev", "qemu-blocker", "monitor", "of-tomorrow"}
        )
        assert way != "migrate" or planned["destination"] == URI
        assert way != "shutdown" or not codes & {"monitor", "not-persistent"}
        assert planned["way"] not in [over["way"] for over in planned["passed_over"]] or way in ("migrate", "refuse")
    for need in made["room"].values():
        assert need["free_mib"] is None or need["needed_mib"] <= need["free_mib"]
    assert made["room"]["saves"]["needed_mib"] == sum(
        asked["memory_mib"] + 256 for asked, planned in zip(facts["guests"], made["guests"], strict=True) if planned["way"] == "save"
    )
    refused = bool(facts["reasons"]) or any(guest["way"] == "refuse" for guest in made["guests"])
    assert made["verdict"] == ("current" if facts["target"]["current"] else "refuse" if refused else "go")
    assert bool(made["refusals"]) == (made["verdict"] == "refuse") and bool(made["steps"]) == (made["verdict"] == "go")
    assert all("\n" not in line for line in made["table"])


@held
@given(GUESTS, RULES, LADDERS)
def test_rules_are_tried_in_order(guests, rules, ladder):
    """The plan with all rules is, guest by guest, the one with only the first rule that matches it."""
    policy = Policy(rules, ladder)
    for facts in (guest(**{**facts, "ladder": None}) for facts in guests if "provider" in facts):
        alone = [Policy([rule], ["refuse"]).ladder(facts).by for rule in rules]
        first = next((number for number, by in enumerate(alone, start=1) if by), None)
        assert policy.ladder(facts).by == (f"rule {first} of hypervisor_update_policy" if first else "")


@held
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
    )
)
def test_whatever_else_is_given_as_a_policy_is_an_error_of_ours_or_a_policy(value):
    for given_as in ((value,), ((), value), ((), ["refuse"], value), ([{"match": value, "ladder": ["save"]}],)):
        try:
            ladder = Policy(*given_as).ladder(guest())
        except PolicyError:
            continue
        assert ladder.rungs


@pytest.mark.parametrize(
    ("rehearsal", "guests", "names"),
    [
        ("none", {}, []),
        ("canary", {}, ["web", "unit"]),
        ("all", {}, ["web", "db", "unit"]),
        ("none", {"db": True, "unit": False, "nobody": True}, ["db"]),
        ("canary", {"web": False, "db": True}, ["db", "unit"]),
        ("all", {"db": False}, ["web", "unit"]),
    ],
)
def test_who_is_rehearsed(rehearsal, guests, names):
    assert chosen([guest("web"), guest("db"), guest("unit", "qemu")], rehearsal, guests) == names


@pytest.mark.parametrize(("rehearsal", "names"), [("none", []), ("canary", ["db"]), ("all", ["db"])])
def test_a_paused_guest_is_never_rehearsed(rehearsal, names):
    """QEMU can save it only once, and the update has to save it. Another one is the canary."""
    assert chosen([guest("web", paused=True), guest("db", paused=False)], rehearsal, {"web": True}) == names


@pytest.mark.parametrize("wanted", ["false", "no", 0, None, []])
def test_whether_a_guest_is_rehearsed_is_true_or_false_and_nothing_else(wanted):
    """A guest must not pause because the text "false" is not empty."""
    with pytest.raises(PolicyError, match=r"hypervisor_update_rehearsal_guests, db: .* write true or false"):
        chosen([guest("web")], "none", {"web": True, "db": wanted})


@pytest.mark.parametrize("given", ["{db: false}", ["db"]])
def test_guests_to_rehearse_that_are_no_mapping_are_refused(given):
    with pytest.raises(PolicyError, match=r"hypervisor_update_rehearsal_guests is .*; write names of guests, each with true or false"):
        chosen([], "canary", given)


def test_who_stays_who_leaves_and_who_is_rehearsed_is_in_the_plan():
    """A guest that leaves is never rehearsed, and a canary is one that stays."""
    facts = host(guest("web", reasons=["hostdev"]), guest("db"), guest("app"), guest("big", reasons=["ram-anonymous"]))
    made = plan(facts, Policy([], ["preserve", {"migrate": {"to": URI, "back": False}}, "shutdown"]), "canary", {"web": True})
    assert (made["staying"], made["rehearse"]) == (["db", "app"], ["db"])
    assert made["leaving"] == [
        {"name": "web", "way": "shutdown", "destination": "", "back": True},
        {"name": "big", "way": "migrate", "destination": URI, "back": False},
    ]
    assert made["steps"][1] == "rehearse db: pause each for a moment and try to load its state"


CLUSTER = [guest("a", labels={"cluster": "sales"}), guest("b"), guest("c", labels={"cluster": "other"}), guest("d")]


def test_a_host_with_too_many_guests_that_belong_apart_is_refused():
    made = plan(host(*CLUSTER), Policy(), labels={"b": {"cluster": "sales"}, "c": {"cluster": "hr"}}, paused_max={"cluster": 1})
    assert made["members"] == {"cluster": {"sales": ["a", "b"], "hr": ["c"]}} and made["verdict"] == "refuse"
    assert made["refusals"] == [
        "hypervisor_update_paused_max allows 1 paused guests with cluster=sales, and this host runs 2: a, b - move some to other hosts,"
        " give them the way migrate (hypervisor_update_guests), or raise the limit"
    ]


def test_guests_that_migrate_and_hosts_that_are_not_updated_pause_none():
    ways = Policy(guests={"a": [{"migrate": {"to": URI}}]})
    labels = {"b": {"cluster": "sales"}}
    assert plan(host(*CLUSTER), ways, labels=labels, paused_max={"cluster": 1})["members"]["cluster"]["sales"] == ["b"]
    current = host(*CLUSTER, target={"release": "7.3.4", "current": True})
    assert plan(current, Policy(), labels=labels, paused_max={"cluster": 1})["members"] == {}
    assert plan(host(*CLUSTER), Policy(), labels=labels)["members"] == {}


def test_labels_of_the_inventory_count_in_rules():
    pytest.importorskip("jmespath")
    rules = Policy([{"match": "labels.cluster == 'sales'", "ladder": ["save"]}])
    made = plan(host(guest("a"), guest("b")), rules, labels={"b": {"cluster": "sales"}})
    assert [found["way"] for found in made["guests"]] == ["preserve", "save"]
    with pytest.raises(PolicyError, match="write labels with values"):
        plan(host(guest("a")), Policy(), labels={"a": "sales"})


def test_each_label_and_each_value_has_its_own_limit():
    guests = [guest("a", labels={"cluster": "x", "quorum": "x"}), guest("b", labels={"cluster": "y", "quorum": "x"})]
    made = plan(host(*guests), Policy(), paused_max={"cluster": 1, "quorum": 2})
    assert made["members"] == {"cluster": {"x": ["a"], "y": ["b"]}, "quorum": {"x": ["a", "b"]}} and made["verdict"] == "go"
    assert plan(host(*guests), Policy(), paused_max={"cluster": 1, "quorum": 1})["verdict"] == "refuse"


@pytest.mark.parametrize(("ladder", "counts"), [("preserve", True), ("save", True), ("shutdown", True), ("migrate", False)])
def test_every_guest_that_stands_still_counts(ladder, counts):
    rung = {"migrate": {"to": "qemu+ssh://spare/system"}} if ladder == "migrate" else ladder
    one = guest("a", provider="libvirt", labels={"cluster": "x"})
    made = plan(host(one), Policy([{"match": "name == 'a'", "ladder": [rung]}]), paused_max={"cluster": 1})
    assert made["guests"][0]["way"] == ladder and bool(made["members"]) is counts


def test_essential_guests_are_found_by_name_and_pattern_and_shown():
    made = plan(host(*CLUSTER), Policy(), essential=["a", "[cx]*", "elsewhere"])
    assert made["essential"] == ["a", "c"] and "Essential guests: a, c. This host is updated last, alone." in made["table"]
    assert made["essential_absent"] == ["elsewhere"]
    assert plan(host(*CLUSTER), Policy())["essential"] == plan(host(*CLUSTER), Policy())["essential_absent"] == []
    assert plan(host(), Policy(), essential=["a", "[cx]*"])["essential_absent"] == ["a", "[cx]*"]


LEASE = {"run": "r", "by": "alice on ctl", "begun": 100.0, "since": 100.0, "seconds": 60, "until": "04:00", "left": 9.0}
LEASE |= {"own": False, "ended": False}


@pytest.mark.parametrize(("about", "verdict"), [({}, "refuse"), ({"left": 0}, "go"), ({"own": True}, "go"), ({"ended": True}, "go")])
def test_a_host_that_another_run_updates_is_refused(about, verdict):
    made = plan(host(guest(), lease={**LEASE, **about}), Policy())
    assert made["verdict"] == verdict and ("another run updates this host: alice on ctl" in "".join(made["refusals"])) == (verdict != "go")
    assert made["refusals"] == ([made["other_run"]] if verdict == "refuse" else []) and bool(made["other_run"]) == (verdict == "refuse")


JUMPED = {
    "id": "u1",
    "outcome": "jumped",
    "boot_id": "b1",
    "kernel": {"release": "7.2.13"},
    "guests": ["web"],
    "times": {"committed": 101.0},
}
COLD = {**JUMPED, "outcome": "rebooted", "state": "jumping"}
ON_OLD = {"kernel": {"release": "7.2.13"}, "target": {"release": "7.3.4", "current": False}}


@pytest.mark.parametrize(
    ("about", "unfinished"),
    [
        ({}, True),
        ({"lease": {}}, False),
        ({"lease": {**LEASE, "left": 0, "since": 109.0}}, True),
        ({"lease": {**LEASE, "left": 0, "begun": 102.0, "since": 102.0}}, False),
        ({"last_update": {**JUMPED, "outcome": "rebooted", "state": "jumping"}}, True),
        ({"last_update": {**JUMPED, "outcome": "rebooted", "state": "stopping"}}, True),
        ({"last_update": COLD, **ON_OLD}, True),
        ({"last_update": {**COLD, "state": "saving"}, **ON_OLD}, True),
        ({"last_update": {**COLD, "state": "stopping"}, **ON_OLD}, True),
        ({"last_update": {**COLD, "state": "committed"}, **ON_OLD}, True),
        ({"last_update": {**COLD, "guests": []}, **ON_OLD}, False),
        ({"last_update": COLD, **ON_OLD, "lease": {}}, False),
        ({"last_update": {**JUMPED, "outcome": "aborted"}}, False),
        ({"target": {"release": "7.4.0", "current": False}}, False),
    ],
    ids=[
        "left by a run",
        "no lease",
        "left by a second run, too",
        "the lease is newer than the update",
        "a cold boot in the middle of the jump",
        "a cold boot before the pause",
        "a cold boot of the old kernel in the middle of the jump",
        "a cold boot of the old kernel in the pause",
        "a cold boot of the old kernel before the pause",
        "a cold boot of the old kernel after the commit",
        "a cold boot of the old kernel without guests",
        "a cold boot of the old kernel, and it was reported",
        "undone before the jump",
        "another kernel is wanted",
    ],
)
def test_an_update_whose_run_ended_after_the_jump_is_unfinished(about, unfinished):
    now = {"boot_id": "b2", "kernel": {"release": "7.3.4"}, "target": {"release": "7.3.4", "current": True}}
    facts = {**now, "lease": {**LEASE, "left": 0}, "last_update": JUMPED, **about}
    made = plan(host(guest(), guest("db"), **facts), Policy())
    assert bool(made["unfinished"]) == unfinished
    if unfinished:
        old, rebooted = about.get("kernel", {}).get("release") == "7.2.13", about.get("last_update", JUMPED)["outcome"] == "rebooted"
        assert made["verdict"] == ("unfinished" if old else "current") and made["staying"] == ["web"]
        told = " ".join(made["table"])
        assert "This run checks" in told and ("The host did a cold boot" in told) == rebooted
        assert made["unfinished"]["outcome"] == ("rebooted" if rebooted else "jumped")
        after = {name: made["unfinished"][name] for name in ("kernel_before", "kernel_after", "boot_id_before", "boot_id_after")}
        now = "7.2.13" if old else "7.3.4"
        assert after == {"kernel_before": "7.2.13", "kernel_after": now, "boot_id_before": "b1", "boot_id_after": "b2"}
        assert (f"or after it, and runs kernel {now} now. Its console" in made["unfinished"].get("msg", "")) == rebooted
        assert made["unfinished"].get("msg", "").endswith("Then run the update again") == old


def test_a_guest_that_was_discarded_and_does_not_run_is_not_waited_for():
    """It is gone for good: each run would fail for it. One that was discarded and runs again has lost its memory, and this is reported."""
    now = {"boot_id": "b2", "kernel": {"release": "7.3.4"}, "target": {"release": "7.3.4", "current": True}, "lease": {**LEASE, "left": 0}}
    last = {**JUMPED, "guests": ["app", "db", "web"], "discarded": ["app", "db"]}
    made = plan(host(guest(), guest("db"), **now, last_update=last), Policy())
    assert made["staying"] == ["db", "web"]
    assert "WARNING: these guests were discarded and do not run, so the update does not wait for them: app" in made["table"]
    made = plan(host(guest(), **now, last_update={**last, "discarded": []}), Policy())
    assert made["staying"] == ["app", "db", "web"] and "WARNING" not in "".join(made["table"])


def test_a_host_whose_guests_are_lost_is_not_updated_before_that_is_reported():
    """So nothing that speaks against an update of it counts."""
    waits = {"code": "not-back", "message": "an update saved guest web", "remedy": "discard it"}
    facts = {"boot_id": "b2", "lease": {**LEASE, "left": 0}, "last_update": COLD, **ON_OLD}
    odd = guest("web", reasons=["hostdev"], last_pause=90.0, labels={"cluster": "x"})
    made = plan(host(odd, **facts, reasons=[reason("cmdline")]), Policy(), blackout_max=5.0, paused_max={"cluster": 1})
    assert (made["verdict"], made["refusals"], made["members"], made["steps"]) == ("unfinished", [], {}, [])
    assert made["table"][-1] == "It does not update the host. To update it to Linux 7.3.4, run the update again."
    made = plan(host(odd, **facts, reasons=[waits]), Policy())
    assert (made["verdict"], made["refusals"]) == ("refuse", ["an update saved guest web - discard it"])
    assert plan(host(odd, **{**facts, "lease": {**LEASE, "left": 9.0}}), Policy())["verdict"] == "refuse"
