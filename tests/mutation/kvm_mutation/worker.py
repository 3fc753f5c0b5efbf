# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs unit tests on broken sources, each time in a fork of this warm process: one question a line on stdin, one answer on stdout.

A broken source may do anything. So this process is to be the first one of a PID namespace (whatever it starts ends with an answer)
and has a mount namespace, in which it can write below /run and /tmp only. :mod:`kvm_mutation.pool` starts it so.

It is run with the Python of the unit tests, and imports nothing of this package.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import json
import os
import py_compile
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

FOLDER = "/run/mutant"
COPY = FOLDER + "/collections/ansible_collections/kvm/liveupdate"
PACKAGE = "ansible_collections.kvm.liveupdate"
OUTPUT = FOLDER + "/output"
EVENTS = FOLDER + "/events"
# Not below /run: what lies there is gone after a boot, and the sources under test know that.
TEMPORARY = "/tmp/mutant"
_MEMORY = 8 << 30
_OUTPUT_SHOWN = 4000


def seclude() -> None:
    """Hide the host's systemd and let nothing be written but below /run and /tmp."""
    for folder, mode in (("/run", "0755"), ("/tmp", "1777")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)
    os.makedirs(FOLDER)
    os.makedirs(TEMPORARY)
    os.environ.update(TMPDIR=TEMPORARY, HOME=TEMPORARY)


def write(path: str, content: bytes) -> None:
    place = os.path.join(COPY, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as file:
        file.write(content)


class Recorder:
    """A plugin of pytest that tells of failures as they come, and ends the run at the first one that counts.

    ``only`` are the ids of the tests that run, none for all. An id without parameters names all cases of its test. ``traced`` is a
    ``coverage.Coverage`` that is told which test runs.
    """

    def __init__(self, only: Iterable[str] = (), traced: Any = None) -> None:
        self._only, self._traced = frozenset(only), traced
        self.seconds: dict[str, float] = {}
        self._file = os.open(EVENTS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pid = os.getpid()

    def tell(self, **event: Any) -> None:
        if os.getpid() == self._pid:  # not a fork of a test that has lost its way
            os.write(self._file, json.dumps(event).encode() + b"\n")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self._only:
            items[:] = [item for item in items if not self._only.isdisjoint((item.nodeid, item.nodeid.partition("[")[0]))]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._traced:
            self._traced.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 3)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.tell(crash=report.nodeid, what=str(report.longrepr).strip()[-300:])

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        if report.when == "collect":
            return
        import pytest

        asserted = isinstance(call.excinfo.value, (AssertionError, pytest.fail.Exception))
        what = call.excinfo.exconly()[:300]
        if report.when == "call" or asserted:
            self.tell(test=report.nodeid, how="assertion" if asserted else "exception", what=what)
            node.session.shouldstop = "noticed"
        else:
            self.tell(crash=report.nodeid, what=what)


def run(question: dict[str, Any]) -> None:
    """In the fork: import what was broken, then run the tests."""
    with open(OUTPUT, "wb") as output, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, output, output)):
            os.dup2(file.fileno(), number)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(COPY)
    traced = trace(question["files"]) if question.get("warm") else None
    recorder = Recorder(question.get("only", ()), traced)
    for path in question["files"]:
        try:
            importlib.import_module(f"{PACKAGE}.{path.removesuffix('.py').replace('/', '.')}")
        except BaseException:
            recorder.tell(crash=path, what=traceback.format_exc(limit=-1)[-300:])
            return
    import pytest

    words = ["-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", f"--basetemp={TEMPORARY}/pytest", *question["tests"]]
    status = pytest.main(words, plugins=[recorder])
    if traced:
        traced.stop()
        recorder.tell(
            modules=sorted(sys.modules), seconds=recorder.seconds, lines=lines_of(traced, question["files"], list(recorder.seconds))
        )
    recorder.tell(end=int(status))


def trace(files: Iterable[str]) -> Any:
    """Begin to note which lines of these files run; returns the ``coverage.Coverage`` that does it."""
    import coverage

    traced = coverage.Coverage(data_file=None, config_file=False, include=[os.path.join(COPY, path) for path in files])
    traced.start()
    return traced


def lines_of(traced: Any, files: Iterable[str], tests: list[str]) -> dict[str, dict[int, list[int]]]:
    """By file and line: the places in ``tests`` of those that ran it; -1 for an import, or what collects the tests."""
    numbers = {"": -1, **{test: number for number, test in enumerate(tests)}}
    found = {}
    for path in files:
        contexts = traced.get_data().contexts_by_lineno(os.path.join(COPY, path))
        found[path] = {line: sorted(numbers[test] for test in some) for line, some in contexts.items()}
    return found


def answer(question: dict[str, Any], originals: dict[str, bytes]) -> dict[str, Any]:
    """Break the files, run the tests, and put the files right."""
    for path, text in question["files"].items():
        write(path, text.encode())
    begun = time.monotonic()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(EVENTS)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run(question)
        finally:
            os._exit(0)
    in_time = wait(child, begun + question["limit"])
    end_all()
    events = [json.loads(line) for line in content_of(EVENTS).splitlines() if line.endswith("}")]
    for path in question["files"]:
        write(path, originals[path])
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    os.makedirs(TEMPORARY, exist_ok=True)
    for event in events:
        for name in event.get("modules", ()):
            if not name.startswith(("ansible_collections", "test", "__main__", "kvm")):
                with contextlib.suppress(BaseException):
                    importlib.import_module(name)
    return {"events": events, "in_time": in_time, "seconds": time.monotonic() - begun, "output": content_of(OUTPUT)[-_OUTPUT_SHOWN:]}


def wait(child: int, until: float) -> bool:
    """Wait for the child to end, and meanwhile take leave of whatever else does; False at the limit."""
    while time.monotonic() < until:
        signal.sigtimedwait([signal.SIGCHLD], 0.1)
        while True:
            try:
                ended = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return True
            if ended == child:
                return True
            if ended == 0:
                break
    return False


def end_all() -> None:
    """End whatever is left in this namespace."""
    if os.getpid() != 1:
        raise RuntimeError("this is not the first process of a PID namespace; start it with unshare")
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def content_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    """Take in the files of the collection, then answer questions until there are none."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this process
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed
    seclude()
    sys.path[0] = FOLDER + "/collections"  # instead of the folder of this file
    os.environ.update(PYTHONPATH=FOLDER + "/collections", ANSIBLE_COLLECTIONS_PATH=FOLDER + "/collections")
    originals = {path: text.encode("latin-1") for path, text in json.loads(sys.stdin.readline()).items()}
    for path, content in originals.items():
        write(path, content)
    # Read again only where the content changed: the time stamps of a broken file tell nothing.
    compileall.compile_dir(COPY + "/plugins", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    for line in sys.stdin:
        question = json.loads(line)
        sys.dont_write_bytecode = not question.get("warm")
        replies.write(json.dumps(answer(question, originals)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
