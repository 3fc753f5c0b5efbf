# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _devices, _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _guest
from ansible_collections.kvm.liveupdate.plugins.modules import trial

CARD = "0000:01:00.0"
WELL = {"runs": True, "goes_on": True, "marked": True, "pages": 16128, "differ": 0, "wrong": 0, "passes": 4, "ticks": 300}


def devices(*cards):
    pci = {"id": "8086:1572", "driver": "i40e", "numa_node": 0, "iommu": True, "speed": None, "width": None, "vfs": None, "vfs_max": None}
    found = {card: {**pci, "class": "", "is_vf": False} for card in cards}
    return {"processors": 1, "pci": found, "interfaces": {}, "disks": {}}


class Host:
    """What is on the host, and what was done."""

    def __init__(self):
        self.boot, self.guests, self.strangers, self.exists, self.mark = "old", [], [], False, b""
        self.now, self.done, self.cut_off = [devices(CARD)], [], False

    def read(self):
        return self.now.pop(0) if len(self.now) > 1 else self.now[0]

    def start(self, qemu, seed, mark):
        self.done.append(("start", qemu, 0 <= seed < 1 << 31, len(mark)))
        self.guests, self.exists = [_guest.NAME], True
        if self.cut_off:
            raise KeyboardInterrupt
        self.mark = mark

    def remove(self):
        self.done.append("remove")
        self.guests, self.exists, self.mark = [], False, b""
        _files.remove(_files.TRIAL)


@pytest.fixture(name="host")
def a_drained_host(tmp_path, monkeypatch):
    host = Host()
    for name in ("TRIAL", "SEEN", "LOCK", "UPDATE", "OUTCOME"):
        monkeypatch.setattr(_files, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(_files, "RUN", str(tmp_path))
    monkeypatch.setattr(_lock, "_under_way", lambda: False)
    monkeypatch.setattr(_this_boot, "boot_id", lambda: host.boot)
    monkeypatch.setattr(_devices, "read", host.read)
    monkeypatch.setattr(_devices, "seen", lambda: {f"pci {CARD}", f"driver {CARD}"})
    monkeypatch.setattr(_providers, "records", lambda: [{"name": name} for name in host.guests])
    monkeypatch.setattr(_providers, "strangers", lambda _records: [{"name": name} for name in host.strangers])
    monkeypatch.setattr(_guest, "is_marked", lambda mark: _guest.NAME in host.guests and host.mark == mark)
    monkeypatch.setattr(_guest, "find_qemu", lambda given: given or "/usr/bin/qemu")
    monkeypatch.setattr(_guest, "exists", lambda: host.exists)
    monkeypatch.setattr(_guest, "start", host.start)
    monkeypatch.setattr(_guest, "remove", host.remove)
    monkeypatch.setattr(_guest, "look", lambda _seed, _mark: WELL)
    monkeypatch.setattr(trial, "POLL_S", 0.0)
    return host


def ask(state, check_mode=False, **options):
    return trial.manage(SimpleNamespace(params={"state": state, "qemu": "", "within": 1e9, "slow": 1e9, **options}, check_mode=check_mode))


def test_a_trial_is_prepared_once(host):
    assert ask("prepared", check_mode=True)["changed"] and host.done == []
    assert ask("prepared")["changed"] and host.done == [("start", "/usr/bin/qemu", True, 36)]
    record = _files.read_json(_files.TRIAL)
    assert record["boot_id"] == "old" and record["devices"] == devices(CARD)
    assert not ask("prepared")["changed"] and not ask("prepared", check_mode=True)["changed"] and len(host.done) == 1


@pytest.mark.parametrize("change", [{"boot": "new"}, {"guests": []}, {"mark": b""}])
def test_a_trial_of_an_earlier_boot_or_without_its_marked_guest_is_begun_anew(host, change):
    ask("prepared")
    vars(host).update(change)
    assert ask("prepared")["changed"] and host.done[1:] == ["remove", ("start", "/usr/bin/qemu", True, 36)]
    assert _files.read_json(_files.TRIAL)["boot_id"] == host.boot


def test_a_trial_that_was_cut_off_before_its_guest_had_the_mark_is_not_prepared(host):
    """After a jump its guest would look as if its memory was lost."""
    host.cut_off = True
    with pytest.raises(KeyboardInterrupt):
        ask("prepared")
    host.cut_off, host.boot = False, "new"
    with pytest.raises(LiveUpdateError, match="no trial is prepared on this host"):
        ask("compared")
    host.boot = "old"
    assert ask("prepared", check_mode=True)["changed"] and ask("prepared")["changed"]
    assert host.done[1:] == ["remove", ("start", "/usr/bin/qemu", True, 36)]
    assert not ask("prepared")["changed"]


@pytest.mark.parametrize(("guests", "strangers", "says"), [(["web", "db"], [], "web, db run here"), ([], ["pid-9"], "pid-9 runs here")])
def test_a_host_with_guests_is_refused(host, guests, strangers, says):
    host.guests, host.strangers = guests, strangers
    for check_mode in (True, False):
        with pytest.raises(LiveUpdateError, match=f"needs a host without guests, and {says}; migrate or stop them"):
            ask("prepared", check_mode=check_mode)
    assert host.done == []


def test_what_is_the_same_after_the_jump_is_no_finding_and_nothing_is_waited_for(host):
    ask("prepared")
    host.boot = "new"
    done = ask("compared")
    assert (done["changed"], done["findings"], done["notes"]) == (False, [], []) and done["guest"] == WELL
    assert [time["device"] for time in done["times"]] == [f"PCI device {CARD}", f"driver i40e of PCI device {CARD}"]
    assert all(time["seconds"] is not None for time in done["times"])
    assert done["devices"] == {"before": devices(CARD), "after": devices(CARD)}


def test_a_device_that_comes_late_is_waited_for(host):
    ask("prepared")
    host.boot, host.now = "new", [devices(), devices(), devices(CARD)]
    assert ask("compared")["findings"] == [] and host.now == [devices(CARD)]


def test_a_device_that_does_not_come_within_its_time_is_a_finding(host, monkeypatch):
    ask("prepared")
    host.boot, host.now = "new", [devices()]
    monkeypatch.setattr(_guest, "look", lambda _seed, _mark: {**WELL, "marked": False})
    assert [found["code"] for found in ask("compared", within=0.0)["findings"]] == ["trial-memory-lost", "pci-gone"]


def test_what_is_slow_is_a_finding(host, monkeypatch):
    before = devices(CARD)
    before["disks"]["d"] = {"names": ["vda"], "model": "", "size": 1, "read_only": False, "queues": 1}
    host.now = [before]
    ask("prepared")
    host.boot = "new"
    _files.write_json(_files.SEEN, {"boot_id": "new", "from": 1.0, "seen": {"disk d": 9.0}})
    assert ask("compared")["findings"] == []
    assert [found["code"] for found in ask("compared", slow=8.0)["findings"]] == ["late"]


@pytest.mark.parametrize(("prepared", "says"), [(False, "no trial is prepared"), (True, "has not jumped since")])
def test_without_a_jump_there_is_nothing_to_compare(host, prepared, says):
    if prepared:
        ask("prepared")
    with pytest.raises(LiveUpdateError, match=says):
        ask("compared")


def test_a_trial_is_removed_once(host):
    assert not ask("absent")["changed"]
    ask("prepared")
    assert ask("absent", check_mode=True)["changed"] and len(host.done) == 1
    assert ask("absent")["changed"] and host.done[1:] == ["remove"]
    assert not ask("absent")["changed"]
