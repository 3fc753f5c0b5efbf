# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The initial RAM disk of a kernel: find the one that a boot loader uses, and check that it is complete. PRIVATE to the collection.

Source: GRUB's util/grub.d/10_linux.in, the UAPI group's Boot Loader Specification, kernel-install(8), mkinitcpio's kernel-install
plugin, Documentation/driver-api/early-userspace/buffer-format.rst, init/do_mounts.c, Documentation/arch/x86/boot.rst, RFC 8878 (zstd).
"""

from __future__ import annotations

import os
import re

from .._errors import LiveUpdateError
from . import _cmdline, _decompress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO  # not at run time: slow to import

__all__ = ("came_with_one", "contents", "fault", "find", "kernel_mounts", "of")

# The names that GRUB looks for beside a kernel, in its order.
_NAMES = ("initrd.img-{}", "initrd-{}.img", "initrd-{}.gz", "initrd-{}", "initramfs-{}.img")
# Where a boot loader's own partition is mounted (Boot Loader Specification, systemd-gpt-auto-generator).
_BOOT = ("boot", "efi", "boot/efi")
# The names that kernel-install uses, and Debian's plugin for it.
_INSTALLED = ("initrd", "initrd.img-{}")
_BOOT_PARAMS = "sys/kernel/boot_params/data"
_RAMDISK = ((0x218, 4), (0x21C, 4), (0x0C0, 4), (0x0C4, 4))
# An init is never smaller than this, even compressed.
_LEAST = 4096
_BLOCK = 1 << 16
_ALIGNMENT = 4
_CPIO = (b"070701", b"070702")
_CPIO_HEADER = 110
_NAME_LIMIT = 4096
_INITS = ("init", "linuxrc", "sbin/init", "bin/init")
# A module in it, wherever its folder is (NixOS: below nix/store), and the library of its systemd.
_MODULE = re.compile(r"(?:^|/)lib/modules/([^/]+)/(?:.*/)?([^/]+)\.ko(?:\.[a-z0-9]+)?$")
_SYSTEMD = re.compile(r"/libsystemd-(?:core|shared)-([0-9]+)[^/]*\.so$")
_LZ4_LIMIT = (8 << 20) + (8 << 20) // 255 + 16


def of(kernel: str, release: str, given: str | None, root: str = "/") -> str | None:
    """The path of a kernel's initial RAM disk: the given one, None for ``none``, else what :func:`find` finds."""
    if given:
        return None if given == "none" else given
    return find(kernel, release, root)


def find(kernel: str, release: str, root: str = "/") -> str | None:
    """The initial RAM disk that a boot loader uses with the kernel at this path; None if none is found.

    A boot loader's entry for exactly this file counts first, then the usual names.
    """
    if not re.fullmatch(r"[\w.+~-]+", release) or release in (".", ".."):
        return None  # the release comes from the file and becomes a part of a path
    return next((path for path in _candidates(kernel, release, root) if os.path.isfile(path)), None)


def _candidates(kernel: str, release: str, root: str) -> Iterator[str]:
    entries = list(_entries(root))
    for linux, _version, initrd in entries:
        if _same_file(linux, kernel):
            yield initrd
    real = os.path.realpath(kernel)
    for path in (kernel, real):
        yield from _beside(path, release)
    if _is_packaged(real, release):
        for linux, version, initrd in entries:
            if version == release and os.path.isfile(linux):
                yield initrd
        yield from _installed(release, root)


def _beside(kernel: str, release: str) -> Iterator[str]:
    """Search by the release, and by the part of the kernel's file name: Arch always uses vmlinuz-linux."""
    folder, name = os.path.split(kernel)
    label = name.partition("-")[2]
    for one in (release, label) if label else (release,):
        for pattern in _NAMES:
            yield os.path.join(folder, pattern.format(one))
    if os.path.basename(folder) == release and name in ("linux", "vmlinuz"):
        for pattern in _INSTALLED:
            yield os.path.join(folder, pattern.format(release))


def _is_packaged(kernel: str, release: str) -> bool:
    """Whether this is the file in the kernel's package, .../lib/modules/RELEASE/vmlinuz, which no boot loader reads."""
    return kernel.split("/")[-4:-1] == ["lib", "modules", release]


def _installed(release: str, root: str) -> Iterator[str]:
    """Search for a kernel below lib/modules, of which a tool has made a copy for the boot loader."""
    import filecmp
    import glob

    own = os.path.join(root, "usr/lib/modules", release)
    for place in _BOOT:
        folder = os.path.join(root, place)
        for pattern in _NAMES:
            yield os.path.join(folder, pattern.format(release))
        for linux in sorted(glob.glob(os.path.join(glob.escape(folder), "*", glob.escape(release), "linux"))):
            yield from (os.path.join(os.path.dirname(linux), pattern.format(release)) for pattern in _INSTALLED)
        # Arch's names have no release. They belong to this kernel only if the copy beside them is this kernel.
        name = _first_line(os.path.join(own, "pkgbase"))
        copy = os.path.join(folder, f"vmlinuz-{name}")
        if name and os.path.isfile(copy) and filecmp.cmp(copy, os.path.join(own, "vmlinuz"), shallow=False):
            yield os.path.join(folder, f"initramfs-{name}.img")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return os.path.basename(file.readline().strip())
    except (OSError, ValueError):
        return ""


def _entries(root: str) -> Iterator[tuple[str, str, str]]:
    """For each entry of the Boot Loader Specification: its kernel, its version and its initial RAM disk.

    Of several initial RAM disks the last one counts: those before it contain microcode, which the processor keeps during a kexec.
    """
    import glob

    for place in _BOOT:
        base = os.path.join(root, place)
        for path in sorted(glob.glob(os.path.join(glob.escape(base), "loader/entries/*.conf"))):
            try:
                with open(path, encoding="utf-8") as file:
                    lines = [line.split() for line in file]
            except (OSError, ValueError):
                continue
            found: dict[str, list[str]] = {}
            for key, *values in filter(None, lines):
                found.setdefault(key, []).extend(value for value in values if not value.startswith("$"))  # a variable of GRUB's
            if found.get("linux") and found.get("initrd"):
                version = found.get("version") or [""]
                yield _on_partition(root, base, found["linux"][-1]), version[-1], _on_partition(root, base, found["initrd"][-1])


def _on_partition(root: str, base: str, path: str) -> str:
    """The path of a file in an entry. It begins at the root of the partition, which may be part of another mount."""
    place = os.path.join(base, path.lstrip("/"))
    return place if os.path.exists(place) else os.path.join(root, path.lstrip("/"))


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def came_with_one(root: str = "/") -> bool | None:
    """Whether the running kernel got an initial RAM disk, also from a kexec; None if this is unknown."""
    try:
        with open(os.path.join(root, _BOOT_PARAMS), "rb") as file:
            data = file.read(0x228)
    except OSError:
        return None
    return any(int.from_bytes(data[at : at + size], "little") for at, size in _RAMDISK) if len(data) == 0x228 else None


def kernel_mounts(cmdline: str) -> bool:
    """Whether a kernel alone finds the root file system of this line: named by a device or partition, not by its content. Pure."""
    device = _cmdline.value(cmdline, "root") or ""
    return bool(re.fullmatch(r"/dev/[^/]+|PARTUUID=.+|PARTLABEL=.+|[0-9]+:[0-9]+", device))


def fault(path: str) -> str:
    """The problem of an initial RAM disk; empty for none. It may consist of several archives, compressed or not.

    Raises if it cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return _fault(_File(file))
    except OSError as err:
        raise LiveUpdateError(f"initial RAM disk {path}: {err.strerror}; use the path of an initial RAM disk on the host") from err


def contents(path: str) -> dict:
    """What is in an initial RAM disk without a fault.

    ``compressed``: the compressions that the kernel has to know. ``modules``: names by release. ``systemd``: its version, "" for none. The
    last two are empty and None if it cannot be unpacked on this host.
    """
    compressed: set[str] = set()
    modules: dict[str, set[str]] = {}
    version = ""
    try:
        with open(path, "rb") as file:
            for name in _names(_File(file), f"initial RAM disk {path}", compressed):
                module, systemd = _MODULE.search(name), _SYSTEMD.search(name)
                if module:
                    modules.setdefault(module[1], set()).add(module[2].replace("-", "_"))
                elif systemd:
                    version = systemd[1]
    except (_Cut, LiveUpdateError, OSError):
        return {"compressed": sorted(compressed), "modules": {}, "systemd": None}
    found = {release: sorted(names) for release, names in sorted(modules.items())}
    return {"compressed": sorted(compressed), "modules": found, "systemd": version}


def _names(file: _File, what: str, compressed: set[str]) -> Iterator[str]:
    """The paths in all archives of an initial RAM disk. Adds their compressions to ``compressed``."""
    while _skip_zeros(file):
        begun = file.at
        head = file.read(8)
        file.at = begun
        if head[:6] in _CPIO:
            yield from _members(file)
            continue
        compression = _decompress.identify(head) or ""
        compressed.add(compression)
        _archive(file)
        end, file.at = file.at, begun

        def packed(length: int, end: int = end) -> bytes:
            return file.read(min(length, end - file.at))

        source = _Unpacked(_decompress.blocks(compression, packed, what))
        while _skip_zeros(source):
            yield from _members(source)
        file.at = end


class _Cut(Exception):
    """The archive ends early or is damaged."""


class _File:
    """A file that knows its position."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.at = file, os.fstat(file.fileno()).st_size, 0

    def read(self, length: int) -> bytes:
        """Read up to this many bytes."""
        self.file.seek(self.at)
        data = self.file.read(length)
        self.at += len(data)
        return data

    def back(self, data: bytes) -> None:
        """Give back what was read last."""
        self.at -= len(data)

    def take(self, length: int) -> bytes:
        data = self.read(length)
        if len(data) < length:
            raise _Cut("it is cut off")
        return data

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > self.size:
            raise _Cut("it is cut off")


class _Unpacked:
    """Decompressed data, read once from its start to its end, with the interface of :class:`_File`."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks, self.rest = blocks, b""

    def read(self, length: int) -> bytes:
        """Read up to this many bytes."""
        while len(self.rest) < length:
            block = next(self.blocks, b"")
            if not block:
                break
            self.rest += block
        data, self.rest = self.rest[:length], self.rest[length:]
        return data

    def back(self, data: bytes) -> None:
        """Give back what was read last."""
        self.rest = data + self.rest

    def take(self, length: int) -> bytes:
        data = self.read(length)
        if len(data) < length:
            raise _Cut("it is cut off")
        return data

    def skip(self, length: int) -> None:
        while length:
            length -= len(self.take(min(length, _BLOCK)))


def _fault(file: _File) -> str:
    if file.size == 0:
        return "it is empty"
    starting = 0
    try:
        while _skip_zeros(file):
            begun = file.at
            starting += file.at - begun if _archive(file) else 0
    except (_Cut, LiveUpdateError) as err:
        return str(err)
    if not starting:
        return "it contains no init"
    return "" if starting >= _LEAST else f"besides microcode it has only {starting} bytes, too few for an init"


def _skip_zeros(file: _File | _Unpacked) -> bool:
    """Skip zero bytes; false at the end."""
    while True:
        block = file.read(_BLOCK)
        rest = block.lstrip(b"\0")
        if rest:
            file.back(rest)
            return True
        if not block:
            return False


def _archive(file: _File) -> bool:
    """Read one archive to its end; returns whether it can contain an init."""
    begun = file.at
    head = file.read(8)
    file.at = begun
    if head[:6] in _CPIO:
        return _cpio(file)
    compression = _decompress.identify(head)
    if compression is None:
        raise _Cut(f"from byte {begun} of {file.size} on, it is neither an archive nor compressed (the next bytes are {head[:4].hex()})")
    if compression == "zstd":
        _zstd(file)
    elif compression == "lz4":
        _lz4(file)
    elif compression == "lzo":
        file.at = file.size  # only lzop could find its end
    else:
        length = _decompress.length(compression, file.read)
        file.at = begun + length
    return True


def _cpio(file: _File) -> bool:
    """Read an uncompressed archive; returns whether it has one of the programs that the kernel starts."""
    return bool({name.lstrip("./") for name in _members(file)}.intersection(_INITS))


def _members(file: _File | _Unpacked) -> Iterator[str]:
    """Read an uncompressed archive to its end: the paths in it."""
    while True:
        head = file.take(_CPIO_HEADER)
        try:
            size, length = int(head[54:62], 16), int(head[94:102], 16)
        except ValueError:
            raise _Cut("it is damaged") from None
        if head[:6] not in _CPIO or not 0 < length <= _NAME_LIMIT:
            raise _Cut("it is damaged")
        name = file.take(length).rstrip(b"\0").decode(errors="replace")
        if name == "TRAILER!!!":
            return
        file.skip(-(_CPIO_HEADER + length) % _ALIGNMENT)
        file.skip(size)
        file.skip(-size % _ALIGNMENT)
        yield name


def _zstd(file: _File) -> None:
    """Skip one frame, block by block, without decompression."""
    file.skip(4)
    descriptor = file.take(1)[0]
    single = descriptor >> 5 & 1
    content = (single, 2, 4, 8)[descriptor >> 6]
    file.skip((1 - single) + (0, 1, 2, 4)[descriptor & 3] + content)
    last = 0
    while not last:
        header = int.from_bytes(file.take(3), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3:
            raise _Cut("it is damaged")
        file.skip(1 if kind == 1 else size)
    file.skip(4 if descriptor & 4 else 0)


def _lz4(file: _File) -> None:
    """Skip one legacy frame, block by block. It ends where no block follows."""
    file.skip(4)
    while True:
        begun = file.at
        head = file.read(4)
        size = int.from_bytes(head, "little")
        if len(head) < 4 or not 0 < size <= _LZ4_LIMIT:
            file.at = begun
            return
        file.skip(size)
