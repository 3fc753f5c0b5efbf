# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bench's command line, as far as it needs no lab."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvmbench import cli
from kvmbench.native import Native
from kvmbench.results import Result, append, read
from kvmbench.scenarios import Scenario
from kvmlab.errors import LabError


def test_the_report_is_of_the_newest_results_and_those_that_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path)
    docs = tmp_path / "docs/docsite/rst"
    docs.mkdir(parents=True)
    results = tmp_path / "bench.jsonl"
    for scenario, code, pause in (("save-reboot", "old", 99.0), ("ours-qemu", "new", 9.0), ("save-reboot", "new", 45.0)):
        append(results, Result(scenario, 1.8e9, code, "a machine", seconds={"pause": pause}))
    append(results, Result("ours-qemu", 1.8e9, "new", "a machine", error="the guest was silent"))
    assert cli.main(["--report", "--results", str(results)]) == 0
    text = (docs / "bench.rst").read_text()
    assert "from 2 measurements" in text and "45.00" in text and "99.00" not in text
    assert (docs / "bench.svg").read_text().startswith("<svg")


def test_the_report_has_the_newest_native_results_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path)
    docs = tmp_path / "docs/docsite/rst"
    docs.mkdir(parents=True)
    results = tmp_path / "bench.jsonl"
    append(results, Result("ours-qemu", 1.8e9, "old", "a machine, forky", seconds={"pause": 9.0}))
    for code, seconds in (("older", 0.75), ("new", 0.25)):
        append(results, Result("forky/programs", 1.8e9, code, f"a machine{cli.NATIVELY}", seconds={"python3": seconds}))
    assert cli.main(["--report", "--results", str(results)]) == 0
    text = (docs / "bench.rst").read_text()
    assert "from 1 measurements" in text and "9.00" in text and "0.250" in text and "0.750" not in text
    assert "another version of the code" in text


def test_native_results_alone_make_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "bench.jsonl"
    append(results, Result("forky/programs", 1.8e9, "new", f"a machine{cli.NATIVELY}", seconds={"python3": 0.25}))
    assert cli.main(["--report", "--results", str(results)]) == 1
    assert "no measurement in the lab yet" in capsys.readouterr().err


def test_without_a_measurement_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--report", "--results", str(tmp_path / "none.jsonl")]) == 1
    assert "no measurement in the lab yet" in capsys.readouterr().err


def test_an_unknown_scenario_is_an_error_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--only", "ours"]) == 1
    assert "there is no scenario 'ours'" in capsys.readouterr().err


def test_an_unknown_native_measurement_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--native", "--only", "ours-qemu"]) == 1
    assert "there is no scenario 'ours-qemu'; there is forky/programs" in capsys.readouterr().err


def test_nothing_is_entered_if_all_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "rooms", None)
    monkeypatch.setattr(cli, "digest", lambda: "c0de")
    monkeypatch.setattr(cli, "machine", lambda: "a machine")
    results = tmp_path / "bench.jsonl"
    append(results, Result("forky/programs", 1.8e9, "c0de", f"a machine{cli.NATIVELY}", seconds={"python3": 0.25}))
    assert cli.main(["--native", "--only", "forky/programs", "--rounds", "1", "--results", str(results)]) == 0


class BrokenRooms:
    """Rooms in which nothing goes well."""

    def run(self, suite: str, program: str, *words: str) -> dict[str, float]:
        raise LabError(f"{suite}: {program} failed")


def test_a_native_failure_is_kept_and_does_not_count() -> None:
    result = cli.one_natively(BrokenRooms(), Native("forky", "programs"), "c0de", "a machine")  # type: ignore[arg-type]
    assert (result.scenario, result.error, result.seconds) == ("forky/programs", "forky: programs failed", {})


class Broken:
    """A stand on which nothing goes well."""

    def kernel(self) -> str:
        return "7.2.13"

    def measure(self, scenario: Scenario) -> dict[str, float]:
        raise LabError(f"{scenario.name}: the guest was silent")


def test_what_fails_is_kept_and_does_not_count(tmp_path: Path) -> None:
    result = cli.one(Broken(), Scenario("one", "qemu"), "c0de", "a machine")  # type: ignore[arg-type]
    append(tmp_path / "bench.jsonl", result)
    (found,) = read(tmp_path / "bench.jsonl")
    assert (found.error, found.seconds, found.kernels) == ("one: the guest was silent", {}, ("7.2.13", ""))
