# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How slow an emulated host is, and the shortest pause it allows. So nobody takes the lab's times for those of real hardware."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import LabError
from ..machines.host import Host

# A fixed piece of work for one processor.
WORK = """
import time

begun = time.perf_counter()
sum(number * number for number in range(300_000))
print(time.perf_counter() - begun)
"""
_STAMPED = re.compile(r"^\[ *(?P<at>\d+\.\d+)\](?:\[.*?\])? (?P<text>.*)$")


def slower(host: Host) -> float:
    """How many times slower than this machine the host is, measured with a loop in Python."""
    there = host.ssh("python3 -", stdin=WORK)
    if there.returncode:
        raise LabError(f"{host.name}: cannot measure its speed: {there.stderr.strip()}")
    here = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True, timeout=limits.TOOL)
    return float(there.stdout) / float(here.stdout)


def mark(host: Host) -> tuple[str, float]:
    """Write a line to the kernel's log. Returns it with its time: this relates the console's timestamps to the host's clock."""
    text = f"kvm-liveupdate-lab {time.time():.3f}"
    done = host.ssh(f"echo 1 > /sys/module/printk/parameters/time; echo {text} > /dev/kmsg; date +%s.%N")
    if done.returncode:
        raise LabError(f"{host.name}: cannot write to /dev/kmsg: {done.stderr.strip()}")
    return text, float(done.stdout)


def kexec_at(host: Host, marked: tuple[str, float]) -> float:
    """When the old kernel started the new one, by the old kernel's clock."""
    console = (host.folder / "console.log").read_text(encoding="utf-8", errors="replace")
    return kexec_in(console, *marked)


def kexec_in(console: str, text: str, at: float) -> float:
    """When the kernel logged that it starts the next one. text is the marked line, ``at`` is its time. Pure."""
    marked = None
    for line in console.splitlines():
        stamped = _STAMPED.match(line)
        if not stamped:
            continue
        if marked is None and stamped["text"] == text:
            marked = float(stamped["at"])
        elif marked is not None and stamped["text"].endswith("Starting new kernel"):
            return at + float(stamped["at"]) - marked
    raise LabError(f"no kexec on the console after the line {text!r}")


def floor(host: Host, marked: tuple[str, float], told: Mapping[str, Any]) -> float | None:
    """The shortest possible pause of a unit in this update. None without a jump or a unit."""
    try:
        return least_pause(told, kexec_at(host, marked))
    except LabError:
        return None


def least_pause(told: Mapping[str, Any], called: float) -> float | None:
    """The time from the kexec to the new PID 1, plus the fastest start of a QEMU with its guest's state, in seconds. Pure.

    told is the update role's report of a host. None if that has no jump with a unit.
    """
    userspace = (told.get("times") or {}).get("userspace")
    guests = [guest for guest in (told.get("guests") or {}).values() if "qemu" in (guest.get("times") or {})]
    if userspace is None or not guests:
        return None
    step = guests[0].get("clock_step") or 0.0
    started = min(guest["times"]["resumed"] - guest["times"]["retrieved"] for guest in guests)
    return float(userspace - step - called + started)


def sentence(times_slower: float, floors: Mapping[str, float | None]) -> str:
    """The note about the report's times for its readers. Pure."""
    known = [f"{seconds:.1f} s on {host}" for host, seconds in floors.items() if seconds is not None]
    least = f" The shortest pause that it allows (the kexec and the start of one QEMU) was {', '.join(known)}." if known else ""
    return f"The hypervisor is emulated: its processor is {times_slower:.0f} times slower than this machine's.{least}"


def add_note(page: Path, note: str) -> None:
    """Insert a note below the title of the page."""
    text = page.read_text(encoding="utf-8")
    head, end, rest = text.partition("</h1>")
    if not end:
        raise LabError(f"{page}: cannot add the note, the page has no <h1> title")
    page.write_text(f'{head}{end}<p class="note"><b>{escape(note)}</b></p>{rest}', encoding="utf-8")
