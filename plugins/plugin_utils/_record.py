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


def record(host: dict[str, t.Any], jump: dict[str, t.Any], by: dict[str, t.Any], now: float) -> dict[str, t.Any]:
    """The record of one update.

    ``host`` is the result (:func:`_result.result`), ``jump`` what kexec returned, ``by`` who started the run, and ``now`` the time since
    the epoch. The record has ``at``, ``by`` (without what is empty), whose lease was taken over, how the update ended, both kernels with
    the digests of the new one, and of each guest its way, how it ended, its pause and how its memory was checked.
    """
    journal = jump.get("journal") or {}
    image, ways = journal.get("image") or {}, {guest["name"]: guest["way"] for guest in (host.get("plan") or {}).get("guests") or []}
    return {
        "at": datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(timespec="seconds"),
        "by": {name: str(value) for name, value in by.items() if value not in (None, "")},
        **{name: host[name] for name in ("outcome", "why", "step", "update_id", "kernel_before", "kernel_after", "boot_id_before")},
        "boot_id_after": host["boot_id_after"],
        "taken_over": host["taken_over"],
        "over_budget": host["over_budget"],
        "image": {name: image[name] for name in _IMAGE if name in image},
        "guests": {
            name: {
                "way": ways.get(name, ""),
                "state": guest["state"],
                "why": guest["why"],
                "pause": blackout(guest),
                "memory_verified": guest.get("memory_verified", "none"),
                **({"back": guest["back"]} if "back" in guest else {}),
            }
            for name, guest in host["guests"].items()
        },
    }
