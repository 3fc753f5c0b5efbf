# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Save libvirt domains, all at the same time, end everything as a jump does, and restore them on the same RAM, all at the same time.

Arguments: how many domains, their MiB, cold (no file is in memory, as after a jump) or warm, and cached (libvirt knows what QEMU can do) or
probe (it asks QEMU again). It is the runtime's own code from the pause to the resume, without the kernel's preserved memory.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import room
import virt
from kvm_liveupdate.host import _files
from kvm_liveupdate.libvirt import _guests, _save, _start


def start(names, mib):
    """Define the domains and start them; returns what the runtime knows about each."""
    for name in names:
        disk, console = room.boot_disk(name)
        path = f"{room.FOLDER}/{name}.xml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(virt.DOMAIN.format(name=name, mib=mib, disk=disk, console=console))
        virt.ask("define", path)
        virt.ask("start", name)
        room.until(f"domain {name} runs", lambda console=console: room.runs(console))
    return {record["name"]: record for record in _guests.known()}


def save(record):
    """Save a domain as the jump does, and return the guest's journal."""
    name = record["name"]
    _files.write_json(_files.run_path(name, "held"), {"hold": name})
    known = {"state": "saved", "guest": name, "uuid": record["uuid"], "unit": record["unit"], "was_running": True, "hold": name}
    return {**_save.save(record, _files.state_path(name), True), **known}


def bring_back(journal, files, tell, path):
    """As the hold unit after a jump; does not return."""
    try:
        name = journal["guest"]
        times = {"retrieved": time.time()}
        _start._offer({"name": name, **journal}, journal["hold"], files)
        os.write(tell, b"!")
        _start._wait_for_socket(name)
        times["resumed"] = _start._start(name, journal)
        times["libvirt"] = os.stat(_files.run_path(name, "placed")).st_mtime
        times["loaded"] = os.stat(_files.run_path(name, "resumed")).st_mtime
        _files.write_json(path, times)
    except BaseException:
        traceback.print_exc()
        os.write(tell, b"!")  # so that nothing waits for this
        os._exit(1)
    os._exit(0)


def main(count, mib, cold, probe):
    virt.mount_ram()
    daemons = virt.start()
    room.until("libvirtd listens", virt.listens)
    records = start([f"bench-{number}" for number in range(1, count + 1)], mib)
    memory = {name: _guests.memory(record) for name, record in records.items()}
    for files in memory.values():
        for file in files:
            os.posix_fallocate(file, 0, os.fstat(file).st_size)  # after a jump all pages are there
    with ThreadPoolExecutor(count) as pool:
        journals = list(pool.map(save, records.values()))
    virt.power_cut(daemons)
    for name in records:
        os.unlink(_files.run_path(name, "held"))
    if probe:
        virt.forget_capabilities()
    if cold:
        room.forget()
    ready, tell = os.pipe()
    children = []
    for journal in journals:
        children.append(os.fork())
        if children[-1] == 0:
            bring_back(journal, memory[journal["guest"]], tell, f"{room.FOLDER}/{journal['guest']}.json")
    for _journal in journals:
        os.read(ready, 1)
    virt.start()  # its unit starts after those of the guests
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        sys.exit("a domain was not restored")
    states = {name: virt.ask("domstate", record["uuid"]).strip() for name, record in records.items()}
    assert set(states.values()) == {"running"}, states
    every = [_files.read_json(f"{room.FOLDER}/{name}.json") for name in records]
    begun, slowest = min(times["retrieved"] for times in every), max(every, key=lambda times: times["resumed"])
    saves = [journal["times"]["saved"] - journal["times"]["paused"] for journal in journals]
    room.finish(
        {
            "part: save the state": max(saves),
            "part: wait for libvirt": slowest["libvirt"] - begun,
            "part: start QEMU + load the state": slowest["loaded"] - slowest["libvirt"],
            "part: resume": slowest["resumed"] - slowest["loaded"],
            "guests": max(saves) + slowest["resumed"] - begun,
            "processors": room.processors(),
        }
    )


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cold", sys.argv[4] == "probe")
