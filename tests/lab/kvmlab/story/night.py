# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start guests, wait for them, run an update, report on it: for the demo, the tests and the benchmark."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .. import limits
from ..errors import LabError
from ..machines.host import Host
from ..watch import ledger
from ..watch.heartbeat import Verdict
from ..watch.probe import Answers
from ..watch.report import Boot, host_report
from .controller import GUESTS, Controller, Guest, Play, described, lab_playbook

# Prints the time at which the timestamps of the kernel's log were 0. Their clock was seen to be 0.05 s off CLOCK_MONOTONIC.
_KERNEL_LOG_BEGAN = """
import os, time
log = os.open("/dev/kmsg", os.O_RDWR | os.O_NONBLOCK)
os.lseek(log, 0, os.SEEK_END)
os.write(log, b"kvm-liveupdate-lab looks at the clock\\n")
now = time.time()
print(now - int(os.read(log, 8192).split(b",")[2]) / 1e6)
"""
_CARD_FORWARDING = re.compile(r"\[ *(\d+\.\d+)\] .*br0: port \d+\(en\w+\) entered forwarding state")


def wait_until(what: str, look: Callable[[], tuple[bool, str]], limit_s: float = limits.HAPPENS) -> None:
    """Call look until it returns True. At the limit, the error says what was last seen."""
    until = time.monotonic() + limit_s
    while True:
        done, seen = look()
        if done:
            return
        if time.monotonic() > until:
            raise LabError(f"{what}: did not happen within {limit_s:.0f} s; last seen: {seen}")
        time.sleep(0.5)


def start_guests(controller: Controller, hosts: list[Host], guests: Iterable[Guest] = GUESTS, limit_s: float = limits.HAPPENS) -> None:
    """Start the lab's guests and wait until each has read all its memory once."""
    guests = tuple(guests)
    names = ",".join(host.name for host in hosts)
    play = controller.play(lab_playbook("guests"), "--limit", names, lab_guests=described(guests))
    if play.code:
        raise LabError(f"the lab's guests did not start:\n{play.output}")
    for host in hosts:
        for guest in guests:
            wait_alive(host, guest, limit_s)


def end_guests(host: Host, guests: Iterable[Guest] = GUESTS) -> None:
    """End these guests in units, and all running domains. One by one: systemd 262 stops no unit if it does not know one of them."""
    units = " ".join(guest.unit for guest in guests)
    host.ssh(f"for unit in {units}; do systemctl stop $unit; done; for name in $(virsh list --name); do virsh destroy $name; done")


def wait_alive(host: Host, guest: Guest, limit_s: float = limits.HAPPENS) -> None:
    """Wait until the guest ticks, has read all its memory, and tells of all its parts."""

    def look() -> tuple[bool, str]:
        ticks = host.heartbeat(guest.port)
        if not ticks:
            return False, "no tick"
        age = time.monotonic() - ticks[-1].arrived
        seen = f"tick {ticks[-1].number}, pass {ticks[-1].turn}, {age:.0f} s ago"
        if not guest.tells_all(ticks[-1]):
            return False, f"{seen}, which does not tell of all parts of the guest: {ticks[-1]}"
        return ticks[-1].turn >= 2 and age < 5, seen

    wait_until(f"{host.name}: guest {guest.name} alive", look, limit_s)


def boot_of(host: Host) -> Boot:
    """The host's current boot."""
    boot_id, kernel = host.ssh("cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/osrelease").stdout.split()
    return Boot(boot_id, kernel)


def other_kernel(host: Host) -> str:
    """The release of the kernel in /boot that the host does not run."""
    running = boot_of(host).kernel
    releases = [name.removeprefix("vmlinuz-") for name in host.ssh("cd /boot; ls vmlinuz-*").stdout.split()]
    (other,) = [release for release in releases if release != running]
    return other


def forwarding_at(host: Host) -> float | None:
    """When the host's bridge began to forward frames of the segment, by the clock of its current boot. None if unknown."""
    done = host.ssh(
        f"python3 -c '{_KERNEL_LOG_BEGAN}';"
        " journalctl --boot --dmesg --output short-monotonic --no-pager --grep 'br0: port .*entered forwarding state'"
    )
    return last_forwarding(done.stdout)


def last_forwarding(said: str) -> float | None:
    """When the bridge last began to forward frames of the host's card. said: when the kernel's log began, then its lines. Pure."""
    began, *lines = said.splitlines() or [""]
    stamps = [float(found[1]) for found in map(_CARD_FORWARDING.match, lines) if found]
    return float(began) + stamps[-1] if stamps else None


def final_verdict(host: Host, guest: Guest, since: float) -> Verdict:
    """The verdict on a guest. Waits until the guest has survived, was restarted, or the time is over."""
    until = time.monotonic() + limits.HAPPENS
    while True:
        verdict = host.verdict(guest.port, since)
        if verdict.survived or len(verdict.boot_ids) > 1 or time.monotonic() > until:
            return verdict
        time.sleep(1)


class Watch(Protocol):
    """A running probe from another host (domains.Probe)."""

    @property
    def target(self) -> tuple[str, str]:
        """The names of the probed host and guest."""

    def answers(self) -> Answers:
        """The answers until now."""


def update(
    controller: Controller,
    hosts: list[Host],
    kernel: str,
    page: Path | None = None,
    guests: Iterable[Guest] = GUESTS,
    probes: Iterable[Watch] = (),
    fault: str = "",
    **extra: Any,
) -> tuple[Play, dict[str, dict[str, Any]]]:
    """Run the update playbook, then report on every host and guest. page is where the playbook writes its own report.

    probes are running probes whose answers go into the report. fault is what the caller does to the update, for the ledger. extra are more
    variables for the playbook.
    """
    guests = tuple(guests)
    since = time.monotonic()
    before = {host.name: boot_of(host) for host in hosts}
    report = str(page.resolve()) if page else ""
    names = ",".join(before)
    given = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "hypervisor_update_report": report, **extra}
    with recorded(hosts, guests, fault) as begun:
        play = controller.play("kvm.liveupdate.update", "--limit", names, **given)
        answers: dict[str, dict[str, Answers]] = {}
        for probe in probes:
            answers.setdefault(probe.target[0], {})[probe.target[1]] = probe.answers()
        reports = {}
        for host in hosts:
            verdicts = {guest.name: final_verdict(host, guest, since) for guest in guests}
            told, seen, after = play.report.get(host.name, {}), answers.get(host.name), boot_of(host)
            record_end(begun[host.name], before[host.name] != after, verdicts)
            reports[host.name] = host_report(before[host.name], after, told, verdicts, seen, forwarding_at(host) if seen else None)
    return play, reports


@contextmanager
def recorded(hosts: Iterable[Host], guests: Iterable[Guest], fault: str = "") -> Iterator[dict[str, ledger.Update]]:
    """Record in the ledger that an update of each host begins. Whoever interrupts it does not make it a lost one; an error does."""
    names = [guest.name for guest in guests]
    begun = {host.name: ledger.begin(ledger.path(), host.kind, names, fault) for host in hosts}
    try:
        yield begun
    except KeyboardInterrupt:
        for update in begun.values():
            ledger.end(ledger.path(), update, ledger.INTERRUPTED)
        raise


def record_end(begun: ledger.Update, jumped: bool, verdicts: dict[str, Verdict]) -> None:
    """Record in the ledger what became of a host and its guests."""
    fates = {name: "" if verdict.survived else verdict.reason for name, verdict in verdicts.items()}
    ledger.end(ledger.path(), begun, ledger.JUMPED if jumped else ledger.STAYED, fates)
