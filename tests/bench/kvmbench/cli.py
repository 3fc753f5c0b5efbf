# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of the bench."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvmlab import cache
from kvmlab.errors import LabError
from kvmlab.lab import Lab, uninterrupted
from kvmlab.parts.kinds import KINDS, USUAL
from kvmlab.run import say

from . import plot, summary
from .native import NATIVE, Native, free_mib, that_fit
from .results import Result, append, due, of_setting, read
from .rooms import Rooms, rooms
from .scenarios import SCENARIOS, Scenario, chosen
from .stand import Stand
from .text import figures

REPOSITORY = Path(__file__).parents[3]
# The end of the name of the machine on native results.
NATIVELY = ", native"
MEASURED = ("plugins", "roles", "playbooks", "tests/lab", "tests/bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or write the report; errors are sentences."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    results = options.results or cache.root() / "bench.jsonl"
    try:
        if options.report:
            return report(results)
        if options.native:
            return measure_natively(results, chosen(options.only, NATIVE), options.rounds)
        return measure(results, chosen(options.only, SCENARIOS), options.rounds, options.kind)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; repeat the command to continue", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """What can be asked."""
    top = argparse.ArgumentParser(prog="tests/bench/run", description="Measure for how long guests are paused.")
    names, natives = (", ".join(scenario.name for scenario in known) for known in (SCENARIOS, NATIVE))
    top.add_argument("--only", default="", metavar="NAME,...", help=f"these instead of all; there is {names}; with --native {natives}")
    top.add_argument("--native", action="store_true", help="measure programs of user space in namespaces of this machine")
    top.add_argument("--rounds", type=int, default=5, help="how often each is to have been measured in the end (default: 5)")
    top.add_argument("--kind", choices=KINDS, default=USUAL[0], help=f"which host (default: {USUAL[0]})")
    top.add_argument("--results", type=Path, help="the file of results (default: bench.jsonl in the cache)")
    top.add_argument("--report", action="store_true", help="measure nothing: write bench.rst and bench.svg from the results")
    return top


def measure(path: Path, scenarios: Sequence[Scenario], rounds: int, kind: str) -> int:
    """Measure what is still missing, in a lab of its own; 1 when some of it failed."""
    code, where = digest(), f"{machine()}, {kind}"
    missing = due(scenarios, of_setting(read(path), code, where), rounds)
    say(f"bench: {len(missing)} measurements to do, results in {path}")
    failed = 0
    lab = Lab(Path(os.environ.get("KVM_LIVEUPDATE_LAB") or cache.root() / "lab-bench"))
    if missing:
        lab.down()
    try:
        stand = Stand(lab, kind) if missing else None
        for scenario in missing:
            assert stand
            result = one(stand, scenario, code, where)
            append(path, result)
            failed += bool(result.error)
            say(f"{scenario.name}: {result.error or ', '.join(f'{name} {value:.2f}' for name, value in result.seconds.items())}")
    finally:
        with uninterrupted():
            lab.down()
    return 1 if failed else 0


def one(stand: Stand, scenario: Scenario, code: str, where: str) -> Result:
    """One measurement, whatever comes of it."""
    load, begun, before = os.getloadavg()[0], time.time(), stand.kernel()
    try:
        seconds, error = stand.measure(scenario), ""
    except LabError as problem:
        seconds, error = {}, str(problem)
    return Result(scenario.name, begun, code, where, load, (before, "" if error else stand.kernel()), seconds, error)


def measure_natively(path: Path, measurements: Sequence[Native], rounds: int) -> int:
    """Measure without emulation what is still missing; 1 when some of it failed."""
    code, where = digest(), f"{machine()}{NATIVELY}"
    fit, others = that_fit(measurements, free_mib())
    if others:
        say(f"bench: too little free memory ({free_mib()} MiB) for {', '.join(measurement.name for measurement in others)}; left out")
    missing = due(fit, of_setting(read(path), code, where), rounds)
    say(f"bench: {len(missing)} measurements to do, results in {path}")
    failed = 0
    if missing:
        with rooms() as found:
            for measurement in missing:
                result = one_natively(found, measurement, code, where)
                append(path, result)
                failed += bool(result.error)
                say(f"{measurement.name}: {result.error or ', '.join(f'{name} {value:.3f}' for name, value in result.seconds.items())}")
    return 1 if failed else 0


def one_natively(found: Rooms, measurement: Native, code: str, where: str) -> Result:
    """One measurement without emulation, whatever comes of it."""
    load, begun = os.getloadavg()[0], time.time()
    try:
        seconds, error = measurement.measure(found), ""
    except LabError as problem:
        seconds, error = {}, str(problem)
    return Result(measurement.name, begun, code, where, load, (platform.release(), ""), seconds, error)


def report(path: Path) -> int:
    """Write the page and the picture, from the results that belong with the newest one, and the newest native ones."""
    done = [result for result in read(path) if not result.error]
    natives = [result for result in done if result.machine.endswith(NATIVELY)]
    done = [result for result in done if result not in natives]
    if not done:
        raise LabError(f"{path}: no measurement in the lab yet; tests/bench/run makes some")
    results = of_setting(done, done[-1].code, done[-1].machine)
    native = of_setting(natives, natives[-1].code, natives[-1].machine) if natives else []
    docs, found = REPOSITORY / "docs/docsite/rst", figures(results)
    pauses = {name: named["pause"] for name, named in found.items() if "pause" in named}
    (docs / "bench.rst").write_text(summary.page(results, native), encoding="utf-8")
    (docs / "bench.svg").write_text(plot.bars(pauses, found.get(summary.FLOOR_OF, {}).get("floor")), encoding="utf-8")
    print(f"{docs / 'bench.rst'} and bench.svg, from {len(results)} measurements in the lab and {len(native)} native ones")
    return 0


def digest() -> str:
    """A name for everything that is measured: results of other code are not put together with these."""
    found = hashlib.sha256()
    for folder in MEASURED:
        for file in sorted(path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            found.update(str(file.relative_to(REPOSITORY)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


def machine() -> str:
    """This machine, in words."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} processors"


if __name__ == "__main__":
    sys.exit(main())
