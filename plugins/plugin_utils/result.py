# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an update did to one host, summed up from what the modules returned. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from .budget import over_budget
from .report import blackout

__all__ = ("outcome", "result")


def outcome(
    host: dict[str, t.Any],
    plan: dict[str, t.Any],
    jump: dict[str, t.Any],
    why: str,
    check_mode: bool = False,
    left_out: bool = False,
    over: str = "",
) -> str:
    """``current``, ``left_out``, ``refused``, ``checked``, ``undone``, ``failed`` or ``updated``.

    Being ``over`` budget refuses before the jump only.
    """
    if left_out:
        return "left_out"
    if not host:
        return "failed"
    if host.get("failed") or host.get("unreachable") or plan.get("verdict", "refuse") == "refuse":
        return "refused"
    if plan["verdict"] == "current":
        return "current"
    if over and not jump:
        return "refused"
    if why:
        return "undone" if jump.get("outcome", "aborted") == "aborted" else "failed"
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
) -> dict[str, t.Any]:
    """The result of one host.

    ``host`` is what hypervisor_info returned before the update, ``plan`` what was planned from it, ``jump`` what kexec did, ``guests`` what
    guest did with each guest then, ``why`` the first failure's message, ``away`` what guest_away did, in order. Each may be empty: the
    update may have ended anywhere. ``blackout_max`` is for how many seconds guests may be paused, 0 for any.
    """
    plan, jump = plan or {}, jump or {}
    kernel, boot_id = (host.get("kernel") or {}).get("release", ""), host.get("boot_id", "")
    update_id = (jump.get("journal") or {}).get("id", "")
    last = {update["guest"]: update for update in (guest.get("last_update") or {} for guest in guests) if update}
    planned = {} if plan.get("verdict") == "current" else {guest["name"]: guest["why"] for guest in plan.get("guests") or []}
    fates = {
        guest["name"]: _guest(guest, planned.get(guest["name"], ""), last.get(guest["name"], {}), update_id)
        for guest in host.get("guests") or []
    }
    pauses = {name: pause for name, fate in fates.items() if (pause := blackout(fate)) is not None}
    over = "" if plan.get("verdict") == "current" else over_budget(plan.get("expected_pause"), pauses, blackout_max)
    return {
        "outcome": outcome(host, plan, jump, why, check_mode, left_out, over),
        "why": why or "; ".join(plan.get("refusals") or []) or str(host.get("msg") or "") or over,
        "plan": plan,
        "over_budget": over,
        "blackout_max": blackout_max,
        "expected_pause": plan.get("expected_pause"),
        "update_id": update_id,
        "kernel_before": kernel,
        "kernel_after": jump.get("kernel_after", kernel),
        "boot_id_before": boot_id,
        "boot_id_after": jump.get("boot_id_after", boot_id),
        "times": jump.get("times") or {},
        "guests": _with_away(fates, away),
    }


def _guest(facts: dict[str, t.Any], planned: str, last: dict[str, t.Any], update_id: str) -> dict[str, t.Any]:
    """One guest: what this update did with it, or what was planned."""
    warnings = [f"{warning['message']} - {warning['remedy']}" for warning in facts.get("warnings") or []]
    found = {"state": "", "why": planned, "times": {}, "clock_step": None}
    if last and last.get("update_id") == update_id:
        found = {"state": last["state"], "why": last.get("why", ""), "times": last["times"], "clock_step": last.get("clock_step")}
    return {**found, "warnings": warnings}


def _with_away(guests: dict[str, dict[str, t.Any]], away: t.Sequence[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The guests with what became of those that left: ``state`` is how, ``back`` whether they are here again, ``why`` says both.

    One that failed stays what it was before.
    """
    found = dict(guests)
    for step in away:
        name = step["name"]
        state = step.get("left") or found.get(name, {}).get("state", "")
        if state or step.get("failed"):
            done = {"state": state, "back": step.get("where") == "here", "why": step.get("msg", "")}
            found[name] = {"times": {}, "clock_step": None, "warnings": [], **found.get(name, {}), **done}
    return found
