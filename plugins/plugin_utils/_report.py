# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The figures of one run, for the HTML page and the metrics (roles/hypervisor_update/templates). Pure. PRIVATE to the collection.

``hosts`` are the results (:func:`_result.result`) by host name.
"""

from __future__ import annotations

import math
import statistics
import time
import typing as t

from ._result import OUTCOMES
from ._stamps import blackout, host_times, parts, stamps

__all__ = ("figures", "quantile", "short_names")

# The timeline: its width and that of the names beside it, in pixels.
_WIDTH = 960
_LABEL = 180
_LONGEST_LABEL = 26
_HOST_STEPS = (
    ("stop", "stop other services", "stopping", "saving"),
    ("save", "save the guests", "saving", "jumping"),
    ("leave", "stop the old system", "jumping", "kernel"),
    ("kernel", "start the new kernel", "kernel", "initrd"),
    ("initrd", "initial RAM disk", "initrd", "userspace"),
)
# Without systemd in an initial RAM disk.
_KERNEL_STEP = ("kernel", "start the new kernel", "kernel", "userspace")
_SECONDS_A_TICK = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 3600, 86400)


def figures(hosts: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    """All that the page and the metrics show.

    ``title``, ``when``  texts
    ``tiles``     the main figures: ``name``, ``value``
    ``hosts``     of each host ``name``, ``outcome``, ``over`` (whether a pause was too long), ``cells`` (its row in the overview), ``why``,
                  ``taken_over`` (a sentence, or empty), ``pauses`` (seconds, by guest), ``timeline`` (:func:`_timeline`), ``parts`` (the
                  columns and rows of a table), ``others`` (``guest``, ``why``), ``warnings`` (``guest``, ``warning``)
    """
    pauses = [pause for host in hosts.values() for pause in _pauses(host).values()]
    updated = sum(host["outcome"] in ("updated", "current") for host in hosts.values())
    tiles = [("hosts on the new kernel", f"{updated} of {len(hosts)}"), ("guests kept in memory", str(len(pauses)))]
    if pauses:
        tiles += [("median pause", _seconds(statistics.median(pauses))), ("95 % of pauses at most", _seconds(quantile(pauses, 0.95)))]
        tiles.append(("longest pause", _seconds(max(pauses))))
    return {
        "title": "Live update of " + (", ".join(sorted(hosts)) if len(hosts) < 4 else f"{len(hosts)} hypervisors"),
        "when": _when(hosts),
        "tiles": [{"name": name, "value": value} for name, value in tiles],
        "hosts": [_host(name, host) for name, host in hosts.items()],
    }


def quantile(values: list[float], part: float) -> float:
    """The value below which that part of all values lies (nearest rank)."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def short_names(names: list[str]) -> dict[str, str]:
    """The names as they fit beside a timeline: without their domains if they still differ then, and without their middles."""
    first = {name: name.partition(".")[0] or name for name in names}
    if len(set(first.values())) < len(names):
        first = {name: name for name in names}
    half = (_LONGEST_LABEL - 1) // 2
    return {name: text if len(text) <= _LONGEST_LABEL else f"{text[:half]}…{text[-half:]}" for name, text in first.items()}


def _pauses(host: dict[str, t.Any]) -> dict[str, float]:
    return {name: pause for name, guest in host["guests"].items() if (pause := blackout(guest)) is not None}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _when(hosts: dict[str, dict[str, t.Any]]) -> str:
    moments = [stamp for host in hosts.values() for stamp in stamps(host)]
    if not moments:
        begun = any(host.get("step") for host in hosts.values())
        return "No host jumped." if begun else "No host was touched."
    first, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) for moment in (min(moments), max(moments)))
    return f"{first} to {last} UTC"


def _host(name: str, host: dict[str, t.Any]) -> dict[str, t.Any]:
    """One host: what happened to it, its timeline, and what took the time."""
    pauses, over = _pauses(host), bool(host.get("over_budget"))
    step = f'The update had begun. It ended at "{host["step"]}". ' if host.get("step") else ""
    taken = host.get("taken_over")
    return {
        "name": name,
        "outcome": host["outcome"],
        "over": over,
        "cells": [
            name,
            OUTCOMES.get(host["outcome"], host["outcome"]) + (", pause too long" if over else ""),
            host["kernel_before"],
            host["kernel_after"] or "unknown",
            str(len(host["guests"])),
            _seconds(host.get("expected_pause")),
            _seconds(host.get("blackout_max") or None),
            _seconds(max(pauses.values(), default=None)),
        ],
        "why": step + host.get("why", ""),
        "taken_over": f"This run took over the lease of {taken}." if taken else "",
        "pauses": pauses,
        "timeline": _timeline(host, list(pauses)) if pauses else {},
        "parts": _parts(host, pauses),
        "others": [
            {"guest": guest, "why": str(facts.get("why") or "was not touched")}
            for guest, facts in host["guests"].items()
            if guest not in pauses
        ],
        "warnings": [
            {"guest": guest, "warning": str(warning)} for guest, facts in host["guests"].items() for warning in facts.get("warnings") or []
        ],
    }


def _parts(host: dict[str, t.Any], pauses: dict[str, float]) -> dict[str, t.Any]:
    """What took the time of each pause, as a table: the names of its columns, and a row for each guest."""
    found = {guest: dict(parts(host, host["guests"][guest])) for guest in pauses}
    columns = list(dict.fromkeys(part for lengths in found.values() for part in lengths))
    shown = short_names(list(pauses))
    rows = [
        {
            "guest": guest,
            "shown": shown[guest],
            "cells": [
                f"{pauses[guest]:.2f}",
                host["guests"][guest].get("memory_verified", "none"),
                *(f"{lengths[part]:.2f}" if part in lengths else "-" for part in columns),
            ],
        }
        for guest, lengths in found.items()
    ]
    return {"columns": columns, "rows": rows}


def _timeline(host: dict[str, t.Any], names: list[str]) -> dict[str, t.Any]:
    """A lane for the host and one for each guest, to scale, from the start of the update to the last resume.

    ``width`` and ``label`` (the width of the names) are in pixels, ``ticks`` have ``x`` and ``text``. Each of ``lanes`` has ``name``,
    ``shown`` (its short name), ``pause`` (the text and ``x`` of its middle; none for the host) and ``stretches``: ``kind``, ``x``,
    ``width`` and ``text``.
    """
    guests = {name: host["guests"][name] for name in names}
    first = min(stamps({**host, "guests": guests}))
    last: float = max(facts["times"]["resumed"] for facts in guests.values())
    last += (last - first) * 0.03

    def place(moment: float) -> float:
        return _LABEL + (min(max(moment, first), last) - first) / (last - first) * (_WIDTH - _LABEL)

    def stretch(kind: str, begun: float, ended: float, text: str) -> dict[str, t.Any]:
        return {"kind": kind, "x": place(begun), "width": max(place(ended) - place(begun), 0.75), "text": text}

    times = host_times(host)
    done = [
        stretch(kind, times[begun], times[ended], f"{text}: {times[ended] - times[begun]:.2f} s")
        for kind, text, begun, ended in (*_HOST_STEPS, *(() if "initrd" in times else (_KERNEL_STEP,)))
        if begun in times and ended in times
    ]
    if "userspace" in times:
        done.append(stretch("boot", times["userspace"], last, "boot of the new system"))
    lanes = [{"name": "host", "shown": "host", "pause": {}, "stretches": done}]
    for name, shown in short_names(names).items():
        paused, resumed = guests[name]["times"]["paused"], guests[name]["times"]["resumed"]
        done = [
            stretch("runs", first, paused, "runs on the old kernel"),
            stretch("paused", paused, resumed, f"paused for {resumed - paused:.2f} s"),
        ]
        begun = paused
        for index, (part, length) in enumerate(parts(host, guests[name])):
            done.append(stretch(f"part p{index % 2}", begun, begun + length, f"{part}: {length:.2f} s"))
            begun += length
        done.append(stretch("runs", resumed, last, "runs on the new kernel"))
        pause = {"x": (place(paused) + place(resumed)) / 2, "text": _seconds(resumed - paused)}
        lanes.append({"name": name, "shown": shown, "pause": pause, "stretches": done})
    return {"width": _WIDTH, "label": _LABEL, "ticks": _ticks(first, last, place), "lanes": lanes}


def _ticks(first: float, last: float, place: t.Callable[[float], float]) -> list[dict[str, t.Any]]:
    """A tick every so many seconds, at most 13 of them unless it takes days."""
    step = next(step for step in _SECONDS_A_TICK if (last - first) / step <= 12 or step == _SECONDS_A_TICK[-1])
    return [{"x": place(first + index * step), "text": f"{index * step:g} s"} for index in range(int((last - first) / step) + 1)]
