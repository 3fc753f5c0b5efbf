# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import struct
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _kexec


def bzimage(release=b"7.3.4 (lab@lab) #1 SMP Thu", flags=0x2, protocol=0x20F, sectors=4, payload=4096):
    """A file with the header of a bzImage and nothing that could run."""
    image = bytearray((sectors + 1) * 512 + payload)
    image[0x1F1] = sectors
    struct.pack_into("<I", image, 0x1F4, payload // 16)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<H", image, 0x20E, 0x300)
    struct.pack_into("<H", image, 0x236, flags)
    image[0x500 : 0x500 + len(release)] = release
    return bytes(image)


@pytest.mark.parametrize(("length", "told"), [(0, 0), (512, 512), (513, 512)])
def test_the_text_of_the_version_is_at_most_512_bytes(tmp_path, length, told):
    """A file without the end of the text would make all that follows a part of it."""
    image = bytearray(bzimage(b"r" * length + b"\0"))
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    assert _kexec.describe(str(path))["release"] == "r" * told
    struct.pack_into("<H", image, 0x20E, 0)  # boot.rst: 0 means that there is no text
    path.write_bytes(image)
    assert _kexec.describe(str(path))["release"] == ""


@pytest.mark.parametrize("flags", [0x2, 0x3, 0xFFFF])
def test_an_image_for_above_4_gib_is_taken_from_protocol_2_12_on(tmp_path, flags):
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(protocol=0x20C, flags=flags))
    assert _kexec.describe(str(path))["release"] == "7.3.4"
    path.write_bytes(bzimage(protocol=0x20C, flags=flags & ~0x2))
    with pytest.raises(LiveUpdateError, match=r"boot protocol 2\.12"):
        _kexec.describe(str(path))


def test_describe(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    assert _kexec.describe(str(path)) == {
        "path": str(path),
        "release": "7.3.4",
        "version": "#1 SMP Thu",
        "size": 5 * 512 + 4096,
        "sha256": hashlib.sha256(bzimage()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory; use the path"),
        (b"", "no boot header in its first 0 bytes"),
        (bzimage()[:0x26F], "no boot header in its first 623 bytes"),
        (bzimage()[:0x270], "is cut off"),
        (bzimage().replace(b"HdrS", b"hdrs"), "no boot header in its first 624 bytes"),
        (bzimage().replace(b"\x55\xaa", b"\x55\xab"), "no boot header in its first 624 bytes"),
        (b"\x7fELF" + bytes(5000), "not an x86 bzImage"),
        (bzimage()[:0x210], "not an x86 bzImage"),
        (bzimage()[:-1], "is cut off: its header says 6656 bytes, but the file has 6655"),
        (bzimage(flags=0), "CONFIG_RELOCATABLE=y"),
        (bzimage(protocol=0x20B), "CONFIG_RELOCATABLE=y"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path, content, says):
    path = tmp_path / "vmlinuz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LiveUpdateError, match=says):
        _kexec.describe(str(path))


@pytest.mark.parametrize(("content", "answer"), [("0\n", False), ("1\n", True)])
def test_loaded(tmp_path, content, answer):
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/kexec_loaded").write_text(content)
    assert _kexec.loaded(str(tmp_path)) is answer


def test_a_kernel_without_kexec_is_named(tmp_path):
    with pytest.raises(LiveUpdateError, match="CONFIG_KEXEC_FILE"):
        _kexec.loaded(str(tmp_path))


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel to stage, a record that lies elsewhere, and a kexec_file_load that notes what it was given."""
    calls = []
    monkeypatch.setattr(_files, "IMAGE_RECORD", str(tmp_path / "run/image.json"))
    monkeypatch.setattr(_kexec, "_kexec_file_load", lambda _kernel, initrd, cmdline, flags: calls.append((initrd >= 0, cmdline, flags)))
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    (tmp_path / "initrd").write_bytes(b"initrd")
    return tmp_path, calls


def image_of(folder, initrd="") -> dict:
    wanted = {**_kexec.describe(str(folder / "vmlinuz")), "initrd": None, "initrd_sha256": None, "cmdline": "kho=on"}
    return {**wanted, "initrd": str(folder / initrd), "initrd_sha256": _kexec.file_digest(str(folder / initrd))} if initrd else wanted


def test_what_is_staged_is_recorded_and_not_loaded(kernel):
    """Loaded, somebody's reboot would be a jump."""
    folder, calls = kernel
    for image in (image_of(folder), image_of(folder, "initrd")):
        _kexec.stage(image)
        assert _files.read_json(_files.IMAGE_RECORD) == _kexec.record() == image
    # Flag 4 says that there is no initrd, 1 unloads (kexec_file_load(2)).
    assert calls == [(False, b"kho=on\0", 4), (False, b"", 1), (True, b"kho=on\0", 0), (False, b"", 1)]
    _kexec.unload()
    assert calls[4:] == [(False, b"", 1)]
    assert _kexec.record() == {}


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_stays_open(kernel, monkeypatch, fails):
    """A program that runs for long would keep a kernel from being removed. And no child may inherit them."""
    folder, _calls = kernel
    image, opened = image_of(folder, "initrd"), []

    def load(given, initrd, _cmdline, flags):
        if not flags & 1:
            opened.extend((given, initrd))
            assert not os.get_inheritable(given) and not os.get_inheritable(initrd)
        if fails:
            raise OSError(errno.ENOEXEC, "no")

    monkeypatch.setattr(_kexec, "_kexec_file_load", load)
    with pytest.raises(LiveUpdateError) if fails else contextlib.nullcontext():
        _kexec.load(image)
    for fd in opened:
        with pytest.raises(OSError):
            os.fstat(fd)
    assert len(opened) == 2


def test_a_command_line_of_any_bytes_comes_over_as_it_is(kernel):
    folder, calls = kernel
    _kexec.load({**image_of(folder), "cmdline": "title=B\udcfcro kho=on"})
    assert calls[-1][1] == b"title=B\xfcro kho=on\0"


def test_no_initrd_is_minus_one_and_nothing_else_is_unloaded(tmp_path, monkeypatch):
    given = []
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    monkeypatch.setattr(_kexec, "_kexec_file_load", lambda kernel, initrd, _cmdline, flags: given.append((kernel >= 0, initrd, flags)))
    _kexec.try_out(image_of(tmp_path))
    assert given == [(True, -1, 4), (False, -1, 1)]


@pytest.mark.parametrize("name", ["vmlinuz", "initrd"])
def test_only_what_was_examined_is_loaded(kernel, name):
    folder, calls = kernel
    image = image_of(folder, "initrd")
    (folder / "new").write_bytes(bzimage(b"7.3.4 (a@b) #2 other"))
    os.replace(folder / "new", folder / name)  # as a package manager does
    with pytest.raises(LiveUpdateError, match=f"{folder}/{name} has changed since it was staged; stage it again"):
        _kexec.stage(image)
    assert calls == [] and _kexec.record() == {}


@pytest.mark.parametrize("name", ["vmlinuz", "initrd"])
def test_a_file_that_is_written_to_while_it_is_loaded_does_not_stay_loaded(kernel, monkeypatch, name):
    folder, _calls = kernel
    image, flags = image_of(folder, "initrd"), []

    def load(_kernel, _initrd, _cmdline, given):
        flags.append(given)
        (folder / name).write_bytes(b"in place")

    monkeypatch.setattr(_kexec, "_kexec_file_load", load)
    with pytest.raises(LiveUpdateError, match=f"{folder}/{name} has changed since it was staged"):
        _kexec.stage(image)
    assert flags == [0, 1] and _kexec.record() == {}


def test_the_digests_are_of_what_the_kernel_is_given_to_read(kernel, monkeypatch):
    """Not of whatever a path names at another moment."""
    folder, _calls = kernel
    image, read = image_of(folder, "initrd"), []

    def load(given, initrd, _cmdline, flags):
        if not flags & 1:
            (folder / "new").write_bytes(b"other")
            os.replace(folder / "new", folder / "vmlinuz")
            read.extend((os.pread(given, 1 << 20, 0), os.pread(initrd, 10, 0)))

    monkeypatch.setattr(_kexec, "_kexec_file_load", load)
    _kexec.load(image)
    assert read == [bzimage(), b"initrd"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (
            errno.EPERM,
            "only root may load a kernel, kernel.kexec_load_disabled must be 0, and under lockdown the image must be signed (EPERM)",
        ),
        (errno.ENOEXEC, "the running kernel does not accept this image; 'dmesg | grep kexec' shows why (ENOEXEC)"),
        (
            errno.EADDRNOTAVAIL,
            "no room in the scratch memory that KHO reserved at the cold boot; set a larger hypervisor_setup_scratch (EADDRNOTAVAIL)",
        ),
        (errno.EBUSY, "another kexec operation is running; wait for its end (EBUSY)"),
        (errno.ENOMEM, "not enough memory for the image; free some (ENOMEM)"),
        (errno.EKEYREJECTED, "Key was rejected by service (EKEYREJECTED)"),
    ],
)
def test_a_kernel_that_is_not_taken(kernel, monkeypatch, code, remedy):
    def refuse(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_kexec, "_kexec_file_load", refuse)
    path = str(kernel[0] / "vmlinuz")
    with pytest.raises(LiveUpdateError) as caught:
        _kexec.stage(image_of(kernel[0]))
    assert caught.value.message == f"kernel {path} cannot be loaded: {remedy}. It is not staged"
    assert not os.path.exists(_files.IMAGE_RECORD)
    with pytest.raises(LiveUpdateError, match=f"^the staged kernel cannot be unloaded: {os.strerror(code)}; see 'dmesg | grep kexec'$"):
        _kexec.unload()


def test_an_initrd_that_is_not_there(kernel):
    folder, calls = kernel
    with pytest.raises(LiveUpdateError, match=f"^initial RAM disk {folder}/none: No such file or directory; restore it, or stage"):
        _kexec.stage({**image_of(folder), "initrd": str(folder / "none"), "initrd_sha256": ""})
    assert calls == []


def test_a_machine_without_live_update(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "7.3", "#1", "riscv64")))
    with pytest.raises(LiveUpdateError, match=r"^machine riscv64: live update supports x86_64 and aarch64 only$"):
        _kexec._kexec_file_load(-1, -1, b"", 1)


class Libc:
    """Takes a system call, notes it, and answers with a result and an errno."""

    def __init__(self, result=0, code=0) -> None:
        self.result, self.code, self.calls = result, code, []

    def syscall(self, number, kernel, initrd, length, cmdline, flags):
        self.calls.append((number.value, kernel, initrd, length.value, cmdline.value, flags.value))
        ctypes.set_errno(self.code)
        return self.result


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 320), ("aarch64", 294)])
def test_the_kernel_is_given_the_files_the_command_line_and_its_length(monkeypatch, machine, number):
    """kexec_file_load(2): the length counts the NUL at the end."""
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name, use_errno: libc if use_errno else None)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine=machine))
    _kexec._kexec_file_load(3, 4, b"kho=on\0", 0)
    _kexec._kexec_file_load(-1, -1, b"", 1)
    assert libc.calls == [(number, 3, 4, 7, b"kho=on", 0), (number, -1, -1, 0, None, 1)]


def test_what_the_kernel_refuses_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name, use_errno: Libc(-1, errno.ENOEXEC))
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="x86_64"))
    with pytest.raises(OSError, match="Exec format error") as refused:
        _kexec._kexec_file_load(3, 4, b"kho=on\0", 0)
    assert refused.value.errno == errno.ENOEXEC


@pytest.mark.parametrize(("told", "sectors"), [(0, 4), (1, 1), (7, 7)])
def test_the_size_of_an_image_follows_from_its_sectors(tmp_path, told, sectors):
    """Documentation/arch/x86/boot.rst: setup_sects of 0 means 4."""
    image = bytearray(bzimage(sectors=sectors))
    image[0x1F1] = told
    image[0x1F0] = image[0x1F2] = 99
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    assert _kexec.describe(str(path))["size"] == (sectors + 1) * 512 + 4096
    path.write_bytes(image[:-1])
    with pytest.raises(LiveUpdateError, match=f"its header says {(sectors + 1) * 512 + 4096} bytes"):
        _kexec.describe(str(path))
