# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of one run as a page of its own: no external files, no script. Pure. PRIVATE to the collection.

``hosts`` is what the role hypervisor_update reports (RV(liveupdate_report) in its set_stats): by host name, with ``outcome``,
``why``, ``kernel_before``, ``kernel_after``, ``times`` (seconds since the epoch, by step) and ``guests`` by name, each with ``times`` and
maybe ``why`` and ``warnings``.
"""

from __future__ import annotations

import math
import statistics
import time
import typing as t
from html import escape

__all__ = ("OUTCOMES", "PARTS", "blackout", "page", "parts", "short_names")

# The steps of a guest's blackout: the part's name, where its first and its last stamp stand (host or guest), and the stamps.
PARTS = (
    ("save", ("guest", "paused"), ("guest", "saved")),
    ("leave the old kernel", ("guest", "saved"), ("host", "kernel")),
    ("new kernel", ("host", "kernel"), ("host", "userspace")),
    ("systemd loads its units", ("host", "userspace"), ("host", "units")),
    ("start the restore", ("host", "units"), ("guest", "start")),
    ("take back the memory", ("guest", "start"), ("guest", "retrieved")),
    ("wait for libvirt", ("guest", "retrieved"), ("guest", "libvirt")),
    ("start QEMU", ("guest", "retrieved"), ("guest", "qemu")),
    ("load the devices", ("guest", "qemu"), ("guest", "loaded")),
    ("go on", ("guest", "loaded"), ("guest", "resumed")),
)
# In words, by outcome (result.py).
OUTCOMES = {
    "updated": "updated",
    "current": "ran the kernel already",
    "refused": "refused, nothing touched",
    "left_out": "left out, nothing touched",
    "undone": "undone before the jump",
    "failed": "failed",
    "lost": "lost in the middle",
    "checked": "examined only",
}
_WIDTH = 960
_LANE = 26
_LABEL = 180
_LONGEST_LABEL = 26


def blackout(guest: dict[str, t.Any]) -> float | None:
    """Seconds from a guest's pause to its resume on its host's clock; None when it was not carried over."""
    times: dict[str, float] = guest.get("times") or {}
    return times["resumed"] - times["paused"] if "paused" in times and "resumed" in times else None


def parts(host: dict[str, t.Any], guest: dict[str, t.Any]) -> list[tuple[str, float]]:
    """The parts of a guest's blackout in seconds, in order; together they are the whole. A stamp that is missing joins two parts."""
    stamps = {"host": _host_times(host), "guest": guest.get("times") or {}}
    if blackout(guest) is None:
        return []
    found: list[tuple[str, float]] = []
    begun, names = stamps["guest"]["paused"], []
    for name, _first, (where, stamp) in PARTS:
        if stamp == "libvirt" and stamp not in stamps[where]:
            continue  # only domains wait for it
        names.append(name)
        if stamp in stamps[where]:
            found.append((" + ".join(names), stamps[where][stamp] - begun))
            begun, names = stamps[where][stamp], []
    return found


def _host_times(host: dict[str, t.Any]) -> dict[str, float]:
    """The host's stamps, those of the new kernel set back by the step of its clock that its guests measured (host/_this_boot.py)."""
    step = next((guest["clock_step"] for guest in host["guests"].values() if guest.get("clock_step") is not None), 0.0)
    times = host.get("times") or {}
    return {name: at - step if name in ("kernel", "userspace", "units") else at for name, at in times.items()}


def quantile(values: list[float], part: float) -> float:
    """The value below which that part of all values lies (nearest rank)."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def page(hosts: dict[str, dict[str, t.Any]]) -> str:
    """The whole page."""
    title = "Live update of " + (", ".join(sorted(hosts)) if len(hosts) < 4 else f"{len(hosts)} hypervisors")
    body = [f"<h1>{escape(title)}</h1>", f'<p class="when">{escape(_when(hosts))}</p>', _tiles(hosts), _overview(hosts)]
    body += [_host(name, hosts[name]) for name in hosts]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _when(hosts: dict[str, dict[str, t.Any]]) -> str:
    stamps = [stamp for host in hosts.values() for stamp in _stamps(host)]
    if not stamps:
        begun = any(host.get("step") for host in hosts.values())
        return "No host has jumped." if begun else "No host was touched."
    first, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) for moment in (min(stamps), max(stamps)))
    return f"{first} to {last} UTC"


def _stamps(host: dict[str, t.Any]) -> list[float]:
    return [*(host.get("times") or {}).values(), *(at for guest in host["guests"].values() for at in (guest.get("times") or {}).values())]


def _tiles(hosts: dict[str, dict[str, t.Any]]) -> str:
    """The figures that count, large."""
    pauses = [pause for host in hosts.values() for guest in host["guests"].values() if (pause := blackout(guest)) is not None]
    updated = sum(host["outcome"] in ("updated", "current") for host in hosts.values())
    tiles = [("hosts on the new kernel", f"{updated} of {len(hosts)}"), ("guests carried over", str(len(pauses)))]
    if pauses:
        tiles += [("median pause", f"{statistics.median(pauses):.1f} s"), ("95 % at most", f"{quantile(pauses, 0.95):.1f} s")]
        tiles.append(("longest pause", f"{max(pauses):.1f} s"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    return f'<div class="tiles">{cells}</div>'


def _overview(hosts: dict[str, dict[str, t.Any]]) -> str:
    rows = []
    for name, host in hosts.items():
        pauses = [pause for guest in host["guests"].values() if (pause := blackout(guest)) is not None]
        cells = (
            name,
            OUTCOMES.get(host["outcome"], host["outcome"]) + (", over budget" if host.get("over_budget") else ""),
            host["kernel_before"],
            host["kernel_after"],
            str(len(host["guests"])),
            _seconds(host.get("expected_pause")),
            _seconds(host.get("blackout_max") or None),
            _seconds(max(pauses) if pauses else None),
        )
        kind = host["outcome"] + (" over" if host.get("over_budget") else "")
        rows.append(f'<tr class="{escape(kind)}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    names = ("host", "outcome", "kernel before", "kernel after", "guests", "pause expected", "allowed", "longest pause")
    return _table(names, rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _table(names: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _host(name: str, host: dict[str, t.Any]) -> str:
    """One host: what became of it, its timeline, and where the time went."""
    found = [f"<section><h2>{escape(name)}</h2>"]
    step = f'The update had begun; its last step was "{host["step"]}". ' if host.get("step") else ""
    if step or host.get("why"):
        found.append(f'<p class="why">{escape(step + host.get("why", ""))}</p>')
    carried = {guest: facts for guest, facts in host["guests"].items() if blackout(facts) is not None}
    if carried:
        found.append(_timeline(host, carried))
        names = list(dict.fromkeys(part for facts in carried.values() for part, _length in parts(host, facts)))
        rows = []
        for guest, shown in short_names(list(carried)).items():
            lengths = dict(parts(host, carried[guest]))
            cells = [f"{blackout(carried[guest]):.2f}", *(f"{lengths[part]:.2f}" if part in lengths else "-" for part in names)]
            first = f'<td class="short" title="{escape(guest)}">{escape(shown)}</td>'
            rows.append(f"<tr>{first}" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        found.append("<h3>Where the pause went, in seconds</h3>" + _table(("guest", "pause", *names), rows))
    others = [
        f"<li><b>{escape(guest)}</b>: {escape(str(facts.get('why') or 'was not touched'))}</li>"
        for guest, facts in host["guests"].items()
        if guest not in carried
    ]
    if others:
        found.append(f"<h3>{'Other guests' if carried else 'Guests'}</h3><ul>" + "".join(others) + "</ul>")
    warnings = [
        f"<li><b>{escape(guest)}</b>: {escape(str(warning))}</li>"
        for guest, facts in host["guests"].items()
        for warning in facts.get("warnings") or []
    ]
    if warnings:
        found.append("<h3>To know</h3><ul>" + "".join(warnings) + "</ul>")
    return "\n".join([*found, "</section>"])


def _timeline(host: dict[str, t.Any], guests: dict[str, dict[str, t.Any]]) -> str:
    """A lane for the host and one for each guest, to scale, from the start of the update to the last resume."""
    first = min(_stamps({**host, "guests": guests}))
    last: float = max(facts["times"]["resumed"] for facts in guests.values())
    last += (last - first) * 0.03

    def place(moment: float) -> float:
        return _LABEL + (min(max(moment, first), last) - first) / (last - first) * (_WIDTH - _LABEL)

    def stretch(lane: int, begun: float, ended: float, kind: str, tip: str) -> str:
        width = max(place(ended) - place(begun), 0.75)
        return (
            f'<rect class="{kind}" x="{place(begun):.1f}" y="{lane * _LANE + 4}" width="{width:.1f}" height="{_LANE - 8}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    times = _host_times(host)
    height = (len(guests) + 1) * _LANE
    lanes, labels = [*_axis(first, last, height, place), _label(0, "host", "host")], short_names(list(guests))
    steps = [
        ("stop other services", "stopping", "saving", "stop"),
        ("save the guests", "saving", "jumping", "save"),
        ("old kernel ends", "jumping", "kernel", "leave"),
        ("new kernel", "kernel", "userspace", "kernel"),
    ]
    for step, begun, ended, kind in steps:
        if begun in times and ended in times:
            lanes.append(stretch(0, times[begun], times[ended], kind, f"{step}: {times[ended] - times[begun]:.2f} s"))
    if "userspace" in times:
        lanes.append(stretch(0, times["userspace"], last, "boot", "boot of the new system"))
    for lane, (name, facts) in enumerate(guests.items(), start=1):
        paused, resumed = facts["times"]["paused"], facts["times"]["resumed"]
        lanes.append(_label(lane, name, labels[name]))
        lanes.append(stretch(lane, first, paused, "runs", "runs on the old kernel"))
        lanes.append(stretch(lane, paused, resumed, "paused", f"paused for {resumed - paused:.2f} s"))
        begun = paused
        for index, (part, length) in enumerate(parts(host, facts)):
            lanes.append(stretch(lane, begun, begun + length, f"part p{index % 2}", f"{part}: {length:.2f} s"))
            begun += length
        lanes.append(stretch(lane, resumed, last, "runs", "runs on the new kernel"))
        lanes.append(
            f'<text class="pause" x="{(place(paused) + place(resumed)) / 2:.1f}" y="{lane * _LANE + 17}">{resumed - paused:.1f} s</text>'
        )
    legend = "".join(
        f'<span><i class="{kind}"></i>{text}</span>'
        for kind, text in (
            ("runs", "guest runs"),
            ("paused", "guest paused"),
            ("stop", "other services stop"),
            ("leave", "old kernel ends"),
            ("kernel", "new kernel starts"),
            ("boot", "new system boots"),
        )
    )
    return (
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {height + 24}" role="img" aria-label="timeline">{"".join(lanes)}</svg></div>'
        f'<p class="legend">{legend}</p>'
    )


def short_names(names: list[str]) -> dict[str, str]:
    """The names as they fit beside a timeline: without their domains where that tells them apart, and without their middles."""
    first = {name: name.partition(".")[0] or name for name in names}
    if len(set(first.values())) < len(names):
        first = {name: name for name in names}
    half = (_LONGEST_LABEL - 1) // 2
    return {name: text if len(text) <= _LONGEST_LABEL else f"{text[:half]}…{text[-half:]}" for name, text in first.items()}


def _label(lane: int, name: str, shown: str) -> str:
    return f'<text class="name" x="{_LABEL - 8}" y="{lane * _LANE + 17}">{escape(shown)}<title>{escape(name)}</title></text>'


def _axis(first: float, last: float, height: int, place: t.Callable[[float], float]) -> list[str]:
    """A line every so many seconds, six to twelve of them."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 3600, 86400) if (last - first) / step <= 12 or step == 86400)
    marks = []
    for index in range(int((last - first) / step) + 1):
        at = place(first + index * step)
        marks.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}"/>')
        marks.append(f'<text class="second" x="{at:.1f}" y="{height + 16}">{index * step:g} s</text>')
    return marks


_STYLE = """
:root {
  color-scheme:light dark;
  --text:#1c2733;
  --faint:#5d6b7a;
  --line:#d6dde4;
  --ground:#fff;
  --card:#f4f7f9;
  --run:#2f9e6e;
  --pause:#d9480f;
  --stop:#8fa3b5;
  --kernel:#3b6fb6;
  --boot:#a9c1de;
  --leave:#6b5b95
}
@media(prefers-color-scheme:dark){:root{--text:#e3e9ef;--faint:#9aa8b6;--line:#34414d;--ground:#12181e;--card:#1b242c;--boot:#4b6583}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--ground);max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}
h2{margin:2.2rem 0 .5rem;border-top:1px solid var(--line);padding-top:1.2rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
.when,.legend{color:var(--faint);margin:.2rem 0 1rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}
.tiles div{background:var(--card);border-radius:8px;padding:.7rem 1.1rem;min-width:7.5rem}
.tiles b{display:block;font-size:1.5rem}
.tiles span{color:var(--faint);font-size:.85rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--faint);font-weight:600}
td.short{white-space:nowrap}
:is(tr.failed,tr.refused,tr.left_out,tr.undone,tr.lost,tr.over) td:nth-child(2){color:var(--pause);font-weight:600}
.why{background:var(--card);border-left:4px solid var(--pause);padding:.6rem .9rem}
svg{width:100%;min-width:640px;font:11px system-ui,sans-serif}
svg text{fill:var(--text)}
.name{text-anchor:end}
.pause{text-anchor:middle;font-weight:700;fill:#fff!important}
.second{text-anchor:middle;fill:var(--faint)!important}
.tick{stroke:var(--line);stroke-dasharray:2 3}
.runs{fill:var(--run);background:var(--run)}
.paused{fill:var(--pause);background:var(--pause)}
.part{fill:#000;fill-opacity:.001}
.part.p1{fill-opacity:.14}
.stop,.save{fill:var(--stop);background:var(--stop)}
.leave{fill:var(--leave);background:var(--leave)}
.kernel{fill:var(--kernel);background:var(--kernel)}
.boot{fill:var(--boot);background:var(--boot)}
.legend span{margin-right:1.2rem;white-space:nowrap}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}
"""
