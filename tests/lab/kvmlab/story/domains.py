# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's libvirt domains: define them, start them, check their disks and connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import limits
from ..errors import LabError
from ..machines.host import Host
from ..watch import echo, probe
from ..watch.heartbeat import Tick
from ..watch.records import Records, check
from .controller import Controller, Guest, lab_playbook
from .night import wait_alive, wait_until


@dataclass(frozen=True)
class Domain(Guest):
    """A libvirt domain as a user would define it, so with anonymous memory.

    scsi: its disks are on virtio-scsi, and there are two: a qcow2 file without and a raw file with the host's page cache.
    uefi: OVMF starts it, and it has variables (NVRAM).
    """

    disk: bool = False
    network: bool = False
    tpm: bool = False
    virtio: bool = True
    agent: bool = False
    scsi: bool = False
    uefi: bool = False

    def address(self, host: Host) -> str:
        """Its address if it has a network: on the segment, made from the address of its first host."""
        return host.guest_address(self.port)

    def tells_all(self, tick: Tick) -> bool:
        """Whether a tick says all that this guest has to say: of its processors, TPM, firmware and second disk, too."""
        parts = ((self.tpm, tick.tpm_count), (self.uefi, tick.efi_count), (self.scsi, tick.synced_second))
        return super().tells_all(tick) and all(count for has, count in parts if has)


PLAIN = Domain("plain", 3, 128, agent=True)
DISK = Domain("disk", 4, 128, disk=True, network=True)
# Without virtio devices, so that it can move to a newer QEMU: 11.1 refuses the virtio queues of Debian's 10.0.
TPM = Domain("tpm", 5, 128, tpm=True, virtio=False)
DOMAINS = (PLAIN, DISK, TPM)
# What more people have. A host with one emulated processor is slow with all of them.
SCSI = Domain("scsi", 6, 128, disk=True, scsi=True)
SMP = Domain("smp", 7, 128, cpus=4)
UEFI = Domain("uefi", 8, 256, uefi=True)


def variables(domains: Iterable[Domain] = DOMAINS) -> dict[str, Any]:
    """These domains as the variable of the playbook domains.yml."""
    return {"lab_domains": [{**asdict(domain), "tty": domain.tty} for domain in domains]}


def define_domains(controller: Controller, hosts: list[Host], domains: Iterable[Domain] = DOMAINS) -> None:
    """Define domains on these hosts."""
    names = ",".join(host.name for host in hosts)
    play = controller.play(lab_playbook("domains"), "--limit", names, **variables(domains))
    if play.code:
        raise LabError(f"the lab's domains could not be defined:\n{play.output}")


# Libvirt waits only some seconds for a helper process such as swtpm, and an emulated host may take longer. Its autostart may be faster.
_START = """
for name in {names}; do
    for _try in 1 2 3; do
        virsh list --name | grep -qx "$name" && break
        virsh start "$name" >&2 && echo "$name" && break
    done
    virsh list --name | grep -qx "$name" || exit 1
done
"""


def start_domains(hosts: list[Host], domains: Iterable[Domain] = DOMAINS, limit_s: float = limits.HAPPENS) -> None:
    """Start the domains that are off, on all hosts in parallel. Wait until each domain has read all its memory once."""
    domains = tuple(domains)
    with ThreadPoolExecutor(len(hosts)) as pool:
        started = list(pool.map(lambda host: _start(host, domains), hosts))
    for host, before in zip(hosts, started, strict=True):
        for domain in domains:
            if domain.name in before:
                _wait_started(host, domain, before[domain.name], limit_s)
            wait_alive(host, domain, limit_s)


def _start(host: Host, domains: Iterable[Domain]) -> dict[str, str]:
    """Start the domains that are off. Returns for each the last boot id on its heartbeat before; it may be another guest's."""
    before = {domain.name: _last_boot(host, domain) for domain in domains}
    done = host.ssh(_START.format(names=" ".join(before)))
    if done.returncode:
        raise LabError(f"{host.name}: cannot start the domains {', '.join(before)}: {done.stderr.strip()}")
    return {name: before[name] for name in done.stdout.split()}


def _wait_started(host: Host, domain: Domain, before: str, limit_s: float) -> None:
    """Wait for a tick of another boot than before. Old ticks may still arrive."""
    what = f"{host.name}: first tick of {domain.name}"
    wait_until(what, lambda: ((seen := _last_boot(host, domain)) != before, f"boot {seen}"), limit_s)


def _last_boot(host: Host, domain: Domain) -> str:
    ticks = host.heartbeat(domain.port)
    return ticks[-1].boot_id if ticks else ""


def shut_down(host: Host, domain: Domain) -> None:
    """Shut the domain down by ACPI and wait until it is off."""
    done = host.ssh(f"virsh shutdown {domain.name} --mode acpi")
    if done.returncode:
        raise LabError(f"{host.name}: cannot shut down domain {domain.name}: {done.stderr.strip()}")

    def look() -> tuple[bool, str]:
        state = host.ssh(f"virsh domstate {domain.name}").stdout.strip()
        return state == "shut off", state

    wait_until(f"{host.name}: domain {domain.name} off", look)


def records(host: Host, domain: Domain, second: bool = False) -> Records:
    """The records on the disk of a domain, or on its second disk. It must be off. The file system is checked, but not repaired."""
    raw = f"/var/tmp/{domain.name}.raw"
    image = f"/var/lib/libvirt/images/{domain.name}"
    copy = (f"cp --sparse=always {image}-second.raw {raw}",)
    convert = (f"qemu-img check -q {image}.qcow2", f"qemu-img convert -O raw {image}.qcow2 {raw}")
    steps = (
        *(copy if second else convert),
        f"e2fsck -fn {raw} >&2",
        f"debugfs -R 'cat /records' {raw}",
    )
    done = host.ssh(f"trap 'rm -f {raw}' EXIT; {' && '.join(steps)}")
    if done.returncode:
        raise LabError(f"{host.name}: cannot read the disk of {domain.name}, or it has errors: {done.stderr}{done.stdout[-300:]}")
    return check(done.stdout)


def wait_for_clock(host: Host, domain: Domain) -> None:
    """Wait until the host has set the clock of a domain that it has restored."""

    def look() -> tuple[bool, str]:
        done = host.ssh(f"cat /var/lib/kvm-liveupdate/guests/{domain.name}.json")
        clock = json.loads(done.stdout).get("clock", "not tried yet") if done.returncode == 0 else done.stderr.strip()
        return clock == "synchronised", clock

    wait_until(f"{host.name}: clock of {domain.name} set", look)


def clock_lag(host: Host, domain: Domain) -> float:
    """How many seconds a domain's time of day is behind that of its host. Waits for the next tick."""
    since, asked = time.monotonic(), time.time()
    there = float(host.ssh("date +%s.%N").stdout)
    ahead = there - (asked + time.time()) / 2  # ticks have the time of this machine, not of the host

    def look() -> tuple[bool, str]:
        last = host.heartbeat(domain.port)[-1]
        return last.arrived > since, f"tick {last.number}"

    wait_until(f"{host.name}: a tick of {domain.name}", look)
    tick = host.heartbeat(domain.port)[-1]
    if tick.guest_wall is None:
        raise LabError(f"{host.name}: the ticks of {domain.name} do not contain its time of day")
    return tick.wall + ahead - tick.guest_wall


class _Program:
    """A program of the lab that runs on one host and talks to a domain on another host. Its output is its log."""

    def __init__(self, program: ModuleType, client: Host, server: Host, domain: Domain) -> None:
        name = program.__name__.rpartition(".")[2]
        self.target = (server.name, domain.name)
        self._source = Path(str(program.__file__)).read_text()
        self._client = client
        self._address = domain.address(server)
        self._file = f"/root/{name}.py"
        self._unit = f"{name}-{server.name}-{domain.name}"
        self._log = f"/var/log/{self._unit}.log"

    def start(self) -> None:
        """Start it, or start it again with an empty log."""
        self.close()
        self._client.ssh(f"cat > {self._file}", stdin=self._source)
        output = f"-p StandardOutput=append:{self._log}"
        started = self._client.ssh(f"rm -f {self._log}; systemd-run --unit {self._unit} {output} python3 {self._file} {self._address}")
        if started.returncode:
            raise LabError(f"{self._client.name}: cannot start {self._file}: {started.stderr.strip()}")

    def log(self) -> tuple[float, str]:
        """The present time of its host's monotonic clock, and its output until then."""
        done = self._client.ssh(f"cut -d' ' -f1 /proc/uptime; cat {self._log}")
        uptime, _newline, log = done.stdout.partition("\n")
        return float(uptime), log

    def close(self) -> None:
        """End it if it runs."""
        self._client.ssh(f"systemctl stop {self._unit}; systemctl reset-failed {self._unit}")


class Connection(_Program):
    """A TCP connection from one host to a domain on another host."""

    def __init__(self, client: Host, server: Host, domain: Domain) -> None:
        super().__init__(echo, client, server, domain)

    def open(self) -> None:
        """Connect, and wait for the first echo."""
        self.start()

        def look() -> tuple[bool, str]:
            seen = self.echoes()
            return seen.count > 0, seen.reason

        wait_until(f"{self._client.name}: an echo from {self._address}", look)

    def echoes(self) -> echo.Echoes:
        """The state of the connection until now."""
        now, log = self.log()
        return echo.read(log, now)


class Probe(_Program):
    """Datagrams from one host to a domain on another host, many a second. They show how long the domain does not answer."""

    def __init__(self, client: Host, server: Host, domain: Domain) -> None:
        super().__init__(probe, client, server, domain)

    def open(self) -> None:
        """Start it and wait for the first answer."""
        # A permanent ARP entry. Otherwise the kernel asks for the address only once a second while nobody answers.
        mac = f"52:54:00:77:01:{self._address.rpartition('.')[2]}"
        self._client.ssh(f"ip neighbour replace {self._address} lladdr {mac} dev br0 nud permanent")
        self.start()

        def look() -> tuple[bool, str]:
            return self.answers().count > 0, "no answer"

        wait_until(f"{self._client.name}: an answer from {self._address}", look)

    def answers(self) -> probe.Answers:
        """The answers until now."""
        return probe.read(self.log()[1])
