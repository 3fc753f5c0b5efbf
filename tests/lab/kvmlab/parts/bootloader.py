# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Install GRUB on the hosts' disk with the hosts' own grub-install and update-grub.

Both need the real disk. So the machine boots once, with a script as its init.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from .. import limits
from ..errors import LabError
from ..machines.disk import remove_file
from ..machines.machine import Machine
from ..run import die_with_parent, end_group, say, tail

SCRIPT = "lab-install-boot-loader"
DONE = "lab: the boot loader is installed"
ROOT_DEVICE = "/dev/vda1"


def script(file_system_id: str, default_release: str) -> str:
    """The script that this one boot runs as init."""
    entry = f"gnulinux-advanced-{file_system_id}>gnulinux-{default_release}-advanced-{file_system_id}"
    return f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
grub-install --target=i386-pc /dev/vda && update-grub && grub-set-default '{entry}' &&
    grep -q 'gnulinux-{default_release}-advanced-{file_system_id}' /boot/grub/grub.cfg && echo '{DONE}'
umount /run
mount -o remount,ro /
sync
poweroff -f -f
sleep 10
"""


def install(emulator: tuple[str, ...], disk: Path, kernel: Path, log: Path) -> None:
    """Boot the disk once with the script as init. QEMU loads the kernel, since there is no boot loader yet."""
    say("host image: boot loader")
    options = f"root={ROOT_DEVICE} rw console=ttyS0 panic=-1 init=/{SCRIPT}"
    command = Machine(emulator, disk.name, kernel=str(kernel), kernel_options=options).command()
    console = disk.parent / "console.log"
    with log.open("ab") as stream:
        machine = subprocess.Popen(
            [*command, "-no-reboot"],
            cwd=disk.parent,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        started = time.monotonic()
        try:
            machine.wait(limits.HOST_ANSWERS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_group(machine)
        stream.write(console.read_bytes() if console.exists() else b"")
    if DONE not in tail(console, 50):
        raise LabError(f"GRUB was not installed on {disk}. The end of {log}:\n{tail(log)}")
    say(f"  boot loader installed in {time.monotonic() - started:.0f} s")
    remove_file(disk, f"/{SCRIPT}")
    for leftover in (console, *disk.parent.glob("*.sock")):
        leftover.unlink()
