# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the demo says of its own seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kvmlab.errors import LabError
from kvmlab.story import pace

CONSOLE = """[   10.000000] kvm-liveupdate-lab 1.000
[   99.000000] kexec_core: Starting new kernel
[    0.000000] Linux version 7.3.4
[  120.250000] kvm-liveupdate-lab 2.000\r
[  121.000000] systemd-shutdown[1]: Rebooting with kexec.
garbage [  121.5] x
[  130.750000] kexec_core: Starting new kernel
"""


def test_the_console_tells_when_the_next_kernel_started() -> None:
    assert pace.kexec_in(CONSOLE, "kvm-liveupdate-lab 2.000", 5000.0) == pytest.approx(5010.5)


@pytest.mark.parametrize("mark", ["kvm-liveupdate-lab 3.000", "garbage"])
def test_a_console_without_the_mark_is_refused(mark: str) -> None:
    with pytest.raises(LabError, match="no kexec on the console after"):
        pace.kexec_in(CONSOLE, mark, 5000.0)


def test_the_piece_of_work_tells_its_seconds() -> None:
    done = subprocess.run([sys.executable, "-c", pace.WORK], capture_output=True, text=True, check=True, timeout=600)
    assert float(done.stdout) > 0


TOLD = {
    "times": {"userspace": 112.5},
    "guests": {
        "web": {"clock_step": 0.5, "times": {"retrieved": 113.0, "qemu": 114.0, "resumed": 115.0}},
        "db": {"clock_step": 0.5, "times": {"retrieved": 113.0, "qemu": 114.0, "resumed": 116.0}},
        "disk": {"clock_step": 0.5, "times": {"retrieved": 113.0, "libvirt": 114.0, "resumed": 113.5}},
    },
}


def test_the_least_pause_is_the_kexec_and_the_quickest_start_of_a_qemu() -> None:
    assert pace.least_pause(TOLD, called=110.0) == pytest.approx(2.0 + 2.0)


@pytest.mark.parametrize("told", [{}, {**TOLD, "times": {}}, {**TOLD, "guests": {"disk": TOLD["guests"]["disk"]}}])
def test_without_a_jump_or_a_unit_there_is_no_least_pause(told: dict[str, dict[str, float]]) -> None:
    assert pace.least_pause(told, called=110.0) is None


def test_the_sentence_names_what_is_known() -> None:
    assert pace.sentence(12.4, {"hv1": 4.04, "hv2": None}).endswith(
        "12 times slower than this machine's. The shortest pause that it allows (the kexec and the start of one QEMU) was 4.0 s on hv1."
    )
    assert "shortest pause" not in pace.sentence(12.4, {"hv1": None})


def test_the_note_stands_below_the_title_and_is_escaped(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<body><h1>Title</h1><p>rest</p></body>")
    pace.add_note(page, "2 < 3")
    assert page.read_text() == '<body><h1>Title</h1><p class="note"><b>2 &lt; 3</b></p><p>rest</p></body>'


def test_a_page_without_a_title_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<body></body>")
    with pytest.raises(LabError, match="has no <h1> title"):
        pace.add_note(page, "2 < 3")
