# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bench's programs in a namespace share. They run with the Python of the measured Debian, and only there."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")

EXCHANGE = "/exchange"
FOLDER = "/run/bench"
QEMU = "/usr/bin/qemu-system-x86_64"
LIMIT_S = 600.0
# Code for the first sector of a disk: write "!" to the serial port, then halt for good. So the guest runs, and takes no processor time.
_PROGRAM = bytes.fromhex("baf803 b021 ee fa f4 ebfd")


def finish(seconds):
    """Hand the result over."""
    with open(f"{EXCHANGE}/result.json", "w", encoding="utf-8") as file:
        json.dump(seconds, file)


def until(what, condition, pause_s=0.01):
    """Wait until the condition returns something true, and return that."""
    limit = time.monotonic() + LIMIT_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > limit:
            sys.exit(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(pause_s)


def forget():
    """Drop the root file system's files from memory, as after a jump. What a process has mapped stays: Python and the C library."""
    device = os.stat("/").st_dev
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == device]
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)


def boot_disk(name):
    """Make the disk of a guest; returns its path and the path of what the guest writes to its serial port."""
    os.makedirs(FOLDER, mode=0o711, exist_ok=True)
    disk, console = f"{FOLDER}/{name}.raw", f"{FOLDER}/{name}.console"
    with open(disk, "wb") as file:
        file.write(_PROGRAM.ljust(510, b"\0") + b"\x55\xaa")
        file.truncate(1 << 20)
    return disk, console


def runs(console):
    """Whether the guest has started its program."""
    try:
        with open(console, "rb") as file:
            return b"!" in file.read()
    except FileNotFoundError:
        return False


def timed(*words):
    """The median time of a command over some calls, after a first one that does not count."""
    times = []
    for _number in range(10):
        begun = time.monotonic()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - begun)
    return statistics.median(times[1:])


def processors():
    """How many processors this may use."""
    return float(len(os.sched_getaffinity(0)))
