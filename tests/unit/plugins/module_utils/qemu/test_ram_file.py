# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _ram_file

HUGE = 2 << 20


def refused():
    raise OSError(errno.EPERM, "no")


def killed():
    os.kill(os.getpid(), signal.SIGSYS)


def test_a_file_for_ram_has_no_name_and_is_not_inherited_by_chance():
    fd = _ram_file.create("web", HUGE)
    try:
        seen = os.fstat(fd)
        assert (seen.st_nlink, seen.st_size, os.get_inheritable(fd)) == (0, HUGE, False)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))  # as QEMU does
    finally:
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes privileges")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists(), reason="this kernel has no huge pages")
def test_its_pages_are_huge_whatever_the_host_does_for_memfds():
    fd = _ram_file.create("web", 4 * HUGE)
    try:
        with mmap.mmap(fd, 4 * HUGE) as memory:
            for place in range(0, 4 * HUGE, HUGE):
                memory[place] = 1
            sizes = re.findall(r"^ShmemPmdMapped: +([0-9]+) kB$", Path("/proc/self/smaps").read_text(), re.MULTILINE)
        assert str(4 * HUGE >> 10) in sizes
        assert not os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    finally:
        os.close(fd)


@pytest.mark.parametrize("answer", [refused, killed])
def test_where_there_can_be_none_it_is_a_memfd_and_the_guest_starts(answer, monkeypatch, capsys):
    monkeypatch.setattr(_ram_file, "_tmpfs_file", answer)
    fd = _ram_file.create("web", HUGE)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:kvm-liveupdate:web (deleted)"
        assert (os.fstat(fd).st_size, os.get_inheritable(fd)) == (HUGE, False)
        assert "web: its RAM is not on a tmpfs of its own" in capsys.readouterr().err
    finally:
        os.close(fd)
