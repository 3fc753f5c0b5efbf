# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes fixtures/answers.json: what a real QEMU answers, right after its start and after each of some changes.

By hand, with the collection's PYTHONPATH and qemu-system-x86 and qemu-utils installed: ``python record_answers.py``. What is there was
recorded with QEMU 7.2.22 of Debian 12. Paths are those of the guests, below the folder where it runs, which is cut off.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _changes, _monitor

BLOCKDEVS = (
    '-blockdev {"driver":"file","filename":"@/over.qcow2","node-name":"f","cache":{"direct":true}}'
    " -blockdev {'driver':'qcow2','file':'f','node-name':'d'}"
    " -blockdev driver=raw,node-name=cd,read-only=on,file.driver=file,file.filename=@/d.iso"
    " -blockdev driver=raw,node-name=vars,file.driver=file,file.filename=@/vars.fd"
    " -blockdev driver=raw,node-name=spare,file.driver=file,file.filename=@/c.raw"
)
SNAPSHOT = {"snapshot-file": "@/snap.qcow2"}
# For each guest its command line, and the changes, each a command with its arguments.
GUESTS = {
    # As tests/lab/guests.yml writes it, with stand-ins for the host's serial port and bridge.
    "lab": (
        "-machine q35,hpet=off -cpu max -smp 1 -m 64 -nodefaults -serial file:@/console -chardev null,id=heartbeat"
        " -device virtio-serial-pci -device virtserialport,chardev=heartbeat,name=heartbeat -netdev user,id=net"
        " -device virtio-net-pci,netdev=net",
        [("netdev_del", {"id": "net"})],
    ),
    # As docs/docsite/rst/guests.rst.
    "docs": (
        "-machine pc-i440fx-7.2 -cpu qemu64 -m 64 -drive file=@/a.qcow2,if=virtio,cache=none -netdev user,id=n"
        " -device virtio-net-pci,netdev=n -nodefaults",
        [("blockdev-snapshot-sync", {"device": "virtio0", **SNAPSHOT}), ("device_add", {"driver": "virtio-rng-pci"})],
    ),
    "blockdevs": (
        f"-machine pc-q35-7.2,pflash0=vars -m 64 -nodefaults {BLOCKDEVS} -device virtio-scsi-pci,id=s"
        " -device scsi-hd,drive=d,id=disk -device scsi-cd,drive=cd",
        [
            ("device_del", {"id": "disk"}),
            ("device_add", {"driver": "scsi-hd", "drive": "d", "id": "disk"}),
            ("blockdev-snapshot-sync", {"node-name": "d", "snapshot-node-name": "snap", **SNAPSHOT}),
        ],
    ),
    "old": (
        "-M pc -m 64 -smp 2 -hda a.qcow2 -cdrom @/d.iso -usb -device usb-tablet,id=t -drive if=floppy"
        " -drive if=none,id=x,file.filename=@/c.raw,format=raw,file.driver=file -device ahci,id=sata -device lsi -net nic -net user",
        [
            ("blockdev-change-medium", {"device": "ide1-cd0", "filename": "@/e.iso"}),
            ("blockdev-change-medium", {"device": "ide1-cd0", "filename": "@/d.iso"}),
            ("eject", {"device": "ide1-cd0", "force": True}),
            ("blockdev-change-medium", {"device": "ide1-cd0", "filename": "@/d.iso"}),
            ("device_add", {"driver": "usb-kbd", "id": "k"}),
        ],
    ),
    "odd": (
        "-M pc -m 64 -nodefaults -drive file=json:{'driver':'raw',,'offset':512,,'file':{'driver':'file',,'filename':'@/c.raw'}},if=virtio"
        " -drive driver=raw,file.driver=null-co,if=virtio,throttling.iops-total=10 -nic user,model=e1000"
        " -drive file=fat:@/dir,if=virtio,readonly=on"
        " -drive file=@/b.qcow2,if=virtio,cache=unsafe",
        [],
    ),
}
MADE = (
    "for f in a b; do qemu-img create -q -f qcow2 $f.qcow2 16M; done; qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2;"
    "truncate -s 4M c.raw d.iso e.iso; truncate -s 64K vars.fd; mkdir dir; touch dir/file"
)
KEPT = ("file", "ro", "drv", "node-name", "backing_file", "cache")


def look(monitor: _monitor.Monitor) -> dict:
    """What _changes.ask returns, without what no test needs."""
    answers = _changes.ask(monitor)
    for disk in answers["disks"]:
        if "inserted" in disk:
            disk["inserted"] = {key: disk["inserted"][key] for key in KEPT if key in disk["inserted"]}
    return answers


def record(words: list[str], changes: list) -> list:
    """One guest: its command line, and what it has at first and after each change."""
    qmp = f"{os.getcwd()}/qmp"
    with subprocess.Popen([*words, "-S", "-display", "none", "-accel", "tcg", "-qmp", f"unix:{qmp},server=on,wait=off"]) as process:
        try:
            with _monitor.Monitor(qmp, wait_s=10) as monitor:
                found = [["start", look(monitor)]]
                for command, arguments in changes:
                    monitor.execute(command, **arguments)
                    time.sleep(0.5)
                    found.append([command, look(monitor)])
        finally:
            process.kill()
    return [words, found]


def main() -> None:
    """Record all of them."""
    recorded = {}
    for name, (line, changes) in GUESTS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            subprocess.run(["sh", "-c", MADE], check=True)
            words = ["qemu-system-x86_64", *line.replace("@", folder).split()]
            guest = record(words, json.loads(json.dumps(changes).replace("@", folder)))
            recorded[name] = json.loads(json.dumps(guest).replace(folder, ""))
    Path(__file__).with_name("fixtures").joinpath("answers.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
