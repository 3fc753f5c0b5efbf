# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an update did to one host, summed up from what the modules returned. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from .budget import expected_pause, over_budget
from .report import blackout

__all__ = ("outcome", "result")


def outcome(host: dict[str, t.Any], jump: dict[str, t.Any], why: str, check_mode: bool, over: str = "") -> str:
    """``current``, ``refused``, ``checked``, ``undone``, ``failed`` or ``updated``. Being ``over`` budget refuses before the jump only."""
    if (host.get("target") or {}).get("current"):
        return "current"
    if not host.get("ready"):
        return "refused" if host else "failed"
    if why:
        return "undone" if jump.get("outcome", "aborted") == "aborted" else "failed"
    if over and not jump:
        return "refused"
    return "checked" if check_mode else "updated"


def result(
    host: dict[str, t.Any],
    jump: dict[str, t.Any] | None = None,
    guests: t.Sequence[dict[str, t.Any]] = (),
    why: str = "",
    check_mode: bool = False,
    blackout_max: float = 0.0,
    away: t.Sequence[dict[str, t.Any]] = (),
) -> dict[str, t.Any]:
    """The result of one host.

    ``host`` is what hypervisor_info returned before the update, ``jump`` what kexec did, ``guests`` what guest did for each
    guest afterwards, ``why`` the first failure's message, ``away`` what guest_away did, in order. Each may be empty: the update may have
    ended anywhere. ``blackout_max`` is for how many seconds guests may be paused, 0 for any.
    """
    jump = jump or {}
    kernel, boot_id = (host.get("kernel") or {}).get("release", ""), host.get("boot_id", "")
    update_id = (jump.get("journal") or {}).get("id", "")
    last = {update["guest"]: update for update in (guest.get("last_update") or {} for guest in guests) if update}
    fates = {guest["name"]: _guest(guest, last.get(guest["name"], {}), update_id) for guest in host.get("guests") or []}
    pauses = {name: pause for name, fate in fates.items() if (pause := blackout(fate)) is not None}
    expected = expected_pause(host)
    over = over_budget(expected, pauses, blackout_max)
    end = outcome(host, jump, why, check_mode, over)
    return {
        "outcome": end,
        "why": why or ("" if end == "current" else "; ".join(host.get("refusals") or []) or over),
        "over_budget": "" if end == "current" else over,
        "blackout_max": blackout_max,
        "expected_pause": expected,
        "update_id": update_id,
        "kernel_before": kernel,
        "kernel_after": jump.get("kernel_after", kernel),
        "boot_id_before": boot_id,
        "boot_id_after": jump.get("boot_id_after", boot_id),
        "times": jump.get("times") or {},
        "guests": _with_away(fates, away),
    }


def _guest(facts: dict[str, t.Any], last: dict[str, t.Any], update_id: str) -> dict[str, t.Any]:
    """One guest: what this update did with it, or why nothing was done."""
    warnings = [f"{warning['message']} - {warning['remedy']}" for warning in facts.get("warnings") or []]
    found = {"state": "", "why": "; ".join(reason["message"] for reason in facts.get("reasons") or []), "times": {}, "clock_step": None}
    if last and last.get("update_id") == update_id:
        found = {"state": last["state"], "why": last.get("why", ""), "times": last["times"], "clock_step": last.get("clock_step")}
    return {**found, "warnings": warnings}


def _with_away(guests: dict[str, dict[str, t.Any]], away: t.Sequence[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The guests with what became of those that left: ``state`` is how, ``back`` whether they are here again, ``why`` says both.

    A step that failed has only its message, and the loop's item, which names the guest.
    """
    found = dict(guests)
    for step in away:
        name = step.get("guest") or step["item"]["name"]
        state = step.get("left") or found.get(name, {}).get("state", "")
        if state or step.get("failed"):
            done = {"state": state, "back": step.get("where") == "here", "why": step.get("msg", "")}
            found[name] = {"times": {}, "clock_step": None, "warnings": [], **found.get(name, {}), **done}
    return found
