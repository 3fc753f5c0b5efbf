# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The demo: two hypervisors move onto a new kernel under their guests."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from .controller import GUESTS, Controller
from .domains import DISK, DOMAINS, Probe, define_domains, start_domains
from .errors import LabError
from .lab import KINDS, Lab, uninterrupted
from .night import start_guests, update
from .report import all_survived, table
from .run import say

# A host's one emulated processor has little to spare for more of them.
UNITS = GUESTS[:1]


def main() -> int:
    """Exit 0 only if every guest survived."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    lab = Lab()
    if any(host.record for host in lab.hosts()):
        print("demo: the lab is up already; end it with tests/lab/lab down, then run the demo again", file=sys.stderr)
        return 1
    lab.down()  # a host that is down may have a disk of an earlier night
    try:
        return _night(lab, started)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        with uninterrupted():
            lab.down()


def _night(lab: Lab, started: float) -> int:
    hosts = lab.up(KINDS)
    controller = Controller(lab, show=True)
    define_domains(controller, hosts)
    _step("make the hosts capable, and prepare their libvirt domains")
    play = controller.play("kvm.liveupdate.setup", hypervisor_setup_domains=[domain.name for domain in DOMAINS])
    if play.code:
        raise LabError("the setup playbook failed, see above")
    _step(f"start {len(UNITS)} guest as a systemd unit and {len(DOMAINS)} libvirt domains on each host")
    start_guests(controller, hosts, UNITS)
    start_domains(hosts)
    target = newest_kernel(hosts[0].ssh("ls /boot").stdout)
    _step(f"update {len(hosts)} hosts to {target}, one at a time, under their guests")
    probe = Probe(hosts[1], hosts[0], DISK)  # not the other way round: its own host's update would end it before
    probe.open()
    page, path = Path("report.html"), Path("report.json")
    play, reports = update(controller, hosts, target, page, (*UNITS, *DOMAINS), [probe])
    path.write_text(json.dumps({"hosts": reports, "playbook_exit_code": play.code}, indent=2) + "\n")
    print(f"\n{table(reports)}\n\nreport: {path.resolve()} and {page.resolve()}, {time.monotonic() - started:.0f} s in all")
    return 0 if play.code == 0 and all_survived(reports) else 1


def _step(what: str) -> None:
    say(f"== {what}")


def newest_kernel(listing: str) -> str:
    """The highest release among the vmlinuz-* in a listing of /boot."""
    releases = [word.removeprefix("vmlinuz-") for word in listing.split() if word.startswith("vmlinuz-")]
    return max(releases, key=lambda release: [int(part) for part in release.split(".")])


if __name__ == "__main__":
    sys.exit(main())
