# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The demo: update hypervisors to a new kernel while their guests stay in memory."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError
from ..lab import Lab, uninterrupted
from ..machines.host import Host
from ..parts.kinds import USUAL
from ..run import say
from ..watch.report import all_survived, table
from . import pace
from .controller import GUESTS, Controller, Guest
from .domains import DISK, DOMAINS, Domain, Probe, define_domains, start_domains
from .night import other_kernel, start_guests, update


@dataclass(frozen=True)
class Programme:
    """What the demo shows."""

    kinds: tuple[str, ...]
    units: tuple[Guest, ...]
    domains: tuple[Domain, ...]
    twins: bool


QUICK = Programme(kinds=USUAL[:1], units=GUESTS[:1], domains=(DISK,), twins=True)
# One unit only: a host has one emulated processor.
FULL = Programme(kinds=USUAL, units=GUESTS[:1], domains=DOMAINS, twins=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. The exit code is 0 only if every guest has survived."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    lab = Lab()
    if any(host.record for host in lab.hosts()):
        print("demo: the lab is running; stop it with tests/lab/lab down, then run the demo again", file=sys.stderr)
        return 1
    lab.down()  # a stopped host may still have the disk of an earlier run
    try:
        return _night(lab, FULL if options.full else QUICK)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        with uninterrupted():
            lab.down()


def parser() -> argparse.ArgumentParser:
    """The command line options."""
    top = argparse.ArgumentParser(prog="demo", description="Update emulated hypervisors to a new kernel while their guests stay in memory.")
    top.add_argument("--full", action="store_true", help="two hosts with four guests each, from Linux 7.2 to 7.3")
    return top


def _night(lab: Lab, programme: Programme) -> int:
    started = time.monotonic()
    hosts = lab.up(programme.kinds, twins=programme.twins)
    controller = Controller(lab, show=True)
    define_domains(controller, hosts, programme.domains)
    _step("prepare the hosts and their libvirt domains")
    play = controller.play("kvm.liveupdate.setup", hypervisor_setup_domains=[domain.name for domain in programme.domains])
    if play.code:
        raise LabError("the setup playbook failed, see its output above")
    _step(f"start the guests on each host: {', '.join(guest.name for guest in (*programme.units, *programme.domains))}")
    start_guests(controller, hosts, programme.units)
    start_domains(hosts, programme.domains)
    slower = pace.slower(hosts[0])
    target = other_kernel(hosts[0])
    _step(f"update to Linux {target}, one host at a time, while the guests stay in memory")
    probes = _probes(hosts)
    for probe in probes:
        probe.open()
    page, path = Path("report.html"), Path("report.json")
    marks = {host.name: pace.mark(host) for host in hosts}
    play, reports = update(controller, hosts, target, page, (*programme.units, *programme.domains), probes)
    floors = {host.name: pace.floor(host, marks[host.name], play.report.get(host.name, {})) for host in hosts}
    note = pace.sentence(slower, floors)
    path.write_text(json.dumps({"note": note, "hosts": reports, "playbook_exit_code": play.code}, indent=2) + "\n")
    if page.exists():  # the playbook writes it last
        pace.add_note(page, note)
    took = time.monotonic() - started
    print(f"\n{table(reports)}\n\n{note}\n\nreport: {path.resolve()} and {page.resolve()}; the demo took {took / 60:.0f} minutes")
    return 0 if play.code == 0 and all_survived(reports) else 1


def _probes(hosts: Sequence[Host]) -> list[Probe]:
    """A probe from the second host to a guest of the first, if there are two hosts. The first host is updated first."""
    return [Probe(hosts[1], hosts[0], DISK)] if len(hosts) > 1 else []


def _step(what: str) -> None:
    say(f"== {what}")


if __name__ == "__main__":
    sys.exit(main())
