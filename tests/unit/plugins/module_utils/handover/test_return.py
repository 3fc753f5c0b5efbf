# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A start of a guest: state is used only with the very memory that it belongs to."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _paused, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _early, _journal, _lock, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot

IDENTITY = {"hold": "h1", "guest": "web1", "uuid": "u1", "sizes": [4096]}
SAVED = {"state": "saved", "on_loss": "start", **IDENTITY}


@pytest.mark.parametrize(
    ("journal", "note", "resumed", "verdict", "why"),
    [
        ({}, None, False, "cold", "no update has saved it"),
        ({}, IDENTITY, False, "cold", "no update has saved it"),
        (SAVED, IDENTITY, False, "restore", "its memory is preserved"),
        (SAVED, IDENTITY, True, "cold", "has run since"),
        (SAVED, {**IDENTITY, "hold": "h2"}, False, "cold", "belongs to another save"),
        (SAVED, {**IDENTITY, "uuid": "u2"}, False, "refuse", "does not belong to this save (uuid 'u2', expected 'u1')"),
        (SAVED, {**IDENTITY, "sizes": [4096, 4096]}, False, "refuse", "discard web1"),
        (SAVED, {**IDENTITY, "guest": "db1"}, False, "refuse", "(guest 'db1', expected 'web1')"),
        ({**SAVED, "qemu": [7, 1]}, {**IDENTITY, "qemu": [7, 1]}, False, "restore", "its memory is preserved"),
        ({**SAVED, "qemu": [7, 1]}, {**IDENTITY, "qemu": [7, 2]}, False, "refuse", "qemu [7, 2], expected [7, 1]"),
        ({**SAVED, "qemu": [7, 1]}, IDENTITY, False, "restore", "its memory is preserved"),
        *(
            (SAVED, {key: value for key, value in IDENTITY.items() if key != missing}, False, "refuse", f"{missing} None")
            for missing in ("guest", "uuid", "sizes")
        ),
        (SAVED, {}, False, "cold", "belongs to another save"),
        (SAVED, None, False, "cold", "did not survive the reboot"),
        ({**SAVED, "on_loss": "stop"}, None, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, {"hold": "h2"}, False, "refuse", "discard web1"),
        ({**SAVED, "on_loss": "stop"}, IDENTITY, False, "restore", "its memory is preserved"),
        ({**SAVED, "state": "restored"}, IDENTITY, False, "cold", "no update has saved it"),
        ({**SAVED, "state": "lost"}, IDENTITY, False, "cold", "no update has saved it"),
    ],
)
def test_decide(journal, note, resumed, verdict, why):
    """What may have run is never loaded once more, and never thrown away."""
    if journal.get("state") == "saved" and not resumed:
        assert _return.decide(journal, note, resumed, tried=True)[0] == "refuse"
    elif not resumed:
        assert _return.decide(journal, note, resumed, tried=True)[0] == verdict
    assert _return.decide(journal, note, resumed)[0] == verdict
    assert why in _return.decide(journal, note, resumed)[1]


def test_a_restore_needs_the_same_hold_and_a_memory_that_has_not_run():
    states, holds = ("saved", "restored", "lost", None), ("h1", "h2")
    notes = (None, {}, IDENTITY, {**IDENTITY, "hold": "h2"}, {**IDENTITY, "sizes": [1]})
    for state, hold, note, resumed, loss in itertools.product(states, holds, notes, (False, True), ("start", "stop")):
        journal = {**SAVED, "state": state, "hold": hold, "on_loss": loss}
        restores = _return.decide(journal, note, resumed)[0] == "restore"
        assert restores == (state == "saved" and not resumed and note == {**IDENTITY, "hold": hold})


@pytest.fixture(name="home")
def folders_of_a_host(tmp_path, monkeypatch):
    for name in ("GUESTS_STATE", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")
    return tmp_path


def test_what_was_saved_of_a_guest_that_is_lost_is_removed(home, monkeypatch):
    early = []
    monkeypatch.setattr(_early, "start_early", lambda *unit: early.append(unit))
    (home / "web1.state").touch()
    _return.lost({**SAVED, "unit": "web1.service"}, "a power cut")
    assert not (home / "web1.state").exists() and early == [("web1.service", False)]
    assert (_journal.of_guest("web1")["state"], _journal.of_guest("web1")["why"]) == ("lost", "a power cut")


def test_a_full_disk_has_room_for_the_record_when_the_state_is_gone(home, monkeypatch):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    (home / "web1.state").touch()
    monkeypatch.setattr(_files, "write_json", lambda path, record: (home / "web1.state").exists() and 1 // 0)
    _return.settle({**SAVED, "unit": "web1.service"})
    assert not (home / "web1.state").exists()


def test_a_guest_that_may_have_run_is_settled_only_when_its_qemu_says_that_it_runs(home, monkeypatch):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    journal = {**SAVED, "boot_id": "before", "unit": "web1.service", "times": {"paused": 1.0}}
    _files.write_json(_files.journal_path("web1"), journal)
    for file in ("web1.state", "web1.trying"):
        (home / file).touch()
    states = ["paused", "inmigrate"]
    monkeypatch.setattr(_providers, "of", lambda _record: SimpleNamespace(status=lambda _record: states.pop()))
    for _state in list(states):
        _paused.settle_running({"name": "web1"})
        assert _journal.of_guest("web1")["state"] == "saved" and (home / "web1.state").exists()
        assert _return.may_have_run("web1", journal)
    assert not _return.may_have_run("web1", {**journal, "boot_id": "now"})  # of an update before
    states.append("running")
    _paused.settle_running({"name": "web1"})
    assert _journal.recorded("web1")["state"] == "restored" and not (home / "web1.state").exists()
    assert not _return.may_have_run("web1", journal)
    _return.went_on("web1")  # of no effect
    assert (home / "web1.resumed").exists()


def test_a_guest_runs_also_if_no_mark_says_that_it_was_tried(home):
    _return.went_on("web1")
    mark = home / "web1.resumed"
    assert mark.stat().st_mode & 0o777 == 0o600 and not (home / "web1.trying").exists()
    mark.write_text("kept")
    _return.went_on("web1")
    assert mark.read_text() == "kept"
    (home / "web1.trying").touch()
    assert not _return.may_have_run("web1", {**SAVED, "boot_id": "before"})  # the other mark says that it runs


def test_a_guest_that_is_back_is_recorded_though_its_unit_may_not_undo_the_early_start(home, monkeypatch, capsys):
    """ProtectSystem=full. This was taken for a failed record, and repeated for ever."""

    def refuses(_unit, _wanted):
        raise OSError(30, "Read-only file system")

    restored = back(home)
    monkeypatch.setattr(_early, "start_early", refuses)
    monkeypatch.setattr(_early, "_ROOT_OF_PID_1", str(home / "never"))
    assert _return.settled(restored) is True
    assert _journal.recorded("web1") == restored and not (home / "web1.state").exists()
    assert "cannot be written" not in capsys.readouterr().err


class Disk:
    """A disk that does not accept the record of a guest that is back, so many times."""

    def __init__(self, monkeypatch, fails):
        self.did, self.fails = [], fails
        monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
        monkeypatch.setattr(_return, "time", SimpleNamespace(sleep=lambda seconds: self.did.append(("sleep", seconds))))
        monkeypatch.setattr(_lock, "Lock", lambda: self)
        self._write = _files.write_json
        monkeypatch.setattr(_files, "write_json", self.write)

    def __enter__(self):
        self.did.append("locked")
        if self.fails and self.fails[0] == "locked":
            self.fails.pop(0)
            raise LiveUpdateError("another live update operation runs on this host")
        return self

    def __exit__(self, *_exception):
        self.did.append("free")

    def write(self, path, record):
        if self.fails and self.fails[0] == "full":
            self.fails.pop(0)
            self.did.append("full")
            raise OSError(28, "No space left on device")
        self.did.append("written")
        self._write(path, record)


def back(home):
    """The journal of a guest on the disk, and the one that says that it is back."""
    journal = {**SAVED, "boot_id": "before", "unit": "web1.service", "times": {"paused": 1.0}}
    _files.write_json(_files.journal_path("web1"), journal)
    (home / "web1.state").touch()
    return {**journal, "state": "restored"}


def test_the_record_of_a_guest_that_is_back_is_tried_until_the_disk_accepts_it(home, monkeypatch, capsys):
    """Each time with the host's lock: otherwise an update could save the guest at that moment."""
    restored = back(home)
    disk = Disk(monkeypatch, ["full", "locked", "full"])
    _return.settle_at_last(restored, lambda: True)
    sleep = ("sleep", _return.SETTLE_S)
    assert disk.did == [
        *[sleep, "locked", "full", "free"],
        *[sleep, "locked"],
        *[sleep, "locked", "full", "free"],
        sleep,
        "locked",
        "written",
        "free",
    ]
    assert _journal.recorded("web1") == restored and not (home / "web1.state").exists()
    said = capsys.readouterr().err
    assert said.count("Its record cannot be written") == 2 and said.count("the restore is now recorded") == 1


def test_the_record_of_a_guest_that_has_ended_is_not_tried_any_more(home, monkeypatch):
    restored = back(home)
    disk, lasts = Disk(monkeypatch, ["full"] * 9), [True, True, False]
    _return.settle_at_last(restored, lambda: lasts.pop(0))
    assert disk.did.count("full") == 2 and not lasts


@pytest.mark.parametrize(
    ("newer", "written"),
    [
        ({}, True),
        ({"state": "restored"}, True),
        ({"state": "lost"}, False),
        ({"hold": "h2"}, False),
        ({"hold": "h2", "state": "restored"}, False),
    ],
)
def test_a_newer_record_is_not_replaced(home, monkeypatch, newer, written):
    """Another update may have saved the guest since, or somebody discarded it."""
    restored = back(home)
    on_disk = {**_journal.recorded("web1"), **newer}
    _files.write_json(_files.journal_path("web1"), on_disk)
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    assert _return.settled(restored) is True
    assert _journal.recorded("web1") == (restored if written else on_disk) and (home / "web1.state").exists() is not written


def test_a_record_that_the_disk_does_not_accept_is_not_settled(home, monkeypatch):
    restored = back(home)
    Disk(monkeypatch, ["full"])
    assert _return.settled(restored) is False


@pytest.mark.parametrize(("ahead", "now", "step"), [(100.0, 98.5, -1.5), (100.0, 100.0, 0.0), (None, 98.5, None), (100.0, None, None)])
def test_the_times_of_this_boot_are_told_by_the_clock_of_the_one_before(home, monkeypatch, ahead, now, step):
    monkeypatch.setattr(_this_boot, "ahead", lambda: now)
    told = _return.restored({**SAVED, "clock_ahead": ahead, "times": {"paused": 1.0, "saved": 2.0}}, {"retrieved": 10.0, "resumed": 20.0})
    off = step or 0.0
    assert told["clock_step"] == step and told["times"] == {"paused": 1.0, "saved": 2.0, "retrieved": 10.0 - off, "resumed": 20.0 - off}
    assert told["boot_id_after"] == "now"


@pytest.mark.parametrize(
    ("mark", "boot", "image", "state"),
    [
        (True, "before", False, "restored"),
        (False, "before", False, "saved"),
        (True, "now", False, "saved"),  # the mark is of the update before
        (True, "before", True, "saved"),  # libvirt has not taken its start for done
    ],
)
def test_a_guest_that_has_gone_on_in_this_boot_is_back_whatever_the_disk_says(home, monkeypatch, mark, boot, image, state):
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    journal = {**SAVED, "boot_id": boot, "unit": "web1.service", "times": {"paused": 1.0}, "image": str(home / "web1.save")}
    _files.write_json(_files.journal_path("web1"), journal)
    if mark:
        (home / "web1.resumed").touch()
    if image:
        (home / "web1.save").touch()
    assert _journal.of_guest("web1")["state"] == state
    assert [why["code"] for why in _journal.not_back([])] == ([] if state == "restored" else ["not-back"])
    assert _journal.recorded("web1") == journal
    _return.settle_seen("web1")
    assert _journal.recorded("web1")["state"] == state
    if state == "restored":
        assert _journal.pause(_journal.of_guest("web1")) > 1


@pytest.fixture(name="ram")
def memory_with_digests(home):
    """A guest with two megabytes of memory, saved with digests of all of it; its file and its journal."""
    file = os.memfd_create("ram")
    os.pwrite(file, b"m" * (2 << 20), 0)

    def journal(**about):
        made = {**SAVED, "boot_id": "before", "unit": "web1.service", "times": {"paused": 1.0, "saved": 2.0}, "memory_check": "full"}
        made = {**made, "memory": _digests.note("full", [file]), **about}
        _files.write_json(_files.journal_path("web1"), made)
        return made

    yield file, journal
    os.close(file)


@pytest.mark.parametrize("on_loss", ["start", "stop"])
def test_memory_that_differs_is_not_used_whatever_on_loss_says_and_all_is_kept(ram, home, on_loss):
    file, make = ram
    journal, times = make(on_loss=on_loss), {}
    (home / "web1.state").touch()
    os.pwrite(file, b"M", (1 << 20) + 5)
    assert _return.decide(journal, IDENTITY, False)[0] == "restore"
    with pytest.raises(LiveUpdateError) as told:
        _return.check_memory(journal, [file], times)
    message = str(told.value)
    assert message.startswith("guest web1: its preserved memory is not the same as before the jump: 1 of 2 places that were read differ:")
    assert "file 1 at offset 0x100000 (1048576 bytes)" in message and "'kvm-liveupdate discard web1', then start it" in message
    assert not told.value.details and not times
    assert (home / "web1.state").exists() and _journal.of_guest("web1")["state"] == "saved"
    (reason,) = _journal.not_back([])
    assert reason["code"] == "memory-wrong" and "guest web1 is not restored" in reason["message"]
    assert "file 1 at offset 0x100000" in reason["message"] and "discard web1" in reason["remedy"]


@pytest.mark.parametrize("lost", ["web1.checked", "web1.json"])
def test_memory_that_differed_once_is_never_used(ram, home, lost):
    """A fault may not show every time. Either record is enough."""
    file, make = ram
    journal = make()
    os.pwrite(file, b"M", 0)
    with pytest.raises(LiveUpdateError, match="not the same as before the jump"):
        _return.check_memory(journal, [file], {})
    os.pwrite(file, b"m", 0)
    kept = journal if lost == "web1.json" else _journal.recorded("web1")
    (home / lost).unlink()
    with pytest.raises(LiveUpdateError, match="not the same as before the jump: 1 of 2"):
        _return.check_memory(kept, [file], {})


def test_what_was_wrong_with_memory_is_kept_as_it_was_told_first(ram, home, monkeypatch):
    """A later boot has no mark: then the journal counts, and nothing is compared or written again."""
    file, make = ram
    journal = make(memory_wrong="1 of 2 places that were read differ: the first")
    monkeypatch.setattr(_digests, "wrong", lambda *_words: 1 // 0)
    monkeypatch.setattr(_journal, "record_guest", lambda journal: 1 // 0)
    with pytest.raises(LiveUpdateError, match="places that were read differ: the first"):
        _return.check_memory(journal, [file], {})
    mark = _files.read_json(str(home / "web1.checked"))
    assert mark == {"hold": "h1", "wrong": journal["memory_wrong"], "verified": "none"}


def test_the_mark_of_memory_that_is_the_same_says_so(ram, home):
    file, make = ram
    _return.check_memory(make(), [file], {})
    assert _files.read_json(str(home / "web1.checked")) == {"hold": "h1", "wrong": "", "verified": "full"}


def test_memory_is_wrong_also_if_that_cannot_be_recorded(ram, monkeypatch, capsys):
    file, make = ram
    journal = make()
    os.pwrite(file, b"M", 0)

    def full(_path, _record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, "write_json", full)
    with pytest.raises(LiveUpdateError, match="not the same as before the jump"):
        _return.check_memory(journal, [file], {})
    assert "web1: the result of the check of its memory cannot be written: " in capsys.readouterr().err


def test_memory_that_is_the_same_is_checked_once_in_a_boot(ram, home):
    """A QEMU that failed may have written to it since. A new save is checked anew."""
    file, make = ram
    journal, times = make(), {}
    _return.check_memory(journal, [file], times)
    assert times["checked"] > 1
    os.pwrite(file, b"M", 0)
    _return.check_memory(journal, [file], {})
    with pytest.raises(LiveUpdateError, match="not the same as before the jump"):
        _return.check_memory({**journal, "hold": "h2"}, [file], {})


def test_a_guest_whose_memory_is_not_to_be_checked_has_it_not_read(ram, home, monkeypatch):
    file, make = ram
    monkeypatch.setattr(_digests, "wrong", lambda *_words: 1 // 0)
    times = {}
    _return.check_memory(make(memory_check="none"), [file], times)
    old = make()
    del old["memory_check"]  # of a version that knew of no check
    _return.check_memory(old, [file], times)
    assert times == {} and not (home / "web1.checked").exists()
    with pytest.raises(ZeroDivisionError):
        _return.check_memory(make(memory_check="sample"), [file], times)


@pytest.mark.parametrize("memory", [{}, None, {"kind": "full", "seed": 1, "crc32": "00"}])
def test_without_digests_a_guest_is_not_lost_and_counts_as_not_verified(ram, monkeypatch, capsys, memory):
    file, make = ram
    journal = make(memory=memory)
    _return.check_memory(journal, [file], {})
    assert "WARNING: its memory is not checked, although hypervisor_update_verify_memory asks for it" in capsys.readouterr().err
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    back = _return.restored(journal, {"resumed": 3.0})
    assert (back["memory_check"], back["memory_verified"]) == ("full", "none")


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), LiveUpdateError("RAM file 1 ends")])
def test_memory_that_cannot_be_read_is_kept_and_may_be_tried_again(ram, home, monkeypatch, failure):
    file, make = ram
    journal = make()

    def fails(*_words):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(_digests, "wrong", fails)
        with pytest.raises(LiveUpdateError, match=r"guest web1: its preserved memory cannot be read: .* 'systemctl start web1\.service'"):
            _return.check_memory(journal, [file], {})
    _return.check_memory(journal, [file], {})
    assert not _journal.recorded("web1").get("memory_wrong")


def test_the_journal_of_a_guest_that_is_back_says_what_was_checked_and_has_no_digests(ram, home, monkeypatch):
    file, make = ram
    journal = make()
    assert "memory" not in _journal.of_guest("web1") and _journal.of_guest("web1")["memory_check"] == "full"
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    assert _return.restored(journal, {})["memory_verified"] == "none"
    _return.check_memory(journal, [file], {})
    back = _return.restored(journal, {"resumed": 3.0})
    assert (back["state"], back["memory_verified"], "memory" in back) == ("restored", "full", False)
    (home / "web1.resumed").touch()  # its loader ended before it could record that
    assert (_journal.of_guest("web1")["state"], _journal.of_guest("web1")["memory_verified"]) == ("restored", "full")
    (home / "web1.checked").write_text("{")
    assert _journal.of_guest("web1")["memory_verified"] == "none"


def test_what_was_compared_is_told_and_not_what_was_asked_for(ram, monkeypatch):
    file, make = ram
    journal = make(memory=_digests.note("sample", [file]))
    _return.check_memory(journal, [file], {})
    monkeypatch.setattr(_this_boot, "ahead", lambda: None)
    assert _return.restored(journal, {"resumed": 3.0})["memory_verified"] == "sample"


def test_a_lost_guest_keeps_no_digests(ram, monkeypatch):
    _file, make = ram
    monkeypatch.setattr(_early, "start_early", lambda *_unit: None)
    _return.lost(make(), "a power cut")
    assert "memory" not in _journal.recorded("web1")
