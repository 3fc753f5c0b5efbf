# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What native measurements make of a pause."""

from __future__ import annotations

import re

import pytest
from kvmbench.hardware import section, slope
from kvmbench.results import Result
from kvmbench.text import figures

MACHINE = "a machine, 2 processors"


def native(scenario: str, seconds: dict[str, float]) -> Result:
    """A native result."""
    return Result(scenario, 1.795e9, "c0de", f"{MACHINE}, native", seconds=seconds)


def parts(**seconds: float) -> dict[str, float]:
    """Seconds of parts, with underscores for blanks."""
    return {f"part: {name.replace('_', ' ')}": value for name, value in seconds.items()}


BOOT = parts(stop_the_old_system=0.25, systemd_loads_its_units=0.5, start_the_restore=0.125)
UNIT = [
    native("forky/boot-unit", BOOT),
    native("forky/qemu-1x128", parts(save_the_state=0.0625, start_QEMU=1.0, load_the_state=0.03125, resume=0.03125)),
]
ABOVE = {"pause": 6.0, **parts(save_the_state=0.5, start_the_new_kernel=1.5, start_QEMU=2.0)}
LAB = Result("ours-qemu", 1.7e9, "c0de", "a machine, forky", seconds=ABOVE)


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, each with its cells."""
    return [[cell.strip() for cell in row.split("\n     - ")] for row in re.findall(r"^   \* - (.*(?:\n     - .*)*)", text, re.MULTILINE)]


def page(results: list[Result], lab: list[Result], code: str = "c0de") -> str:
    return "\n".join(section(results, figures(lab), code))


def row(text: str, first: str) -> list[str]:
    """The cells of the only row that begins so."""
    (found,) = [cells for cells in rows(text) if cells[0] == first]
    return found[1:]


def test_parts_stand_beside_each_other_and_are_summed_up() -> None:
    text = page(UNIT, [LAB])
    assert rows(text)[0] == ["guests in units, median seconds", "emulated", "native, forky"]
    assert row(text, "start QEMU, measured") == ["2.00", "1.00"]
    assert row(text, "start the new kernel, measured") == ["1.50", "not measured"]
    assert row(text, "stop the old system, measured") == ["-", "0.25"]
    assert row(text, "the whole pause, measured") == ["6.00 (6.00 to 6.00)", "-"]
    assert row(text, "**sum of the native parts, projected**") == ["-", "2.00"]
    assert MACHINE in text and "another version" not in text
    names = [cells[0].removesuffix(", measured") for cells in rows(text)[1:4]]
    assert names == ["save the state", "stop the old system", "start the new kernel"]


def test_without_a_part_there_is_no_sum() -> None:
    text = page(UNIT[1:], [LAB])
    assert row(text, "**sum of the native parts, projected**") == ["-", "not all parts measured"]
    assert "systemd of forky, which does not run" in text and "systemd of forky" not in page(UNIT, [LAB])


def test_files_in_memory_have_a_column_of_their_own() -> None:
    warm = [native("forky/boot-unit-warm", {**BOOT, "part: start the restore": 0.0}), native("forky/qemu-1x128-warm", UNIT[1].seconds)]
    text = page([*UNIT, *warm], [])
    assert rows(text)[0] == ["guests in units, median seconds", "emulated", "native, forky", "native, forky, files in memory"]
    assert row(text, "start the restore, measured") == ["-", "0.12", "0.00"]
    assert row(text, "**sum of the native parts, projected**") == ["-", "2.00", "1.88"]


def test_libvirts_daemon_is_started_by_systemd_and_then_waited_for() -> None:
    domain = native("trixie/domain-1x128", parts(wait_for_libvirt=1.0, resume=0.25))
    text = page([native("trixie/boot-domain", {**BOOT, "start of libvirt's daemon": 0.5}), domain], [])
    assert row(text, "wait for libvirt, measured") == ["-", "1.50"]
    assert row(text, "**sum of the native parts, projected**") == ["-", "2.62"]


def test_another_version_of_the_code_is_named() -> None:
    assert "another version of the code" in page(UNIT, [LAB], code="other")


def test_programs_are_in_one_table_with_a_column_for_each_suite() -> None:
    text = page([native("forky/programs", {"python3": 0.02}), native("trixie/daemon", {"libvirtd": 1.5}), native("forky/daemon", {})], [])
    assert row(text, "python3") == ["0.020 (0.020 to 0.020)", "-"] and row(text, "libvirtd") == ["-", "1.500 (1.500 to 1.500)"]
    assert "``virtqemud``, which is not" in text
    assert "``virtqemud``, which is not" not in page([native("forky/daemon", {"a call of virsh, virtqemud": 0.5})], [])


@pytest.mark.parametrize(("seconds", "expected"), [({1: 1.0, 4: 2.5, 8: 4.5}, 0.5), ({1: 1.0, 3: 1.0}, 0.0), ({1: 1.0}, None), ({}, None)])
def test_the_slope(seconds: dict[int, float], expected: float | None) -> None:
    assert slope(seconds) == expected


def test_the_slope_per_guest_and_processor() -> None:
    measured = [native(f"forky/qemu-{count}x128", {"guests": 0.5 + 0.25 * count, "processors": 2.0}) for count in (1, 4)]
    lab = [Result(name, 1.7e9, "c0de", "a machine", seconds={"pause": pause}) for name, pause in (("ours-qemu", 6.0), ("ours-qemu-4", 9.0))]
    (_head, here, there) = rows(page(measured, lab))[-3:]
    assert here == ["native, forky", "in units, 128 MiB", "0.75", "1.50", "not measured", "0.250", "0.500 (2 processors)"]
    assert there == ["emulated", "in units, 128 MiB", "6.00", "9.00", "not measured", "1.000", "1.000 (1 processor)"]
