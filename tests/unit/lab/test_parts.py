# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The smaller parts of the lab: disk, initramfs, emulator, machine, boot loader."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path

import pytest
from kvmlab.errors import LabError
from kvmlab.machines import disk, host
from kvmlab.machines.machine import CONSOLES, HEARTBEATS, SERIAL_PORTS, Machine, segment_mac
from kvmlab.machines.process import Record, start_of
from kvmlab.parts import bootloader, emulator, guest, image
from kvmlab.run import run_logged, tail


def test_the_partition_table_has_one_active_linux_partition() -> None:
    table = disk.partition_table(2048, 4096)
    assert len(table) == 512
    assert table[510:] == b"\x55\xaa"
    assert table[446] == 0x80
    assert table[450] == 0x83
    assert struct.unpack_from("<II", table, 454) == (2048, 4096)
    assert table[462:510] == b"\0" * 48
    assert table[:440] == b"\0" * 440


def test_a_host_gets_its_name_without_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SIZE_MIB", 8)
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("hypervisor\n")
    (tree / "script").write_text("once")
    raw = tmp_path / "disk.raw"
    disk.make(tree, raw, tmp_path / "log")
    assert raw.stat().st_size == 8 * 1024 * 1024
    disk.replace_file(raw, "/etc/hostname", "hv1\n")
    disk.remove_file(raw, "/script")
    assert disk._debugfs(raw, "cat /etc/hostname").splitlines()[-1] == "hv1"
    assert "script" not in disk._debugfs(raw, "ls -p /").partition("\n")[2]
    assert [path.name for path in tmp_path.glob("replace*")] == []


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file in a newc archive."""
    found, offset = {}, 0
    while True:
        assert offset % 4 == 0
        fields = [int(archive[offset + 6 + 8 * number : offset + 14 + 8 * number], 16) for number in range(13)]
        assert archive[offset : offset + 6] == b"070701"
        name = archive[offset + 110 : offset + 110 + fields[11]]
        assert name.endswith(b"\0")
        start = (offset + 110 + fields[11] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert start == len(archive)
            return found
        found[name[:-1].decode()] = (fields[1], archive[start : start + fields[6]])
        offset = (start + fields[6] + 3) // 4 * 4


def test_the_initramfs_holds_an_executable_init() -> None:
    archive = guest.cpio({"init": b"\x7fELF!"})
    assert entries(archive) == {"dev": (0o040755, b""), "proc": (0o040755, b""), "init": (0o100755, b"\x7fELF!")}


# The instructions of QEMU 11.1.2 around the fault.
AROUND = (
    "410fb6f4 4489ab80340000",
    "89b350c2ffff",
    "c7838434000000000000 48c78388340000ffffffff f605ec45580102",
)


def test_the_fault_of_the_emulator_is_one_store_less() -> None:
    before, store, after = (bytes.fromhex(part) for part in AROUND)
    program = b"\x90" * 33 + before + store + after
    assert emulator.mended(program) == b"\x90" * 33 + before + bytes.fromhex("660f1f440000") + after


@pytest.mark.parametrize("times", [0, 2])
def test_an_emulator_that_is_not_known_is_left_as_it_is(times: int) -> None:
    with pytest.raises(LabError, match=f"in {times} places of this QEMU instead of one"):
        emulator.mended(bytes.fromhex("".join(AROUND)) * times)


def test_each_heartbeat_has_a_port_and_an_interrupt_of_its_own() -> None:
    words = Machine(("qemu",), "disk.raw", ssh_port=40001).command()
    assert words[0] == "qemu"
    devices = [word for word in words if word.startswith("isa-serial")]
    assert [re.sub(r"isa-serial,chardev=(\w+),index=(\d).*", r"\1 \2", device) for device in devices] == ["ttyS1 1", "ttyS2 2", "ttyS3 3"]
    interrupts = [interrupt for port, interrupt in SERIAL_PORTS.values()]
    assert len({4, *interrupts}) == 4
    assert "user,id=net,hostfwd=tcp:127.0.0.1:40001-10.0.2.15:22" in words
    assert "-kernel" not in words


def test_eight_guests_have_a_heartbeat() -> None:
    words = Machine(("qemu",), "disk.raw").command()
    chardevs = [word.partition(",path=")[0].removeprefix("socket,id=") for word in words if word.startswith("socket,id=")]
    assert chardevs == list(HEARTBEATS)
    assert len(HEARTBEATS) == 8
    assert [word for word in words if word.startswith("virtconsole")] == [f"virtconsole,chardev={name}" for name in CONSOLES]


def test_hosts_have_cards_of_their_own_on_the_segment() -> None:
    words = Machine(("qemu",), "disk.raw", number=2).command()
    assert "virtio-net-pci,netdev=segment,mac=52:54:00:77:00:02,romfile=" in words
    assert segment_mac(1) != segment_mac(2)


@pytest.mark.parametrize(("given", "megabytes"), [({}, "2048"), ({"memory_mib": 4096}, "4096")])
def test_a_machine_has_the_memory_that_it_was_given(given: dict[str, int], megabytes: str) -> None:
    words = Machine(("qemu",), "disk.raw", **given).command()  # type: ignore[arg-type]
    assert words[words.index("-m") + 1] == megabytes


def test_a_machine_without_ssh_has_no_network() -> None:
    words = Machine(("qemu",), "disk.raw", kernel="vmlinuz", kernel_options="quiet").command()
    assert not [word for word in words if "net" in word]
    assert words[-4:] == ["-kernel", "vmlinuz", "-append", "quiet"]


def test_the_boot_default_is_the_old_kernel() -> None:
    text = bootloader.script("01234567", "7.2.13")
    assert "grub-set-default 'gnulinux-advanced-01234567>gnulinux-7.2.13-advanced-01234567'" in text
    assert "GRUB_DEFAULT=saved\n" in dict(image.host_files())["etc/default/grub"]


def test_hosts_are_ready_for_live_updates() -> None:
    grub = dict(image.host_files())["etc/default/grub"]
    (line,) = re.findall(r'^GRUB_CMDLINE_LINUX="(.*)"$', grub, re.MULTILINE)
    assert {"kho=on", "liveupdate=on", "console=ttyS0", "rw"} <= set(line.split())


def test_a_port_that_another_host_is_about_to_take_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([40001, 40002])
    monkeypatch.setattr(host.socket.socket, "bind", lambda self, address: None)
    monkeypatch.setattr(host.socket.socket, "getsockname", lambda self: ("127.0.0.1", next(ports)))
    assert host.free_port({40001}) == 40002


def test_a_hosts_last_words_are_not_drowned(tmp_path: Path) -> None:
    noise = "warning: TCG doesn't support requested feature: CPUID\n" * 30
    (tmp_path / "supervisor.log").write_text("10:00:00 QEMU started, pid 7\n" + noise + "could not set up host forwarding\n")
    words = host.Host(tmp_path).last_words()
    assert "QEMU started" in words
    assert "could not set up host forwarding" in words
    assert "TCG" not in words


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    with pytest.raises(LabError, match=r"(?s)the thing failed with exit code 3\..*log:.*why it failed"):
        run_logged(("sh", "-c", "echo why it failed >&2; exit 3"), what="the thing", log=log, limit_s=20)


def test_a_command_has_a_limit_and_leaves_no_child_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(LabError, match="did not end within 1 s"):
        run_logged(("sh", "-c", f"sleep 60 & echo $! > {pid}; wait"), what="the thing", log=tmp_path / "log", limit_s=1)
    assert time.monotonic() - began < 20
    assert Record(int(pid.read_text()), start_of(int(pid.read_text())) or 0).wait_gone(10)


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no-such-tool is not installed \(tests/lab/packages.txt"):
        run_logged(("no-such-tool",), what="the thing", log=tmp_path / "log", limit_s=1)


def test_the_tail_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"one\r\n[\x1b[0;32m  OK  \x1b[0m] two\r\n\x1b]3008;start=d3cd;user=root\x1b\\three\r\n\x1b[K\r\n\r\n")
    assert tail(log, 2) == "[  OK  ] two\nthree"
    assert tail(tmp_path / "none") == ""
