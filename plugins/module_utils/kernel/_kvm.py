# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask KVM what it offers to virtual machines, to compare two kernels. PRIVATE to the collection.

These are the questions that QEMU asks KVM before it has a virtual machine (target/i386/kvm/kvm.c, accel/kvm/kvm-all.c). This is on the boot
path: standard library only, few imports. Source: the kernel's Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h.
"""

from __future__ import annotations

import array
import errno
import fcntl
import hashlib
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("answers",)

DEVICE = "/dev/kvm"
# The firmware behind these answers for itself, and not in milliseconds.
FIRMWARE = ("/dev/sev", "/dev/sgx_enclave", "/dev/sgx_vepc")
# Calls on /dev/kvm itself.
_CHECK_EXTENSION = 0xAE03
_MSR_INDEX_LIST = 0xC004AE02
_MSR_FEATURE_INDEX_LIST = 0xC004AE0A
_GET_MSRS = 0xC008AE88
_SUPPORTED_CPUID = 0xC008AE05
_EMULATED_CPUID = 0xC008AE09
_SUPPORTED_HV_CPUID = 0xC008AEC1
_GET_DEVICE_ATTR = 0x4018AEE2
# More than the kernel has. In 7.3 the highest extension is below 260.
_EXTENSIONS = 512
_CPUID_ENTRIES = 256  # KVM_MAX_CPUID_ENTRIES
_CPUID_ENTRY = 40
_MSRS = 4096
_MSRS_AT_ONCE = 256  # MAX_IO_MSRS
# Kernels without these calls, or processors without what they are about, answer so.
_ABSENT = (errno.EINVAL, errno.ENOTTY, errno.ENXIO)


def answers() -> str:
    """A digest of all that KVM answers. Empty if it is not known: no KVM, another architecture, or an answer that takes long.

    Two kernels with the same digest offer the same to QEMU, on the same processor. Never raises: nothing depends on it but time.
    """
    if os.uname().machine != "x86_64" or any(map(os.path.exists, FIRMWARE)):
        return ""
    try:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})  # some answers are about the processor that gives them
        try:
            return _of_device()
        finally:
            os.sched_setaffinity(0, allowed)
    except OSError:
        return ""


def _of_device() -> str:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _digest(device)
    finally:
        os.close(device)


def _digest(device: int) -> str:
    digest = hashlib.sha256()
    digest.update(array.array("i", [fcntl.ioctl(device, _CHECK_EXTENSION, number) for number in range(_EXTENSIONS)]).tobytes())
    for call in (_SUPPORTED_CPUID, _EMULATED_CPUID, _SUPPORTED_HV_CPUID):
        digest.update(_asked(_cpuid, device, call))
    digest.update(_msr_list(device, _MSR_INDEX_LIST))
    features = _msr_list(device, _MSR_FEATURE_INDEX_LIST)
    digest.update(features)
    digest.update(_msrs(device, array.array("I", features)))
    digest.update(_asked(_xsave_features, device))
    return digest.hexdigest()


def _asked(question: t.Callable[..., bytes], *arguments: int) -> bytes:
    """An answer that not every kernel has."""
    try:
        return question(*arguments)
    except OSError as err:
        if err.errno not in _ABSENT:
            raise
        return b"absent"


def _cpuid(device: int, call: int) -> bytes:
    """``struct kvm_cpuid2``: the number of entries, padding, the entries."""
    asked = bytearray(struct.pack("=II", _CPUID_ENTRIES, 0) + bytes(_CPUID_ENTRIES * _CPUID_ENTRY))
    fcntl.ioctl(device, call, asked)
    (count,) = struct.unpack_from("=I", asked)
    return bytes(asked[: 8 + count * _CPUID_ENTRY])


def _msr_list(device: int, call: int) -> bytes:
    """The indices in ``struct kvm_msr_list``, after their number."""
    asked = bytearray(struct.pack("=I", _MSRS) + bytes(4 * _MSRS))
    fcntl.ioctl(device, call, asked)
    (count,) = struct.unpack_from("=I", asked)
    return bytes(asked[4 : 4 + 4 * count])


def _msrs(device: int, indices: t.Sequence[int]) -> bytes:
    """The values of these registers: ``struct kvm_msrs``, the number and padding, then for each register index, padding and value."""
    values = b""
    for at in range(0, len(indices), _MSRS_AT_ONCE):
        some = indices[at : at + _MSRS_AT_ONCE]
        asked = bytearray(struct.pack("=II", len(some), 0) + b"".join(struct.pack("=IIQ", index, 0, 0) for index in some))
        done = fcntl.ioctl(device, _GET_MSRS, asked)
        if done != len(some):
            raise OSError(errno.EIO, f"KVM gave the values of {done} of {len(some)} registers")
        values += bytes(asked)
    return values


def _xsave_features(device: int) -> bytes:
    """The parts of the processor's state that guests may use (KVM_X86_XCOMP_GUEST_SUPP): ``struct kvm_device_attr`` with an address."""
    answer = array.array("Q", [0])
    fcntl.ioctl(device, _GET_DEVICE_ATTR, struct.pack("=IIQQ", 0, 0, 0, answer.buffer_info()[0]))
    return answer.tobytes()
