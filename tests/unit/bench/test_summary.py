# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bench's medians, tables and picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from kvmbench.plot import bars
from kvmbench.results import Result
from kvmbench.summary import page
from kvmbench.text import Figure, figure, figures


def results(scenario: str, **seconds: list[float]) -> list[Result]:
    """A result for each place in the lists."""
    return [
        Result(scenario, 1.795e9, "c0de", "a machine", 0.5, ("7.2.13", "7.3.4"), dict(zip(seconds, values, strict=True)))
        for values in zip(*seconds.values(), strict=True)
    ]


OURS = results("ours-qemu", pause=[9.0, 8.0, 13.0], floor=[5.0, 4.0, 6.0], controller=[7.0, 6.0, 8.0], retrieve=[0.25, 0.5, 0.125])
PEERS = results("save-reboot", pause=[50.0, 40.0, 45.0], controller=[3.0, 3.0, 3.0])
MEMORY = results("preserve-1g-thp", preserve=[0.02]) + results(
    "ours-qemu-2g", pause=[10.0], retrieve=[1.0], **{"part: save the state": [0.5]}
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 1.0, 9.0], Figure(3.0, 1.0, 9.0, 3)), ([2.0, 4.0], Figure(3.0, 2.0, 4.0, 2)), ([1.0], Figure(1.0, 1.0, 1.0, 1))],
)
def test_a_figure_is_the_middle_and_the_spread(values: list[float], expected: Figure) -> None:
    assert figure(values) == expected
    assert figure([1.0, 2.5, 3.0]).words == "2.50 (1.00 to 3.00)"


def test_figures_are_of_a_scenario_and_of_what_was_measured() -> None:
    found = figures(OURS + PEERS)
    assert found["ours-qemu"]["floor"] == Figure(5.0, 4.0, 6.0, 3)
    assert found["save-reboot"]["pause"].median == 45.0
    assert "floor" not in found["save-reboot"]


def tables(text: str) -> list[list[str]]:
    """The rows of all tables, each with its cells."""
    return [[cell.strip() for cell in row.split("\n     - ")] for row in re.findall(r"^   \* - (.*(?:\n     - .*)*)", text, re.MULTILINE)]


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins so."""
    (row,) = [row for row in tables(text) if row[0] == first]
    return row


def test_the_table_of_pauses() -> None:
    text = page(OURS + PEERS)
    assert cells(text, "ours-qemu")[2:] == ["9.00 (8.00 to 13.00)", "3", "1.80", "0.20", "7.0"]
    assert cells(text, "save-reboot")[2:] == ["45.00 (40.00 to 50.00)", "3", "9.00", "1.00", "3.0"]
    assert "6 measurements" in text and "* Date: 2026-11-18.\n* Machine: a machine.\n* Code: digest ``c0de``" in text
    assert "kernels 7.2.13 and 7.3.4" in text and "5.00 (4.00 to 6.00) s" in text


def test_what_was_not_measured_is_not_made_up() -> None:
    text = page(PEERS[:1])
    assert cells(text, "save-reboot")[2:] == ["50.00 (50.00 to 50.00)", "1", "-", "1.00", "3.0"]
    assert "ours-qemu" not in text and "The floor" not in text and "The parts of the pause" not in text and "factor" not in text


def test_how_slow_the_emulated_processor_is_is_said() -> None:
    assert "by a factor of 27 (" in page(results("ours-qemu", pause=[9.0, 9.0, 9.0], slower=[26.0, 27.2, 31.0]))


def test_systemds_own_share_is_said() -> None:
    text = page(results("ours-qemu", pause=[9.0], floor=[4.0], systemd=[2.0]))
    assert "2.00 (2.00 to 2.00) s of each pause" in text and "1.50 times the floor" in text
    assert "of each pause" not in page(OURS)


def test_the_parts_and_the_kernels_own_work() -> None:
    text = page(OURS + MEMORY)
    assert cells(text, "save the state") == ["save the state", "0.50"]
    retrieved = [row[2:] for row in tables(text) if row[0] == "RETRIEVE"]
    assert retrieved == [["0.25 (0.12 to 0.50)", "2.00", "3"], ["1.00 (1.00 to 1.00)", "0.50", "1"]]
    assert ["PRESERVE", "the call PRESERVE alone, 1024 MiB, huge pages", "0.02 (0.02 to 0.02)", "0.02", "1"] in tables(text)


def test_the_parts_stand_in_the_order_of_the_pause() -> None:
    """A domain has one more, and two in one where a stamp is missing."""
    unit = results("ours-qemu", pause=[9.0], **{"part: start QEMU": [2.0], "part: save the state": [1.0]})
    domain = results("ours-libvirt", pause=[9.0], **{"part: start QEMU + load the state": [3.0], "part: wait for libvirt": [4.0]})
    text = page(unit + domain)
    first = [row[0] for row in tables(text[text.index("The parts of the pause") :])]
    assert first[1:5] == ["save the state", "wait for libvirt", "start QEMU", "start QEMU + load the state"]


def test_the_picture_has_a_bar_for_each_scenario_to_scale() -> None:
    found = figures(OURS + PEERS)
    drawn = ElementTree.fromstring(bars({name: named["pause"] for name, named in found.items()}, found["ours-qemu"]["floor"]))
    space = "{http://www.w3.org/2000/svg}"
    ours, peer = (float(shape.attrib["width"]) for shape in drawn.findall(f"{space}rect")[1:])
    assert peer / ours == pytest.approx(45 / 9, rel=0.01)
    texts = [text.text for text in drawn.findall(f"{space}text")]
    assert "9.0 s" in texts and "floor 5.0 s" in texts and "managed save, reboot, restore, 1 x 128 MiB" in texts


def test_a_picture_of_nothing() -> None:
    assert len(list(ElementTree.fromstring(bars({}, None)))) == 1
