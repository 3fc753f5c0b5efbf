# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes


@pytest.fixture(name="program")
def running_program(tmp_path):
    """A program of its own that waits for the end of its input, and its process."""
    path = tmp_path / "program"
    shutil.copy(shutil.which("cat"), path)
    with echoing([path]) as process:
        yield path, process


@contextlib.contextmanager
def echoing(words, **how):
    """A process of ``cat``. It runs already: while the kernel still starts a program, it shows no command line of it."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **how) as process:
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        try:
            yield process
        finally:
            process.stdin.close()


def test_a_program_that_is_still_there_is_not_replaced(program):
    _path, process = program
    assert _processes.replaced_program(process.pid) == ""


def test_a_program_that_was_upgraded_is_replaced(program, tmp_path):
    path, process = program
    shutil.copy(path, tmp_path / "new")
    (tmp_path / "new").rename(path)
    assert _processes.replaced_program(process.pid) == str(path)


def test_a_program_that_was_removed_is_replaced(program):
    path, process = program
    path.unlink()
    assert _processes.replaced_program(process.pid) == str(path)


@pytest.mark.parametrize("by_path", [False, True])
def test_a_program_whose_link_was_turned_is_replaced(program, tmp_path, by_path):
    """As alternatives are: what runs is still there, and a start takes another one."""
    path, _process = program
    link = tmp_path / "emulator"
    link.symlink_to(path)
    words = {"executable": link, "words": ["emulator"]} if by_path else {"words": [link]}
    with echoing(**words, env={"PATH": str(tmp_path)}) as process:
        assert _processes.replaced_program(process.pid) == ""
        shutil.copy(path, tmp_path / "new")
        link.unlink()
        link.symlink_to(tmp_path / "new")
        assert _processes.replaced_program(process.pid) == str(link)
        (tmp_path / "new").unlink()
        (tmp_path / "new").write_text("#!/bin/sh\nexec program\n")  # of a script nobody knows what it runs
        (tmp_path / "new").chmod(0o755)
        assert _processes.replaced_program(process.pid) == ""


def test_of_the_name_that_a_process_was_started_by_only_an_ordinary_file_is_opened(program, monkeypatch):
    """A QEMU that was broken into can change its own command line, and put another file there at any moment."""
    _path, process = program
    monkeypatch.setattr(_processes, "argv_of", lambda _pid: ["/dev/null"])
    for name in ("access", "path.isfile"):
        monkeypatch.setattr(f"os.{name}", lambda *_words: True)
    opened, plain = [], os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(flags & os.O_PATH) or plain(path, flags))
    assert _processes.replaced_program(process.pid) == "" and opened == [os.O_PATH]


def test_a_guest_whose_qemu_was_upgraded_is_refused():
    assert _reasons.program_reasons("") == []
    (reason,) = _reasons.program_reasons("/usr/bin/qemu-system-x86_64")
    assert reason["code"] == "qemu-replaced" and "/usr/bin/qemu-system-x86_64 was replaced" in reason["message"]
    assert "restart the guest" in reason["remedy"]


def test_what_the_taps_of_a_process_need(tmp_path):
    """One that QEMU made, on a bridge; one that was there before it, on none; and one that has no name yet."""
    fds, info = (tmp_path / "proc/7" / name for name in ("fd", "fdinfo"))
    for folder in (fds, info):
        folder.mkdir(parents=True)
    for fd, (tap, flags) in {3: ("tap0", "0x5002"), 4: ("tap0", "0x5002"), 5: ("web1", "0x1802"), 6: ("", "")}.items():
        (fds / str(fd)).symlink_to("/dev/net/tun")
        (info / str(fd)).write_text("pos:\t0\n" + (f"iff:\t{tap}\n" if tap else ""))
        device = tmp_path / "sys/class/net" / (tap or "none")
        device.mkdir(parents=True, exist_ok=True)
        (device / "tun_flags").write_text(flags + "\n")
    (tmp_path / "sys/class/net/tap0/master").symlink_to("../br0")
    (fds / "8").symlink_to("/dev/null")
    assert _processes.interfaces(7, str(tmp_path)) == ["br0", "web1"]
    assert _processes.interfaces(8, str(tmp_path)) == []


def test_when_and_as_whom_a_process_runs(program):
    _path, process = program
    assert abs(_processes.started_at(process.pid) - time.time()) < 60
    assert _processes.user_of(process.pid) == os.geteuid()
    assert (_processes.started_at(1 << 30), _processes.user_of(1 << 30)) == (0.0, None)


def test_a_process_without_a_guest_has_run_none():
    """The field behind that of its children's is 0 as well: here it is the right one of those in proc(5)."""
    assert _processes.guest_time(os.getpid()) == 0 and _processes.guest_time(1 << 30) == 0


def test_the_time_of_the_guest_is_the_43rd_field(monkeypatch):
    fields = " ".join(str(number) for number in range(3, 53))
    monkeypatch.setattr("builtins.open", lambda *_path, **_how: io.StringIO(f"7 (a )b) {fields}"))
    assert _processes.guest_time(7) == 43


def test_a_unit_with_bytes_that_are_no_utf_8_ends_no_examination(tmp_path):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_bytes(b"0::/system.slice/B\xfcro.service\n")
    assert _processes.unit_of(7, str(tmp_path)) == "B\udcfcro.service"
