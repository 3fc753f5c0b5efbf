# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether two kernels offer the same to virtual machines. KVM is a stand-in that answers as Documentation/virt/kvm/api.rst says."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kvm

CPUID, HV, EMULATED, LIST, FEATURES, MSRS, EXTENSION, ATTRIBUTE = (
    *(0xC008AE05, 0xC008AEC1, 0xC008AE09, 0xC004AE02, 0xC004AE0A, 0xC008AE88, 0xAE03, 0x4018AEE2),
)


class Kvm:
    """A KVM whose answers a test changes."""

    def __init__(self) -> None:
        self.extensions = {1: 1, 7: 1, 188: 4}
        self.leaves = {CPUID: [(1, 0, 0x178BFBFF)], HV: [(0x40000000, 0, 7)], EMULATED: [(7, 0, 1)]}
        self.registers = {LIST: [0x174, 0x175], FEATURES: [0x8B, *range(0xC0011000, 0xC0011000 + 300)]}
        self.values = {0x8B: 5}
        self.xsave = 7
        self.absent: set[int] = set()
        self.silent: set[int] = set()
        self.asked: list[int] = []

    def ioctl(self, _device, call, argument):
        self.asked.append(call)
        if call in self.absent:
            raise OSError(errno.ENOTTY, "no such call")
        if call == EXTENSION:
            return self.extensions.get(argument, 0)
        if call == ATTRIBUTE:
            flags, group, attribute, address = struct.unpack("=IIQQ", argument)
            assert (flags, group, attribute) == (0, 0, 0)
            ctypes.memmove(address, struct.pack("=Q", self.xsave), 8)
            return 0
        (size,) = struct.unpack_from("=I", argument)
        if call in self.leaves:
            assert len(argument) == 8 + 40 * size
            struct.pack_into("=I", argument, 0, len(self.leaves[call]))
            for number, leaf in enumerate(self.leaves[call]):
                struct.pack_into("=III", argument, 8 + 40 * number, *leaf)
        elif call in self.registers:
            found = self.registers[call]
            assert len(argument) == 4 + 4 * size and size >= len(found)
            struct.pack_into(f"={1 + len(found)}I", argument, 0, len(found), *found)
        else:
            assert call == MSRS and size <= 256 and len(argument) == 8 + 16 * size
            for at in range(8, len(argument), 16):
                (index,) = struct.unpack_from("=I", argument, at)
                if index in self.silent:
                    return (at - 8) // 16
                struct.pack_into("=Q", argument, at + 8, self.values.get(index, 0))
            return size
        return 0


@pytest.fixture(name="kvm")
def a_kvm(tmp_path, monkeypatch):
    made = Kvm()
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(_kvm, "DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(_kvm, "FIRMWARE", (str(tmp_path / "sev"),))
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="x86_64"))
    return made


def test_the_same_answers_have_the_same_digest(kvm):
    first = _kvm.answers()
    assert len(first) == 64 and _kvm.answers() == first
    assert {CPUID, HV, EMULATED, LIST, FEATURES, MSRS, EXTENSION, ATTRIBUTE} <= set(kvm.asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda kvm: kvm.extensions.update({188: 5}),
        lambda kvm: kvm.extensions.update({260: 1}),
        lambda kvm: kvm.extensions.update({0: 1}),
        lambda kvm: kvm.leaves[CPUID].append((7, 0, 1)),
        lambda kvm: kvm.leaves[CPUID].__setitem__(0, (1, 0, 0x178BFBFE)),
        lambda kvm: kvm.leaves[HV].clear(),
        lambda kvm: kvm.leaves[EMULATED].clear(),
        lambda kvm: kvm.registers[LIST].append(0x176),
        lambda kvm: kvm.registers[FEATURES].append(0x176),
        lambda kvm: kvm.values.update({0x8B: 6}),
        lambda kvm: kvm.values.update({0xC0011000 + 299: 1}),
        lambda kvm: setattr(kvm, "xsave", 3),
        lambda kvm: kvm.absent.add(HV),
        lambda kvm: kvm.absent.add(ATTRIBUTE),
    ],
)
def test_each_answer_counts(kvm, change):
    before = _kvm.answers()
    change(kvm)
    assert _kvm.answers() not in ("", before)


def test_an_answer_that_is_not_complete_proves_nothing(kvm):
    kvm.silent = {0xC0011000 + 299}
    assert _kvm.answers() == ""


def test_an_unknown_error_proves_nothing(kvm, monkeypatch):
    monkeypatch.setattr(_kvm, "_ABSENT", ())
    kvm.absent = {HV}
    assert _kvm.answers() == ""


def test_what_cannot_be_compared_has_no_digest(kvm, monkeypatch, tmp_path):
    (tmp_path / "sev").touch()
    assert _kvm.answers() == ""
    (tmp_path / "sev").unlink()
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="aarch64"))
    assert _kvm.answers() == "" and not kvm.asked
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="x86_64"))
    (tmp_path / "kvm").unlink()
    assert _kvm.answers() == ""


def test_one_processor_answers_and_all_are_used_again(kvm, monkeypatch):
    allowed = os.sched_getaffinity(0)
    seen = set()
    ask = kvm.ioctl
    monkeypatch.setattr(fcntl, "ioctl", lambda *given: seen.add(frozenset(os.sched_getaffinity(0))) or ask(*given))
    _kvm.answers()
    assert seen == {frozenset({min(allowed)})} and os.sched_getaffinity(0) == allowed
    monkeypatch.setattr(_kvm, "DEVICE", "/nowhere")
    _kvm.answers()
    assert os.sched_getaffinity(0) == allowed


def test_an_update_does_not_fail_where_the_processor_cannot_be_chosen(kvm, monkeypatch):
    def refused(*_given):
        raise OSError(errno.EINVAL, "the processor is off")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    assert _kvm.answers() == ""


def test_registers_are_asked_for_in_parts(kvm):
    assert len(array.array("I", kvm.registers[FEATURES])) == 301
    _kvm.answers()
    assert kvm.asked.count(MSRS) == 2
