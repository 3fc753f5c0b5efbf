# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the results say: medians with their spread, and the tables of docs/docsite/rst/bench.rst. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._stamps import PARTS

from . import hardware
from .results import Result
from .scenarios import SCENARIOS, Scenario
from .text import Figure, Figures, day, figures, table, title

PEER = "save-reboot"
FLOOR_OF = "ours-qemu"
# At the head of what is written; put together here, so that nobody takes it for the licence of this file.
NOTICE = "Copyright: kvm.liveupdate contributors\n" + ": ".join(("SPDX-License-Identifier", "GPL-3.0-or-later"))
_LABEL = "ansible_collections.kvm.liveupdate.docsite.bench"
_LAB = "ansible_collections.kvm.liveupdate.docsite.lab"


def page(results: Sequence[Result], native: Sequence[Result] = ()) -> str:
    """docs/docsite/rst/bench.rst: of results of one setting, at least one, and of native results of one setting."""
    found = figures(results)
    rows = [scenario for scenario in SCENARIOS if scenario.name in found]
    kernels = sorted({kernel for result in results for kernel in result.kernels if kernel})
    parts = [
        f"..\n{textwrap.indent(NOTICE, '  ')}\n\n.. _{_LABEL}:\n",
        title("How long guests pause", "="),
        f"``tests/bench/run --report`` wrote this page from {len(results)} measurements.\n",
        f"* Date: {day(results)}.\n* Machine: {results[0].machine}.\n"
        f"* Code: digest ``{results[0].code}``, of the collection, the lab and the bench.\n",
        f"The hypervisor is a host of :ref:`the lab <{_LAB}>`. It is emulated without KVM and\n"
        f"runs the kernels {' and '.join(kernels)}. Emulation is slower than hardware. So compare the ratios, not the seconds.\n",
        "The heartbeats of the guests give the pauses. A measurement is the longest pause on the host. The tables show medians, with the\n"
        "shortest and the longest time in brackets. The scenarios took turns, so other work on the machine affected all of them.\n",
        "An ordinary reboot looks better here than on a server. The firmware of the emulated host takes seconds, the firmware of a server\n"
        "often takes minutes. A kexec runs no firmware.\n",
        *_speed(found),
        title("The pauses", "-"),
    ]
    if "floor" in found.get(FLOOR_OF, {}):
        parts.append(
            "The *floor* is the shortest pause that is possible on this host. It is the time from the call of reboot(2) to the new PID 1,\n"
            "plus one start of a QEMU that loads the guest's state. No file of this QEMU is in memory yet, as after a jump. The floor is\n"
            f"{found[FLOOR_OF]['floor'].words} s. It was measured in the updates of {FLOOR_OF}.\n"
        )
        parts += _systemd(found[FLOOR_OF])
    parts += [
        "The first column has the names that ``tests/bench/run --only`` takes.\n",
        _pauses(rows, found),
        ".. figure:: bench.svg\n   :alt: A bar for each scenario: the median pause, and a line from the shortest to the longest.\n",
    ]
    live = [scenario for scenario in rows if any(name.startswith("part: ") for name in found[scenario.name])]
    if live:
        parts += [title("The parts of the pause", "-"), _breakdown(live, found)]
    memory = [scenario for scenario in rows if {"preserve", "retrieve"} & set(found[scenario.name])]
    if memory:
        parts += [title("The kernel's part", "-"), _memory(memory, found)]
    if native:
        parts += hardware.section(native, found, results[0].code)
    return "\n".join(parts)


def _speed(found: Figures) -> list[str]:
    slower = found.get(FLOOR_OF, {}).get("slower")
    if not slower:
        return []
    return [
        f"The emulated processor is slower than that of this machine by a factor of {slower.median:.0f} (a loop in Python, on both).\n"
        "Work of the processor takes that much longer than on a server. Firmware, disks and waits do not.\n"
    ]


def _systemd(named: dict[str, Figure]) -> list[str]:
    """What systemd needs. The floor does not include it."""
    if "systemd" not in named:
        return []
    least = (named["floor"].median + named["systemd"].median) / named["floor"].median
    return [
        f"systemd takes {named['systemd'].words} s of each pause. This is the time from the last save to the call of reboot(2), and from\n"
        "the start of the new PID 1 until it has loaded its units. The floor does not include it. A pause with systemd is therefore at\n"
        f"least {least:.2f} times the floor.\n"
    ]


def _pauses(rows: Sequence[Scenario], found: Figures) -> str:
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
    head = ("scenario", "what happens", "pause, s", "measurements", "pause / floor", f"pause / {PEER}", "CPU of the controller, s")
    return table(head, lines)


def _breakdown(rows: Sequence[Scenario], found: Figures) -> str:
    names = {name.removeprefix("part: ") for scenario in rows for name in found[scenario.name] if name.startswith("part: ")}
    order = [name for name, *_stamps in PARTS]
    lines = []
    for name in sorted(names, key=lambda joined: [order.index(part) for part in joined.split(" + ")]):
        cells = (found[scenario.name].get(f"part: {name}") for scenario in rows)
        lines.append((name, *("-" if cell is None else f"{cell.median:.2f}" for cell in cells)))
    return table(("part, median seconds", *(scenario.name for scenario in rows)), lines)


def _memory(rows: Sequence[Scenario], found: Figures) -> str:
    lines = []
    for scenario in rows:
        gib = scenario.guests * scenario.ram / 1024 if scenario.guests else scenario.ram / 1024
        for name in ("preserve", "retrieve"):
            if name in found[scenario.name]:
                seen = found[scenario.name][name]
                lines.append((name.upper(), scenario.words, seen.words, f"{seen.median / gib:.2f}", str(seen.count)))
    return table(("system call", "memory", "s", "s per GiB", "measurements"), lines)
