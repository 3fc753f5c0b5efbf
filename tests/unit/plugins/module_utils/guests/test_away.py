# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _command
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _room

GIB = 1 << 30


@pytest.fixture(name="folder", autouse=True)
def a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "away"
    monkeypatch.setattr(_files, "AWAY", str(folder))
    return folder


def test_nobody_is_away_on_a_host_that_never_sent_anybody(folder):
    assert _away.records() == [] and _away.read("web") == {} and not folder.exists()


def test_a_record_is_kept_by_name_until_the_guest_is_back(folder):
    leaving = _away.write({"guest": "web", "way": "save"}, "leaving")
    away = _away.write(leaving, "away")
    _away.write({"guest": "db", "way": "shutdown"}, "leaving")
    assert set(away["times"]) == {"leaving", "away"} and away["times"]["leaving"] <= away["times"]["away"]
    assert _away.read("web") == away
    assert [record["guest"] for record in _away.records()] == ["db", "web"]
    assert (folder / "web.json").stat().st_mode & 0o777 == 0o600
    _away.forget("web")
    _away.forget("web")
    assert [record["guest"] for record in _away.records()] == ["db"]


def test_a_damaged_record_is_not_taken_for_a_guest_that_is_here(folder):
    folder.mkdir()
    (folder / "web.json").write_text("{")
    with pytest.raises(LiveUpdateError, match=r"away/web\.json is damaged: .*remove it if"):
        _away.records()


def test_the_operator_sees_who_is_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update.json"))
    monkeypatch.setattr(_providers, "known", dict)
    _away.write({"guest": "web", "way": "save"}, "away")
    assert _command.main(["status"]) == 0
    assert '"away": {\n    "web": {' in capsys.readouterr().out


@pytest.mark.parametrize(("size", "on_disk", "fits"), [(GIB, 2 * GIB, True), (GIB, GIB + (256 << 20), True), (GIB, GIB, False)])
def test_a_save_needs_room_for_the_ram_and_some_more(size, on_disk, fits):
    found = _room.shortage(size, on_disk, "/somewhere")
    assert found == ([] if fits else ["saving it needs 1280 MiB below /somewhere, where 1024 MiB are free - free space there"])


def test_free_room_is_what_the_file_system_says(tmp_path):
    assert _room.free(str(tmp_path)) > 0
    assert _room.free(str(tmp_path / "missing")) == 0


def test_a_larger_guest_may_take_longer():
    assert _room.limit_s(0) == 300
    assert _room.limit_s(100 * GIB) == 300 + 5120
