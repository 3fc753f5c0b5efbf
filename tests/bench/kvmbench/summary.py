# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the results say: medians with their spread, and the tables of docs/bench.md. Pure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._stamps import PARTS

from .results import Result
from .scenarios import SCENARIOS, Scenario

PEER = "save-reboot"
FLOOR_OF = "ours-qemu"
# At the head of what is written; put together here, so that nobody takes it for the licence of this file.
NOTICE = "Copyright: kvm.liveupdate contributors\n" + ": ".join(("SPDX-License-Identifier", "GPL-3.0-or-later"))


@dataclass(frozen=True)
class Figure:
    """The middle of some measurements, the least and the greatest, and how many there are."""

    median: float
    least: float
    greatest: float
    count: int

    @property
    def words(self) -> str:
        """For a table."""
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


def figure(values: Sequence[float]) -> Figure:
    """The figure of at least one value."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def figures(results: Iterable[Result]) -> dict[str, dict[str, Figure]]:
    """By scenario and by what was measured."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for name, seconds in result.seconds.items():
            values.setdefault(result.scenario, {}).setdefault(name, []).append(seconds)
    return {scenario: {name: figure(found) for name, found in named.items()} for scenario, named in values.items()}


def page(results: Sequence[Result]) -> str:
    """docs/bench.md: of results of one setting, at least one."""
    found = figures(results)
    rows = [scenario for scenario in SCENARIOS if scenario.name in found]
    first, last = (time.strftime("%Y-%m-%d", time.gmtime(moment(result.at for result in results))) for moment in (min, max))
    kernels = sorted({kernel for result in results for kernel in result.kernels if kernel})
    parts = [
        f"<!--\n{NOTICE}\n-->\n\n# The bench\n",
        f"Written by `tests/bench/run --report` from {len(results)} measurements of {first} to {last}, on {results[0].machine}.\n"
        f"The hypervisor is one of the lab's ([lab.md](lab.md)), emulated without KVM, with the kernels {' and '.join(kernels)}:\n"
        "what counts are ratios. Seconds are medians, in brackets the least and the greatest; the longest pause of the guests of\n"
        "a host counts, told by their own heartbeats. The scenarios took turns, so that what the machine did besides met all alike.\n",
        "An ordinary reboot looks better here than on a server: the emulated host's firmware takes seconds, a server's often minutes.\n"
        "A kexec goes without.\n",
        *_speed(found),
        "## How long guests are paused\n",
        _pauses(rows, found),
        "\n![medians](bench.svg)\n",
    ]
    if "floor" in found.get(FLOOR_OF, {}):
        parts.append(
            "The floor is the least that this machine could do: from the call of reboot(2) to the new PID 1, and one start of a QEMU that\n"
            "loads the guest's state, with nothing of it in memory yet, as after a jump:\n"
            f"{found[FLOOR_OF]['floor'].words} s. It was measured with {FLOOR_OF}, in the same updates.\n"
        )
        parts += _systemd(found[FLOOR_OF])
    live = [scenario for scenario in rows if any(name.startswith("part: ") for name in found[scenario.name])]
    if live:
        parts += ["## Where the pause goes\n", _breakdown(live, found)]
    memory = [scenario for scenario in rows if {"preserve", "retrieve"} & set(found[scenario.name])]
    if memory:
        parts += ["## The kernel's own work\n", _memory(memory, found)]
    return "\n".join(parts)


def _speed(found: dict[str, dict[str, Figure]]) -> list[str]:
    slower = found.get(FLOOR_OF, {}).get("slower")
    if not slower:
        return []
    return [
        f"The hypervisor's processor is slower than this machine's by a factor of {slower.median:.0f} (a loop in Python, on both):\n"
        "whatever is work of the processor weighs that much more here than on a server; firmware, disks and waits do not.\n"
    ]


def _systemd(named: dict[str, Figure]) -> list[str]:
    """What the floor does not have in it, and yet is no work of ours."""
    if "systemd" not in named:
        return []
    least = (named["floor"].median + named["systemd"].median) / named["floor"].median
    return [
        f"Beside the floor {named['systemd'].words} s of each of these pauses are systemd's own: from the guest's last save until it\n"
        "calls reboot(2), and from its start as the new PID 1 until it has loaded its units, before it starts any of them.\n"
        f"Together they are {least:.2f} x floor: less is out of reach for whoever leaves the end and the beginning to systemd.\n"
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _pauses(rows: Sequence[Scenario], found: dict[str, dict[str, Figure]]) -> str:
    floor, peer = found.get(FLOOR_OF, {}).get("floor"), found.get(PEER, {}).get("pause")
    lines = []
    for scenario in rows:
        named = found[scenario.name]
        if "pause" not in named:
            continue
        pause = named["pause"]
        times = f"{pause.median / floor.median:.2f}" if floor else "-"
        against = f"{pause.median / peer.median:.2f}" if peer else "-"
        controller = f"{named['controller'].median:.1f}" if "controller" in named else "-"
        lines.append((scenario.name, scenario.words, pause.words, str(pause.count), times, against, controller))
    head = ("scenario", "what", "pause, s", "measured", "x floor", f"x {PEER}", "controller's CPU, s")
    return _table(head, lines)


def _breakdown(rows: Sequence[Scenario], found: dict[str, dict[str, Figure]]) -> str:
    names = {name.removeprefix("part: ") for scenario in rows for name in found[scenario.name] if name.startswith("part: ")}
    order = [name for name, *_stamps in PARTS]
    lines = []
    for name in sorted(names, key=lambda joined: [order.index(part) for part in joined.split(" + ")]):
        cells = (found[scenario.name].get(f"part: {name}") for scenario in rows)
        lines.append((name, *("-" if cell is None else f"{cell.median:.2f}" for cell in cells)))
    return _table(("part, median seconds", *(scenario.name for scenario in rows)), lines)


def _memory(rows: Sequence[Scenario], found: dict[str, dict[str, Figure]]) -> str:
    lines = []
    for scenario in rows:
        gib = scenario.guests * scenario.ram / 1024 if scenario.guests else scenario.ram / 1024
        for name in ("preserve", "retrieve"):
            if name in found[scenario.name]:
                seen = found[scenario.name][name]
                lines.append((name.upper(), scenario.words, seen.words, f"{seen.median / gib:.2f}", str(seen.count)))
    return _table(("call", "memory", "s", "s per GiB", "measured"), lines)
