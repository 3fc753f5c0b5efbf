# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _image
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _records

OLD = {"release": "7.2.13", "version": "#1"}
JUMPED = {"update_id": "u0", "boot_id_after": "b1", "image": {**OLD, "path": "/boot/k", "sha256": "as-it-was", "signed": True}}
RECORD = {"update_id": "u1", "boot_id_before": "b1", "image_before": OLD}
FILE = {**OLD, "path": "/boot/vmlinuz-7.2.13", "sha256": "as-it-is", "signed": False, "build_ids": ["x"], "size": 9}


@pytest.fixture(name="boot")
def a_boot(tmp_path, monkeypatch):
    """A root file system with the image of the old kernel. What is read from it can be set."""
    image = tmp_path / "boot/vmlinuz-7.2.13"
    image.parent.mkdir()
    image.touch()
    known = {**FILE}

    def read(path, **_given):
        if not known:
            raise LiveUpdateError("cut off")
        assert path == str(image)
        return known

    monkeypatch.setattr(_image, "read", read)
    return known


def test_a_record_is_added_as_one_line(tmp_path):
    path = tmp_path / "new/updates.jsonl"
    for number in (1, 2):
        _records.add(str(path), _records.read(str(path)), {"update_id": f"u{number}", "why": "two\nlines"})
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text().count("\n") == 2
    assert [one["update_id"] for one in _records.known(path.read_text())] == ["u1", "u2"]


def test_a_damaged_line_is_kept_and_does_not_count(tmp_path):
    path = tmp_path / "updates.jsonl"
    path.write_text('{"update_id": "u1"}\n[1]\n{"update_id": "u')
    _records.add(str(path), _records.read(str(path)), {"update_id": "u2"})
    assert path.read_text().splitlines()[:3] == ['{"update_id": "u1"}', "[1]", '{"update_id": "u']
    assert [one["update_id"] for one in _records.known(path.read_text())] == ["u1", "u2"]


def old(earlier, tmp_path, record=None):
    return _records.completed(record or RECORD, earlier, None, str(tmp_path))["image_before"]


def test_the_image_of_the_old_kernel_is_that_of_the_jump_that_started_it(tmp_path, boot):
    """The file may be another one now."""
    assert old([JUMPED], tmp_path) == JUMPED["image"]
    boot.clear()
    assert old([{"update_id": "u"}, JUMPED, {**JUMPED, "boot_id_after": "b9", "image": {}}], tmp_path) == JUMPED["image"]


@pytest.mark.parametrize(
    "earlier",
    [
        [],
        [{**JUMPED, "boot_id_after": "b0"}],
        [{**JUMPED, "image": {**JUMPED["image"], "release": "7.1.1"}}],
        [{**JUMPED, "pstore": []}],
    ],
    ids=["no record", "of another boot", "of another kernel", "that ended in a cold boot"],
)
def test_without_such_a_jump_the_file_of_the_old_kernel_counts(tmp_path, boot, earlier):
    assert old(earlier, tmp_path) == {**OLD, "path": FILE["path"], "sha256": "as-it-is", "signed": False}
    boot["version"] = "#2"
    assert old(earlier, tmp_path) == OLD
    boot.clear()
    assert old(earlier, tmp_path) == OLD


def test_without_an_update_there_is_no_old_kernel(tmp_path, boot):
    assert _records.completed({"update_id": "", "image_before": {}}, [JUMPED], None, str(tmp_path)) == {"update_id": "", "image_before": {}}


def test_what_a_crashed_kernel_left_is_in_the_record_by_name_and_end(tmp_path):
    shown, moved = tmp_path / "sys/fs/pstore", tmp_path / "var/lib/systemd/pstore/176"
    for place, name, text, age in (
        (shown, "dmesg-efi-2", b"x" * 3000 + b"\xff Kernel panic", 0),
        (moved, "dmesg.txt", b"an Oops", 10),
        (moved, "earlier.txt", b"of an older crash", 100),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(text)
        os.utime(place / name, (1000 - age, 1000 - age))
    (shown / "link").symlink_to("/etc/passwd")
    first, second = _records.completed(RECORD, [], 950.0, str(tmp_path))["pstore"]
    assert first["file"] == f"{shown}/dmesg-efi-2" and first["tail"].endswith("x\ufffd Kernel panic") and len(first["tail"]) == 2000
    assert second == {"file": f"{moved}/dmesg.txt", "tail": "an Oops"}
    assert "pstore" not in _records.completed(RECORD, [], None, str(tmp_path))
    assert _records.completed(RECORD, [], 2000.0, str(tmp_path))["pstore"] == []


def test_a_storage_full_of_crashes_does_not_make_a_large_record(tmp_path):
    place = tmp_path / "sys/fs/pstore"
    place.mkdir(parents=True)
    for number in range(20):
        (place / f"dmesg-{number:02d}").write_bytes(b"\0" * 9000)
        os.utime(place / f"dmesg-{number:02d}", (number, number))
    found = _records.crashes(0.0, str(tmp_path))
    assert [one["file"][-2:] for one in found] == [f"{number:02d}" for number in range(19, 11, -1)]
    assert len(json.dumps(found)) < 150_000
