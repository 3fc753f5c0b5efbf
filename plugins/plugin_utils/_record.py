# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The record that a host keeps of each of its updates. Pure. PRIVATE to the collection."""

from __future__ import annotations

import datetime
import typing as t

from ._stamps import blackout

__all__ = ("record",)

_IMAGE = ("path", "release", "version", "sha256", "initrd", "initrd_sha256", "cmdline", "signed")


def record(
    host: dict[str, t.Any], jump: dict[str, t.Any], by: dict[str, t.Any], now: float, target: dict[str, t.Any] | None = None
) -> dict[str, t.Any]:
    """The record of one update.

    ``host`` is the result (:func:`_result.result`), ``jump`` what kexec returned, ``by`` who started the run, ``now`` the time since the
    epoch, and ``target`` what hypervisor_info says of the new kernel. The record has ``at``, ``by`` (without what is empty), whose lease
    was taken over, how the update ended, both kernels, the guests that lost their memory, and of each guest its way, the ways that were
    not possible and why (``passed_over``), how it ended, its pause and how its memory was checked.

    ``image`` has the digests of the new kernel, and whether its image has a signature. ``image_before`` says which kernel ran before. The
    host completes it (module_utils/update/_records.py).
    """
    journal, target = jump.get("journal") or {}, target or {}
    image, before = journal.get("image") or {}, journal.get("kernel") or {}
    if image.get("sha256") and image["sha256"] == target.get("sha256"):
        image = {**image, "signed": target["signed"]}
    planned = _planned(host.get("plan") or {}, journal)
    return {
        "at": datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(timespec="seconds"),
        "by": {name: str(value) for name, value in by.items() if value not in (None, "")},
        **{name: host[name] for name in ("outcome", "why", "step", "update_id", "kernel_before", "kernel_after", "boot_id_before")},
        "boot_id_after": host["boot_id_after"],
        "taken_over": host["taken_over"],
        "over_budget": host["over_budget"],
        "image": {name: image[name] for name in _IMAGE if name in image},
        "image_before": {name: before[name] for name in _IMAGE if name in before},
        "guests_lost": host["guests_lost"],
        "guests": {
            name: {
                "way": planned.get(name, {}).get("way", ""),
                "passed_over": planned.get(name, {}).get("passed_over", []),
                "state": guest["state"],
                "why": guest["why"],
                "pause": blackout(guest),
                "memory_verified": guest.get("memory_verified", "none"),
                **({"back": guest["back"]} if "back" in guest else {}),
            }
            for name, guest in host["guests"].items()
        },
    }


def _planned(plan: dict[str, t.Any], journal: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    """What was planned for each guest in this update. If an earlier run made it, the plan is about another: only its guests are known."""
    if plan.get("unfinished"):
        return {name: {"way": "preserve"} for name in journal["guests"]}
    return {guest["name"]: guest for guest in plan.get("guests") or []}
