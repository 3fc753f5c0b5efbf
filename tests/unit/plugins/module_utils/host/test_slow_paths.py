# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _slow_paths


def test_what_a_look_found_is_handed_back():
    def work(say):
        for number in range(9000):  # more than a pipe holds
            say(f"/srv/{number}")
        return {"seen": ["\udcff", 1]}

    assert _slow_paths.look(work) == {"seen": ["\udcff", 1]}


def test_a_look_that_hangs_ends_at_the_limit_and_names_the_path(monkeypatch):
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 2.0)

    def work(say):
        say("/srv/a")
        say("/srv/\udcff")
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(_slow_paths.Silent, match=r"does not answer within 2 s") as told:
        _slow_paths.look(work)
    assert told.value.path == "/srv/\udcff" and time.monotonic() - start < 30


def test_each_path_has_the_whole_limit(monkeypatch):
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 6.0)

    def work(say):
        for number in range(4):
            say(f"/srv/{number}")
            time.sleep(2)
        return "seen"

    assert _slow_paths.look(work) == "seen"


def test_the_wait_for_a_processor_does_not_count(monkeypatch):
    """Here the child computes: the kernel shows it as one that waits for a processor."""
    monkeypatch.setattr(_slow_paths, "PATH_LIMIT_S", 1.0)

    def work(say):
        say("/srv/a")
        end = time.process_time() + 3.0
        while time.process_time() < end:
            pass
        return "seen"

    assert _slow_paths.look(work) == "seen"


def test_a_look_without_an_end_has_a_limit(monkeypatch):
    monkeypatch.setattr(_slow_paths, "LONGEST_S", 2.0)

    def work(say):
        say("/srv/a")
        while True:
            pass

    with pytest.raises(_slow_paths.Silent, match=r"all paths of the guest takes longer than 2 s; the last one was /srv/a") as told:
        _slow_paths.look(work)
    assert told.value.path == "/srv/a"


def test_a_look_that_fails_is_an_error():
    with pytest.raises(LiveUpdateError, match="ZeroDivisionError"):
        _slow_paths.look(lambda _say: 1 // 0)
    with pytest.raises(LiveUpdateError, match="it ended"):
        _slow_paths.look(lambda _say: os._exit(1))


def test_who_hangs_keeps_no_lock_and_no_output():
    number = os.dup2(os.open(__file__, os.O_RDONLY), 60)
    try:
        found = _slow_paths.look(
            lambda _say: [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)] + [os.path.exists("/proc/self/fd/60")]
        )
    finally:
        os.close(number)
    assert found == [os.devnull] * 3 + [False]
