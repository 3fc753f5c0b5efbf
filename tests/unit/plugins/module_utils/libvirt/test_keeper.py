# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that keeps a domain's memory open: QEMU's own user, nothing else open, and it ends with its unit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _keeper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
RECORD = {"name": "app", "uid": 65534, "gid": 65533}


@pytest.fixture(name="memory")
def memory_file():
    """A file, and a limit for the test: a process that says nothing would be waited for without end."""

    def late(*_signal):
        raise AssertionError("it waits for ever")

    fd = os.memfd_create("ram")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield fd
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    os.close(fd)


@contextlib.contextmanager
def kept(memory):
    keeper = _keeper.keep_open(RECORD, [memory])
    try:
        yield keeper
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(keeper, 0)


def status(pid):
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def until(seen, limit_s=20):
    limit = time.monotonic() + limit_s
    while not seen():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_it_is_qemus_own_and_has_nothing_but_the_memory(memory):
    session, groups, before = os.memfd_create("session"), os.getgroups(), len(os.listdir("/proc/self/fd"))
    os.setgroups([1, 2])
    try:
        with kept(memory) as keeper:
            links = _processes.fd_links(keeper)
            assert links[memory] == _processes.fd_links(os.getpid())[memory]
            assert set(links) == {0, 1, 2, memory}
            seen = status(keeper)
            assert set(seen["Uid"].split()) == {"65534"} and set(seen["Gid"].split()) == {"65533"}
            assert seen["Groups"].split() == [] and int(seen["CapEff"], 16) == 0
            assert os.stat(f"/proc/{keeper}/fd").st_uid == 65534  # so that QEMU may open it through /proc
    finally:
        os.setgroups(groups)
        os.close(session)
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the session


def test_it_sleeps_and_ends_when_its_unit_ends(memory):
    """The process of the unit has blocked SIGTERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        with kept(memory) as keeper:
            until(lambda: status(keeper)["State"].split()[0] == "S")
            os.kill(keeper, signal.SIGTERM)
            until(lambda: status(keeper)["State"].split()[0] == "Z")
            assert os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]) == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_kernel_is_asked_for_nothing_else_than_that_qemu_may_look_into_it(memory, monkeypatch):
    """PR_SET_DUMPABLE (prctl(2)): the words that it does not use are zero."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(prctl=lambda *words: 0 if words == (4, 1, 0, 0, 0) else -1))
    with kept(memory) as keeper:
        assert memory in _processes.fd_links(keeper)


def fails(*_what):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("place", "what", "with_what"),
    [
        (os, "setgroups", fails),
        (os, "setresgid", fails),
        (os, "setresuid", fails),
        (ctypes, "CDLL", lambda _name: SimpleNamespace(prctl=lambda *_words: -1)),
    ],
)
def test_a_process_that_cannot_become_qemus_own_is_told_and_ends(memory, monkeypatch, place, what, with_what):
    monkeypatch.setattr(place, what, with_what)
    monkeypatch.setattr(signal, "pause", lambda: os._exit(1))
    children = []
    monkeypatch.setattr(os, "fork", lambda real=os.fork: children.append(real()) or children[-1])
    with pytest.raises(LiveUpdateError, match="guest app: no process with user 65534 can keep its RAM open; 'journalctl -b' may show why"):
        _keeper.keep_open(RECORD, [memory])
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [1]


def test_a_descriptor_that_is_gone_is_no_failure(memory, monkeypatch):
    """The list of descriptors was one of them itself."""
    monkeypatch.setattr(_processes, "fd_links", lambda pid, real=_processes.fd_links: {**real(pid), 999_999: "gone"})
    with kept(memory) as keeper:
        assert memory in _processes.fd_links(keeper)
