# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo
from made_up_clock import Clock


@pytest.fixture(name="kernel")
def fake_kernel(monkeypatch, tmp_path):
    """Records each request with its raw argument; answers with ``kernel.answer(request, argument)``, which may raise."""

    class Kernel:
        device = str(tmp_path / "liveupdate")

        def answer(self, request, argument):
            del request, argument

    kernel = Kernel()
    kernel.calls = []
    (tmp_path / "liveupdate").touch()

    def ioctl(fd, request, argument):
        kernel.calls.append((fd, request, bytes(argument)))
        kernel.answer(request, argument)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return kernel


def test_create_session_speaks_the_uapi(kernel):
    def answer(request, argument):
        assert request == 0xBA00
        struct.pack_into("=i", argument, 4, 42)

    kernel.answer = answer
    assert _luo.create_session("kvm-web1", kernel.device) == 42
    fd, _request, argument = kernel.calls[0]
    assert argument == struct.pack("=Ii64s", 72, -1, b"kvm-web1")
    with pytest.raises(OSError):
        os.fstat(fd)  # the device has one opener at a time: it is closed again at once


@pytest.mark.parametrize("name", ["", "x" * 39, "ü" * 20])
def test_a_name_that_systemd_cannot_carry_is_refused_before_the_device_is_opened(name, kernel):
    with pytest.raises(LiveUpdateError, match="use 1 to 38"):
        _luo.create_session(name, kernel.device)
    assert not kernel.calls


def test_the_longest_name_is_taken(kernel):
    _luo.retrieve_session("x" * 38, kernel.device)
    assert kernel.calls[0][1] == 0xBA01


def test_session_requests(kernel):
    def answer(request, argument):
        if request == 0xBA41:
            struct.pack_into("=i", argument, 4, 7)
        if request == 0xBA43:
            struct.pack_into("=64s", argument, 8, b"kvm-web1")

    kernel.answer = answer
    _luo.preserve_fd(5, 6, 2**63)
    assert kernel.calls[-1] == (5, 0xBA40, struct.pack("=IiQ", 16, 6, 2**63))
    assert _luo.retrieve_fd(5, 1) == 7
    assert kernel.calls[-1] == (5, 0xBA41, struct.pack("=IiQ", 16, -1, 1))
    _luo.finish(5)
    assert kernel.calls[-1] == (5, 0xBA42, struct.pack("=II", 8, 0))
    assert _luo.get_name(5) == "kvm-web1"
    assert kernel.calls[-1] == (5, 0xBA43, struct.pack("=Ii64s", 72, 0, b""))  # the kernel wants the second word to be 0


@pytest.mark.parametrize(
    ("code", "incoming"),
    [(errno.EINVAL, False), (errno.ENOENT, True)],
)
def test_is_incoming(kernel, code, incoming):
    def answer(request, argument):
        raise OSError(code, "")

    kernel.answer = answer
    assert _luo.is_incoming(5) is incoming
    assert kernel.calls == [(5, 0xBA41, struct.pack("=IiQ", 16, -1, 2**64 - 1))]


def test_a_session_that_gives_a_file_is_incoming(kernel):
    assert _luo.is_incoming(5) is True


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "preserve token 1: the kernel cannot preserve this kind of file: only memfds and unlinked tmpfs files"),
        (errno.EBUSY, "already preserved"),
        (errno.EIO, r"^preserve token 1: Input/output error \(EIO\)$"),
    ],
)
def test_errno_becomes_a_sentence(kernel, code, says):
    def answer(request, argument):
        raise OSError(code, os.strerror(code))

    kernel.answer = answer
    with pytest.raises(LiveUpdateError, match=says) as caught:
        _luo.preserve_fd(5, 6, 1)
    assert caught.value.details["errno"] == errno.errorcode[code]


def test_no_device_names_the_remedy():
    with pytest.raises(LiveUpdateError, match="kho=on and liveupdate=on"):
        _luo.create_session("x", "/nonexistent/liveupdate")


@pytest.mark.parametrize(
    ("details", "device", "gone"),
    [
        ({"errno": "ENOENT", "verb": "retrieve session"}, True, True),
        ({"errno": "ENOENT", "verb": "open"}, False, True),
        ({"errno": "ENOENT", "verb": "open"}, True, False),  # a unit's own /dev (PrivateDevices=)
        ({"errno": "EIO", "verb": "open"}, True, True),
        ({"errno": "EPERM", "verb": "open"}, True, False),
        ({"errno": "EBUSY", "verb": "open"}, True, False),
        ({"errno": "EINVAL", "verb": "retrieve session"}, True, False),
        ({}, True, False),
    ],
)
def test_only_a_kernel_that_has_no_such_session_means_that_it_is_gone(tmp_path, details, device, gone):
    known = tmp_path / "liveupdate"
    if device:
        known.touch()
    assert _luo.is_gone(LiveUpdateError("no", **details), str(known)) is gone


def test_the_error_tells_what_was_tried(kernel):
    with pytest.raises(LiveUpdateError) as caught:
        _luo.retrieve_session("x", "/nonexistent/liveupdate")
    assert caught.value.details == {"errno": "ENOENT", "verb": "open"}


def test_an_error_without_a_number_is_told_as_well(kernel):
    def answer(request, argument):
        raise OSError("something else")

    kernel.answer = answer
    with pytest.raises(LiveUpdateError, match=r"^finish session: .* \(None\)$"):
        _luo.finish(5)


@pytest.mark.parametrize(
    ("call", "what"),
    [(_luo.create_session, "create session kvm-1: "), (_luo.retrieve_session, "retrieve session kvm-1: ")],
)
def test_an_error_names_the_session(kernel, call, what):
    def answer(request, argument):
        raise OSError(errno.EINVAL, "")

    kernel.answer = answer
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LiveUpdateError) as caught:
        call("kvm-1", kernel.device)
    assert caught.value.message.startswith(what)
    assert len(os.listdir("/proc/self/fd")) == before  # the device has one opener at a time


class Device:
    """A device that is busy until a time."""

    def __init__(self, monkeypatch, free_at, code=errno.EBUSY):
        self.clock = Clock(monkeypatch, _luo, step=1.0)
        self.free_at, self.code, self.flags = free_at, code, set()
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(_luo, "BUSY_LIMIT_S", 10.0)

    def open(self, _path, flags):
        self.flags.add(flags)
        if self.clock.now < self.free_at:
            raise OSError(self.code, "")
        return os.memfd_create("device")


def test_a_device_that_is_busy_is_waited_for(kernel, monkeypatch):
    """PID 1 uses it too, and only one process can."""
    device = Device(monkeypatch, 5.0)
    _luo.create_session("x", kernel.device)
    assert device.clock.slept == [0.02] * 5 and device.flags == {os.O_RDWR | os.O_CLOEXEC}


def test_a_device_that_stays_busy_is_given_up_at_the_limit(kernel, monkeypatch):
    device = Device(monkeypatch, 1000.0)
    with pytest.raises(LiveUpdateError, match=r"^open .*liveupdate: another process has it open.*fuser -v"):
        _luo.create_session("x", kernel.device)
    assert len(device.clock.slept) == 11


def test_any_other_failure_is_told_at_once(kernel, monkeypatch):
    device = Device(monkeypatch, 1000.0, errno.EPERM)
    with pytest.raises(LiveUpdateError, match="only root may use it"):
        _luo.create_session("x", kernel.device)
    assert not device.clock.slept
