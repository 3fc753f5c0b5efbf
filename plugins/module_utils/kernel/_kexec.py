# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stage the next kernel with kexec_file_load(2). PRIVATE to the collection.

Source: kernel/kexec_file.c and Documentation/arch/x86/boot.rst (the bzImage header). An image that was loaded with the older
kexec_load(2) carries no memory over, and the kernel does not tell which call loaded an image. So this module records what it staged in
this boot, with digests, and loads it right before the jump.
"""

from __future__ import annotations

import os
import struct

from .._errors import LiveUpdateError
from ..host import _files

__all__ = ("describe", "file_digest", "load", "loaded", "record", "stage", "try_out", "unload")

_UNLOAD = 0x1
_NO_INITRAMFS = 0x4
_SYS_KEXEC_FILE_LOAD = {"x86_64": 320, "aarch64": 294}
_XLF_ABOVE_4G = 0x2
_LOADED = "/sys/kernel/kexec_loaded"


def describe(path: str) -> dict:
    """The facts in the header of a bzImage: ``release`` and ``version`` (uname -r, -v), ``size`` and ``sha256``.

    Raises if the file is missing, is not a bzImage, is cut off, or cannot be loaded above 4 GiB.
    """
    from hashlib import sha256  # slow to import, and not needed on the boot path

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as err:
        raise LiveUpdateError(f"kernel {path}: {err.strerror}; use the path of a kernel image on the host") from err
    if len(data) < 0x270 or data[0x1FE:0x200] != b"\x55\xaa" or data[0x202:0x206] != b"HdrS":
        raise LiveUpdateError(
            f"kernel {path} is not an x86 bzImage (no boot header in its first {min(len(data), 0x270)} bytes);"
            " use the compressed kernel as the distribution installs it, e.g. /boot/vmlinuz-VERSION"
        )
    sectors = data[0x1F1] or 4
    paragraphs, protocol = struct.unpack_from("<I", data, 0x1F4)[0], struct.unpack_from("<H", data, 0x206)[0]
    expected = (sectors + 1) * 512 + paragraphs * 16
    if len(data) < expected:
        raise LiveUpdateError(
            f"kernel {path} is cut off: its header says {expected} bytes, but the file has {len(data)}; copy the file again"
        )
    if protocol < 0x20C or not struct.unpack_from("<H", data, 0x236)[0] & _XLF_ABOVE_4G:
        raise LiveUpdateError(
            f"kernel {path} cannot be loaded above 4 GiB (boot protocol {protocol >> 8}.{protocol & 255:02d}), so"
            " kexec_file_load refuses it; use a kernel with CONFIG_RELOCATABLE=y"
        )
    start = struct.unpack_from("<H", data, 0x20E)[0] + 0x200
    text = data[start : start + 512].partition(b"\0")[0].decode(errors="replace") if start > 0x200 else ""
    release, _space, rest = text.partition(" ")
    return {
        "path": path,
        "release": release,
        "version": rest[rest.find("#") :] if "#" in rest else "",
        "size": len(data),
        "sha256": sha256(data).hexdigest(),
    }


def loaded(root: str = "/") -> bool:
    """Whether an image is loaded for kexec, by this code or another program."""
    try:
        with open(os.path.join(root, _LOADED.lstrip("/")), encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError as err:
        raise LiveUpdateError(f"{_LOADED}: {err.strerror}; the running kernel has no kexec, run one with CONFIG_KEXEC_FILE=y") from err


def record() -> dict:
    """What :func:`stage` staged in this boot; empty for nothing. Only the jump loads it."""
    return _files.read_json(_files.IMAGE_RECORD)


def _kexec_file_load(kernel: int, initrd: int, cmdline: bytes, flags: int) -> None:
    import ctypes

    number = _SYS_KEXEC_FILE_LOAD.get(os.uname().machine)
    if number is None:
        raise LiveUpdateError(f"machine {os.uname().machine}: live update supports x86_64 and aarch64 only")
    libc = ctypes.CDLL(None, use_errno=True)
    length, text = ctypes.c_ulong(len(cmdline)), ctypes.c_char_p(cmdline or None)
    result = libc.syscall(ctypes.c_long(number), kernel, initrd, length, text, ctypes.c_ulong(flags))
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_LOAD_REMEDIES = {
    "EPERM": "only root may load a kernel, kernel.kexec_load_disabled must be 0, and under lockdown the image must be signed",
    "ENOEXEC": "the running kernel does not accept this image; 'dmesg | grep kexec' shows why",
    "EADDRNOTAVAIL": "no room in the scratch memory that KHO reserved at the cold boot; set a larger hypervisor_setup_scratch",
    "EBUSY": "another kexec operation is running; wait for its end",
    "ENOMEM": "not enough memory for the image; free some",
}


def stage(image: dict) -> None:
    """Check that the kernel can be loaded for a jump, and record it (:func:`record`)."""
    try_out(image)
    _files.write_json(_files.IMAGE_RECORD, image)


def try_out(image: dict) -> None:
    """Load a kernel and unload it again.

    While an image is loaded, "systemctl reboot" would jump into it (systemctl(1)), with the guests' memory but without their state.
    """
    load(image)
    _unload()


def load(image: dict) -> None:
    """Load a kernel and its initrd, only if their digests are ``sha256`` and ``initrd_sha256`` of ``image``.

    The kernel reads from these descriptors, whatever their paths lead to now. So this computes the digests from them, before and after.
    A private copy would exclude every writer. But IMA, LoadPin and SELinux check the file itself (fs/kernel_read_file.c).
    """
    import errno

    kernel, initrd, cmdline = image["path"], image["initrd"], image["cmdline"]
    files = {"kernel": (_open("kernel", kernel), kernel, image["sha256"])}
    try:
        if initrd:
            files["initial RAM disk"] = (_open("initial RAM disk", initrd), initrd, image["initrd_sha256"])
        initrd_fd = files["initial RAM disk"][0] if initrd else -1
        _compare(files)
        _kexec_file_load(files["kernel"][0], initrd_fd, cmdline.encode("utf-8", "surrogateescape") + b"\0", 0 if initrd else _NO_INITRAMFS)
        try:
            _compare(files)
        except LiveUpdateError:
            _unload()
            raise
    except OSError as err:
        name = errno.errorcode.get(err.errno or 0, "?")
        raise LiveUpdateError(
            f"kernel {kernel} cannot be loaded: {_LOAD_REMEDIES.get(name, err.strerror)} ({name}). It is not staged"
        ) from err
    finally:
        for fd, _path, _digest in files.values():
            os.close(fd)


def _open(what: str, path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise LiveUpdateError(f"{what} {path}: {err.strerror}; restore it, or stage another one") from err


def _compare(files: dict[str, tuple[int, str, str]]) -> None:
    """Raise if an open file does not have its digest."""
    for what, (fd, path, digest) in files.items():
        if file_digest(f"/proc/self/fd/{fd}") != digest:
            raise LiveUpdateError(f"{what} {path} has changed since it was staged; stage it again")


def unload() -> None:
    """Unstage the kernel, and unload any image, also one that another program loaded."""
    _unload()
    _files.remove(_files.IMAGE_RECORD)


def _unload() -> None:
    try:
        _kexec_file_load(-1, -1, b"", _UNLOAD)
    except OSError as err:
        raise LiveUpdateError(f"the staged kernel cannot be unloaded: {err.strerror}; see 'dmesg | grep kexec'") from err


def file_digest(path: str) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    from hashlib import sha256

    digest = sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
