# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the facts about a kernel image from its file alone. PRIVATE to the collection.

Source: Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst, drivers/firmware/efi/libstub/zboot-header.S,
include/linux/kho/abi, the PE and ELF formats, and the UAPI group's specification of unified kernel images.

The file may be cut off, damaged or hostile. So this reads it by position and decompresses the kernel in it block by block, never
all at once. Every size that the file itself states has a limit.
"""

from __future__ import annotations

import os
import re
import struct

from .._errors import LiveUpdateError
from ..host import _files
from . import _decompress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("ABI", "build_ids", "config_from_file", "is_abi", "parse_config", "read")

# The ABI strings. If two kernels have the same string, one can read what the other has preserved (include/linux/kho/abi).
ABI = ("kho", "luo", "memfd")

_OPTIONS = re.compile(
    rb"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$",
    re.MULTILINE,
)
_KEPT = frozenset(
    (
        "9P_FS",
        "ATA_PIIX",
        "BCACHE",
        "BLK_DEV_DM",
        "BLK_DEV_DRBD",
        "BLK_DEV_MD",
        "BLK_DEV_NBD",
        "BLK_DEV_NVME",
        "BLK_DEV_RBD",
        "BLK_DEV_SD",
        "BONDING",
        "BRIDGE",
        "BTRFS_FS",
        "CEPH_FS",
        "CIFS",
        "CMDLINE",
        "CMDLINE_BOOL",
        "CMDLINE_EXTEND",
        "CMDLINE_FORCE",
        "CMDLINE_OVERRIDE",
        "DEBUG_FS",
        "DM_CACHE",
        "DM_CRYPT",
        "DM_MULTIPATH",
        "DM_RAID",
        "DM_SNAPSHOT",
        "DM_THIN_PROVISIONING",
        "EFI_STUB",
        "EXT4_FS",
        "F2FS_FS",
        "FUSE_FS",
        "GFS2_FS",
        "HYPERV_STORAGE",
        "IKCONFIG",
        "IKCONFIG_PROC",
        "ISCSI_TCP",
        "JFS_FS",
        "KEXEC_FILE",
        "KEXEC_HANDOVER",
        "KEXEC_HANDOVER_DEBUGFS",
        "KEXEC_HANDOVER_ENABLE_DEFAULT",
        "KEXEC_SIG",
        "KEXEC_SIG_FORCE",
        "LIVEUPDATE",
        "LIVEUPDATE_MEMFD",
        "MACVLAN",
        "MACVTAP",
        "MD_RAID0",
        "MD_RAID1",
        "MD_RAID10",
        "MD_RAID456",
        "MEGARAID_SAS",
        "MEMFD_CREATE",
        "MMC_BLOCK",
        "MODULES",
        "NFS_FS",
        "NFS_V3",
        "NFS_V4",
        "NVME_FC",
        "NVME_RDMA",
        "NVME_TCP",
        "OCFS2_FS",
        "OPENVSWITCH",
        "RANDOMIZE_BASE",
        "RD_BZIP2",
        "RD_GZIP",
        "RD_LZ4",
        "RD_LZMA",
        "RD_LZO",
        "RD_XZ",
        "RD_ZSTD",
        "RELOCATABLE",
        "SATA_AHCI",
        "SCSI_AACRAID",
        "SCSI_ARCMSR",
        "SCSI_HPSA",
        "SCSI_LPFC",
        "SCSI_MPI3MR",
        "SCSI_MPT3SAS",
        "SCSI_QLA_FC",
        "SCSI_SMARTPQI",
        "SCSI_VIRTIO",
        "SHMEM",
        "TUN",
        "USB_STORAGE",
        "USB_UAS",
        "VFAT_FS",
        "VHOST_NET",
        "VHOST_SCSI",
        "VHOST_VSOCK",
        "VIRTIO_BLK",
        "VIRTIO_FS",
        "VIRTIO_MMIO",
        "VIRTIO_PCI",
        "VLAN_8021Q",
        "VMD",
        "VMWARE_PVSCSI",
        "VXLAN",
        "WIREGUARD",
        "XEN_BLKDEV_FRONTEND",
        "XFS_FS",
    )
)

_BLOCK = 1 << 20
# Much larger than any kernel, even one with debug information or an initial RAM disk in it.
_FILE_LIMIT = 2 << 30
_KERNEL_LIMIT = 512 << 20
_CONFIG_LIMIT = 4 << 20
_TEXT_LIMIT = 64 << 10

_APPENDED_SIGNATURE = b"~Module signature appended~\n"
_MACHINES = {62: "x86_64", 183: "aarch64"}
_XLF_KERNEL_64, _XLF_ABOVE_4G, _XLF_EFI_KEXEC = 0x1, 0x2, 0x10
_ARM64_MAGIC = b"ARM\x64"


class _Part:
    """A range of an open file. Bytes outside of it do not exist."""

    def __init__(self, handle: int, path: str, start: int, size: int) -> None:
        self.handle, self.path, self.start, self.size = handle, path, start, size
        self._position = 0

    def part(self, offset: int, size: int, what: str) -> _Part:
        if size <= 0 or offset + size > self.size:
            raise LiveUpdateError(
                f"kernel {self.path}: cut off or damaged: its {what} is at {offset} to {offset + size}, but there are only"
                f" {self.size} bytes; copy the file again"
            )
        return _Part(self.handle, self.path, self.start + offset, size)

    def at(self, offset: int, length: int, what: str) -> bytes:
        return self.part(offset, length, what).whole()

    def whole(self) -> bytes:
        data = b""
        while len(data) < self.size:
            more = os.pread(self.handle, self.size - len(data), self.start + len(data))
            if not more:
                raise LiveUpdateError(f"kernel {self.path}: the file became shorter while it was read; try again when nothing writes to it")
            data += more
        return data

    def read(self, length: int) -> bytes:
        """The next bytes; none at the end."""
        data = os.pread(self.handle, max(min(length, self.size - self._position), 0), self.start + self._position)
        self._position += len(data)
        return data

    def blocks(self) -> Iterator[bytes]:
        """All of it, independent of the position of :meth:`read`."""
        again = _Part(self.handle, self.path, self.start, self.size)
        return iter(lambda: again.read(_BLOCK), b"")

    def refuse(self, why: str) -> LiveUpdateError:
        return LiveUpdateError(f"kernel {self.path}: {why}")


def read(path: str, config: str | None = None, root: str = "/", keep: str = "") -> dict:
    """The facts about the kernel image ``path``.

    ``kind`` is ``bzImage``, ``vmlinux``, ``arm64``, ``zboot`` or ``uki``. ``above_4g`` and ``efi_kexec`` are flags of the boot header.
    ``init_size`` is how many bytes in one piece the kernel needs to start. All three are None without such a header. ``abi`` has the
    strings kho-vN, luo-vN and memfd-vN, None for a missing one. ``config`` has the build options that matter here: ``n`` for one that is
    off, and no entry for one that the kernel does not have. They come from the image itself, else from the file ``config``, else from
    where distributions put it. ``unread`` says why a fact is unknown. The folder ``keep`` caches the facts of images.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as err:
        raise LiveUpdateError(f"kernel {path}: {_why(err)}; use the path of a kernel image on the host") from err
    try:
        return _read(handle, path, config, root, keep)
    except OSError as err:
        raise LiveUpdateError(f"kernel {path}: {_why(err)}; use the path of a kernel image on the host") from err
    finally:
        os.close(handle)


def _why(err: Exception) -> str:
    return getattr(err, "strerror", None) or str(err)


def _read(handle: int, path: str, config: str | None, root: str, keep: str) -> dict:
    import hashlib
    import stat

    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise LiveUpdateError(f"kernel {path} is not a regular file; use the path of a kernel image on the host")
    if status.st_size > _FILE_LIMIT:
        raise LiveUpdateError(
            f"kernel {path}: {status.st_size} bytes, more than any kernel has ({_FILE_LIMIT}); use the path of a kernel image on the host"
        )
    file = _Part(handle, path, 0, status.st_size)
    digest = hashlib.sha256()
    for block in file.blocks():
        digest.update(block)
    image = {
        "path": path,
        "size": file.size,
        "sha256": digest.hexdigest(),
        "compression": None,
        "above_4g": None,
        "efi_kexec": None,
        "init_size": None,
        "page_size": None,
        "signed": _signed(file),
        "initrd": False,
        "cmdline": None,
        "uname": None,
        **_contents(file, digest.hexdigest(), keep),
    }
    _add_config(image, config, root)
    return image


def _contents(file: _Part, digest: str, keep: str) -> dict:
    """The facts in the bytes of the file.

    Unpacking a kernel takes a second or more. So this caches the facts for the same bytes and the same code, unless something was unread.
    """
    import hashlib

    if not keep:
        return _kernel(file, _uki(file))
    code = hashlib.sha256(__loader__.get_source(__name__).encode()).hexdigest()  # type: ignore[name-defined]
    path = os.path.join(keep, f"{digest[:32]}-{code[:12]}.json")
    found = _files.read_json(path)
    if not found:
        found = _kernel(file, _uki(file))
        if not found["unread"]:
            _files.write_json(path, found)
    return found


def _kernel(file: _Part, sections: dict[str, _Part]) -> dict:
    """The facts that depend on the kind of image."""
    if ".linux" in sections:
        inner = _kernel(sections[".linux"], {})
        if inner["kind"] == "vmlinux":
            raise file.refuse("its section .linux contains a vmlinux, which firmware cannot start; build the unified kernel image again")
        return {
            **inner,
            "kind": "uki",
            "initrd": ".initrd" in sections,
            "cmdline": _text(sections.get(".cmdline")),
            "uname": _text(sections.get(".uname")),
        }
    head = file.at(0, min(file.size, 0x270), "header") if file.size else b""
    if head[0x202:0x206] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa" and len(head) == 0x270:
        return _bzimage(file, head)
    if head[0x38:0x3C] == _ARM64_MAGIC:
        return _arm64(file, head)
    if head[:2] == b"MZ" and head[4:8] == b"zimg" and len(head) > 0x3C:
        return _zboot(file, head)
    if head[:4] == b"\x7fELF":
        return _vmlinux(file)
    compression = _decompress.identify(head)
    is_what = f"a file compressed with {compression}" if compression else f"{file.size} bytes that begin with {head[:4].hex() or 'nothing'}"
    raise file.refuse(
        f"not a kernel image but {is_what}; use a bzImage, an arm64 Image, a vmlinux or a unified kernel image, as the distribution"
        " installs it, e.g. /boot/vmlinuz-VERSION"
    )


def _bzimage(file: _Part, head: bytes) -> dict:
    protocol, flags = _number(head, 0x206, 2), _number(head, 0x236, 2)
    if protocol < 0x20C:
        raise file.refuse(f"boot protocol {protocol >> 8}.{protocol & 255:02d}, but kexec_file_load needs 2.12; use a newer kernel")
    setup = ((head[0x1F1] or 4) + 1) * 512
    rest = file.part(setup, _number(head, 0x1F4, 4) * 16, "kernel")
    payload = rest.part(_number(head, 0x248, 4), _number(head, 0x24C, 4), "compressed kernel")
    # The kernel build appends the size to the compressed data. With gzip, the last four bytes are the size already.
    compression = _compression(payload)
    expected = _number(payload.at(payload.size - 4, 4, "size"), 0, 4)
    if compression != "gzip":
        payload = payload.part(0, payload.size - 4, "compressed kernel")
    is_64 = bool(flags & _XLF_KERNEL_64)
    return {
        "kind": "bzImage",
        "arch": "x86_64" if is_64 else "i386",
        "above_4g": is_64 and bool(flags & _XLF_ABOVE_4G),
        "efi_kexec": bool(flags & _XLF_EFI_KEXEC),
        "init_size": _number(head, 0x260, 4),
        "page_size": 4096,
        "compression": compression,
        **_scan(file, _unpacked(file, payload, compression, expected)),
    }


def _arm64(file: _Part, head: bytes) -> dict:
    return {"kind": "arm64", **_arm64_header(file, head), **_scan(file, file.blocks())}


def _arm64_header(file: _Part, head: bytes) -> dict:
    if len(head) < 0x40 or head[0x38:0x3C] != _ARM64_MAGIC:
        raise file.refuse("its compressed content is not an arm64 Image; live update supports x86_64 and aarch64 only")
    size = {1: 4096, 2: 16384, 3: 65536}.get(_number(head, 0x18, 8) >> 1 & 3)
    return {"arch": "aarch64", "page_size": size}


def _zboot(file: _Part, head: bytes) -> dict:
    payload = file.part(_number(head, 8, 4), _number(head, 12, 4), "compressed kernel")
    compression = _compression(payload)
    # Only with gzip the appended size is part of the payload.
    at = payload.start - file.start + payload.size - (4 if compression == "gzip" else 0)
    blocks = _unpacked(file, payload, compression, _number(file.at(at, 4, "size"), 0, 4))
    first = next(blocks, b"")
    return {"kind": "zboot", **_arm64_header(file, first[:0x40]), "compression": compression, **_scan(file, _chained(first, blocks))}


def _vmlinux(file: _Part) -> dict:
    head = file.at(0, 64, "ELF header")
    machine = _number(head, 0x12, 2)
    if head[4:6] != b"\x02\x01" or machine not in _MACHINES:
        raise file.refuse(f"an ELF file for another machine ({machine}); live update supports x86_64 and aarch64 only")
    table, size, count = _number(head, 0x20, 8), _number(head, 0x36, 2), _number(head, 0x38, 2)
    if not 0 < count <= 64 or size != 56:
        raise file.refuse(f"an ELF file with {count} program headers of {size} bytes is not a vmlinux; use a kernel image")
    headers = file.at(table, size * count, "program header table")
    segments = []
    for at in range(0, len(headers), size):
        kind, _flags, offset, _virtual, _physical, length = struct.unpack_from("<IIQQQQ", headers, at)
        # The loaded segments only: the debug information can be ten times as large.
        if kind == 1 and length:
            segments.append(file.part(offset, length, "segment"))
    if sum(segment.size for segment in segments) > _KERNEL_LIMIT:
        raise file.refuse(f"its segments have more than {_KERNEL_LIMIT} bytes together, more than any kernel has; use a kernel image")
    arch = _MACHINES[machine]
    blocks = (block for segment in segments for block in segment.blocks())
    return {"kind": "vmlinux", "arch": arch, "page_size": 4096 if arch == "x86_64" else None, **_scan(file, blocks)}


def _number(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _compression(payload: _Part) -> str:
    head = payload.at(0, min(payload.size, 8), "compressed kernel")
    compression = _decompress.identify(head)
    if compression is None or payload.size <= 8:
        raise payload.refuse(f"the compression of the kernel in it is unknown (it begins with {head.hex()}); use another image")
    return compression


def _unpacked(file: _Part, payload: _Part, compression: str, expected: int) -> Iterator[bytes]:
    if expected > _KERNEL_LIMIT:
        raise file.refuse(f"damaged: its kernel claims {expected} bytes, more than any kernel has ({_KERNEL_LIMIT}); copy the file again")
    return _decompress.stream(compression, payload.read, expected, f"kernel {file.path}")


def _pe(file: _Part) -> tuple[bytes, bytes, int]:
    """The PE optional header, the section table and the number of sections; empty if this is not a PE file."""
    nothing = (b"", b"", 0)
    if file.size < 0x40 or file.at(0, 2, "header") != b"MZ":
        return nothing
    start = _number(file.at(0x3C, 4, "header"), 0, 4)
    if start + 24 > file.size:
        return nothing
    header = file.at(start, 24, "PE header")
    count, size = _number(header, 6, 2), _number(header, 20, 2)
    # The PE specification's own limit.
    if header[:4] != b"PE\0\0" or not size or count > 96 or start + 24 + size + 40 * count > file.size:
        return nothing
    return file.at(start + 24, size, "PE header"), file.at(start + 24 + size, 40 * count, "section table") if count else b"", count


def _uki(file: _Part) -> dict[str, _Part]:
    """The sections of a unified kernel image; empty for anything else."""
    _header, table, count = _pe(file)
    found: dict[str, _Part] = {}
    for at in range(0, 40 * count, 40):
        name = table[at : at + 8].rstrip(b"\0").decode("ascii", "replace")
        # The first section of a name belongs to the profile that starts by default.
        if name in (".linux", ".initrd", ".cmdline", ".uname") and name not in found:
            size, _address, stored, offset = struct.unpack_from("<IIII", table, at + 8)
            found[name] = file.part(offset, min(size, stored), f"section {name}")
    return found if ".linux" in found else {}


def _text(section: _Part | None) -> str | None:
    if section is None:
        return None
    data = section.at(0, min(section.size, _TEXT_LIMIT), "text")
    return data.split(b"\0", 1)[0].decode(errors="replace").strip()


def _signed(file: _Part) -> bool:
    """Whether the image has a signature. The kernel checks whether it is valid."""
    header, _table, _count = _pe(file)
    # The place of the directories depends on the kind of header, 32-bit or 64-bit. Certificates are the fifth directory.
    base = {0x10B: 96, 0x20B: 112}.get(_number(header, 0, 2))
    if base and _number(header, base - 4, 4) > 4 and _number(header, base + 36, 4):
        return True
    size = len(_APPENDED_SIGNATURE)
    return file.size > size and file.at(file.size - size, size, "end") == _APPENDED_SIGNATURE


_BANNER = b"Linux version "
_BANNER_WHOLE = re.compile(rb"Linux version (\S+) \([^\0\n]*?\) (#\S[^\0\n]*)")
# Only a whole string counts: before it is a byte that cannot be text, and after it a zero byte.
_ABI_WHOLE = re.compile(rb"((kho|luo|memfd)-v[0-9][!-~]*)\0")
_ABI_BEGINNINGS = tuple(f"{name}-v".encode() for name in ABI)
_CONFIG_BEGINNING = b"IKCFG_ST"
_GZIP = b"\x1f\x8b\x08"
# An ELF note of 20 bytes, named GNU: the SHA-1 that the linker gives a build. The vDSO has one too.
_BUILD_ID = struct.pack("<III", 4, 20, 3) + b"GNU\0"
_MOST_BUILD_IDS = 16
_MOST_STRINGS = 8


def build_ids(notes: bytes) -> list[str]:
    """The build ids among ELF notes, e.g. /sys/kernel/notes."""
    return [found.hex() for found in re.findall(re.escape(_BUILD_ID) + rb"(.{20})", notes, re.DOTALL)][:_MOST_BUILD_IDS]


def is_abi(name: str, text: str) -> bool:
    """Whether this string has exactly one version: future kernels may offer several in one string."""
    return re.fullmatch(rf"{name}-v[0-9]+", text) is not None


class _Scanner:
    """Search a kernel that comes block by block."""

    # No match is longer, except the configuration, which is decompressed block by block.
    _LONGEST = 1024

    def __init__(self) -> None:
        self.strings: dict[str, set[str]] = {name: set() for name in ABI}
        self.build_ids: set[str] = set()
        self.banner: tuple[str, str] | None = None
        self.config: bytes | None = None
        self._unpacker: _Unpacker | None = None
        # The end of the previous block, to find matches across the border. Its first byte was already searched.
        self._tail = bytes(self._LONGEST + 1)

    def scan(self, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            self._look(block)
        self._look(bytes(self._LONGEST))

    def _look(self, block: bytes) -> None:
        self._take_config(block)
        window = self._tail + block
        end = len(window) - self._LONGEST
        for beginning in _ABI_BEGINNINGS:
            for at in _all(window, beginning, end):
                self._take_string(window, at)
        for at in _all(window, _BUILD_ID, end):
            if len(self.build_ids) < _MOST_BUILD_IDS:
                self.build_ids.update(build_ids(window[at : at + len(_BUILD_ID) + 20]))
        if self.banner is None:
            for at in _all(window, _BANNER, end):
                self._take_banner(window, at)
        for at in _all(window, _CONFIG_BEGINNING + _GZIP, end):
            if self.config is None and self._unpacker is None:
                self._unpacker = _Unpacker()
                self._take_config(window[at + len(_CONFIG_BEGINNING) :])
        self._tail = window[end - 1 :]

    def _take_string(self, window: bytes, at: int) -> None:
        found = _ABI_WHOLE.match(window, at, at + self._LONGEST)
        if found and not 0x20 <= window[at - 1] < 0x7F:
            strings = self.strings[found[2].decode()]
            if len(strings) < _MOST_STRINGS:
                strings.add(found[1].decode())

    def _take_banner(self, window: bytes, at: int) -> None:
        # The kernel also contains a draft of this text, without the build number.
        found = _BANNER_WHOLE.match(window, at, at + self._LONGEST)
        if found and self.banner is None:
            self.banner = (found[1].decode(errors="replace"), found[2].decode(errors="replace").strip())

    def _take_config(self, block: bytes) -> None:
        if self._unpacker is not None and self._unpacker.feed(block):
            # The marker of a configuration also occurs in programs that search for it.
            self.config = self._unpacker.result
            self._unpacker = None


class _Unpacker:
    """Decompress a gzip member that comes block by block."""

    def __init__(self) -> None:
        import zlib

        self._decoder = zlib.decompressobj(wbits=31)
        self._error = zlib.error
        self._data = b""
        self.result: bytes | None = None

    def feed(self, block: bytes) -> bool:
        """Whether it is at its end, ``result`` being None if it was damaged or too long."""
        try:
            self._data += self._decoder.decompress(block, _CONFIG_LIMIT - len(self._data) + 1)
        except self._error:
            return True
        if len(self._data) > _CONFIG_LIMIT:
            return True
        if self._decoder.eof:
            self.result = self._data
            return True
        return False


def _all(window: bytes, beginning: bytes, end: int) -> Iterator[int]:
    """Where ``beginning`` is in ``window``, but for the first byte and for what follows ``end``."""
    at = window.find(beginning, 1, end + len(beginning) - 1)
    while at >= 0:
        yield at
        at = window.find(beginning, at + 1, end + len(beginning) - 1)


def _scan(file: _Part, blocks: Iterable[bytes]) -> dict:
    """The facts in a decompressed kernel."""
    scanner = _Scanner()
    scanner.scan(blocks)
    if scanner.banner is None:
        raise file.refuse("it contains no Linux kernel (no text 'Linux version ...'); use another image")
    release, version = scanner.banner
    unread = {}
    for name, found in scanner.strings.items():
        strange = [text for text in sorted(found) if not is_abi(name, text)]
        if len(found) > 1:
            unread[name] = f"it contains several strings {name}-vN: {', '.join(sorted(found))}"
        elif strange:
            unread[name] = f"it contains {strange[0]}, which this version of the collection does not know"
    return {
        "release": release,
        "version": version,
        "abi": {name: next(iter(found)) if found and name not in unread else None for name, found in scanner.strings.items()},
        "build_ids": sorted(scanner.build_ids),
        "config": parse_config(scanner.config) if scanner.config is not None else None,
        "config_source": "image" if scanner.config is not None else None,
        "unread": unread,
    }


def parse_config(text: bytes) -> dict[str, str] | None:
    """The build options that matter here; None if the text is not a kernel configuration."""
    options = {}
    found = False
    for name, value, off in _OPTIONS.findall(text):
        found = True
        option = (name or off).decode()
        if option in _KEPT or option == "KVM" or option.startswith("KVM_"):
            options[option] = _unquoted(value.decode(errors="replace")) if name else "n"
    return options if found else None


def _unquoted(value: str) -> str:
    """Read a text as Kconfig writes it: in quotes, with a backslash before quotes and backslashes."""
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if len(value) > 1 and value[0] == value[-1] == '"' else value


def config_from_file(path: str) -> dict[str, str]:
    """The build options that matter here, from a text file or a compressed one such as /proc/config.gz."""
    try:
        # The files of /proc have no size, and a FIFO would never end.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(_CONFIG_LIMIT + 1) or b""
    except (OSError, ValueError) as err:
        raise LiveUpdateError(f"kernel configuration {path}: {_why(err)}; use the configuration file of the kernel") from err
    if data.startswith(_GZIP):
        unpacker = _Unpacker()
        unpacker.feed(data)
        data = unpacker.result or b""
    options = parse_config(data) if len(data) <= _CONFIG_LIMIT else None
    if options is None:
        raise LiveUpdateError(
            f"kernel configuration {path}: the file is not a kernel configuration; use the configuration file of the kernel"
        )
    return options


def _add_config(image: dict, given: str | None, root: str) -> None:
    """Add the configuration from a file if the image does not contain it."""
    if image["config"] is not None:
        return
    release = image["release"]
    directory = os.path.dirname(image["path"])
    places = [given] if given else []
    # The release comes from the file and becomes a part of a path.
    if not given and re.fullmatch(r"[\w.+~-]+", release) and release not in (".", ".."):
        places.append(os.path.join(directory, f"config-{release}"))
        if os.path.basename(os.path.abspath(directory)) == release:
            places.append(os.path.join(directory, "config"))
        places += [os.path.join(root, "boot", f"config-{release}"), os.path.join(root, "usr/lib/modules", release, "config")]
    for place in places:
        if given or os.path.exists(place):
            image.update(config=config_from_file(place), config_source=place)
            return
    image["unread"]["config"] = f"it contains none (CONFIG_IKCONFIG), and there is no file {' or '.join(places) or 'for its release'}"
