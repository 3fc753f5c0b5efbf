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


@pytest.mark.parametrize(
    ("loader", "by_kexec"),
    [
        ("208", True),
        ("114", False),  # GRUB
        ("176", False),  # QEMU
        ("464", False),  # 0x1d0, an extended type whose lower bits are the same
        ("", None),
        (None, None),  # not an x86 kernel
    ],
)
def test_a_kexec_is_known_by_the_type_of_the_boot_loader(tmp_path, loader, by_kexec):
    if loader is not None:
        (tmp_path / "proc/sys/kernel").mkdir(parents=True)
        (tmp_path / "proc/sys/kernel/bootloader_type").write_text(f"{loader}\n")
    assert _this_boot.by_kexec(str(tmp_path)) is by_kexec


def test_a_clock_that_stands_is_given_up(clock, monkeypatch):
    monkeypatch.setattr(_this_boot, "_seconds", lambda path: 7)
    assert _this_boot.ahead(str(clock)) is None


@pytest.mark.parametrize(("before", "after", "step"), [(0.25, 0.75, 0.5), (0.0, -0.5, -0.5), (None, 0.1, None), (0.1, None, None)])
def test_step(before, after, step):
    assert _this_boot.step(before, after) == step


def test_a_command_line_may_have_any_bytes(tmp_path):
    """GRUB passes a title in Latin-1 on as it is."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_bytes(b"root=/dev/vda1 title=B\xfcro kho=on\n")
    assert _this_boot.current_cmdline(str(tmp_path)) == "root=/dev/vda1 title=B\udcfcro kho=on"
