# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Expressions of the role that decide what happens to a host, without a run of Ansible. Its filters are stand-ins that do the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.filter._update_batches import update_batches
from ansible_collections.kvm.liveupdate.plugins.filter._update_gate import update_gate
from ansible_collections.kvm.liveupdate.plugins.filter._update_not_together import update_not_together
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._failure import failure
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._refusals import without_memory
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._result import CHECK_MEMORY
from jinja2 import meta
from jinja2.nativetypes import NativeEnvironment

ROLE = Path(__file__).parents[3] / "roles/hypervisor_update"
ENVIRONMENT = NativeEnvironment()
ENVIRONMENT.filters |= {
    "bool": bool,
    "difference": lambda ours, theirs: [each for each in ours if each not in theirs],
    "extract": lambda name, hosts, fact=None: hosts[name][fact] if fact else hosts[name],
    "flatten": lambda lists: [each for one in lists for each in one],
    "items2dict": lambda items, key_name, value_name: {item[key_name]: item[value_name] for item in items},
    "kvm.liveupdate._failure": failure,
    "kvm.liveupdate._update_batches": update_batches,
    "kvm.liveupdate._update_gate": update_gate,
    "kvm.liveupdate._update_not_together": update_not_together,
    "kvm.liveupdate._without_memory": without_memory,
}
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | yaml.safe_load((ROLE / "vars/main.yml").read_text())


def value(text: object, **given: object) -> object:
    """What a text of the role is with these variables. Those that are not given are the role's own."""
    if not isinstance(text, str) or "{" not in text:
        return text
    wanted = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
    known = {name: value(DEFAULTS[name], **given) for name in wanted if name in DEFAULTS and name not in given}
    return ENVIRONMENT.from_string(text).render(**known, **given)


def every_task(file: Path) -> list[dict]:
    """The tasks of a file or of the plays in it, also those in blocks: first those outside of them."""
    found = list(yaml.safe_load(file.read_text()))
    for task in found:
        found += [inner for part in ("pre_tasks", "tasks", "block", "rescue", "always") for inner in task.get(part, [])]
    return found


def tasks(file: str) -> dict[str, dict]:
    """The tasks of a file of the role by their names."""
    return {task["name"]: task for task in every_task(ROLE / f"tasks/{file}.yml")}


def when(task: dict, **given: object) -> bool:
    """Whether a task runs."""
    return bool(value(f"{{{{ {task['when']} }}}}", **given))


GO, CURRENT, REFUSED = ({"verdict": verdict, "unfinished": {}} for verdict in ("go", "current", "refuse"))
UNFINISHED = {"verdict": "current", "unfinished": {"outcome": "jumped"}}
LOST = {"verdict": "unfinished", "unfinished": {"outcome": "rebooted", "msg": "a cold boot", "journal": {"id": "u1"}}}
HOOK = {"hypervisor_update_after": ["/after.yml"]}
CHECK = {"hypervisor_update_check_commands": ["true"]}


@pytest.mark.parametrize(
    ("plan", "more", "acts", "begins", "continues"),
    [
        (GO, {}, True, True, False),
        (CURRENT, {}, False, False, False),
        (CURRENT, HOOK, True, False, False),
        (CURRENT, {"hypervisor_update_before": ["/before.yml"]}, True, False, False),
        (UNFINISHED, {}, True, False, True),
        (LOST, {}, True, False, True),
        (REFUSED, HOOK, False, False, False),
        ({**UNFINISHED, "verdict": "refuse"}, HOOK, False, False, True),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True])
def test_what_a_run_does_on_a_host_that_another_run_must_not_do_at_the_same_time(plan, more, acts, begins, continues, check_mode):
    given = {"__hypervisor_update_plan": plan, "ansible_check_mode": check_mode, **more}
    names = ("acts", "begins", "continues")
    told = [value(DEFAULTS[f"__hypervisor_update_{name}"], **given) for name in names]
    assert told == ([False] * 3 if check_mode else [acts, begins, continues])


def test_a_host_is_touched_under_the_lease_only():
    """What acts on a host comes after the lease. What only says something of it does not."""
    names = list(tasks("main"))
    lease = names.index("Take the lease")
    later = (
        "Run the checks and tasks before the update",
        "Start the update",
        "Finish the update of an earlier run",
        "Set the boot default",
    )
    assert all(names.index(name) > lease for name in later)
    take = tasks("main")["Take the lease"]
    given = {"__hypervisor_update_plan": GO, "ansible_check_mode": False}
    assert when(take, **given)
    assert not when(take, **given, __hypervisor_update_lease={"taken_over": ""})  # look_again.yml took it already
    back = tasks("main")["Give the lease back"]
    held = {"__hypervisor_update_lease": {"taken_over": ""}}
    assert when(back, hypervisor_update_result={"outcome": "failed"}, **held)
    assert not when(back, hypervisor_update_result={"outcome": "lost"}, **held)
    assert not when(back, hypervisor_update_result={"outcome": "refused"}, __hypervisor_update_lease={"failed": True, "msg": "no"})
    assert back["failed_when"] is False


@pytest.mark.parametrize(
    ("lease", "ended"),
    [({}, ""), (None, ""), ({"run": "r", "ended": True}, "r"), ({"run": "r", "ended": False}, ""), ({"run": "r"}, "")],
)
def test_only_the_lease_of_a_run_that_has_certainly_ended_is_taken_over(lease, ended):
    task = tasks("lease")["Take the lease of the host"]
    found = value(task["vars"]["__lease"], __hypervisor_update_host={"lease": lease})
    module = task["kvm.liveupdate.update_lease"]
    assert value(module["ended"], __lease=found) == ended


@pytest.mark.parametrize(("plan", "seconds"), [({}, 1980), ({"__hypervisor_update_plan": {"check_pause": 60.5}}, 2040)])
def test_the_lease_lasts_from_the_commit_until_the_guests_are_verified(plan, seconds):
    for file, name in (("lease", "Take the lease of the host"), ("renew", "Renew the lease of the host")):
        asked = tasks(file)[name]["kvm.liveupdate.update_lease"]["seconds"]
        assert value(asked, hypervisor_update_timeout="1800", hypervisor_update_restore_timeout=180, **plan) == seconds


def undo_of(jump: dict, staying: tuple = (), leaving: tuple = ()) -> list[str]:
    """The files of an undo, in their order."""
    task = tasks("undo")["Undo each step"]
    facts = {"__hypervisor_update_jump": jump, "__hypervisor_update_staying": staying, "__hypervisor_update_leaving": leaving}
    for name, text in task["vars"].items():
        facts[name] = value(text, **facts)
    return value(task["loop"], **facts)


@pytest.mark.parametrize(
    ("jump", "files"),
    [
        ({}, ["renew.yml", "release.yml", "unload.yml", "bring_back.yml"]),
        ({"outcome": "undone", "journal": {}}, ["renew.yml", "bring_back.yml"]),
        ({"outcome": "gone"}, ["release.yml", "unload.yml"]),
        ({"outcome": "gone", "journal": {}}, []),
    ],
)
def test_what_an_undo_does(jump, files):
    assert undo_of(jump, ("web",), ("db",)) == files
    # Where nothing else is to do, a failure to renew the lease is no reason to call the undo incomplete.
    assert undo_of(jump) == ([name for name in files if name in ("renew.yml", "unload.yml")] if "unload.yml" in files else [])


def test_the_lease_is_renewed_after_what_may_take_long_and_before_what_may():
    """A step that takes longer than the lease must not leave the next one without."""
    for file, around in (
        ("begin", ["Check the health before the update", "Run the tasks before the update", "Renew the lease"]),
        ("prepare_guests", ["Rehearse guests that stay", "Renew the lease", "Send guests away that leave"]),
        ("recover", ["Bring back guests that an earlier update sent away", "Renew the lease", "Look"]),
        ("return", ["Renew the lease", "Bring guests back"]),
    ):
        assert list(tasks(file)) == around
    # An undo goes on also if the lease cannot be renewed (test_an_undo_is_done_although_its_lease_cannot_be_renewed).
    assert undo_of({})[0] == "renew.yml"
    assert tasks("update")["Bring guests back"]["ansible.builtin.include_tasks"] == "return.yml"
    renew = tasks("renew")["Renew the lease of the host"]
    assert "register" not in renew  # the report says whose lease was taken over
    assert when(renew, __hypervisor_update_lease={"taken_over": ""}) and not when(renew)  # in check mode there is none


@pytest.mark.parametrize(
    ("plan", "options", "check", "ran"),
    [
        (GO, {}, False, []),
        (GO, CHECK, False, ["Check the health before the update", "Renew the lease"]),
        (GO, HOOK, False, ["Run the tasks before the update", "Renew the lease"]),
        (GO, CHECK | HOOK, False, ["Check the health before the update", "Run the tasks before the update", "Renew the lease"]),
        (GO, CHECK | HOOK, True, []),
        (CURRENT, CHECK, False, []),
        (CURRENT, CHECK | HOOK, False, ["Run the tasks before the update"]),
    ],
)
def test_what_runs_before_an_update(plan, options, check, ran):
    given = {"__hypervisor_update_plan": plan, "ansible_check_mode": check, **options}
    begins = when(tasks("main")["Run the checks and tasks before the update"], **given)
    assert [name for name, task in tasks("begin").items() if begins and when(task, **given)] == ran


@pytest.mark.parametrize(
    ("due", "options", "late", "ran"),
    [
        (False, {}, [], []),
        (True, {}, [], ["Run the tasks after the update"]),
        (False, {"hypervisor_update_check_tasks": ["/check.yml"]}, [], ["Check the health after the update"]),
        (True, {}, ["bad"], ["Run the tasks after the update", "Sum up what failed after the update"]),
    ],
)
def test_what_runs_after_an_update(due, options, late, ran):
    given = {"hypervisor_update_result": {"outcome": "updated", "guests_lost": []}, "__hypervisor_update_late": late, **options}
    given |= {"__hypervisor_update_after_due": True} if due else {}
    ends = when(tasks("main")["Run the tasks and checks after the update"], **given)
    assert [name for name, task in tasks("end").items() if ends and when(task, **given)] == ran


@pytest.mark.parametrize(
    ("places", "nowhere"),
    [
        ({}, []),
        ({"hv1": ([], [])}, []),
        ({"hv1": (["dns1"], ["awx"]), "hv2": (["awx"], ["dns1"])}, []),
        ({"hv1": (["dns1"], ["dsn2", "gw*"]), "hv2": (["gw*"], ["dns1", "dsn2"])}, ["dsn2"]),
        ({"hv1": ([], ["dsn2"]), "hv2": ([], ["dsn2"])}, ["dsn2"]),
        ({"hv1": ([], []), "hv2": ([], ["dsn2"])}, ["dsn2"]),  # an option of one host
    ],
)
def test_an_essential_guest_that_no_host_of_the_run_has_is_told(places, nowhere):
    task = tasks("batches")["Warn about essential guests that no host of this run has"]
    known = {name: {"__hypervisor_update_place": {"present": present, "absent": absent}} for name, (present, absent) in places.items()}
    groups = {"kvm_liveupdate_fit": list(places)} if places else {}
    given = {"ansible_play_hosts_all": [*places, "refused"], "groups": groups, "hostvars": known}
    given["__places"] = value(task["vars"]["__places"], **given)
    assert value(task["vars"]["__nowhere"], **given) == nowhere
    assert when(task, __nowhere=nowhere, groups=groups) is bool(nowhere)
    assert not when(task, __nowhere=["dsn2"], groups={"kvm_liveupdate_stop": ["hv3"]})
    assert task["run_once"] is True


@pytest.mark.parametrize(("lease", "ended"), [({}, ""), ({"run": "r", "ended": True}, "r"), ({"run": "r", "ended": False}, "")])
def test_the_boot_default_is_not_changed_under_another_run(lease, ended):
    """There a host that runs the kernel already has no lease of this run."""
    task = tasks("boot_default")["Make the new kernel the boot default"]
    found = value(task["vars"]["__lease"], __hypervisor_update_host={"lease": lease})
    module = task["kvm.liveupdate.boot_default"]
    assert module["only_kept"] is True and value(module["ended"], __lease=found) == ended


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(("plan", "checks"), [(GO, False), (CURRENT, True), (LOST, False)])
def test_check_mode_looks_at_the_boot_default_of_a_host_that_has_the_kernel(plan, checks, check_mode):
    task = tasks("main")["Set the boot default"]
    assert when(task, __hypervisor_update_plan=plan, ansible_check_mode=check_mode) is (checks or not check_mode)


@pytest.mark.parametrize(
    ("plan", "outcome", "state", "stops"),
    [
        (UNFINISHED, "jumped", "lost", False),
        (UNFINISHED, "rebooted", "lost", True),
        (UNFINISHED, "rebooted", "restored", False),  # the boot was after the update, and the new kernel is there
        (LOST, "rebooted", "lost", True),
        (LOST, "rebooted", "restored", True),
    ],
)
def test_a_cold_boot_fails_the_host_and_not_only_its_guests(plan, outcome, state, stops):
    """The step is not the one that hypervisor_update_lost_max tolerates."""
    last = {"state": state, "update_id": "u1"}
    given = {"__hypervisor_update_plan": plan, "__hypervisor_update_jump": {"outcome": outcome, "journal": {"id": "u1"}}}
    given["__hypervisor_update_guests"] = {"guests": [{"name": "web", "last_update": last}]}
    stop, check = tasks("finish")["Stop after a cold boot"], tasks("verify")[CHECK_MEMORY]
    assert when(stop, **given, __lost=value(stop["vars"]["__lost"], **given)) is stops
    without = value(check["vars"]["__without_memory"], **given)
    assert when(check, **given, __without_memory=without) is (outcome == "jumped" and state == "lost")


def test_a_second_look_takes_the_lease_before_it_brings_guests_back():
    found = tasks("look_again")
    assert list(found) == ["Look", "Take the lease", "Bring back guests that are away", "Plan", "Check the batch again"]
    for away, check_mode, takes in (([], False, False), (["db"], False, True), (["db"], True, False)):
        given = {"__hypervisor_update_host": {"away": away}, "ansible_check_mode": check_mode}
        assert when(found["Take the lease"], **given) is takes


def test_a_second_look_checks_the_batch_again():
    """Not in check mode, where all hosts are together, and not where somebody uses the role without the playbook."""
    again = tasks("look_again")["Check the batch again"]
    assert when(again, __hypervisor_update_batches={"hv1": 1}, ansible_check_mode=False)
    assert not when(again, __hypervisor_update_batches={"hv1": 1}, ansible_check_mode=True)
    assert not when(again, ansible_check_mode=False)


@pytest.mark.parametrize(
    ("number", "second", "refused"),
    [(1, "go", ["hv1"]), (1, "current", ["hv1"]), (2, "go", ["hv1"]), (2, "current", []), (2, "refuse", []), (3, "current", [])],
)
def test_only_hosts_that_are_about_to_jump_count_in_their_batch(number, second, refused):
    """The batches 1 and 2 come before those of hosts with essential guests. hv1 runs one now."""
    given = {"__hypervisor_update_batches": {"hv1": number, "hv2": number}, "__hypervisor_update_ordinary": 2}
    given |= {"inventory_hostname": "hv2", "ansible_play_batch": ["hv1", "hv2"], "hostvars": {}}
    for name, verdict, essential in (("hv1", "go", ["dns"]), ("hv2", second, [])):
        place = {"name": name, "apart": "", "plan": {"essential": essential, "members": {}}}
        given["hostvars"][name] = {"__hypervisor_update_plan": {"verdict": verdict}, "__hypervisor_update_place": place}
    look = tasks("check_batch")["Look for hosts that must not be updated with this batch any more"]
    assert list(value(look["ansible.builtin.set_fact"]["__hypervisor_update_not_together"], **given)) == refused
    assert look["run_once"] is True


@pytest.mark.parametrize(
    ("places", "ordinary", "moves"),
    [({"hv1": ([], False), "hv2": ([], False)}, 2, False), ({"hv1": (["dns"], False), "hv2": ([], True), "hv3": ([], False)}, 2, True)],
)
def test_what_the_batches_say_of_later_moves(places, ordinary, moves):
    task = tasks("batches")["Plan the batches"]
    known = {
        name: {"name": name, "apart": "", "plan": {"essential": essential}, "moves": goes} for name, (essential, goes) in places.items()
    }
    given = {"ansible_play_hosts_all": [*places, "refused"], "groups": {"kvm_liveupdate_fit": list(places)}}
    given["hostvars"] = {name: {"__hypervisor_update_place": place} for name, place in known.items()}
    for name in ("__places", "__made"):
        given[name] = value(task["vars"][name], **given)
    told = {name: value(text, **given) for name, text in task["ansible.builtin.set_fact"].items()}
    assert (told["__hypervisor_update_ordinary"], told["__hypervisor_update_moves"]) == (ordinary, moves)
    assert set(told["__hypervisor_update_batches"]) == set(places)


@pytest.mark.parametrize(("verdict", "back", "moves"), [("go", False, True), ("go", True, False), ("current", False, False)])
def test_guests_that_stay_at_their_destination_are_known_with_the_place_of_the_host(verdict, back, moves):
    place = tasks("place")["Read the failure domain of the host"]["ansible.builtin.set_fact"]["__hypervisor_update_place"]
    plan = {"verdict": verdict, "leaving": [{"name": "web", "back": True}, {"name": "db", "back": back}]}
    assert value(place["moves"], __hypervisor_update_plan=plan) is moves


@pytest.mark.parametrize(
    ("age", "away", "outcome", "others", "fresh"),
    [
        (0.0, [], "checked", [], True),
        (299.0, [], "current", [], True),
        (300.0, [], "checked", [], False),
        (-1.0, [], "checked", [], False),  # the clock was set back
        (1.0, ["db"], "checked", [], False),
        (1.0, [], "refused", [], False),
        (1.0, [], "checked", [{"away": [], "examined_at": 900.0}], True),
        (1.0, [], "checked", [{"away": [], "examined_at": 700.0}], False),
        (1.0, [], "checked", [{"away": ["db"], "examined_at": 1000.0}], False),  # whose guest may have to be apart from one here
    ],
)
def test_an_old_examination_is_repeated(age, away, outcome, others, fresh):
    """That of any host of the batch."""
    own = {"away": away, "examined_at": 1000.0}
    hosts = {f"hv{number}": {"__hypervisor_update_host": host} for number, host in enumerate([own, *others], 1)}
    given = {
        "now": lambda: SimpleNamespace(timestamp=lambda: 1000.0 + age),
        "hypervisor_update_result": {"outcome": outcome},
        "ansible_play_batch": [*hosts, "hv9"],  # which does not answer
        "hostvars": {**hosts, "hv9": {}},
    }
    assert bool(value(DEFAULTS["__hypervisor_update_fresh"], **given)) is fresh
    assert not value(DEFAULTS["__hypervisor_update_fresh"], **given, __hypervisor_update_moves=True)


def decide(last: dict[str, dict], there: list[str], **more: object) -> dict:
    """What the gate says before batch 2. ``last`` are the hosts of batch 1 with what is known of them."""
    task = tasks("gate")["Decide whether this batch begins"]
    given = {
        "groups": {"kvm_liveupdate_batch_00001": list(last), "kvm_liveupdate_batch_00002": ["hv9"]},
        "hostvars": {name: {"inventory_hostname": name, **known} for name, known in last.items()},
        "inventory_hostname": "hv9",
        "__hypervisor_update_batches": {**dict.fromkeys(last, 1), "hv9": 2},
        "ansible_play_hosts": there,
        "__hypervisor_update_request": {"skipped": True},
        **more,
    }
    for name in ("__last", "__before", "__results", "__file"):
        given[name] = value(task["vars"][name], **given)
    return value(task["ansible.builtin.set_fact"]["__hypervisor_update_gate"], **given)


def result(outcome: str, **more: object) -> dict:
    return {"hypervisor_update_result": {"outcome": outcome, "over_budget": "", "step": "", "guests_lost": [], **more}}


NOTHING = {"__hypervisor_update_gate": {"undone": [], "lost": 0, "stop": "", "on_request": False}}


def test_the_gate_looks_at_the_batch_before():
    well = {"hv1": {**result("updated"), **NOTHING}}
    assert decide(well, ["hv1", "hv9"])["stop"] == ""
    assert decide({"hv1": {**result("failed"), **NOTHING}}, ["hv1", "hv9"])["stop"] == "hv1 failed"
    assert decide(well, ["hv9"])["stop"] == "hv1 did not finish its update"  # a task found it unreachable
    assert decide({}, ["hv9"])["stop"] == ""  # the first batch


def test_the_gate_keeps_the_figures_of_all_batches():
    before = {"__hypervisor_update_gate": {"undone": ["hv0"], "lost": 0, "stop": "", "on_request": False}}
    told = decide({"hv1": {**result("undone"), **before}}, ["hv1", "hv9"], hypervisor_update_undone_max=1)
    assert told["undone"] == ["hv0", "hv1"] and "hv0, hv1" in told["stop"]


def test_the_gate_knows_the_limits_and_the_window():
    there, undone = ["hv1", "hv9"], {"hv1": {**result("undone"), **NOTHING}}
    lost = {"hv1": {**result("failed", step=CHECK_MEMORY, guests_lost=["web"]), **NOTHING}}
    well = {"hv1": {**result("updated"), **NOTHING}}
    assert decide(undone, there)["stop"] and not decide(undone, there, hypervisor_update_undone_max=1)["stop"]
    assert decide(lost, there)["stop"] and not decide(lost, there, hypervisor_update_lost_max=1)["stop"]
    assert decide(well, there, hypervisor_update_until="2020-01-01T00:00Z")["on_request"]


def test_a_request_to_stop_that_fails_does_not_fail_the_host_and_stops_the_run():
    look = tasks("gate")["Look for the file that stops the run"]
    assert look["failed_when"] is False and look["ignore_unreachable"] is True and look["run_once"] is True
    assert look["ignore_errors"] is True
    assert look["register"] == "__hypervisor_update_request"
    for file, check_mode, looks in (("", False, False), ("/stop", True, False), ("/stop", False, True)):
        assert when(look, hypervisor_update_stop_file=file, ansible_check_mode=check_mode) is looks
    well = {"hv1": {**result("updated"), **NOTHING}}
    told = decide(well, ["hv1", "hv9"], __hypervisor_update_request={"unreachable": True}, hypervisor_update_stop_file="/stop")
    assert told["on_request"] and told["stop"].startswith("it is unknown whether the file /stop on localhost exists")


@pytest.mark.parametrize("told", [{}, {"stop": ""}, {"stop": "hv1 failed"}, None])
def test_the_play_ends_if_the_gate_says_so(told):
    given = {} if told is None else {"__hypervisor_update_gate": told}
    end = tasks("gate")["Stop the run"]
    assert end["ansible.builtin.meta"] == "end_play" and when(end, **given) is bool((told or {}).get("stop"))


@pytest.mark.parametrize("outcome", ["updated", "undone", "failed", "refused", "current", "lost"])
def test_the_tasks_after_an_update_run_on_the_host_or_for_a_lost_one_on_the_controller(outcome):
    given = {"hypervisor_update_result": {"outcome": outcome}}
    found = tasks("after_file")
    there, here = found["Run the tasks on the host"], found["Run the tasks on the controller"]
    assert [when(there, **given), when(here, **given)] == [outcome != "lost", outcome == "lost"]
    assert here["ansible.builtin.include_tasks"]["apply"] == {"delegate_to": "localhost", "become": False}
    # A lost host cannot renew its lease, and one that runs the kernel already took it just now.
    assert when(tasks("after")["Prepare the tasks after the update"], **given) is (outcome not in ("lost", "current"))
    assert next(iter(tasks("before"))) == "Remember that the tasks after the update are due"


@pytest.mark.parametrize(
    ("known", "step", "told"),
    [
        ({}, "", {"late": ["it does not end"], "step": "Undrain", "lost": False}),
        ({"__hypervisor_update_late": ["one"]}, "Jump", {"late": ["one", "it does not end"], "step": "Jump", "lost": False}),
        ({"__hypervisor_update_lost": True}, "Jump", {"late": ["it does not end"], "step": "Jump", "lost": True}),
        ({"lost": True}, "", {"late": ["it does not end"], "step": "Undrain", "lost": True}),
    ],
)
def test_all_late_failures_are_kept_and_an_earlier_one_remains_the_first_reason(known, step, told):
    task = tasks("late_failure")["Keep the failure"]
    known = dict(known)
    given = {
        "ansible_failed_result": {"failed": True, "msg": "it does not end", **({"lost": known.pop("lost")} if "lost" in known else {})},
        "__hypervisor_update_step": step,
        "ansible_failed_task": SimpleNamespace(name="Undrain"),
        **known,
    }
    given |= {name: value(text, **given) for name, text in task["vars"].items()}
    facts = task["ansible.builtin.set_fact"]
    assert {name: value(facts[f"__hypervisor_update_{name}"], **given) for name in told} == told
    assert "__hypervisor_update_why" not in facts


@pytest.mark.parametrize(
    ("result", "checks"),
    [
        ({"outcome": "updated", "guests_lost": []}, True),
        ({"outcome": "undone", "guests_lost": []}, True),
        ({"outcome": "failed", "guests_lost": ["web"]}, True),
        ({"outcome": "failed", "guests_lost": []}, False),
        ({"outcome": "lost", "guests_lost": ["web"]}, False),
        ({"outcome": "current", "guests_lost": []}, False),
    ],
)
def test_the_health_is_checked_after_each_host_after_which_the_run_may_go_on(result, checks):
    task = tasks("end")["Check the health after the update"]
    given = {"hypervisor_update_result": result}
    assert when(task, **given, **CHECK) is checks and not when(task, **given)


@pytest.mark.parametrize(
    ("results", "bad"),
    [
        ([{"rc": 0}, {"rc": 0}], []),
        ([{"rc": 0}, {"rc": 3}, {"unreachable": True, "msg": "no route"}], [{"unreachable": True, "msg": "no route"}, {"rc": 3}]),
    ],
)
def test_a_check_that_could_not_run_is_a_check_that_fails(results, bad):
    task = tasks("health")["Stop at a check that fails"]
    found = value(task["vars"]["__all"], __hypervisor_update_health={"results": results})
    assert value(task["vars"]["__bad"], __all=found) == bad


# These connect to no host.
HERE = ("debug", "fail", "group_by", "import_tasks", "include_tasks", "meta", "set_fact", "set_stats")
FILES = [*(ROLE / "tasks").glob("*.yml"), *(ROLE.parents[1] / "playbooks").glob("*.yml"), *ROLE.parent.glob("*/tasks/*.yml")]


@pytest.mark.parametrize("file", sorted(set(FILES)), ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_a_task_that_runs_once_and_may_find_its_host_unreachable_does_not_fail_all_hosts(file):
    """Ansible does that although it is ignored, and shows no reason."""
    for task in every_task(file):
        if task.get("run_once") and task.get("ignore_unreachable"):
            assert task.get("ignore_errors") is True, task["name"]


@pytest.mark.parametrize("file", sorted((ROLE / "tasks").glob("*.yml")), ids=lambda file: file.stem)
def test_no_task_of_an_update_leaves_the_role_because_its_host_is_unreachable(file):
    """Then neither rescue nor always would run. The modules of the collection fail instead (plugin_utils/_lost_host.py)."""
    for task in every_task(file) if file.stem != "collect" else ():
        modules = [name for name in task if name.startswith("ansible.builtin.") and name.rpartition(".")[2] not in HERE]
        if modules and task.get("delegate_to") != "localhost":
            assert task.get("ignore_unreachable") is True, f"{task['name']}: {modules}"
