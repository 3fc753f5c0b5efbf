# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's report: what an update did to hosts and guests, as seen by the guests themselves. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .agreement import agreement, measures, network
from .heartbeat import Verdict
from .probe import Answers


@dataclass(frozen=True)
class Boot:
    """A boot of a host and its kernel."""

    boot_id: str
    kernel: str


def host_report(
    before: Boot,
    after: Boot,
    told: dict[str, Any],
    verdicts: dict[str, Verdict],
    answers: dict[str, Answers] | None = None,
    forwarding_at: float | None = None,
) -> dict[str, Any]:
    """The report of one host. A guest has only survived an update if the host has jumped: to another boot id and another kernel.

    told is the update role's own report of the host. verdicts and answers are by guest; only guests with a probe have answers.
    forwarding_at is when the host's bridge began to forward frames, by the clock of the boot after the jump.
    """
    jumped = before.boot_id != after.boot_id and before.kernel != after.kernel
    return {
        "kernel_before": before.kernel,
        "kernel_after": after.kernel,
        "boot_id_before": before.boot_id,
        "boot_id_after": after.boot_id,
        "update_id": told.get("update_id", ""),
        "jumped": jumped,
        "guests": {
            name: _guest_report(jumped, verdict, told.get("guests", {}).get(name, {}), (answers or {}).get(name), forwarding_at)
            for name, verdict in verdicts.items()
        },
    }


def _guest_report(
    jumped: bool, verdict: Verdict, told: dict[str, Any], answers: Answers | None, forwarding_at: float | None
) -> dict[str, Any]:
    found = measures(told, verdict, answers)
    clocks = agreement(found, verdict.late_s, network(told, forwarding_at), answers)
    return {
        "survived": jumped and verdict.survived,
        "reason": verdict.reason if jumped else "its host did not jump to another kernel",
        "blackout_s": None if verdict.blackout_s is None else round(verdict.blackout_s, 3),
        "blackouts_s": {measure.who: round(measure.seconds, 3) for measure in found},
        "clocks_agree": clocks.agree,
        "clocks_explained": clocks.explained,
        "clocks": clocks.text,
        "same_boot_id": len(verdict.boot_ids) == 1,
        "ticks_contiguous": verdict.contiguous,
        "checksum_before": verdict.checksum_before,
        "checksum_after": verdict.checksum_after,
    }


def all_survived(hosts: dict[str, dict[str, Any]]) -> bool:
    """Whether there was a guest, and all guests survived."""
    guests = [guest for host in hosts.values() for guest in host["guests"].values()]
    return bool(guests) and all(guest["survived"] for guest in guests)


def table(hosts: dict[str, dict[str, Any]]) -> str:
    """The report as a table for the terminal."""
    rows = [("host", "kernel before", "kernel after", "guest", "survived", "pause", "clocks agree")]
    for name, host in hosts.items():
        for guest, fate in host["guests"].items():
            pause = "-" if fate["blackout_s"] is None else f"{fate['blackout_s']:.1f} s"
            survived = "yes" if fate["survived"] else f"NO: {fate['reason']}"
            agree = {True: "yes", None: "-"}.get(fate["clocks_agree"], f"NO: {fate['clocks']}")
            rows.append((name, host["kernel_before"], host["kernel_after"], guest, survived, pause, agree))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
