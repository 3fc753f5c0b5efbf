# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of the documentation: what was done, what must hold, what was seen. And the command that writes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

from kvmlab.watch import ledger

from . import cases, results, schedule
from .cases import Case
from .results import FAILED, HELD, REPOSITORY, Result

PAGE = REPOSITORY / "docs/docsite/rst/faults.rst"
TURNS = (1, 2)
NOT_RUN = "not run yet"


def main() -> int:
    """Add what this machine found to the repository's results, and write the page. The exit code is 0 only if nothing failed."""
    known = results.read(results.KEPT, results.path())
    results.write(results.KEPT, known)
    PAGE.write_text(page(known, ledger.runtime()), encoding="utf-8")
    print(f"written: {results.KEPT} and {PAGE}")
    return int(any(result.end == FAILED for turn in TURNS for result in results.latest(known, ledger.runtime(), turn).values()))


def page(known: Iterable[Result], runtime: str) -> str:
    """The page for a version of the runtime. Pure."""
    known = list(known)
    found = {turn: results.latest(known, runtime, turn) for turn in TURNS}
    every = [name for case in cases.CASES for name in cases.tests(case)]
    sums = "; ".join(f"pass {turn}: {_sum(every, found[turn])}" for turn in TURNS)
    header = ("", "What is done", "What must hold", "What was seen", "Then")
    table = "\n".join(_cells(row) for row in (header, *(_row(case, found) for case in cases.CASES)))
    widths = "4 24 24 30 18"
    return f"""..
  Copyright: kvm.liveupdate contributors
  SPDX-License-Identifier: GPL-3.0-or-later

.. _ansible_collections.kvm.liveupdate.docsite.faults:

The fault suite
===============

The fault suite injects faults into updates of hosts in :ref:`the lab <ansible_collections.kvm.liveupdate.docsite.lab>`. Each test starts a
prepared host with two guests in systemd units (*web*, *db*) and two libvirt domains (*disk*, *plain*). It begins an update and injects a
fault in one of its steps. Then it checks what must hold.

``tests/run --faults`` runs all tests (:ref:`how <ansible_collections.kvm.liveupdate.docsite.lab.faults>`). ``tests/run --faults --report``
wrote this page from ``tests/faults/results.jsonl``.

The results are of one version of the code that runs on hosts: the one with the digest ``{runtime}``. Results of other versions are not
on this page. {sums[0].upper()}{sums[1:]}.

After every fault all of this must hold:

* No guest runs on wrong memory: within a boot of a guest no tick is missing and none comes again, and the checksum of its memory is the
  same.
* No guest runs twice.
* No guest is silently gone. It is alive on its own memory, the fault itself ended it, or its record says that it is lost or saved. Then the
  host says why.
* What the host records and what the run reports is true.
* One documented action brings the host back to work: all guests run, and the next update would be accepted.
* The guest with a disk has every record that it ever flushed, and its file system has no error.

.. list-table::
   :header-rows: 1
   :widths: {widths}

{table}

"What was seen" has the date of each pass. The words before a colon are the variants of the test: the step in which the fault comes, the
kind of host, or what is changed. "Then" is the documented action: :ref:`ansible_collections.kvm.liveupdate.docsite.runbooks`.

Faults of the hardware and its drivers are not in this list: the lab's hosts are emulated. A power cut is the end of the emulator. A real
host may lose more of what it wrote to its disk but did not flush.
"""


def _sum(every: Sequence[str], found: dict[str, Result]) -> str:
    held = sum(1 for name in every if name in found and found[name].end == HELD)
    failed = sum(1 for name in every if name in found and found[name].end == FAILED)
    if not held and not failed:
        return NOT_RUN
    return f"{held} of {len(every)} tests held" + (f", {failed} failed" if failed else "")


def _row(case: Case, found: dict[int, dict[str, Result]]) -> tuple[str, ...]:
    names = dict(zip(cases.tests(case), case.variants, strict=True))
    seen = [line for turn in TURNS for line in _seen(names, found[turn], turn)]
    named = ", ".join(f"``{name}``" for name in case.elsewhere.split(", ") if name)
    done = f"**{case.title}.** {case.done}" + (f" Partly tested in {named}." if named else "")
    return str(case.number), done, case.holds, " ".join(seen) or NOT_RUN, case.action


def _seen(names: dict[str, str], found: dict[str, Result], turn: int) -> Iterable[str]:
    """What was seen in a pass. Tests that saw the same are told together."""
    ran = [name for name in names if name in found]
    if not ran:
        return
    dates = sorted({time.strftime("%Y-%m-%d", time.gmtime(found[name].at)) for name in ran})
    yield f"*Pass {turn}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:*"
    groups: dict[tuple[str, str], list[str]] = {}
    for name in ran:
        result = found[name]
        plan = f" (seed {result.seed}: {' '.join(map(str, schedule.schedule(result.seed)))})" if result.seed is not None else ""
        groups.setdefault((result.end, _plain(result.seen)), []).append(f"{names[name]}{plan}")
    for (end, text), variants in groups.items():
        yield f"{', '.join(variants)}: {'**FAILED**, ' if end == FAILED else ''}{text or 'all held'}."
    left = [variant for name, variant in names.items() if name not in found]
    if left:
        yield f"{', '.join(left)}: {NOT_RUN}."


def _plain(text: str) -> str:
    """Text that reStructuredText shows as it is."""
    for sign in "\\*`|_":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split()).rstrip(".")


def _cells(cells: Sequence[str]) -> str:
    return "\n".join(f"   {'*' if number == 0 else ' '} - {cell}".rstrip() for number, cell in enumerate(cells))


if __name__ == "__main__":
    sys.exit(main())
