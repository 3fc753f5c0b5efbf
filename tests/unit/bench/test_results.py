# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bench's file of results, and what is still to be measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kvmbench.results import Result, append, due, of_setting, read
from kvmbench.scenarios import SCENARIOS, Scenario, chosen
from kvmlab.errors import LabError

ONE, TWO = Scenario("one", "qemu"), Scenario("two", "save-reboot")
RESULT = Result("one", 1.5, "c0de", "a machine", 0.5, ("7.2.13", "7.3.4"), {"pause": 9.5})


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "bench.jsonl"
    results = [RESULT, replace(RESULT, seconds={}, error="it\nfailed")]
    for result in results:
        append(path, result)
    assert read(path) == results


def test_a_last_line_that_is_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    append(path, RESULT)
    path.write_text(path.read_text() + '{"scenario": "on')
    assert read(path) == [RESULT]


def test_without_a_file_nothing_was_measured(tmp_path: Path) -> None:
    assert read(tmp_path / "bench.jsonl") == []


@pytest.mark.parametrize("other", [{"code": "other"}, {"machine": "another"}, {"error": "failed"}])
def test_what_does_not_compare_does_not_count(other: dict[str, str]) -> None:
    assert of_setting([RESULT, replace(RESULT, **other)], "c0de", "a machine") == [RESULT]


def test_scenarios_take_turns() -> None:
    assert due([ONE, TWO], [], 2) == [ONE, TWO, ONE, TWO]


def test_a_later_run_goes_on_where_the_one_before_ended() -> None:
    done = [RESULT, replace(RESULT, scenario="two"), RESULT, replace(RESULT, scenario="not asked for")]
    assert due([ONE, TWO], done, 3) == [TWO, ONE, TWO]
    assert due([ONE, TWO], [*done, replace(RESULT, scenario="two")], 2) == []
    assert due([ONE], [RESULT] * 7, 5) == []


def test_scenarios_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen("", SCENARIOS) == list(SCENARIOS)
    assert [scenario.name for scenario in chosen("save-reboot, ours-qemu", SCENARIOS)] == ["ours-qemu", "save-reboot"]


def test_an_unknown_scenario_is_named_with_the_known_ones() -> None:
    with pytest.raises(LabError, match=r"--only: there is no scenario 'ours'; there is ours-qemu, ours-libvirt"):
        chosen("ours-qemu,ours", SCENARIOS)


def test_every_scenario_has_a_name_and_words_of_its_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len({scenario.words for scenario in SCENARIOS}) == len(SCENARIOS)


def test_a_scenario_in_words() -> None:
    assert Scenario("x", "qemu", guests=4, ram=512, thp=True).words == "live update, QEMU in a unit, 4 x 512 MiB, huge pages"
    assert Scenario("x", "preserve", guests=0, ram=1024).words == "the call PRESERVE alone, 1024 MiB"
