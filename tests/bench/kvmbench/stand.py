# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One measurement of a scenario on a host of the lab."""

from __future__ import annotations

import time
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._stamps import parts
from kvmlab import limits
from kvmlab.errors import LabError
from kvmlab.lab import Lab
from kvmlab.story import pace
from kvmlab.story.controller import Controller, Guest, Play
from kvmlab.story.domains import Domain, define_domains, start_domains
from kvmlab.story.night import boot_of, final_verdict, other_kernel, start_guests, wait_alive

from .scenarios import Scenario

BENCH = Path(__file__).parent.parent
# Room for a guest of 2 GiB.
MEMORY_MIB = 4096


class Stand:
    """A host that is up, and what was prepared on it so far."""

    def __init__(self, lab: Lab, kind: str) -> None:
        (self.host,) = lab.up([kind], memory_mib=MEMORY_MIB)
        self._controller = Controller(lab)
        self._units: dict[str, Guest] = {}
        self._domains: dict[str, Domain] = {}

    def measure(self, scenario: Scenario) -> dict[str, float]:
        """Seconds by what they are. Raises LabError when it did not go as it should."""
        self._clear(scenario)
        if scenario.way == "preserve":
            self._prepare()
            return {"preserve": self._run_there("preserve.py", str(scenario.ram))}
        guests = self._start(scenario)
        if scenario.way in ("qemu", "libvirt"):
            return self._update(scenario, guests)
        return self._reboot(scenario, guests)

    def _clear(self, scenario: Scenario) -> None:
        """Nothing of an earlier measurement runs, and memory files have the pages that the scenario wants."""
        pages = "always" if scenario.thp else "never"
        done = self.host.ssh(
            "systemctl stop 'bench-*.service';"
            " for name in $(virsh list --name); do virsh destroy $name; done;"
            f" echo {pages} > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            limit_s=limits.MODULE,
        )
        if done.returncode:
            raise LabError(f"{self.host.name}: {done.stderr.strip()}")

    def _prepare(self) -> None:
        play = self._controller.play(
            "kvm.liveupdate.setup",
            hypervisor_setup_reboot_ok=True,
            hypervisor_setup_guest_units=[guest.unit for guest in self._units.values()],
            hypervisor_setup_domains=list(self._domains),
        )
        _succeeded(play, "setup")

    def _start(self, scenario: Scenario) -> list[Guest]:
        """Start the guests; a guest that was here before needs no new preparation."""
        ports = range(1, scenario.guests + 1)
        if scenario.has_domains:
            domains = [Domain(f"domain-{scenario.ram}-{port}", port, scenario.ram) for port in ports]
            if any(domain.name not in self._domains for domain in domains):
                self._domains |= {domain.name: domain for domain in domains}
                define_domains(self._controller, [self.host], domains)
                self._prepare()
            start_domains([self.host], domains)
            return list(domains)
        guests = [Guest(f"bench-{scenario.ram}-{port}", port, scenario.ram) for port in ports]
        if any(guest.name not in self._units for guest in guests):
            self._units |= {guest.name: guest for guest in guests}
            self._prepare()
        start_guests(self._controller, [self.host], guests)
        return guests

    def _update(self, scenario: Scenario, guests: list[Guest]) -> dict[str, float]:
        """A live update to the other kernel, and with one QEMU the floor beside it."""
        found: dict[str, float] = {}
        if scenario.name == "ours-qemu":
            found["slower"] = pace.slower(self.host)
            found["floor: QEMU"] = self._run_there("bare.py", guests[0].name)
            self.host.ssh(f"systemctl stop {guests[0].unit}")
            start_guests(self._controller, [self.host], guests)
        marked = pace.mark(self.host)
        since = time.monotonic()
        kernel = f"/boot/vmlinuz-{other_kernel(self.host)}"
        play = self._controller.play("kvm.liveupdate.update", "--limit", self.host.name, hypervisor_update_kernel=kernel)
        _succeeded(play, "update")
        told = play.report[self.host.name]
        found |= {"pause": self._longest(guests, since, survive=True), "controller": play.cpu_s}
        slowest = max(told["guests"].values(), key=lambda guest: guest["times"]["resumed"] - guest["times"]["paused"])
        found |= {f"part: {name}": seconds for name, seconds in parts(told, slowest)}
        found["retrieve"] = sum(guest["times"]["retrieved"] - guest["times"]["start"] for guest in told["guests"].values())
        called = pace.kexec_at(self.host, marked)
        booted = {name: at - (slowest["clock_step"] or 0.0) for name, at in told["times"].items()}
        found |= {"jump": booted["userspace"] - called}
        found |= {"systemd": called - slowest["times"].get("read", slowest["times"]["saved"]) + booted["units"] - booted["userspace"]}
        if "floor: QEMU" in found:
            found |= {"floor": found["jump"] + found["floor: QEMU"]}
        return found

    def _reboot(self, scenario: Scenario, guests: list[Guest]) -> dict[str, float]:
        """What one does without live update."""
        shutdown = "shutdown" if scenario.way == "shutdown-reboot" else "suspend"
        kernel = f"/boot/vmlinuz-{other_kernel(self.host)}" if scenario.way == "save-kexec" else ""
        since = time.monotonic()
        play = self._controller.play(str(BENCH / "reboot.yml"), "--limit", self.host.name, bench_on_shutdown=shutdown, bench_kernel=kernel)
        _succeeded(play, "reboot")
        for guest in guests:
            wait_alive(self.host, guest)
        return {"pause": self._longest(guests, since, survive=shutdown == "suspend"), "controller": play.cpu_s}

    def _longest(self, guests: list[Guest], since: float, survive: bool) -> float:
        """The longest pause, by the guests' heartbeats."""
        pauses = []
        for guest in guests:
            verdict = final_verdict(self.host, guest, since)
            if verdict.blackout_s is None or verdict.survived != survive:
                raise LabError(f"guest {guest.name}: {verdict.reason}")
            pauses.append(verdict.blackout_s)
        return max(pauses)

    def _run_there(self, program: str, *words: str) -> float:
        """Run one of the bench's programs on the host; it prints a number of seconds."""
        text = (BENCH / "on_host" / program).read_text()
        done = self.host.ssh(f"python3 - {' '.join(words)}", limit_s=limits.MODULE, stdin=text)
        if done.returncode:
            raise LabError(f"{self.host.name}: {program}: {done.stderr.strip()}")
        return float(done.stdout)

    def kernel(self) -> str:
        """The kernel that the host runs."""
        return boot_of(self.host).kernel


def _succeeded(play: Play, what: str) -> None:
    if play.code:
        raise LabError(f"{what} failed:\n{play.output[-3000:]}")
