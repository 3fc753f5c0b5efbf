# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The throw-away guest: its unit, its start, its end, and what is wrong with it."""

from __future__ import annotations

import os
import struct

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _discard, _hold
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _firmware, _guest
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _argv, _argv_reasons

HELP = """Supported machines are:
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-11.1)
pc-q35-11.1          Standard PC (Q35 + ICH9, 2009)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-11.1)
"""
SEED, MARK = 5, b"mark"


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    """Its folders, the commands that run, and a QEMU that is this process, with the guest's RAM open."""
    for name in ("STATE", "GUESTS_STATE", "RUN", "GUESTS_RUN"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    for name in ("TRIAL", "TRIAL_FIRMWARE", "SEEN", "LOCK", "UPDATE", "OUTCOME"):
        monkeypatch.setattr(_files, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path / "units"))
    (tmp_path / "units").mkdir()
    for limit in ("GUEST_LIMIT_S", "TICKS_LIMIT_S"):
        monkeypatch.setattr(_guest, limit, 0.3)
    monkeypatch.setattr(_guest, "POLL_S", 0.01)
    calls, stubborn, me = [], [], os.getpid()
    monkeypatch.setattr(_hold, "release_ended", lambda name: calls.append(("release", name)))
    monkeypatch.setattr(_discard, "discard", lambda name: calls.append(("discard", name)))
    with open(tmp_path / "ram", "w+b", buffering=0) as ram:
        ram.truncate(_firmware.RAM)

        def run(*command, **_limit):
            calls.append(command)
            if command[:2] == ("systemctl", "start"):
                record = {"pid": me, "started": _processes.start_time(me), "ram": [{"fd": ram.fileno(), "size": _firmware.RAM}]}
                _files.write_json(_files.run_path(_guest.NAME), record)
            if command[:2] == ("systemctl", "stop") and not stubborn:
                _files.remove(_files.run_path(_guest.NAME))
            return HELP if "-machine" in command else ""

        monkeypatch.setattr(_commands, "run", run)
        yield Host(tmp_path, ram, calls, stubborn)


class Host:
    def __init__(self, folder, ram, calls, stubborn):
        self.folder, self.ram, self.calls, self.stubborn = folder, ram, calls, stubborn

    def says(self, passes, wrong=0, ticks=100):
        self.ram.seek(_firmware.STATUS_AT)
        self.ram.write(struct.pack("<3I", passes, wrong, ticks))

    def files(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir() and path.name != "ram")


def test_the_guest_starts_as_an_ordinary_one_and_its_memory_is_marked(host):
    host.says(1)
    _guest.start("/usr/bin/qemu", SEED, MARK)
    unit = (host.folder / "units" / _units.TRIAL).read_text()
    (starts,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert starts.startswith("ExecStart=/usr/local/sbin/kvm-liveupdate run liveupdate-trial -- /usr/bin/qemu ")
    assert "IgnoreOnIsolate=yes" in unit and "FileDescriptorStorePreserve=yes" in unit
    argv = starts.partition(" -- ")[2].split()
    assert _argv_reasons.reasons(argv) == [] and _argv_reasons.warnings(argv) == [] and _argv.ram_size(argv) == _firmware.RAM
    assert (host.folder / "trial_firmware").read_bytes() == _firmware.firmware(SEED)
    for target in ("sysinit.target", "kvm-liveupdate-guests.target"):
        assert (host.folder / f"units/{target}.wants/{_units.TRIAL_WATCH}").resolve() == host.folder / "units" / _units.TRIAL_WATCH
    assert host.calls[1:] == [("systemctl", "daemon-reload"), ("systemctl", "start", _units.TRIAL)]
    assert os.pread(host.ram.fileno(), 4, _firmware.MARK_AT) == MARK


def test_only_a_running_guest_that_was_started_to_the_end_is_marked(host):
    assert not _guest.is_marked(MARK)
    host.says(0)
    with pytest.raises(LiveUpdateError, match="has not filled and read its RAM"):
        _guest.start("/usr/bin/qemu", SEED, MARK)
    assert _guest.running() and not _guest.is_marked(MARK) and _guest.exists()
    host.says(1)
    _guest.start("/usr/bin/qemu", SEED, MARK)
    assert _guest.is_marked(MARK) and not _guest.is_marked(b"MARK")
    _guest.remove()
    assert not _guest.is_marked(MARK)


def test_a_guest_that_does_not_read_its_ram_in_time_is_an_error_with_what_was_last_seen(host):
    with pytest.raises(LiveUpdateError, match=r"has not filled and read its RAM within 0\.3 s; last seen: 0 passes, 0 wrong, 100 ticks"):
        host.says(0)
        _guest.start("/usr/bin/qemu", SEED, MARK)


def test_an_old_qemu_without_a_versioned_name_gets_the_plain_one():
    assert _guest._machine(HELP) == "pc-q35-11.1" and _guest._machine("") == "q35"


def test_the_first_qemu_that_exists_is_taken(tmp_path, monkeypatch):
    qemu = tmp_path / "qemu-kvm"
    qemu.write_text("")
    qemu.chmod(0o755)
    monkeypatch.setattr(_guest, "_QEMU", (str(tmp_path / "none"), str(qemu)))
    assert _guest.find_qemu("") == str(qemu)
    with pytest.raises(LiveUpdateError, match=r"no QEMU at /nowhere; install QEMU, or set qemu \(in the role hypervisor_trial_qemu"):
        _guest.find_qemu("/nowhere")


def test_a_guest_whose_timer_stands_still_does_not_go_on(host):
    host.says(1)
    _guest.start("/usr/bin/qemu", SEED, MARK)
    seen = _guest.look(SEED, MARK)
    assert seen["runs"] and seen["marked"] and not seen["goes_on"]


def test_a_guest_that_does_not_run_is_told(host):
    assert _guest.look(SEED, MARK) == {"runs": False, "goes_on": False}
    _files.write_json(_files.run_path(_guest.NAME), {"pid": os.getpid(), "started": 1, "ram": []})  # of another process
    assert _guest.look(SEED, MARK) == {"runs": False, "goes_on": False}


@pytest.mark.parametrize("saved", [False, True])
def test_everything_is_removed_and_a_guest_that_was_not_restored_is_discarded(host, monkeypatch, saved):
    host.says(1)
    _guest.start("/usr/bin/qemu", SEED, MARK)
    for path in (_files.TRIAL, _files.SEEN, _files.journal_path(_guest.NAME)):
        _files.write_json(path, {})
    assert _guest.exists()
    monkeypatch.setattr(_journal, "of_guest", lambda _name: {"state": "saved" if saved else "restored"})
    _guest.remove()
    assert host.files() == ["lock"] and not _guest.exists()
    assert (("discard", _guest.NAME) in host.calls) is saved and ("release", _guest.NAME) in host.calls
    assert ("systemctl", "stop", "--", _units.TRIAL) in host.calls and ("systemctl", "stop", "--", _units.TRIAL_WATCH) in host.calls
    _guest.remove()


def test_a_guest_that_does_not_end_keeps_its_files(host):
    host.says(1)
    _guest.start("/usr/bin/qemu", SEED, MARK)
    host.stubborn.append(True)
    with pytest.raises(LiveUpdateError, match=f"does not end; end its QEMU, process {os.getpid()}"):
        _guest.remove()
    assert (host.folder / "units" / _units.TRIAL).exists()


WELL = {"runs": True, "goes_on": True, "marked": True, "pages": 16128, "differ": 0, "wrong": 0, "passes": 4, "ticks": 300}


@pytest.mark.parametrize(
    ("seen", "codes"),
    [
        (WELL, []),
        ({"runs": False, "goes_on": False}, ["trial-guest-off"]),
        ({**WELL, "marked": False}, ["trial-memory-lost"]),
        ({**WELL, "differ": 2}, ["trial-memory-wrong"]),
        ({**WELL, "wrong": 1}, ["trial-memory-wrong"]),
        ({**WELL, "goes_on": False}, ["trial-guest-stuck"]),
    ],
)
def test_what_is_wrong_with_the_guest_is_a_finding(seen, codes):
    assert [found["code"] for found in _guest.findings(seen)] == codes
