# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""``tests/mutation/run``, once the environments are there."""

from __future__ import annotations

import argparse
import datetime
import json
import queue
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from . import equivalent, known, report
from .checkout import ROOT, TESTS, Checkout, MutationError
from .pool import Seen, Verdict, Worker, limit_of

PROCESSES = 2
FIGURES = ROOT / "tests/mutation/FIGURES.md"
SAFETY = ROOT / "tests/mutation/safety.txt"
_PROGRESS_S = 20.0

if t.TYPE_CHECKING:
    from .cosmic import Session


def say(text: str) -> None:
    print(text, flush=True)


class Pool:
    """Workers, each asked by one thread at a time."""

    def __init__(self, checkout: Checkout, python: str, processes: int) -> None:
        self._workers = [Worker(checkout, python) for _ in range(processes)]
        self._free: queue.Queue[Worker] = queue.Queue()
        for worker in self._workers:
            self._free.put(worker)

    def each(self, step: t.Callable[[Worker, str], Verdict], names: t.Sequence[str]) -> t.Iterator[tuple[str, Verdict]]:
        """Do a step for all names, some at the same time; yields each with its verdict when that is there."""

        def ask(name: str) -> Verdict:
            worker = self._free.get()
            try:
                return step(worker, name)
            finally:
                self._free.put(worker)

        with ThreadPoolExecutor(max_workers=len(self._workers)) as threads:
            jobs = {threads.submit(ask, name): name for name in names}
            try:
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
            except BaseException:
                self.close()
                threads.shutdown(cancel_futures=True)
                raise

    def baseline(self, checkout: Checkout, files: t.Sequence[str], tests: list[str]) -> Seen:
        """The same for all workers, so that all are warm; returns what the first one saw."""
        with ThreadPoolExecutor(max_workers=len(self._workers)) as threads:
            first, *_others = threads.map(lambda worker: worker.baseline(checkout, files, tests), self._workers)
        return first

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def run_known(options: argparse.Namespace) -> int:
    """Break each line of the table, and see which test notices."""
    checkout = Checkout()
    entries = known.read(known.TABLE.read_text(encoding="utf-8"))
    wrong = set(options.what) - {str(number) for number in entries}
    if wrong:
        raise MutationError(f"known.toml has no entry {', '.join(sorted(wrong))}; its numbers are 1 to {max(entries)}")
    chosen = [entry for number, entry in sorted(entries.items()) if not options.what or str(number) in options.what]
    bad = known.problems(chosen, checkout)
    if bad:
        raise MutationError("\n".join(bad))
    tests = {str(entry.number): _tests_of(entry.files, checkout) for entry in chosen}
    broken = {str(entry.number): known.broken(entry, checkout) for entry in chosen}
    pool = Pool(checkout, options.python, options.processes)
    try:
        everything = sorted({test for some in tests.values() for test in some})
        files = sorted({file for texts in broken.values() for file in texts})
        say(f"{len(chosen)} entries; first the {len(everything)} test files with nothing broken")
        seen = pool.baseline(checkout, files, everything)
        limit = limit_of(seen.taken(seen.seconds))
        killers = {str(entry.number): list(entry.killed_by) for entry in chosen}

        def step(worker: Worker, number: str) -> Verdict:
            if killers[number]:
                found = worker.run(broken[number], killers[number], limit)
                if found.outcome == "killed":
                    return found
            found = worker.run(broken[number], tests[number], limit)
            return found._replace(what=f"not by {', '.join(killers[number])}") if killers[number] else found

        results: dict[int, Verdict] = {}
        for number, found in pool.each(step, list(broken)):
            results[int(number)] = found
            say(f"{len(results):3}/{len(chosen)} entry {number}: {found.outcome} {found.test}")
    finally:
        pool.close()
    say("")
    say(known_table(chosen, results))
    (options.cache / "known.json").parent.mkdir(parents=True, exist_ok=True)
    if not options.what:
        kept = {"surroundings": checkout.surroundings, "table": known_table(chosen, results)}
        (options.cache / "known.json").write_text(json.dumps(kept), encoding="utf-8")
    noticed = sum(1 for found in results.values() if found.outcome == "killed")
    misnamed = [number for number, found in sorted(results.items()) if found.what.startswith("not by ")]
    say(f"\n{noticed} of {len(chosen)} are noticed by a test")
    if misnamed:
        say(f"not killed by the test that killed_by names: {', '.join(map(str, misnamed))}")
    return 0 if noticed == len(chosen) and not misnamed else 1


def _tests_of(files: t.Iterable[str], checkout: Checkout) -> list[str]:
    """The tests of all these files, in their order; all tests of the plugins take in the others."""
    tests = list(dict.fromkeys(test for file in files for test in checkout.tests_of(file)))
    return [TESTS] if TESTS in tests else tests


def known_table(entries: t.Iterable[known.Entry], results: dict[int, Verdict]) -> str:
    """Which test kills which, in Markdown. Pure."""
    lines = ["| number | purpose | outcome | by |", "| ---: | --- | --- | --- |"]
    for entry in entries:
        found = results[entry.number]
        outcome = f"{found.outcome}, {found.how}" if found.how else found.outcome
        by = found.test or found.what
        lines.append(f"| {entry.number} | {entry.purpose} | {outcome} | {by.splitlines()[0] if by else ''} |")
    return "\n".join(lines)


def _patterns(given: list[str]) -> list[str]:
    if given:
        return given
    lines = (line.partition("#")[0].strip() for line in SAFETY.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _sessions(checkout: Checkout, options: argparse.Namespace) -> list[Session]:
    from .cosmic import Session  # only this needs cosmic-ray

    paths = dict.fromkeys(path for pattern in _patterns(options.what) for path in checkout.matching(pattern))
    sessions = []
    for path in paths:
        sessions.append(Session(checkout, path, options.cache))
        say(f"{path}: {len(sessions[-1].mutants())} mutants")
    return sessions


def run_new(options: argparse.Namespace) -> int:
    """Try all mutants of the files that were not tried yet."""
    checkout = Checkout()
    equivalents = equivalent.read(equivalent.TABLE.read_text(encoding="utf-8"))
    sessions = _sessions(checkout, options)
    pending = {session.path: session.pending(options.again) for session in sessions}
    total, done, begun, told = sum(map(len, pending.values())), 0, time.monotonic(), time.monotonic()
    if total:
        pool = Pool(checkout, options.python, options.processes)
        try:
            paths = [path for path, jobs in pending.items() if jobs]
            say(f"{total} mutants; first the tests with nothing broken")
            seen = pool.baseline(checkout, paths, [TESTS])
            for session in sessions:
                jobs = pending[session.path]
                whole = checkout.tests_of(session.path)
                if jobs:
                    say(f"{session.path}: {len(jobs)} mutants to try")

                def step(worker: Worker, job: str, session: Session = session, whole: list[str] = whole) -> Verdict:
                    return worker.try_out({session.path: session.mutated(job)}, seen, session.lines(job), whole)

                for job, found in pool.each(step, jobs):
                    session.record(job, found)
                    done += 1
                    if time.monotonic() - told > _PROGRESS_S:
                        told = time.monotonic()
                        left = (told - begun) / done * (total - done) / 60
                        say(f"{done} of {total} tried, about {left:.0f} minutes left")
        finally:
            pool.close()
    return _tell(sessions, equivalents)


def _tell(sessions: list[Session], equivalents: dict[tuple[str, str, str], equivalent.Equivalent]) -> int:
    mutants = {session.path: session.mutants() for session in sessions}
    everyone = [mutant for some in mutants.values() for mutant in some]
    by_file = {path: report.figures(some, equivalents) for path, some in mutants.items()}
    stale = report.stale(equivalents, everyone)
    say("\n".join(("", report.unnoticed(everyone, equivalents), "", report.table(by_file), *stale)))
    below = [path for path, row in by_file.items() if not row.is_enough]
    wanted = f"{report.KILLED_AT_LEAST:g} % killed and at most {report.EQUIVALENT_AT_MOST:g} % equivalent"
    say(f"\n{wanted}: " + (f"not in {', '.join(below)}" if below else "in each file"))
    return 1 if below or stale else 0


def run_figures(options: argparse.Namespace) -> int:
    """Write down what the last runs found."""
    checkout = Checkout()
    equivalents = equivalent.read(equivalent.TABLE.read_text(encoding="utf-8"))
    sessions = _sessions(checkout, options)
    by_file = {session.path: report.figures(session.mutants(), equivalents) for session in sessions}
    try:
        kept = json.loads((options.cache / "known.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = {}
    known_lines = kept["table"] if kept.get("surroundings") == checkout.surroundings else "Not tried with these sources and tests."
    FIGURES.write_text(_page(_commit(), known_lines, report.table(by_file)), encoding="utf-8")
    say(f"written: {FIGURES}")
    return 0


def _commit() -> str:
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "plugins", "tests/unit"], capture_output=True, text=True, check=False).stdout
    return f"{name or 'no commit'}{' with changes' if changed else ''}"


def _page(commit: str, known_lines: str, table: str) -> str:
    return f"""<!--
Copyright: kvm.liveupdate contributors
SPDX-License-Identifier: GPL-3.0-or-later
-->

# What the unit tests notice

Commit {commit}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}. Written by `tests/mutation/run --figures`;
CONTRIBUTING.md says how to get these figures.

## The known lines

{known_lines}

## All mutants of the files on which safety rests

The goal: at least {report.KILLED_AT_LEAST:g} % killed, at most {report.EQUIVALENT_AT_MOST:g} % equivalent. All percentages are of all
mutants of the file.

{table}
"""


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tests/mutation/run", description="Break the collection, and see which unit test notices.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--known", dest="run", action="store_const", const=run_known, help="the lines of known.toml; WHAT: numbers")
    mode.add_argument("--new", dest="run", action="store_const", const=run_new, help="mutants by cosmic-ray; WHAT: patterns of files")
    mode.add_argument("--figures", dest="run", action="store_const", const=run_figures, help="write FIGURES.md from the last runs")
    parser.add_argument("what", nargs="*", metavar="WHAT", help="without any: the whole table, or the files that safety.txt lists")
    parser.add_argument("--again", action="store_true", help="with --new: try also those that were killed before")
    parser.add_argument("--processes", type=int, choices=range(1, PROCESSES + 1), default=PROCESSES)
    parser.add_argument("--python", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        return int(options.run(options))
    except MutationError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was tried is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
