# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journals of an update and of its guests: what came of them, and what they say of the pause."""

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot

SAVED = {"state": "saved", "on_loss": "start", "hold": "h1", "guest": "web1", "uuid": "u1", "sizes": [4096]}
UPDATE = {"state": "jumping", "boot_id": "b1", "image": {"release": "7.3.4"}}


@pytest.mark.parametrize(
    ("update", "boot_id", "release", "by_kexec", "outcome"),
    [
        ({}, "b1", "7.2.13", None, "none"),
        ({**UPDATE, "state": "aborted"}, "b1", "7.2.13", None, "aborted"),
        ({**UPDATE, "state": "aborted"}, "b2", "7.3.4", True, "aborted"),
        ({**UPDATE, "state": "saving"}, "b1", "7.2.13", False, "pending"),
        (UPDATE, "b1", "7.2.13", False, "pending"),
        (UPDATE, "b2", "7.3.4", True, "jumped"),
        (UPDATE, "b2", "7.3.4", None, "jumped"),
        (UPDATE, "b2", "7.3.4", False, "rebooted"),  # a power cut at that moment, and the new kernel is the boot default
        (UPDATE, "b2", "7.2.13", True, "rebooted"),
        ({**UPDATE, "state": "saving"}, "b2", "7.3.4", True, "rebooted"),
    ],
)
def test_outcome(update, boot_id, release, by_kexec, outcome):
    assert _journal.outcome(update, boot_id, release, by_kexec) == outcome


def test_who_was_saved_and_does_not_run_is_a_reason_against_another_update(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    for name, state in {"web": "saved", "db": "saved", "old": "restored", "gone": "lost"}.items():
        (tmp_path / f"{name}.json").write_text(f'{{"state": "{state}", "unit": "{name}.service"}}')
    (tmp_path / "web.state").write_text("QEVM")
    assert list(_journal.of_guests()) == ["db", "gone", "old", "web"]
    (reason,) = _journal.not_back({"db": {}})
    assert reason["code"] == "not-back" and "guest web " in reason["message"]
    assert "'systemctl start web.service'" in reason["remedy"] and "discard web" in reason["remedy"]
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path / "never-written"))
    assert _journal.not_back({}) == []


@pytest.fixture(name="home")
def folders_of_a_host(tmp_path, monkeypatch):
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    return tmp_path


def test_an_image_that_cannot_be_looked_at_is_not_taken_for_gone(home, monkeypatch):
    (home / "web1.resumed").touch()
    journal = {**SAVED, "boot_id": "before", "image": str(home / "web1.save")}
    assert _journal.as_seen("web1", journal)["state"] == "restored"

    def fails(_path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "lstat", fails)
    assert _journal.as_seen("web1", journal)["state"] == "saved"


@pytest.mark.parametrize(
    ("update", "seconds"),
    [
        ({}, None),
        ({"state": "saved", "times": {"paused": 1.0, "saved": 2.0}}, None),
        ({"state": "lost", "times": {"paused": 1.0, "saved": 2.0}}, None),
        ({"state": "restored", "times": {"paused": 1.5, "saved": 2.0, "resumed": 9.0}}, 7.5),
    ],
)
def test_a_guest_that_was_brought_back_had_a_pause(update, seconds):
    assert _journal.pause(update) == seconds


@pytest.mark.parametrize(
    ("about", "seconds"),
    [
        ({}, 5.0),
        ({"memory_check": "sample"}, 0.0),
        ({"memory_check": None}, 0.0),
        ({"state": "saved"}, 0.0),
        ({"times": {"paused": 1.0, "resumed": 9.0}}, 0.0),
    ],
)
def test_how_long_a_full_check_took(about, seconds):
    times = {"paused": 1.0, "saved": 2.0, "read": 4.0, "retrieved": 10.0, "checked": 13.0, "resumed": 20.0}
    assert _journal.check_s({"state": "restored", "memory_check": "full", "times": times, **about}) == seconds
