# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Save guests of units, all at the same time, end their QEMUs, and start them again on the same RAM, all at the same time.

Arguments: how many guests, their MiB, and cold (no file is in memory before the start, as after a jump) or warm. It is the runtime's own
code from the pause to the resume, without the kernel's preserved memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import room
from kvm_liveupdate.host import _files
from kvm_liveupdate.qemu import _ram_file, _save
from kvm_liveupdate.vmm import _argv, _monitor


class Guest:
    """A QEMU, with the devices of the lab's guests and a disk."""

    def __init__(self, name, mib):
        self.name, self.monitor = name, _files.run_path(name, "qmp")
        disk, self.console = room.boot_disk(name)
        self.argv = [room.QEMU, "-name", name, "-machine", "q35,accel=tcg,hpet=off", "-cpu", "max", "-smp", "1", "-m", str(mib)]
        self.argv += ["-nodefaults", "-display", "none", "-serial", f"file:{self.console}", "-device", "virtio-serial-pci"]
        self.argv += ["-chardev", f"file,id=heartbeat,path={self.console}.2", "-device", "virtserialport,chardev=heartbeat,name=heartbeat"]
        self.argv += ["-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=disk"]
        self.ram = _ram_file.create(name, mib << 20)
        os.posix_fallocate(self.ram, 0, mib << 20)  # after a jump all pages are there
        os.set_inheritable(self.ram, True)
        self.process = None

    def command(self, incoming):
        """The command line that the wrapper becomes."""
        return _argv.command(self.argv, self.monitor, self.ram, os.fstat(self.ram).st_size, incoming)

    def start(self):
        self.process = subprocess.Popen(self.command(incoming=False), pass_fds=[self.ram])
        room.until(f"guest {self.name} runs", lambda: room.runs(self.console))

    def save(self):
        """How long it is paused until it is saved."""
        record = {"name": self.name, "pid": self.process.pid, "argv": self.argv, "monitor": self.monitor}
        times = _save.save(record, _files.state_path(self.name), True)["times"]
        return times["saved"] - times["paused"]

    def end(self):
        self.process.kill()
        self.process.wait()
        os.unlink(self.monitor)

    def restore(self):
        """As the wrapper: become a QEMU that waits, and load the state from another process. Returns that one's output."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork():
                command = self.command(incoming=True)
                os.execv(command[0], command)
            try:
                os.write(writing, json.dumps(self.load()).encode())
            finally:
                os._exit(0)
        os.close(writing)
        return reading

    def load(self):
        """When each step was done."""
        with _monitor.Monitor(self.monitor, wait_s=room.LIMIT_S, answer_s=room.LIMIT_S) as monitor:
            times = {"qemu": time.monotonic()}
            _monitor.load(monitor, _files.state_path(self.name), room.LIMIT_S)
            times["loaded"] = time.monotonic()
            if not _monitor.go_on(monitor):
                sys.exit(f"guest {self.name}: QEMU did not resume it")
            times["resumed"] = time.monotonic()
            return times


def main(count, mib, cold):
    _files.make_directory(_files.GUESTS_RUN)
    guests = [Guest(f"bench-{number}", mib) for number in range(1, count + 1)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(Guest.start, guests))
        saves = list(pool.map(Guest.save, guests))
        list(pool.map(Guest.end, guests))
    if cold:
        room.forget()
    begun = time.monotonic()
    answers = [os.fdopen(reading) for reading in [guest.restore() for guest in guests]]
    every = [json.loads(answer.read()) for answer in answers]
    slowest = max(every, key=lambda times: times["resumed"])
    for guest in guests:
        with _monitor.Monitor(guest.monitor) as monitor:
            assert monitor.status() == "running", guest.name
    room.finish(
        {
            "part: save the state": max(saves),
            "part: start QEMU": slowest["qemu"] - begun,
            "part: load the state": slowest["loaded"] - slowest["qemu"],
            "part: resume": slowest["resumed"] - slowest["loaded"],
            "guests": max(saves) + slowest["resumed"] - begun,
            "processors": room.processors(),
        }
    )


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cold")
