# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The last update of a host in Prometheus' text format, for node_exporter's textfile collector. Pure. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from .report import blackout

__all__ = ("OUTCOMES", "text")

# How an update of a host that was begun can end.
OUTCOMES = ("updated", "undone", "failed")
_PREFIX = "kvm_liveupdate"

Sample = tuple[dict[str, str], float]


def text(result: dict[str, t.Any], now: float) -> str:
    """The metrics of one host's result (:func:`result.result`); ``now`` is the time that they say, in seconds since the epoch."""
    guests = result["guests"]
    pauses = {name: pause for name, guest in guests.items() if (pause := blackout(guest)) is not None}
    kernels = {"kernel_before": result["kernel_before"], "kernel_after": result["kernel_after"], "update_id": result["update_id"]}
    metrics: list[tuple[str, str, list[Sample]]] = [
        ("last_update_timestamp_seconds", "When the last live update of this host ended.", [({}, now)]),
        ("last_update_outcome", "How it ended: 1 for what it was.", [({"outcome": end}, result["outcome"] == end) for end in OUTCOMES]),
        ("last_update_info", "The kernels before and after it, and its id.", [(kernels, 1)]),
        ("blackout_max_seconds", "For how long it was allowed to pause a guest; 0 for any time.", [({}, result["blackout_max"])]),
        (
            "guest_restored",
            "Whether it brought the guest back on its memory.",
            [({"guest": name}, guest["state"] == "restored") for name, guest in guests.items() if guest["state"]],
        ),
        ("guest_blackout_seconds", "For how long it paused the guest.", [({"guest": name}, pause) for name, pause in pauses.items()]),
    ]
    return "".join(_metric(f"{_PREFIX}_{name}", what, samples) for name, what, samples in metrics if samples)


def _metric(name: str, what: str, samples: list[Sample]) -> str:
    lines = [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value:.3f}" if inside else f"{name} {value:.3f}")
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    """A label's value as the format wants it (prometheus.io, Exposition formats)."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
