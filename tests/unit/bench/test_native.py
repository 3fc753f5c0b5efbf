# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured without emulation."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline
from kvmbench.native import NATIVE, Native, free_mib, parts_of, that_fit
from kvmbench.rooms import PROGRAMS, cgroup_folder

HYBRID = """\
30 22 0:25 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
39 30 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "29 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
INSIDE = "500 480 0:30 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"


def test_every_measurement_has_a_name_of_its_own_and_a_program() -> None:
    assert len({measurement.name for measurement in NATIVE}) == len(NATIVE)
    programs = {path.stem for path in PROGRAMS.glob("*.py")}
    assert {measurement.kind for measurement in NATIVE} - {"boot"} <= programs and (PROGRAMS / "boot.sh").exists()
    assert {"forky/qemu-8x2048", "trixie/domain-1x128-probe", "forky/boot-unit"} <= {measurement.name for measurement in NATIVE}


def test_the_programs_of_the_rooms_compile() -> None:
    for path in PROGRAMS.glob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_systemd_boots_in_a_room_with_the_words_of_a_jump() -> None:
    script = (PROGRAMS / "boot.sh").read_text(encoding="utf-8")
    assert f"export {_cmdline.MOUNTS}\n" in script and f"systemd {_cmdline.GUESTS_FIRST}\n" in script


@pytest.mark.parametrize(
    ("memberships", "mounts", "expected"),
    [
        ("4:memory:/a\n0::/\n", HYBRID, Path("/sys/fs/cgroup/unified")),
        ("0::/user.slice/session-2.scope\n", UNIFIED, Path("/sys/fs/cgroup/user.slice/session-2.scope")),
        ("0::/docker/abc/below\n", INSIDE, Path("/sys/fs/cgroup/below")),
        ("4:memory:/a\n", HYBRID, None),
        ("0::/\n", "30 22 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", None),
    ],
)
def test_the_cgroup_of_this_process(memberships: str, mounts: str, expected: Path | None) -> None:
    assert cgroup_folder(memberships, mounts) == expected


def test_what_does_not_fit_into_memory_is_left_out() -> None:
    small = Native("forky", "qemu", "1x128", ("1", "128", "cold"))
    large = Native("forky", "domain", "8x2048", ("8", "2048", "cold", "cached"))
    assert that_fit([small, large], 8000) == ([small], [large])
    assert that_fit([small, large], 8 * (2048 + 128) * 10 // 9) == ([small, large], [])
    assert free_mib("MemTotal: 1 kB\nMemAvailable:    2048000 kB\n") == 2000


def test_the_parts_of_a_boot_and_a_shutdown() -> None:
    stamps = {"userspace": 10.0, "units": 10.5, "start": 11.5, "daemon": 0.0, "down": 13.0, "ended": 13.25}
    parts = {"part: stop the old system": 0.25, "part: systemd loads its units": 0.5, "part: start the restore": 1.0}
    assert parts_of(stamps) == parts
    assert parts_of({**stamps, "daemon": 11.75}) == {**parts, "start of libvirt's daemon": 0.25}
