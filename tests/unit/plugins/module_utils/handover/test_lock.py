# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock of this host: who has it, how long others wait, and when it is free again."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal, _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd, _this_boot
from made_up_clock import Clock

# Takes the lock in another process, says so, and keeps it until its standard input ends.
KEEPS = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder_of_this_boot(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "run/lock"))
    for name in ("UPDATE", "OUTCOME"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
    monkeypatch.setattr(_this_boot, "boot_id", lambda: "now")


@pytest.fixture(name="other")
def another_process_with_the_lock():
    os.makedirs(_files.RUN)
    with subprocess.Popen([sys.executable, "-c", KEEPS, _files.LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process


def end(process):
    process.stdin.close()
    process.wait(60)


def test_one_operation_at_a_time():
    with _lock.Lock(), pytest.raises(LiveUpdateError, match="another live update operation"), _lock.Lock(wait_s=0.2):
        pass
    with open(_files.LOCK, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_the_lock_is_waited_for_until_the_limit_and_no_longer(other, monkeypatch):
    clock = Clock(monkeypatch, _lock, step=1.0)
    with pytest.raises(LiveUpdateError, match="another live update operation runs on this host"), _lock.Lock(wait_s=5.0):
        pass
    assert clock.slept == [0.1] * 5
    with pytest.raises(LiveUpdateError, match="another live update operation runs on this host"), _lock.Lock():
        pass
    assert len(clock.slept) == 5  # without a wait there is none


def test_a_lock_that_becomes_free_in_time_is_taken(other, monkeypatch):
    clock = Clock(monkeypatch, _lock, step=1.0)
    clock.at = {3: lambda: end(other)}
    wanted = _lock.Lock(wait_s=5.0)
    with wanted as taken:
        assert taken is wanted and clock.slept == [0.1] * 3


def test_a_child_that_outlives_the_operation_does_not_keep_the_lock():
    read, write = os.pipe()
    with _lock.Lock():
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the test ends
            os._exit(0)
    try:
        with _lock.Lock():
            pass
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_a_program_that_is_started_meanwhile_does_not_get_the_lock():
    with _lock.Lock():
        (lock,) = [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(_files.LOCK)]
        assert not os.get_inheritable(int(lock))
        assert os.stat(_files.LOCK).st_mode & 0o777 == 0o600 and os.stat(_files.RUN).st_mode & 0o777 == 0o700
    assert not os.path.exists(f"/proc/self/fd/{lock}")


@pytest.mark.parametrize("of_update", [False, True])
def test_a_lock_that_is_refused_is_free_again(monkeypatch, of_update):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: {"ActiveState": "active"})
    _files.write_json(_files.UPDATE, {"id": "u", "state": "saving", "boot_id": "now"})
    lock = _lock.Lock(of_update=of_update)
    if of_update:
        with lock:
            pass
    else:
        with pytest.raises(LiveUpdateError, match="a live update of this host is running; wait for its end"), lock:
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    with _lock.Lock(of_update=True):
        pass


@pytest.mark.parametrize(
    ("shown", "busy"),
    [
        ({"ActiveState": "active", "Job": "0"}, True),
        ({"ActiveState": "inactive", "Job": "7"}, True),
        ({"ActiveState": "failed", "Job": "7"}, True),
        ({"ActiveState": "inactive", "Job": "0"}, False),
        ({"ActiveState": "inactive", "Job": ""}, False),
        ({"ActiveState": "failed"}, False),
        ({}, True),
    ],
)
def test_the_unit_of_the_update_is_busy_while_it_runs_or_has_a_job(monkeypatch, shown, busy):
    monkeypatch.setattr(_systemd, "show", lambda unit, *names: shown)
    assert _lock.busy() is busy
    _files.write_json(_files.UPDATE, {"id": "u", "state": "stopping", "boot_id": "now"})
    assert _lock._under_way() is busy
    _files.write_json(_files.UPDATE, {"id": "u", "state": "aborted", "boot_id": "now"})
    assert not _lock._under_way()


def test_an_end_that_only_run_has_is_written_by_whoever_takes_the_lock():
    _files.write_json(_files.UPDATE, {"id": "u", "state": "saving", "boot_id": "now"})
    _files.write_json(_files.OUTCOME, {"id": "u", "state": "aborted", "error": "no room"})
    with _lock.Lock(wait_s=600.0):
        assert _files.read_json(_files.UPDATE)["state"] == "aborted"
    _files.write_json(_files.UPDATE, {"id": "another", "state": "saving", "boot_id": "now"})
    with _lock.Lock(of_update=True):
        assert _journal.of_update() == {"id": "another", "state": "saving", "boot_id": "now"}
