# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _memory as _guests_memory
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _memory, _systemd

MIB = 1 << 20
NONE = str((1 << 64) - 1)


def meminfo(free_mib, swap_used_kib=0):
    return (
        f"MemTotal:        8388608 kB\nMemAvailable:   {free_mib + 20 << 10} kB\nCmaFree: 20480 kB\nHugePages_Total:       0\n"
        f"SwapTotal:       1048576 kB\nSwapFree:        {1048576 - swap_used_kib} kB\n"
    )


@pytest.fixture
def guest(tmp_path):
    """A host's files, with one guest whose RAM is a file of 64 MiB with 16 MiB written."""
    (tmp_path / "proc/7/fd").mkdir(parents=True)
    ram = tmp_path / "ram"
    with open(ram, "wb") as file:
        file.write(b"x" * (16 * MIB))
        file.truncate(64 * MIB)
    (tmp_path / "proc/7/fd/5").symlink_to(ram)
    (tmp_path / "proc/meminfo").write_text(meminfo(100))
    return {"name": "web1", "pid": 7, "ram": [{"fd": 5, "size": 64 * MIB}], "unit": "web1.service"}, str(tmp_path)


def smaps(inode):
    return f"""7f0000000000-7f0004000000 rw-s 00000000 00:01 {inode}    /memfd:ram (deleted)
Size:              65536 kB
Rss:               12288 kB
Swap:               3072 kB
SwapPss:            3072 kB
VmFlags: rd wr sh mr mw me ms sd
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Swap:               8192 kB
7f0020000000-7f0020001000 rw-s 00000000 00:01 {inode}    /memfd:ram (deleted)
Swap:               1024 kB
"""


def test_total(guest):
    assert _memory.total(guest[1]) == 8 << 30


def test_what_holding_a_guest_takes(guest):
    record, root = guest
    assert _guests_memory.fill(record, root) == 48 * MIB + 64 * MIB // 256


def test_what_is_swapped_out_has_to_come_back(guest):
    record, root = guest
    with open(f"{root}/proc/meminfo", "w", encoding="ascii") as file:
        file.write(meminfo(100, swap_used_kib=8192))
    assert _guests_memory.fill(record, root) == 48 * MIB + 64 * MIB // 256  # nobody can say
    with open(f"{root}/proc/7/smaps", "w", encoding="ascii") as file:
        file.write(smaps(os.stat(f"{root}/ram").st_ino))
    assert _guests_memory.fill(record, root) == 48 * MIB + 64 * MIB // 256 + 4 * MIB


def test_a_guest_that_is_gone_takes_nothing(guest):
    record, root = guest
    os.unlink(f"{root}/proc/7/fd/5")
    assert _guests_memory.fill(record, root) == 0


def test_what_is_available(tmp_path):
    (tmp_path / "proc").mkdir()
    for cma, available in (("", 1 << 20), ("CmaFree: 24 kB\n", 1000 << 10), ("CmaFree: 2048 kB\n", 0)):
        (tmp_path / "proc/meminfo").write_text(f"MemAvailable: 1024 kB\n{cma}")
        assert _memory.available(str(tmp_path)) == available


@pytest.mark.parametrize(
    ("unit_slice", "expected"),
    [
        ("system.slice", ["system.slice", "-.slice"]),
        ("a-b-c.slice", ["a-b-c.slice", "a-b.slice", "a.slice", "-.slice"]),
        ("-.slice", ["-.slice"]),
        ("", ["-.slice"]),
    ],
)
def test_parents(unit_slice, expected):
    assert _guests_memory.parents(unit_slice) == expected


def test_limits():
    assert _guests_memory.limits(
        {
            "a.service": {"MemoryMax": "1048576", "StartupMemoryMax": "infinity", "Slice": "x.slice"},
            "b.service": {"MemoryMax": "1048576", "StartupMemoryMax": "524288"},
            "c.service": {"MemoryMax": "infinity", "StartupMemoryMax": NONE},
            "d.service": {},
        }
    ) == {"a.service": 1048576, "b.service": 524288}


def test_a_limit_below_the_ram():
    assert _guests_memory.limit_reasons(64 * MIB, {"a.service": 64 * MIB}) == []
    assert _guests_memory.limit_reasons(64 * MIB, {"a.service": 63 * MIB, "x.slice": 65 * MIB}) == [
        {
            "code": "memory-limit",
            "message": "its 64 MiB of RAM are charged to a.service at the restore, but its MemoryMax= or"
            " StartupMemoryMax= is 63 MiB: the restore would fail, and could not be repeated",
            "remedy": "raise or remove the limit of a.service",
        }
    ]


def test_a_limit_that_guests_share():
    guests = {
        "b": (64 * MIB, {"x.slice": 100 * MIB, "b.service": 70 * MIB}),
        "a": (64 * MIB, {"x.slice": 100 * MIB}),
        "c": (64 * MIB, {}),
    }
    (reason,) = _guests_memory.shared_limit_reasons(guests)
    assert reason["code"] == "memory-limit"
    assert reason["message"].startswith("the 128 MiB of RAM of a, b are charged to x.slice at the restore, but its")
    assert reason["remedy"] == "raise or remove the limit of x.slice"
    assert _guests_memory.shared_limit_reasons({"a": guests["a"], "c": guests["c"]}) == []
    # One that is too large by itself has that as its own reason.
    assert _guests_memory.shared_limit_reasons({**guests, "d": (200 * MIB, {"x.slice": 100 * MIB})}) == []


def test_memory_limits_are_those_of_the_unit_and_its_slices(monkeypatch):
    shown = {
        "web1.service": {"Slice": "web-a.slice", "MemoryMax": "5", "StartupMemoryMax": "infinity"},
        "web-a.slice": {"MemoryMax": "infinity"},
        "web.slice": {"MemoryMax": "7"},
        "-.slice": {"MemoryMax": "infinity"},
    }
    asked = []
    monkeypatch.setattr(_systemd, "show_each", lambda units, *_names: asked.append(units) or {unit: shown[unit] for unit in units})
    record = {"provider": "qemu", "unit": "web1.service"}
    assert _reasons.memory_limits(record) == _reasons.memory_limits(record) == {"web1.service": 5, "web.slice": 7}
    assert asked == [["web1.service"], ["-.slice", "web-a.slice", "web.slice"]]
