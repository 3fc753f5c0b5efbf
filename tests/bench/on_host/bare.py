# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The second half of the floor, on a lab host: how long one QEMU takes from its start until a guest's state is loaded and runs.

As after a jump, nothing of QEMU is in memory. Argument: the name of a guest that runs under the wrapper. It does not outlive this.
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")

from kvm_liveupdate.guests import _providers
from kvm_liveupdate.qemu import _guests
from kvm_liveupdate.vmm import _argv, _monitor

STATE, MONITOR = "/run/bench.state", "/run/bench.qmp"

record = _providers.find(sys.argv[1])
(ram,) = _guests.memory(record)
with _monitor.Monitor(record["monitor"]) as old:
    old.execute("stop")
    old.ignore_shared(True)
    old.execute("migrate", uri=f"file:{STATE}")
    old.wait_migration(_monitor.SAVE_LIMIT_S)
subprocess.run(["systemctl", "stop", record["unit"]], check=True)
os.sync()
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("3\n")
command = _argv.command(record["argv"], MONITOR, ram, os.fstat(ram).st_size, incoming=True)
begun = time.monotonic()
with subprocess.Popen(command, pass_fds=[ram]) as process:
    try:
        with _monitor.Monitor(MONITOR, wait_s=_monitor.START_LIMIT_S) as monitor:
            _monitor.load(monitor, STATE)
            monitor.execute("cont")
            print(time.monotonic() - begun)
    finally:
        process.kill()
        os.unlink(STATE)
