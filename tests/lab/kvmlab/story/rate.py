# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often an update loses a host or a guest: make updates, and write what the ledgers say."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from .. import cache
from ..errors import LabError
from ..lab import Lab, uninterrupted
from ..machines.host import Host
from ..parts.kinds import KINDS, USUAL
from ..run import say
from ..watch import ledger
from ..watch.ledger import Figures, Update
from .controller import GUESTS, Controller, Guest
from .domains import DISK, PLAIN, Domain, define_domains, start_domains
from .night import boot_of, final_verdict, other_kernel, record_end, recorded, start_guests, wait_alive

REPOSITORY = Path(__file__).parents[4]
KEPT = REPOSITORY / "tests/rate/updates.jsonl"
PAGE = REPOSITORY / "docs/docsite/rst/rate.rst"
DOMAINS: tuple[Domain, ...] = (DISK, PLAIN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make updates, or write the report. The exit code is 0 only if nothing was lost."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return report() if options.report else measure(options.kind, options.updates)
    except LabError as error:
        print(f"rate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rate: interrupted; what was recorded is kept", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line options."""
    top = argparse.ArgumentParser(prog="tests/rate/run", description="Count how often an update loses a host or a guest.")
    top.add_argument("--updates", type=int, default=10, help="how many updates to make (default: 10)")
    top.add_argument("--kind", choices=KINDS, default=USUAL[0], help=f"the kind of the host (default: {USUAL[0]})")
    told = "make no update: add what this machine recorded to tests/rate/updates.jsonl, and write the page"
    top.add_argument("--report", action="store_true", help=told)
    return top


def measure(kind: str, updates: int) -> int:
    """Make so many updates of one host under two units and two domains. Stops at the first loss."""
    lab = Lab(cache.root() / "lab-rate")
    lab.down()
    guests: tuple[Guest, ...] = (*GUESTS, *DOMAINS)
    try:
        (host,) = lab.up([kind])
        controller = Controller(lab)
        define_domains(controller, [host], DOMAINS)
        play = controller.play("kvm.liveupdate.setup", hypervisor_setup_domains=[domain.name for domain in DOMAINS])
        if play.code:
            raise LabError(f"the setup playbook failed:\n{play.output}")
        start_guests(controller, [host], GUESTS)
        start_domains([host], DOMAINS)
        for number in range(1, updates + 1):
            begun = time.monotonic()
            _update(controller, host, guests)
            say(f"update {number} of {updates}: nothing lost, {time.monotonic() - begun:.0f} s")
    finally:
        with uninterrupted():
            lab.down()
    return 0


def _update(controller: Controller, host: Host, guests: Collection[Guest]) -> None:
    """One update with the modules that act on the host. Raises if it loses something."""
    for guest in guests:
        wait_alive(host, guest)
    names, since, before = [guest.name for guest in guests], time.monotonic(), boot_of(host)
    steps = (
        ("kexec_image", {"kernel": f"/boot/vmlinuz-{other_kernel(host)}"}),
        ("guest", {"names": names, "state": "preserved"}),
        ("kexec", {"guests": names}),
    )
    with recorded([host], guests) as begun:
        for module, arguments in steps:
            answer = controller.ask(host.name, module, **arguments)
            if answer["failed"]:
                break
        verdicts = {guest.name: final_verdict(host, guest, since) for guest in guests}
        record_end(begun[host.name], boot_of(host) != before, verdicts)
    lost = [f"{name}: {verdict.reason}" for name, verdict in verdicts.items() if not verdict.survived]
    if lost or answer["failed"]:
        raise LabError(f"{host.name}: {'; '.join(lost) or 'no guest is lost'}; the last step said {answer.get('msg') or 'nothing'}")


def report() -> int:
    """Add what this machine recorded to the repository's ledger, and write the page."""
    updates = ledger.read(KEPT, ledger.path())
    ledger.write(KEPT, updates)
    PAGE.write_text(page(updates, ledger.runtime()), encoding="utf-8")
    print(f"written: {KEPT} and {PAGE}")
    return 0 if not ledger.figures(ledger.counted(updates)).lost_updates else 1


def page(updates: Collection[Update], runtime: str) -> str:
    """The page of the documentation. Pure."""
    counted = ledger.counted(updates)
    ours = [update for update in counted if update.runtime == runtime]
    rows = [(kind, [update for update in ours if update.kind == kind]) for kind in sorted({update.kind for update in ours})]
    shown = [(f"``{kind}``", some) for kind, some in rows] + [("all kinds, this version", ours), ("all versions", counted)]
    injected = [update for update in updates if update.fault]
    days = [time.strftime("%Y-%m-%d", time.gmtime(update.at)) for update in sorted(counted, key=lambda update: update.at)]
    dates = f"\n\nThe updates that are counted here began between {days[0]} and {days[-1]}." if days else ""
    return f"""..
  Copyright: kvm.liveupdate contributors
  SPDX-License-Identifier: GPL-3.0-or-later

.. _ansible_collections.kvm.liveupdate.docsite.rate:

How often an update fails
=========================

``tests/rate/run --report`` wrote this page from ``tests/rate/updates.jsonl``. Each line of that file is one update of a host in
:ref:`the lab <ansible_collections.kvm.liveupdate.docsite.lab>`: a loop of updates (``tests/rate/run``), the tests, and the demo.

* The record of an update is on disk before the update begins. If nobody saw its end, the host and all its guests count as lost.
* A guest counts as lost unless it continues on the same memory: the same boot ID, no tick missing, the same checksum.
* An update that the host undid before the jump is not counted, unless it lost a guest.
* Updates with an injected fault are not counted. {len(injected)} of these are recorded.

"This version" is ``{runtime}``: the digest of the code that runs on hosts. "At most" is the upper bound of the failure rate with a
confidence of 95 % (Clopper and Pearson).{dates}

{_table(shown)}
Updates in the lab do not show failures of hardware or of its drivers. Before you update a fleet, update one host of each model.
"""


def _table(rows: Iterable[tuple[str, Collection[Update]]]) -> str:
    header = ("", "host updates", "lost", "rate, at most", "guests in them", "lost", "rate, at most")
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in (header, *(_row(name, ledger.figures(some)) for name, some in rows)):
        lines += [f"   {'*' if number == 0 else ' '} - {cell}".rstrip() for number, cell in enumerate(cells)]
    return "\n".join([*lines, ""])


def _row(name: str, seen: Figures) -> tuple[str, ...]:
    def bound(lost: int, total: int) -> str:
        return f"{100 * ledger.upper_bound(lost, total):.2g} %" if total else "not measured"

    return (
        name,
        *(str(seen.updates), str(seen.lost_updates), bound(seen.lost_updates, seen.updates)),
        *(str(seen.guests), str(seen.lost_guests), bound(seen.lost_guests, seen.guests)),
    )


if __name__ == "__main__":
    sys.exit(main())
