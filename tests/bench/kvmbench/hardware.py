# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pause in terms of hardware: what was measured without emulation, and what that makes of a pause. A part of bench.rst. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._stamps import PARTS
from kvmlab.machines.machine import PROCESSORS

from .native import COUNTS, MIB, NATIVE
from .results import Result
from .text import Figure, Figures, day, figures, table, title

DAEMON = "start of libvirt's daemon"
_SUITES = tuple(dict.fromkeys(measurement.suite for measurement in NATIVE))
# The parts of a pause that only a kernel does, or a machine. Nothing here can measure them.
_KERNELS = ("start the new kernel", "initial RAM disk", "retrieve the memory")


@dataclass(frozen=True)
class Kind:
    """A kind of guests: the emulated scenario, and for each native column the measurements of its parts, and the words for its head."""

    name: str
    emulated: str
    columns: tuple[tuple[tuple[str, str], str], ...]


KINDS = (
    Kind(
        "Guests in units",
        "ours-qemu",
        ((("boot-unit", "qemu-1x128"), ""), (("boot-unit-warm", "qemu-1x128-warm"), ", files in memory")),
    ),
    Kind(
        "Domains",
        "ours-libvirt",
        (
            (("boot-domain", "domain-1x128"), ""),
            (("boot-domain-warm", "domain-1x128-warm"), ", files in memory"),
            (("boot-domain", "domain-1x128-probe"), ", libvirt probes QEMU"),
        ),
    ),
)


def native_parts(found: Figures, measurements: Sequence[str]) -> dict[str, float]:
    """The median seconds of each part of a pause that was measured natively, by its name."""
    seen = {name: value for measurement in measurements for name, value in found.get(measurement, {}).items()}
    parts = _medians(seen)
    if DAEMON in seen and "wait for libvirt" in parts:
        parts["wait for libvirt"] += seen[DAEMON].median
    return parts


def _medians(named: Mapping[str, Figure]) -> dict[str, float]:
    """The median seconds of the parts of a pause among what was measured."""
    return {name.removeprefix("part: "): seen.median for name, seen in named.items() if name.startswith("part: ")}


def slope(seconds: Mapping[int, float]) -> float | None:
    """How many seconds each further guest adds: a straight line through the times by number of guests, by least squares. Pure."""
    if len(seconds) < 2:
        return None
    middle, mean = sum(seconds) / len(seconds), sum(seconds.values()) / len(seconds)
    above = sum((count - middle) * (value - mean) for count, value in seconds.items())
    return above / sum((count - middle) ** 2 for count in seconds)


def section(native: Sequence[Result], emulated: Figures, code: str) -> list[str]:
    """This part of the page: native results of one setting, at least one; emulated figures by scenario, and the code that these are of."""
    found = figures(native)
    where = native[0].machine.removesuffix(", native")
    parts = [
        title("The pause in terms of hardware", "-"),
        f"``tests/bench/run --native`` runs programs of user space without emulation: on {where},\n"
        f"{day(native)}, in namespaces with the packages of the lab's hosts. QEMU uses TCG there instead of KVM.\n"
        "At each number the tables say whether it was *measured* or *projected*.\n",
    ]
    if code != native[0].code:
        parts.append("These measurements are of another version of the code than those above.\n")
    parts += [
        "The projected pause is the sum of the medians of the native parts. It is the pause of a host with processors and a disk as fast\n"
        "as here, without the kernel's parts. For the pause of a server, add two times of that server: the start of the new kernel, from\n"
        "the kexec to PID 1, and the retrieval of the memory.\n",
        "Before the restore, the files of the host's system are dropped from memory, as after a jump. Only the files' names stay, and\n"
        "what the bench's own Python uses. *Files in memory* shows the same without reading the disk.\n",
        *(text for kind in KINDS for text in _of_kind(kind, found, emulated)),
        *_programs(found),
        *_slopes(found, emulated),
        *_not_measured(found),
    ]
    return parts


def _of_kind(kind: Kind, found: Figures, emulated: Figures) -> list[str]:
    columns = [([f"{suite}/{name}" for name in pair], f"native, {suite}{words}") for suite in _SUITES for pair, words in kind.columns]
    columns = [(measurements, words) for measurements, words in columns if measurements[-1] in found]
    if not columns:
        return []
    named = emulated.get(kind.emulated, {})
    above = _medians(named)
    native = [native_parts(found, measurements) for measurements, _words in columns]
    names = _in_order({*above, *(name for parts in native for name in parts)})
    lines = [(f"{name}, measured", _cell(above.get(name)), *(_cell(parts.get(name), _missing(name)) for parts in native)) for name in names]
    pause = named["pause"].words if "pause" in named else "-"
    lines.append(("the whole pause, measured", pause, *["-"] * len(columns)))
    sums = [
        _cell(sum(parts.values())) if set(measurements) <= set(found) else "not all parts measured"
        for parts, (measurements, _words) in zip(native, columns, strict=True)
    ]
    lines.append(("**sum of the native parts, projected**", "-", *sums))
    head = (f"{kind.name.lower()}, median seconds", "emulated", *(words for _measurements, words in columns))
    return [title(kind.name, "~"), table(head, lines)]


def _missing(name: str) -> str:
    return "not measured" if set(name.split(" + ")) & set(_KERNELS) else "-"


def _cell(seconds: float | None, otherwise: str = "-") -> str:
    return otherwise if seconds is None else f"{seconds:.2f}"


def _in_order(names: set[str]) -> list[str]:
    order = [name for name, *_stamps in PARTS]
    return sorted(names, key=lambda joined: [order.index(part) for part in joined.split(" + ")])


def _programs(found: Figures) -> list[str]:
    kinds = ("programs", "daemon")
    seen = {suite: {name: value for kind in kinds for name, value in found.get(f"{suite}/{kind}", {}).items()} for suite in _SUITES}
    names = list(dict.fromkeys(name for named in seen.values() for name in named))
    if not names:
        return []
    lines = [(name, *(seen[suite][name].precise if name in seen[suite] else "-" for suite in _SUITES)) for name in names]
    return [
        title("The programs", "~"),
        "All of these were measured natively. Calls of programs are medians of nine calls in a row, with the program's files in memory. A\n"
        "daemon starts without its files in memory.\n",
        table(("measured natively, s", *_SUITES), lines),
    ]


def _slopes(found: Figures, emulated: Figures) -> list[str]:
    lines: list[tuple[str, ...]] = []
    counts = (f"{count}, s, measured" for count in COUNTS)
    for suite in _SUITES:
        for kind in ("qemu", "domain"):
            for mib in MIB:
                seen = {count: found.get(f"{suite}/{kind}-{count}x{mib}", {}) for count in COUNTS}
                what = "in units" if kind == "qemu" else "domains"
                processors = next((named["processors"].median for named in seen.values() if "processors" in named), 1.0)
                lines += _slope(f"native, {suite}", f"{what}, {mib} MiB", _of(seen, "guests"), processors)
    for scenario, what in (("ours-qemu", "in units"), ("ours-libvirt", "domains")):
        seen = {count: emulated.get(scenario if count == 1 else f"{scenario}-{count}", {}) for count in COUNTS}
        lines += _slope("emulated", f"{what}, 128 MiB", _of(seen, "pause"), float(PROCESSORS))
    if not lines:
        return []
    return [
        title("More guests", "~"),
        "All guests are saved at the same time, and restored at the same time. The time is that of the slowest guest. Natively it is the\n"
        "save plus the restore from the start of QEMU or of libvirt's daemon on. In emulation it is the whole pause.\n",
        "The *slope* is what each further guest adds: the slope of a straight line through the measured medians (least squares). The\n"
        "slope per guest and processor is the slope multiplied by the number of processors. On a host with P processors of this speed,\n"
        "each further guest adds this number divided by P (projected).\n",
        table(("where", "guests", *counts, "slope, s per guest, from measured", "slope per guest and processor, s, from measured"), lines),
    ]


def _of(seen: Mapping[int, Mapping[str, Figure]], name: str) -> dict[int, float]:
    return {count: named[name].median for count, named in seen.items() if name in named}


def _slope(where: str, guests: str, seconds: Mapping[int, float], processors: float) -> list[tuple[str, ...]]:
    steep = slope(seconds)
    if steep is None:
        return []
    times = (_cell(seconds.get(count), "not measured") for count in COUNTS)
    return [(where, guests, *times, f"{steep:.3f}", f"{steep * processors:.3f} ({processors:.0f} processor{'s' * (processors > 1)})")]


def _not_measured(found: Figures) -> list[str]:
    missing = [
        "the kernel's parts: its start, the devices of a server, an initial RAM disk, the retrieval of the memory",
        "KVM: QEMU makes its virtual machine and its processors in the kernel",
        "firmware, which a kexec does not run",
        "AppArmor, which confines libvirt's daemon and domains on forky",
        "cgroups of domains, and the weights of the boot",
        "udev, and the units that do nothing in a container",
        "unmounting file systems at the shutdown: of *stop the old system*, only the end of the processes is measured",
    ]
    if not any("virtqemud" in name for named in found.values() for name in named):
        missing.append("``virtqemud``, which is not in the packages of the lab's hosts")
    suites = {name.partition("/")[0] for name in found} - {name.partition("/")[0] for name in found if "/boot-" in name}
    if suites:
        missing.append(f"systemd of {' and '.join(sorted(suites))}, which does not run in a namespace of every machine")
    listed = ";\n".join(f"* {text}" for text in missing)
    return [title("What is not measured here", "~"), f"{listed}.\n"]
