# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The trial of a host without guests: whether it begins, and what it found. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import told

from ._plan import other_run
from ._stamps import blackout

__all__ = ("GUEST", "OUTCOMES", "planned", "result", "summary")

# The throw-away guest (module_utils/trial/_guest.py).
GUEST = "liveupdate-trial"
# How the trial of a host can end, in words.
OUTCOMES = {
    "passed": "passed",
    "findings": "not passed",
    "refused": "refused, not touched",
    "undone": "undone before the jump",
    "failed": "failed",
    "lost": "lost during the jump",
    "checked": "examined only",
}
# How much the statistic of a run says: AWX hands it to all later nodes of a workflow.
_BRIEF_HOSTS = 20
_BRIEF_TEXT = 300


def planned(host: dict[str, t.Any]) -> dict[str, t.Any]:
    """What the trial does on a host. ``host`` is what hypervisor_info returned.

    ``refusals``   sentences, none if the trial is possible
    ``begins``     whether the host jumps
    ``continues``  whether an earlier run ended after the jump, so that only the comparison is left
    """
    names = [guest["name"] for guest in host["guests"]]
    others = [name for name in names if name != GUEST]
    away = [str(guest["guest"]) for guest in host.get("away") or []]
    current = host["target"]["current"]
    refusals = list(filter(None, [other_run(host)]))  # its guest, or its comparison, would be ours to remove
    if others:
        verb = "runs" if len(others) == 1 else "run"
        refusals.append(
            f"a trial needs a host without guests, and {', '.join(others)} {verb} here - migrate or stop them, or choose another host"
        )
    if away:
        refusals.append(
            f"an earlier update sent {', '.join(away)} away and did not bring back all of them - kvm.liveupdate.guest_away with state=back"
            " brings them back"
        )
    if current and GUEST not in names:
        refusals.append(
            f"the host runs Linux {host['target']['release']} already, and a trial jumps into another kernel - set hypervisor_update_kernel"
            " to another one"
        )
    if not current:
        refusals += [told(reason) for reason in host["reasons"]]
    return {"refusals": refusals, "begins": not refusals and not current, "continues": not refusals and current}


def result(
    host: dict[str, t.Any],
    plan: dict[str, t.Any] | None = None,
    update: dict[str, t.Any] | None = None,
    compared: dict[str, t.Any] | None = None,
    why: str = "",
    check_mode: bool = False,
    kept: bool = False,
) -> dict[str, t.Any]:
    """The result of one host. The trial may have ended anywhere, so each argument may be empty.

    ``host``      what hypervisor_info returned before the jump
    ``plan``      what :func:`planned` made of it
    ``update``    the result of the update with the throw-away guest (:func:`_result.result`)
    ``compared``  what the module trial returned after the jump
    ``why``       the message of the first failure
    ``kept``      whether the throw-away guest was left on the host
    """
    plan, update, compared = plan or {}, update or {}, compared or {}
    kernel = (host.get("kernel") or {}).get("release", "")
    guest = (update.get("guests") or {}).get(GUEST) or {}
    return {
        "outcome": _outcome(plan, update, compared, why, check_mode),
        "why": "; ".join(plan.get("refusals") or []) or why,
        "kernel_before": update.get("kernel_before", kernel),
        "kernel_after": update.get("kernel_after", kernel),
        "update_id": update.get("update_id", ""),
        "pause": blackout(guest),
        "guest_kept": kept,
        "findings": compared.get("findings") or [],
        "notes": compared.get("notes") or [],
        "times": compared.get("times") or [],
        "guest": compared.get("guest") or {},
        "devices": compared.get("devices") or {},
    }


def _outcome(plan: dict[str, t.Any], update: dict[str, t.Any], compared: dict[str, t.Any], why: str, check_mode: bool) -> str:
    if not plan or plan["refusals"]:
        return "refused"
    if update.get("outcome") in ("refused", "undone", "lost"):
        return str(update["outcome"])
    if why or (not compared and not check_mode):
        return "failed"
    if not compared:
        return "checked"
    return "findings" if compared["findings"] else "passed"


def summary(hosts: dict[str, dict[str, t.Any]], names: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """What a run found. ``names`` are all hosts of the run: one without a result was not tried.

    ``lines``   for each host a list of lines: how it ended, and each finding
    ``failed``  the hosts that did not pass
    ``brief``   a few figures, of the same size for any number of hosts
    """
    lines = {name: [f"{name}: {line}" for line in _lines(name, host)] for name, host in hosts.items()}
    failed = [name for name, host in hosts.items() if host["outcome"] not in ("passed", "checked")]
    without = [name for name in names if name not in hosts]
    told_why = "not tried, the run stopped before this host" if failed else "no result, see the failed task above"
    lines.update({name: [f"{name}: {told_why}"] for name in without})
    failed = failed or without
    ends = [host["outcome"] for host in hosts.values()]
    return {
        "lines": lines,
        "failed": failed,
        "brief": {
            "outcome": "failed" if failed else "checked" if "checked" in ends else "passed",
            "why": "; ".join(lines[failed[0]])[:_BRIEF_TEXT] if failed else "",
            "hosts": {end: ends.count(end) for end in OUTCOMES if end in ends},
            "findings": sum(len(host["findings"]) for host in hosts.values()),
            "last_back": max((_last(host)["seconds"] for host in hosts.values() if _last(host)), default=None),
            "failed": failed[:_BRIEF_HOSTS],
        },
    }


def _lines(name: str, host: dict[str, t.Any]) -> list[str]:
    findings = [told(finding) for finding in host["findings"]]
    kernels = f"Linux {host['kernel_before']} -> {host['kernel_after']}"
    words = OUTCOMES[host["outcome"]]
    if host["outcome"] == "passed":
        pause = "" if host["pause"] is None else f", its pause was {host['pause']:.1f} s"
        first = f"{words}: {kernels}, all devices and links are back{_when(host)}; the throw-away guest kept its memory{pause}"
    elif host["outcome"] == "findings":
        first = f"{words}: {kernels}, {len(findings)} {'finding' if len(findings) == 1 else 'findings'}"
    elif host["outcome"] == "checked":
        first = f"{words}: a trial is possible"
    else:
        first = " ".join(f"{words}: {host['why'] or 'see the failed task above'}".split())
    kept = [
        "the throw-away guest is kept, so that you can see what happened to it. To remove it:"
        f" ansible {name} -b -m kvm.liveupdate.trial -a state=absent"
    ]
    if host["outcome"] == "lost":
        kept = [
            "if its console shows the new kernel, its network did not come back after the jump: this is what a trial looks for."
            " /run/kvm-liveupdate/devices-seen.json on the host says which devices and links are back"
        ]
    return [first, *findings, *(f"note: {note}" for note in host["notes"]), *(kept if host["guest_kept"] else [])]


def _last(host: dict[str, t.Any]) -> dict[str, t.Any]:
    """The device or link that was back last; empty if that is unknown."""
    known = [time for time in host["times"] if time["seconds"] is not None]
    return max(known, key=lambda time: time["seconds"], default={})


def _when(host: dict[str, t.Any]) -> str:
    last = _last(host)
    if not last:
        return ""
    if last["at_most"]:
        return f", within {last['seconds']:.1f} s after the start of the new kernel"
    return f", the last {last['seconds']:.1f} s after the start of the new kernel ({last['device']})"
