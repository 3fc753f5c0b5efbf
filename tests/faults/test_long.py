# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many updates in a row, and random schedules of faults."""

from __future__ import annotations

import time
from functools import partial

from kvmfaults import agent, injections, schedule
from kvmfaults.marks import each
from kvmfaults.story import ALL, NAMES, UPDATE, Story
from kvmlab.errors import LabError
from kvmlab.machines.host import Host
from kvmlab.story.controller import Controller
from kvmlab.story.domains import shut_down
from kvmlab.story.night import boot_of, final_verdict, other_kernel, record_end, recorded, wait_until
from kvmlab.story.prepared import DOMAINS, GUESTS, UNITS

UPDATES = 20
# What may be missing after all of them: caches and logs, but no guest's memory.
SPARE_MIB = 64
AVAILABLE = "echo 3 > /proc/sys/vm/drop_caches; sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"
LOAD = "load=8"
CUT_S = 20.0


@each(15)
def test_15_updates_in_a_row(story: Story, variant: str) -> None:
    free: list[int] = []
    for _number in range(UPDATES):
        update(story)
        assert story.sessions() == []
        free.append(int(story.there(AVAILABLE)) >> 10)
    # After the second one as after the last one the host runs its first kernel again.
    assert free[-1] > free[1] - SPARE_MIB, free
    story.must_hold()


def update(story: Story) -> None:
    """One update with the modules that act on the host. No guest may be lost."""
    host, since, before = story.host, time.monotonic(), boot_of(story.host)
    steps = (
        ("kexec_image", {"kernel": f"/boot/vmlinuz-{other_kernel(host)}"}),
        ("guest", {"names": list(NAMES), "state": "preserved"}),
        ("kexec", {"guests": list(NAMES)}),
    )
    with recorded([host], GUESTS, story.fault) as begun:
        answers = [story.controller.ask(host.name, module, **arguments) for module, arguments in steps]
        verdicts = {guest.name: final_verdict(host, guest, since) for guest in GUESTS}
        record_end(begun[host.name], boot_of(host) != before, verdicts)
    lost = {name: verdict.reason for name, verdict in verdicts.items() if not verdict.survived}
    assert not lost and not any(answer["failed"] for answer in answers), (lost, answers)


@each(22)
def test_22_random_schedule(story: Story, variant: str, planned: list[schedule.Fault]) -> None:
    story.plan = f"{' '.join(map(str, planned))}: "
    print(story.plan)
    under_load(story)
    kernel = f"/boot/vmlinuz-{story.target}"
    marks = [(fault, inject(story, fault, kernel)) for fault in planned]
    story.begin()
    happened = []
    for fault, mark in marks:
        if story.acts(mark):
            happened.append(fault.name)
            act(story, fault.name, kernel)
    story.end()
    ended = ALL if set(happened) & set(schedule.ENDING) else ()

    def action() -> None:
        story.follow_runbook()
        story.there(injections.SNAPSHOT_MENDED)  # of a domain that was off before

    story.must_hold(ended=ended, held=ALL, mend=lambda: story.host.ssh(injections.mended(kernel)), action=action, surely=False)


def inject(story: Story, fault: schedule.Fault, kernel: str) -> str:
    """What the host does itself, it does in the step. For what the lab does, the step lasts a moment."""
    command = injections.on_host(fault.name, kernel)
    in_order = fault.step in agent.IN_ORDER
    if command:
        return story.inject(fault.step, command, freeze=0 if in_order and fault.name in schedule.ENDING else None)
    return story.inject(fault.step, "sleep 15", freeze=0 if in_order else None)


def act(story: Story, name: str, kernel: str) -> None:
    """What the lab does."""
    if name == "power":
        story.cut_power()
    elif name == "kill-controller":
        story.kill_controller()
    elif name == "second":
        Controller(story.lab).play(UPDATE, "--limit", story.host.name, hypervisor_update_kernel=kernel)
    elif name == "cut":
        story.host.plug(False)
        try:
            time.sleep(CUT_S)
        finally:
            story.host.plug(True)


def under_load(story: Story) -> None:
    """Restart the guests, so that they write memory and disk all the time."""
    host = story.host
    before = {guest.name: boot(host, guest.port) for guest in GUESTS}
    files = " ".join(f"/etc/systemd/system/{guest.unit}" for guest in UNITS)
    units = " ".join(guest.unit for guest in UNITS)
    story.there(f"sed -i 's/ port=heartbeat/& {LOAD}/' {files}; systemctl daemon-reload; systemctl restart {units}")
    for domain in DOMAINS:
        shut_down(host, domain)
        change = f"virsh dumpxml --inactive {domain.name} | sed 's/ port=heartbeat/& {LOAD}/' > /root/load.xml"
        story.there(f"{change}; virsh define /root/load.xml && virsh start {domain.name}")
    for guest in GUESTS:
        wait_until(f"{guest.name} under load", partial(reads, host, guest.port, before[guest.name]))
    story.since = time.monotonic()


def boot(host: Host, port: int) -> str:
    """The boot of a guest."""
    ticks = host.heartbeat(port)
    if not ticks:
        raise LabError(f"the guest on port {port} does not tick")
    return ticks[-1].boot_id


def reads(host: Host, port: int, before: str) -> tuple[bool, str]:
    """Whether the guest has read its memory in another boot."""
    tick = host.heartbeat(port)[-1]
    return tick.boot_id != before and tick.turn >= 2, f"boot {tick.boot_id}, pass {tick.turn}"
