# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asking workers what the unit tests say to broken sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

from .checkout import Checkout, MutationError

# Namespaces of its own; for root also without what the kernel grants nobody else: to reboot, kexec, set the clock and load modules.
_SECLUDED = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
_AS_ROOT = ("setpriv", "--bounding-set=-sys_boot,-sys_time,-sys_module")
# The first run also loads what later ones find loaded.
BASELINE_LIMIT_S = 900.0


class Verdict(t.NamedTuple):
    """What the unit tests say to a broken source.

    ``outcome`` is ``killed`` (a test failed), ``crash`` (nothing of it could be tested), ``timeout`` or ``survived``; ``how`` it was
    killed is by an ``assertion`` or by another ``exception`` in the call of a test.
    """

    outcome: str
    test: str = ""
    how: str = ""
    what: str = ""
    seconds: float = 0.0


def verdict(answer: dict[str, t.Any]) -> Verdict:
    """What an answer of a worker means. Pure."""
    seconds = round(float(answer["seconds"]), 2)
    events = answer["events"]
    for event in events:
        if "test" in event:
            return Verdict("killed", event["test"], event["how"], event["what"], seconds)
    if not answer["in_time"]:
        return Verdict("timeout", seconds=seconds)
    for event in events:
        if "crash" in event:
            return Verdict("crash", event["crash"], "", event["what"], seconds)
    ends = [event["end"] for event in events if "end" in event]
    if ends != [0]:
        what = f"pytest ended with {ends[0]}" if ends else "the process of the tests ended before its time"
        return Verdict("crash", what=what, seconds=seconds)
    return Verdict("survived", seconds=seconds)


def together(verdicts: list[Verdict]) -> Verdict:
    """The verdict of several runs on the same broken source: the one that says most. Pure."""
    order = ("killed", "timeout", "crash", "survived")
    most = min(verdicts, key=lambda verdict: order.index(verdict.outcome))
    return most._replace(seconds=round(sum(verdict.seconds for verdict in verdicts), 2))


class Seen(t.NamedTuple):
    """What a run on the right sources showed: how long each test takes, and which tests run a line."""

    seconds: dict[str, float]
    """By the id of a test."""
    lines: dict[str, dict[str, list[int]]]
    """By file and line: places of tests in ``seconds``; -1 where it runs at an import."""

    def tests(self, path: str, lines: t.Iterable[int]) -> list[str]:
        """The tests that run one of these lines; none where one of them runs at an import, for then each test depends on it. Pure."""
        found = {number for line in lines for number in self.lines.get(path, {}).get(str(line), ())}
        names = list(self.seconds)
        return [] if -1 in found else [names[number] for number in sorted(found)]

    def taken(self, tests: t.Iterable[str]) -> float:
        """Seconds that these tests take together: ids, files or folders. Pure."""
        wanted = tuple(tests)
        beginnings = tuple(f"{name}::" for name in wanted) + tuple(f"{name}/" for name in wanted)
        return sum(seconds for test, seconds in self.seconds.items() if test in wanted or test.startswith(beginnings))


class Worker:
    """One process that runs tests, one question after the other."""

    def __init__(self, checkout: Checkout, python: str) -> None:
        rooted = os.geteuid() == 0
        words = [*_SECLUDED, *(_AS_ROOT if rooted else ("--user", "--map-root-user")), python, str(Path(__file__).with_name("worker.py"))]
        for program in {"unshare", words[len(_SECLUDED)]} - {"--user"}:
            if shutil.which(program) is None:
                raise MutationError(f"{program} is not there: apt-get install util-linux")
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment())
        self._ask({path: content.decode("latin-1") for path, content in checkout.files.items()})

    def _ask(self, question: object) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as err:
            raise MutationError(f"the process that runs the tests is gone ({err}); what it said last stands above") from err

    def run(self, files: dict[str, str], tests: list[str], limit: float) -> Verdict:
        """What these tests say when these files are as given: ids of tests, or whole files.

        The first whole file is asked alone: mostly it knows, and that is quicker.
        """
        only = [test for test in tests if "::" in test]
        if only:
            some = list(dict.fromkeys(test.partition("::")[0] for test in tests))
            return verdict(self._answer({"files": files, "tests": some, "only": only, "limit": limit}))
        found: list[Verdict] = []
        for some in (tests[:1], tests[1:]):
            if some and not any(each.outcome == "killed" for each in found):
                found.append(verdict(self._answer({"files": files, "tests": some, "limit": limit})))
        return together(found)

    def try_out(self, files: dict[str, str], seen: Seen, lines: t.Iterable[int], whole: list[str]) -> Verdict:
        """What the tests say that run these lines of the one broken file; without any, what ``whole`` files of tests say.

        Code that a test starts in another process is not recorded. So if none notices, the first of the whole files, the broken file's
        own, has the last word.
        """
        (path,) = files
        # Its own tests come first: another file's may wait for ever where they would fail.
        some = sorted(seen.tests(path, lines), key=lambda test: test.partition("::")[0] != whole[0])
        if some:
            found = self.run(files, some, limit_of(seen.taken(some)))
            if found.outcome != "survived":
                return found
        rest = whole[:1] if some else whole
        return self.run(files, rest, limit_of(seen.taken(rest)))

    def baseline(self, checkout: Checkout, files: t.Iterable[str], tests: list[str]) -> Seen:
        """Run the tests on the files as they are, which has to go well, and see what each of them runs."""
        question = {"files": {file: checkout.text(file) for file in files}, "tests": tests, "limit": BASELINE_LIMIT_S, "warm": True}
        answer = self._answer(question)
        found = verdict(answer)
        if found.outcome != "survived":
            said = f"{found.outcome}: {found.test} {found.what}"
            raise MutationError(f"the tests fail already when nothing is broken: {said}\n{answer['output']}")
        seen = next(event for event in answer["events"] if "seconds" in event)
        return Seen(seen["seconds"], seen["lines"])

    def _answer(self, question: dict[str, t.Any]) -> dict[str, t.Any]:
        assert self._process.stdout
        self._ask(question)
        line = self._process.stdout.readline()
        if not line:
            raise MutationError("the process that runs the tests ended; what it said last stands above")
        answer: dict[str, t.Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()  # unshare, with which the whole namespace ends
        self._process.wait()


def limit_of(baseline: float) -> float:
    """How long tests may take on a broken source, if they take ``baseline`` seconds on the right one. Pure."""
    return 15.0 + 10.0 * baseline


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "LC_ALL", "TERM")}
    return {**kept, "PYTHONHASHSEED": "0"}
