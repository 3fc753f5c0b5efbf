# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of the guest's unit in :file:`boot.sh`: import what a restore imports, say when that is done, then have the system shut down.

Argument: unit or domain.
"""

import os
import sys
import time

sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")

from kvm_liveupdate import _command
from kvm_liveupdate.host import _commands, _systemd

if sys.argv[1] == "unit":
    from kvm_liveupdate.qemu import _start
else:
    from kvm_liveupdate.libvirt import _start
started = time.monotonic()

assert _command.main and _start.__all__
QEMU = ("/usr/bin/qemu-system-x86_64", "-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S")
MONITOR = "/run/bench.qmp"
LIBVIRTD = "/run/libvirtd.pid"


def stamps():
    """Times of PID 1, in seconds of the monotonic clock: its start, when its units were loaded, and when it started libvirt's daemon."""
    import subprocess

    names = ("UserspaceTimestampMonotonic", "UnitsLoadFinishTimestampMonotonic")
    shown = subprocess.run(["systemctl", "show", *(f"--property={name}" for name in names)], capture_output=True, check=True, text=True)
    values = dict(line.split("=") for line in shown.stdout.split())
    values |= _systemd.show("libvirtd.service", "ExecMainStartTimestampMonotonic")
    return [int(values[name]) / 1e6 for name in (*names, "ExecMainStartTimestampMonotonic")]


def watch():
    """In a process of its own: hand over the stamps once the guest's QEMU, or libvirt's daemon, is there; then shut down as a jump does."""
    import json
    import signal

    while not os.path.exists(MONITOR if sys.argv[1] == "unit" else LIBVIRTD):
        time.sleep(0.05)
    if sys.argv[1] == "domain":  # before a jump its start is long over
        _commands.run("virsh", "--quiet", "--connect", "qemu:///system", "list")
    userspace, units, daemon = stamps()
    found = {"userspace": userspace, "units": units, "start": started, "daemon": daemon}
    with open("/exchange/result.json", "w", encoding="utf-8") as file:
        json.dump({**found, "down": time.monotonic()}, file)
    os.kill(1, signal.SIGRTMIN + 13)  # halt at once, as 16 is kexec at once (systemd(1))
    os._exit(0)


if sys.argv[1] == "domain":
    _systemd.notify("READY=1")
if os.fork() == 0:
    watch()
os.execv(QEMU[0], (*QEMU, "-qmp", f"unix:{MONITOR},server=on,wait=off"))
