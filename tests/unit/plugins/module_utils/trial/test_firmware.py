# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of the throw-away guest, and the check of its RAM."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _firmware

SEED, MARK = 0x7654321, b"a mark"
QEMU = shutil.which("qemu-system-x86_64")
PAGES = 16128


@pytest.fixture(name="ram")
def a_whole_ram(tmp_path):
    """As the guest fills it, with the host's mark."""
    with open(tmp_path / "ram", "w+b") as file:
        file.truncate(_firmware.RAM)
        file.seek(_firmware.STATUS_AT)
        file.write(struct.pack("<3I", 3, 0, 200))
        file.seek(_firmware.MARK_AT)
        file.write(MARK)
        file.seek(1 << 20)
        for page in range(PAGES):
            file.write(struct.pack("<I", SEED + page) * 1024)
        yield file


def test_the_image_is_what_qemu_takes_and_the_processor_begins_with_the_code():
    image = _firmware.firmware(SEED)
    assert len(image) == 65536
    assert image[0xFFF0] == 0xE9 and 0xFFF3 + struct.unpack("<h", image[0xFFF1:0xFFF3])[0] == 0xF000
    assert struct.unpack("<II", image[0xFF00:0xFF08]) == (SEED, _firmware.RAM)
    assert image[0xF000] == 0xFA and 0xF000 + len(_firmware._CODE) <= 0xFF00


def test_the_guest_turns_on_what_kvm_leaves_off():
    """An emulated machine begins with a timer that runs, and takes LINT0 from a local APIC that is off. KVM does neither."""
    apic, lint0, timer, sleep = (
        _firmware._CODE.index(bytes.fromhex(words)) for words in ("c705f000e0feff01", "c7055003e0fe0007", "b034e643", "fbf4")
    )
    assert apic < lint0 < sleep and timer < sleep


def test_a_ram_that_came_through_is_whole(ram):
    whole = {"passes": 3, "wrong": 0, "ticks": 200, "marked": True, "pages": PAGES, "differ": 0}
    assert _firmware.look(ram, SEED, MARK) == whole
    assert _firmware.status(ram) == {"passes": 3, "wrong": 0, "ticks": 200}


@pytest.mark.parametrize("at", [1 << 20, (1 << 20) + 4095, _firmware.RAM - 1])
def test_one_other_byte_makes_a_page_differ(ram, at):
    ram.seek(at)
    byte = ram.read(1)
    ram.seek(at)
    ram.write(bytes([byte[0] ^ 1]))
    assert _firmware.look(ram, SEED, MARK)["differ"] == 1


def test_two_pages_that_changed_places_differ(ram):
    ram.seek(1 << 20)
    ram.write(struct.pack("<I", SEED + 1) * 1024 + struct.pack("<I", SEED) * 1024)
    assert _firmware.look(ram, SEED, MARK)["differ"] == 2


def test_a_guest_that_started_again_has_no_mark(ram):
    ram.seek(_firmware.MARK_AT)
    ram.write(bytes(len(MARK)))
    seen = _firmware.look(ram, SEED, MARK)
    assert not seen["marked"] and seen["differ"] == 0


@pytest.mark.beyond
@pytest.mark.skipif(not QEMU, reason="this machine has no QEMU")
def test_the_guest_fills_its_ram_reads_it_and_ticks(tmp_path):
    """Emulated, without KVM. It also notices a page that somebody else changes."""
    (tmp_path / "trial.bin").write_bytes(_firmware.firmware(SEED))
    ram = tmp_path / "ram"
    with ram.open("wb") as file:
        file.truncate(_firmware.RAM)
    backend = f"memory-backend-file,id=ram,size={_firmware.RAM},share=on,mem-path={ram}"
    words = ["-machine", "q35,accel=tcg,memory-backend=ram", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none"]
    guest = subprocess.Popen([QEMU, *words, "-bios", str(tmp_path / "trial.bin"), "-object", backend], stdin=subprocess.DEVNULL)

    def wait_for(key, least):
        until = time.monotonic() + 300
        while time.monotonic() < until:
            with ram.open("rb") as file:
                seen = _firmware.look(file, SEED, MARK)
            if seen[key] >= least:
                return seen
            time.sleep(0.5)
        raise AssertionError(seen)

    try:
        seen = wait_for("passes", 1)
        assert (seen["wrong"], seen["differ"]) == (0, 0) and seen["ticks"] >= 63
        with ram.open("r+b") as file:
            file.seek(_firmware.RAM - 4)
            file.write(b"oops")
        assert wait_for("wrong", 1)["differ"] == 1
    finally:
        guest.kill()
        guest.wait()
