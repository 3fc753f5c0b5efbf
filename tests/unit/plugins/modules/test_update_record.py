# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _records
from ansible_collections.kvm.liveupdate.plugins.modules import update_record


@pytest.fixture(name="keep")
def keeps(tmp_path, monkeypatch):
    """Keep a record; what the module says, and what the file has then."""
    monkeypatch.setattr(_records, "completed", lambda record, earlier, since: {**record, "earlier": len(earlier), "since": since})

    def run(record, crash_since=None, check_mode=False):
        params = {"record": record, "path": str(tmp_path / "updates"), "crash_since": crash_since}
        told = update_record.keep(types.SimpleNamespace(params=params, check_mode=check_mode))
        return told, [json.loads(line) for line in _records.read(params["path"]).splitlines()]

    return run


def test_an_update_has_one_record_however_many_runs_record_it(keep):
    """A run that is killed between its record and the end of its lease lets the next one verify the host again."""
    first = {"update_id": "u1", "outcome": "updated", "earlier": 0, "since": None}
    assert keep({"update_id": "u1", "outcome": "updated"}) == ({"changed": True, "record": first}, [first])
    assert keep({"update_id": "u1", "outcome": "failed"}) == ({"changed": False, "record": {}}, [first])
    assert [one["update_id"] for one in keep({"update_id": "u2"}, 7.5)[1]] == ["u1", "u2"]


def test_updates_that_were_undone_before_their_commit_are_all_recorded(keep):
    for number in (1, 2):
        assert len(keep({"update_id": "", "outcome": "undone"})[1]) == number


def test_the_moment_of_the_commit_tells_an_old_crash_from_a_new_one(keep):
    assert keep({"update_id": "u1"}, 7.5)[0]["record"]["since"] == 7.5


def test_check_mode_writes_nothing(keep):
    told, kept = keep({"update_id": "u1"}, check_mode=True)
    assert told["changed"] and kept == []
