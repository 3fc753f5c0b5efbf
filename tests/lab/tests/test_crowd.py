# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host full of small guests moves to another kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

import pytest
from kvmlab import cache
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.story.controller import Controller
from kvmlab.story.night import boot_of, other_kernel, wait_until
from kvmlab.watch.heartbeat import Tick, parse

pytestmark = pytest.mark.beyond

GUESTS = 30
RAM_MIB = 64
HOST_MIB = 6144
# Once for all: a kernel that is emulated twice takes seconds to boot, and 30 of them share one processor.
ALL_ALIVE_S = 3600

# There are not so many serial ports: each guest tells of itself in a file of the host.
UNIT = f"""[Unit]
Description=Small guest %i

[Service]
ExecStart=/usr/local/sbin/kvm-liveupdate run small%i -- /usr/bin/qemu-system-x86_64 -name small%i \\
  -machine q35,accel=kvm,hpet=off -cpu host -smp 1 -m {RAM_MIB} -nodefaults -display none \\
  -chardev file,id=heartbeat,path=/var/log/small%i.ticks,append=on \\
  -device virtio-serial-pci -device virtserialport,chardev=heartbeat,name=heartbeat \\
  -kernel /var/lib/lab-guest/vmlinuz -initrd /var/lib/lab-guest/initramfs -append "quiet panic=-1 port=heartbeat"
"""
NAMES = [f"small{number}" for number in range(1, GUESTS + 1)]
UNITS = [f"small@{number}.service" for number in range(1, GUESTS + 1)]


@pytest.fixture(name="crowd")
def controller_and_host_with_much_memory() -> Iterator[tuple[Controller, Host]]:
    keep = bool(os.environ.get("KVM_LIVEUPDATE_KEEP_LAB"))
    lab = Lab(cache.root() / "lab-crowd")
    if not keep:
        lab.down()
    try:
        (host,) = lab.up(["forky"], memory_mib=HOST_MIB)
        yield Controller(lab), host
    finally:
        if not keep:
            lab.down()


def all_ticks(host: Host) -> dict[str, list[Tick]]:
    """All that each guest has said. Nothing stamps these lines on arrival."""
    said: dict[str, list[str]] = {name: [] for name in NAMES}
    for line in host.ssh("cd /var/log && grep -a '' small*.ticks").stdout.splitlines():
        file, _colon, text = line.partition(":")
        said[file.removesuffix(".ticks")].append(f"0.0 0.0 {text}")
    return {name: parse(lines) for name, lines in said.items()}


# The last whole line of each. One process, and not all that was said: 30 files are looked at again and again.
LATEST = """
import glob, os
for path in glob.glob("/var/log/small*.ticks"):
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1000))
        lines = file.read().decode("ascii", "replace").split("\\n")
    print(os.path.basename(path) + ":" + (lines[-2:-1] or [""])[0])
"""


def turns_of(host: Host) -> dict[str, int]:
    """How often each guest has read its memory through; -1 for one that has said nothing."""
    told = dict(line.split(".ticks:", 1) for line in host.ssh("python3 -", stdin=LATEST).stdout.splitlines())
    found = {name: parse([f"0.0 0.0 {told.get(name, '')}"]) for name in NAMES}
    return {name: ticks[-1].turn if ticks else -1 for name, ticks in found.items()}


def wait_for_turns(host: Host, turns: dict[str, int]) -> None:
    """Wait until each guest has read its memory through so often."""

    def look() -> tuple[bool, str]:
        seen = turns_of(host)
        missing = [f"{name} at {seen[name]} of {turns[name]}" for name in NAMES if seen[name] < turns[name]]
        return not missing, ", ".join(missing)

    wait_until("every guest has read its memory", look, ALL_ALIVE_S)


def test_thirty_guests_move_and_none_is_lost(crowd: tuple[Controller, Host]) -> None:
    controller, host = crowd
    prepared = controller.play("kvm.liveupdate.setup", hypervisor_setup_guest_units=UNITS, hypervisor_setup_reboot_ok=True)
    assert prepared.code == 0, prepared.output
    started = host.ssh(f"cat > /etc/systemd/system/small@.service; systemctl daemon-reload; systemctl start {' '.join(UNITS)}", stdin=UNIT)
    assert started.returncode == 0, started.stderr
    wait_for_turns(host, dict.fromkeys(NAMES, 2))
    before, kernel = boot_of(host), other_kernel(host)

    play = controller.play("kvm.liveupdate.update", hypervisor_update_kernel=f"/boot/vmlinuz-{kernel}")

    assert play.code == 0, play.output
    assert boot_of(host).kernel == kernel and boot_of(host).boot_id != before.boot_id
    told = play.report[host.name]
    assert told["outcome"] == "updated" and sorted(told["guests"]) == sorted(NAMES), told
    assert {name: guest["state"] for name, guest in told["guests"].items()} == dict.fromkeys(NAMES, "restored"), told
    wait_for_turns(host, {name: turn + 2 for name, turn in turns_of(host).items()})
    for name, found in all_ticks(host).items():
        assert len({tick.boot_id for tick in found}) == 1, f"{name} was restarted"
        lost = [(one.number, two.number) for one, two in pairwise(found) if two.number != one.number + 1]
        assert not lost, f"{name}: the tick after {lost[0][0]} is {lost[0][1]}"
        assert len({tick.checksum for tick in found if tick.turn}) == 1, f"{name}: its memory changed"
