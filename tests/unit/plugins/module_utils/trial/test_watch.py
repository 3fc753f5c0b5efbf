# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The watch of the devices in the boot after a trial's jump."""

from __future__ import annotations

import json

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _command
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _devices, _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _watch


@pytest.fixture(name="trial")
def a_trial(tmp_path, monkeypatch):
    """Its record. It is over after three looks."""
    record, looks = tmp_path / "trial.json", []
    record.write_text('{"boot_id": "old"}')

    def seen():
        looks.append(len(looks))
        if len(looks) == 3:
            record.unlink()
        return {"pci a"} if len(looks) == 1 else {"pci a", "link a"}

    monkeypatch.setattr(_files, "TRIAL", str(record))
    monkeypatch.setattr(_files, "SEEN", str(tmp_path / "run" / "seen.json"))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "new")
    monkeypatch.setattr(_devices, "seen", seen)
    monkeypatch.setattr(_watch, "POLL_S", 0.02)
    return record


def test_what_comes_is_recorded_with_its_time_until_the_trial_is_over(trial):
    assert _command.main(["watch-devices"]) == 0
    found = _watch.kept("new")
    assert set(found["seen"]) == {"pci a", "link a"}
    assert found["from"] == found["seen"]["pci a"] < found["seen"]["link a"]
    assert _watch.kept("another") == {}


@pytest.mark.parametrize("record", [{"boot_id": "new"}, {}])
def test_before_the_jump_and_without_a_trial_there_is_nothing_to_watch(trial, tmp_path, record):
    trial.write_text(json.dumps(record))
    assert _command.main(["watch-devices"]) == 0
    assert not (tmp_path / "run").exists()


def test_the_watch_ends_at_its_limit(trial, monkeypatch):
    monkeypatch.setattr(_watch, "LIMIT_S", 0.0)
    _watch.watch()
    assert trial.exists() and _watch.kept("new") == {}


def test_the_first_time_counts():
    first = _watch.added({}, {"pci a"}, 3.0)
    second = _watch.added(first, {"link a"}, 4.0)
    third = _watch.added(second, {"pci a", "link a"}, 5.0)
    assert third == second == {"from": 3.0, "seen": {"pci a": 3.0, "link a": 4.0}}
