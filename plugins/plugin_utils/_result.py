# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an update did to one host, and to all hosts of a run. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import typed

from ._budget import paused_too_long
from ._failure import AFTER_COLD_BOOT
from ._stamps import blackout

__all__ = ("CHECK_MEMORY", "OUTCOMES", "outcome", "result", "summary")

# How the update of a host can end, in words.
OUTCOMES = {
    "updated": "updated",
    "current": "already on this kernel",
    "refused": "refused, not touched",
    "left_out": "skipped, not touched",
    "undone": "undone before the jump",
    "failed": "failed",
    "lost": "lost during the update",
    "checked": "examined only",
}
# The ends with which a host fails.
STOPS = ("refused", "undone", "failed", "lost")
# The step at which a host fails only because guests have lost their memory (tasks/verify.yml).
CHECK_MEMORY = "Check that each guest kept its memory"
# How much the statistic of a run says: AWX hands it to all later nodes of a workflow.
_BRIEF_HOSTS = 20
_BRIEF_TEXT = 300
# Between the first failure of a host and a later one.
_ALSO = "; then this failed too: "
_CUT_OFF = (
    "a task could not reach this host, or the host that it is delegated to. Ansible has run no other task of this host since then, also"
    " none of hypervisor_update_after. When the hosts answer, repeat the command"
)


def outcome(
    host: dict[str, t.Any],
    plan: dict[str, t.Any],
    jump: dict[str, t.Any],
    why: str,
    check_mode: bool = False,
    left_out: bool = False,
    step: str = "",
    lost: bool = False,
    undo: str = "",
    late: t.Sequence[str] = (),
) -> str:
    """One of :data:`OUTCOMES`. The arguments are those of :func:`result`."""
    if left_out:
        return "left_out"
    if not host:
        return "lost" if lost else "failed"
    if host.get("failed") or host.get("unreachable") or plan.get("verdict", "refuse") == "refuse":
        return "refused"
    if why or late:
        if lost:
            return "lost"
        begun = step and plan["verdict"] == "go"  # on a host that runs the kernel already, only the tasks after the update can fail
        return "undone" if begun and not undo and not late and jump.get("outcome", "aborted") == "aborted" else "failed"
    if plan["verdict"] == "current" and not jump:
        return "current"
    return "checked" if check_mode or not jump else "updated"


def result(
    host: dict[str, t.Any],
    plan: dict[str, t.Any] | None = None,
    jump: dict[str, t.Any] | None = None,
    guests: t.Sequence[dict[str, t.Any]] = (),
    why: str = "",
    check_mode: bool = False,
    left_out: bool = False,
    away: t.Sequence[dict[str, t.Any]] = (),
    blackout_max: float = 0.0,
    step: str = "",
    lost: bool = False,
    undo: str = "",
    late: t.Sequence[str] = (),
    taken_over: str = "",
) -> dict[str, t.Any]:
    """The result of one host. The update may have ended anywhere, so each argument may be empty.

    ``host``      what hypervisor_info returned before the update
    ``plan``      the plan that was made from it
    ``jump``      what kexec returned
    ``guests``    what guest returned afterwards
    ``away``      what guest_away returned for each guest, there and back, in order
    ``why``       the message of the first failure; empty if there are only late ones
    ``step``      the step that failed first; empty if none did, or if the update had not begun
    ``lost``      whether the host did not answer then
    ``undo``      the message of an undo that failed
    ``late``      the messages of what failed after the update or its undo: the tasks after it, and the checks of the health
    ``taken_over``  whose lease this run took over
    ``left_out``  whether the run skips this host
    ``blackout_max``  the longest pause that is allowed, in seconds, 0 for any
    """
    plan, jump = plan or {}, jump or {}
    kernel, boot_id = (host.get("kernel") or {}).get("release", ""), host.get("boot_id", "")
    update_id = (jump.get("journal") or {}).get("id", "")
    last = {update["guest"]: update for update in (guest.get("last_update") or {} for guest in guests) if update}
    stays = plan.get("verdict") in ("current", "unfinished")
    planned = {} if stays else {guest["name"]: guest["why"] for guest in plan.get("guests") or []}
    fates = {
        guest["name"]: _guest(guest, planned.get(guest["name"], ""), last.get(guest["name"], {}), update_id)
        for guest in host.get("guests") or []
    }
    pauses = {name: pause for name, fate in fates.items() if (pause := blackout(fate)) is not None}
    over = paused_too_long(pauses, blackout_max) if pauses else plan.get("over_budget", "")
    end = outcome(host, plan, jump, why, check_mode, left_out, step, lost, undo, late)
    silent = end == "lost" and jump.get("outcome") in ("lost", "gone")  # which kernel runs now is unknown
    if undo and undo != why:
        why = f"{why}; not everything was undone: {undo}"
    told = _ALSO.join(dict.fromkeys(text for text in (why, *late) if text))  # the same once
    why = told or "; ".join(plan.get("refusals") or []) or str(host.get("msg") or "") or over
    if end == "lost":
        why = why if AFTER_COLD_BOOT in why else f"{why}. {_after_a_loss(jump, step)}"
        why += _still_away(plan, away)
        for fate in fates.values():
            if not fate["state"]:
                fate["why"] = f"unknown, the host was lost; planned: {fate['why'] or 'nothing'}"
    kept = {name for name, fate in fates.items() if fate["state"] == "restored"}
    cold = jump.get("outcome") == "rebooted"
    # Otherwise it is not known yet of each guest.
    lost_guests = [name for name in plan.get("staying") or [] if name not in kept] if cold or step == CHECK_MEMORY else []
    if cold and lost_guests:
        why = f"{why}. Guests that lost their memory: {', '.join(lost_guests)}"
    return {
        "outcome": end,
        "why": why,
        "step": step if end in STOPS else "",
        "late": list(late),
        "undo": undo,
        "plan": plan,
        "over_budget": over,
        "blackout_max": blackout_max,
        "expected_pause": plan.get("expected_pause"),
        "update_id": update_id,
        "taken_over": taken_over,
        "kernel_before": jump.get("kernel_before", kernel),
        "kernel_after": jump.get("kernel_after", "" if silent else kernel),
        "boot_id_before": jump.get("boot_id_before", boot_id),
        "boot_id_after": jump.get("boot_id_after", "" if silent else boot_id),
        "times": jump.get("times") or {},
        "guests": _with_away(fates, away),
        "guests_lost": lost_guests,
    }


def _after_a_loss(jump: dict[str, t.Any], step: str) -> str:
    """Where the guests of a lost host may be, and what to do."""
    status = "Check its console. When it answers again, run 'kvm-liveupdate status' there: it shows the update and each guest"
    repeat = "Check its console. When it answers again, repeat the update: this also brings back guests that are away"
    begun = "The update had begun, but its guests were not paused yet" if step else "The update had not begun"
    lost = f"Its guests may be paused, or may run on the new kernel already. {status}"
    return {
        "jumped": f"The host came back with kernel {jump.get('kernel_after')}, and the guests that stayed in memory come back by"
        f" themselves. {status}",
        "rebooted": f"The host did a cold boot, and its guests' memory is lost. {AFTER_COLD_BOOT}",
        "aborted": f"The host undid the update, and its guests continued to run. {repeat}",
        "half_undone": f"The host undid the update, but some of its guests may be paused. {status}",
        "stuck": "Its guests may be paused. Check its console. When it answers again, run 'kvm-liveupdate recover' on the host: this"
        " undoes the update. Then repeat the update",
        "lost": lost,
        "gone": lost,
    }.get(jump.get("outcome", ""), f"{begun}. {repeat}")


def _still_away(plan: dict[str, t.Any], away: t.Sequence[dict[str, t.Any]]) -> str:
    """Which guests of a lost host it sent away and nobody has brought back, and what to do. Guests that moved for good are not meant."""
    planned = {guest["name"]: guest for guest in plan.get("leaving") or []}
    last = {guest["name"]: guest for guest in away if guest.get("left") and planned.get(guest["name"], {}).get("back", True)}
    left = []
    for name, guest in last.items():
        to = planned.get(name, {}).get("destination") or ""
        if guest.get("where") != "here":
            left.append(f"{name} ({guest['left']}{' to ' + to if to else ''})")
    return (
        f". These guests are away, and do not come back by themselves: {', '.join(left)}. The next run of the update brings them back"
        if left
        else ""
    )


def summary(
    hosts: dict[str, dict[str, t.Any]], check_mode: bool = False, gate: dict[str, t.Any] | None = None, gone: t.Sequence[str] = ()
) -> dict[str, t.Any]:
    """What a run did. ``gate`` is what :func:`_rollout.gate` returned when it stopped the run, empty if it did not. ``gone`` are hosts that
    the run has lost from sight in the middle of their update.

    ``hosts``   the results of the hosts. Those that were not begun say why. They are left out if the operator wanted the stop
    ``lines``   one line for each host
    ``failed``  the hosts that fail for their results. A run that skips hosts and updates none fails for the skipped ones
    ``brief``   a few figures, of the same size for any number of hosts (:func:`_brief`)
    """
    hosts = {name: _cut_off(host) if name in gone else host for name, host in hosts.items()}
    if gate and gate["stop"]:
        hosts = {name: _not_begun(host, gate) if host["outcome"] == "checked" else host for name, host in hosts.items()}
    ends = [host["outcome"] for host in hosts.values()]
    empty = "left_out" in ends and {"left_out", "current"}.issuperset(ends)
    untouched = "refused" in ends and not {"updated", "undone", "failed", "lost"}.intersection(ends)
    lines, failed = {}, []
    for name, host in hosts.items():
        line = " ".join(f"{name}: {_line(host, check_mode)}".split())
        if host["outcome"] == "refused" and untouched and not host["plan"].get("other_run"):
            line += ". No host was touched. To skip such hosts, set hypervisor_update_leave_out to true"
        if host["outcome"] == "left_out" and empty:
            line += ". The run updated no host"
        lines[name] = line
        if host["outcome"] in STOPS or (host["outcome"] == "updated" and host["over_budget"]) or (empty and host["outcome"] == "left_out"):
            failed.append(name)
    return {"hosts": hosts, "lines": lines, "failed": failed, "brief": _brief(hosts, lines, failed, check_mode)}


def _cut_off(host: dict[str, t.Any]) -> dict[str, t.Any]:
    known = host["why"] if host["outcome"] in STOPS else ""
    return {**host, "outcome": "lost" if host["outcome"] == "lost" else "failed", "why": _ALSO.join(filter(None, (known, _CUT_OFF)))}


def _not_begun(host: dict[str, t.Any], gate: dict[str, t.Any]) -> dict[str, t.Any]:
    return {**host, "outcome": "left_out" if gate["on_request"] else "checked", "why": gate["stop"]}


def _brief(hosts: dict[str, dict[str, t.Any]], lines: dict[str, str], failed: list[str], check_mode: bool) -> dict[str, t.Any]:
    """``outcome`` of the run: ``failed``, ``checked`` (check mode), ``stopped`` (hosts are left for another run) or ``updated``; ``why``;
    ``hosts``, how many ended how; ``kernels`` that they run now; ``longest_pause`` in seconds; the first of the ``failed`` hosts.
    """
    ends = [host["outcome"] for host in hosts.values()]
    left = [name for name, host in hosts.items() if host["outcome"] in ("checked", "left_out")]
    pauses = [pause for host in hosts.values() for guest in host["guests"].values() if (pause := blackout(guest)) is not None]
    first = next(iter(failed or ([] if check_mode else left)), "")
    return {
        "outcome": "failed" if failed else "checked" if check_mode else "stopped" if left else "updated",
        "why": lines.get(first, "")[:_BRIEF_TEXT],
        "hosts": {end: ends.count(end) for end in OUTCOMES if end in ends},
        "kernels": sorted({host["kernel_after"] for host in hosts.values() if host["kernel_after"]})[:_BRIEF_HOSTS],
        "longest_pause": max(pauses, default=None),
        "failed": failed[:_BRIEF_HOSTS],
    }


def _line(host: dict[str, t.Any], check_mode: bool) -> str:
    if host["outcome"] == "updated":
        over = f"; {host['over_budget']}" if host["over_budget"] else ""
        return f"updated {host['kernel_before']} -> {host['kernel_after']}, {_kept(host['guests'])}{over}"
    if host["outcome"] == "current":
        return f"runs {host['kernel_before']} already"
    if host["outcome"] == "checked":
        stopped = "not touched, the run stopped before this host" + (f": {host['why']}" if host["why"] else "")
        return _outlook(host) if check_mode else stopped
    after = f' at "{host["step"]}"' if host["step"] else ""
    return f"{OUTCOMES[host['outcome']]}{after}: {host['why']}"


def _outlook(host: dict[str, t.Any]) -> str:
    """What the update would do."""
    plan, pause = host["plan"], host["expected_pause"]
    if plan["verdict"] == "unfinished":
        lost = f"an earlier update lost the memory of {_guests(len(plan['staying']))}"
        return f"{lost}. A run without --check reports this. Then the host can be updated"
    leaving = [f"{_guests(len(plan['leaving']))} sent away"] if plan["leaving"] else []
    expected = [f"expected pause {'unknown' if pause is None else f'{pause:.1f} s'}"] if plan["staying"] else []
    kernels = f"{host['kernel_before']} -> {plan['kernel']}"
    unproven = f". WARNING: {plan['unproven']}" if plan.get("unproven") else ""
    return ", ".join([f"can be updated {kernels}", f"{_guests(len(plan['staying']))} kept", *leaving, *expected]) + unproven


def _kept(guests: dict[str, dict[str, t.Any]]) -> str:
    """How many guests stayed in memory, the longest pause, and how many guests were away."""
    pauses = [pause for guest in guests.values() if (pause := blackout(guest)) is not None]
    away = [guest["back"] for guest in guests.values() if "back" in guest]
    told = [f"{_guests(len(pauses))} kept" + (f", longest pause {max(pauses):.1f} s" if pauses else "")]
    if away:
        told.append(f"{_guests(len(away))} sent away, {sum(away)} back")
    return ", ".join(told)


def _guests(number: int) -> str:
    return f"{number} guest" if number == 1 else f"{number} guests"


def _guest(facts: dict[str, t.Any], planned: str, last: dict[str, t.Any], update_id: str) -> dict[str, t.Any]:
    """One guest: what this update did with it, or what was planned."""
    warnings = [f"{warning['message']} - {warning['remedy']}" for warning in facts.get("warnings") or []]
    found = {"state": "", "why": planned, "times": {}, "clock_step": None, "memory_verified": "none"}
    if last and last.get("update_id") == update_id:
        found = {"state": last["state"], "why": last.get("why", ""), "times": last["times"], "clock_step": last.get("clock_step")}
        found["memory_verified"] = last.get("memory_verified", "none")
        if last["state"] == "saved" and last.get("memory_wrong"):
            found["why"] = f"is not started, because its preserved memory is not the same as before the jump: {last['memory_wrong']}"
        asked = last.get("memory_check", "none")
        if last["state"] == "restored" and found["memory_verified"] != asked:
            warnings.append(
                f"its memory was not checked after the jump, although hypervisor_update_verify_memory is {asked} - see 'journalctl -b -u"
                f" {typed(last.get('unit', ''))}' on the host, and check the guest's services"
            )
    return {**found, "warnings": warnings}


def _with_away(guests: dict[str, dict[str, t.Any]], away: t.Sequence[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The guests, with what happened to those that left: ``state`` is how, ``back`` whether they are here again, ``why`` a sentence.

    A guest that could not leave keeps its state.
    """
    found = dict(guests)
    for step in away:
        name = step["name"]
        state = step.get("left") or found.get(name, {}).get("state", "")
        if state or step.get("failed"):
            done = {"state": state, "back": step.get("where") == "here", "why": step.get("msg", "")}
            found[name] = {"times": {}, "clock_step": None, "warnings": [], **found.get(name, {}), **done}
    return found
