# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot


@pytest.fixture(name="clock")
def made_up_clock(monkeypatch, tmp_path):
    """A system clock that sleeping moves on, and a hardware clock that follows it at a distance."""
    now = [1000.35]
    rtc = tmp_path / "since_epoch"

    def sleep(seconds):
        now[0] += seconds
        rtc.write_text(f"{int(now[0] - 0.25)}\n")

    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    sleep(0)
    return rtc


def test_the_distance_is_measured_at_the_turn_of_a_second(clock):
    assert _this_boot.ahead(str(clock)) == pytest.approx(0.25, abs=0.011)


def test_without_a_hardware_clock_nothing_is_claimed(clock):
    assert _this_boot.ahead(str(clock.parent / "none")) is None
    clock.write_text("no number")
    assert _this_boot.ahead(str(clock)) is None


def test_a_clock_that_stands_is_given_up(clock, monkeypatch):
    monkeypatch.setattr(_this_boot, "_seconds", lambda path: 7)
    assert _this_boot.ahead(str(clock)) is None


@pytest.mark.parametrize(("before", "after", "step"), [(0.25, 0.75, 0.5), (0.0, -0.5, -0.5), (None, 0.1, None), (0.1, None, None)])
def test_step(before, after, step):
    assert _this_boot.step(before, after) == step
