# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rooms: the lab's root file systems, entered in namespaces of this machine. What runs in one sees and changes nothing outside of it.

Linux ends all processes of a room with its first one, and that one with this program.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kvmlab import cache, limits
from kvmlab.errors import LabError
from kvmlab.parts import packages, rootfs
from kvmlab.run import die_with_parent, run_logged, say, tail

PROGRAMS = Path(__file__).parent.parent / "native"
REPOSITORY = Path(__file__).parents[3]
INSIDE = "usr/local/lib/kvm-liveupdate-bench"
NAME = "native"
# One measurement, on a machine that is many times slower.
LIMIT_S = limits.MODULE
_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
_CGROUPS = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")


class Rooms:
    """The unpacked root file systems in a folder that does not outlive the measurements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees: dict[str, Path] = {}
        self._no_systemd: dict[str, str] = {}

    def run(self, suite: str, program: str, *words: str) -> dict[str, float]:
        """The result of one of the bench's programs in a new room."""
        tree = self._tree(suite)
        found: dict[str, float] = self._enter(tree, "run", "/usr/bin/python3", f"/{INSIDE}/{program}.py", *words)[0]
        return found

    def boot(self, suite: str, what: str, cold: bool) -> dict[str, float]:
        """The stamps of a boot as after a jump with one guest (``unit`` or ``domain``), and when its shutdown was over.

        cold: no file is in memory before, as after a jump; else all that it needs.
        """
        tree = self._tree(suite)
        if suite in self._no_systemd:
            raise LabError(f"systemd of {suite} does not run in a namespace of this machine: {self._no_systemd[suite]}")
        words = ("/bin/sh", f"/{INSIDE}/boot.sh", what)
        if cold:
            forget(tree)
        else:
            self._enter(tree, "boot", *words)
        found, ended = self._enter(tree, "boot", *words)
        return {**found, "ended": ended}

    def _tree(self, suite: str) -> Path:
        """This suite's root file system with the runtime, ready to be entered."""
        if suite not in self._trees:
            root_tar = rootfs.tar(suite, packages.resolve())
            say(f"{suite}: unpack the root file system and prepare it")
            tree = self._folder / suite
            tree.mkdir()
            log = cache.root() / "logs" / f"native-{suite}.log"
            run_logged(("tar", "-C", tree, "--numeric-owner", "-xpf", root_tar), what=f"unpack {suite}", log=log, limit_s=limits.TOOL)
            shutil.copytree(PROGRAMS, tree / INSIDE, ignore=shutil.ignore_patterns("__pycache__"))
            self._enter(tree, "prepare", "/usr/bin/python3", f"/{INSIDE}/prepare.py")
            self._plan(tree, suite)
            forget(tree, write=True)
            self._trees[suite] = tree
        return self._trees[suite]

    def _plan(self, tree: Path, suite: str) -> None:
        """Write what an update writes for domains before the jump. This shows as well whether systemd runs here."""
        try:
            before, _ended = self._enter(tree, "boot", "/bin/sh", f"/{INSIDE}/boot.sh", "plan")
        except LabError as error:
            self._no_systemd[suite] = str(error)
            return
        dropin = tree / "etc/systemd/system/kvm-liveupdate-daemons.target.d/wants.conf"
        dropin.parent.mkdir(exist_ok=True)
        dropin.write_text("[Unit]\n" + "".join(f"Wants={unit}\n" for unit in (*before, "libvirtd.service")))

    def _enter(self, tree: Path, mode: str, *words: str) -> tuple[Any, float]:
        """Run a command as the first process of a room; its result, and when the room had ended, by the monotonic clock."""
        place, exchange = self._folder / "place", self._folder / "exchange"
        place.mkdir(exist_ok=True)
        shutil.rmtree(exchange, ignore_errors=True)
        exchange.mkdir()
        if mode == "prepare":
            shutil.copytree(REPOSITORY / "plugins/module_utils", exchange / "module_utils", ignore=shutil.ignore_patterns("__pycache__"))
        boots = mode == "boot"
        command = [*_NAMESPACES, *(["--cgroup"] if boots else []), str(PROGRAMS / "enter.sh"), str(tree), str(place), str(exchange), mode]
        with cgroup() if boots else _no_cgroup() as join:
            ended = _run(command, words, exchange / "log", {**_ENVIRONMENT, **({"container": "bench"} if boots else {})}, join)
        result = exchange / "result.json"
        if mode != "prepare" and not result.exists():
            raise LabError(f"{' '.join(words)} has no result. The end of its output:\n{tail(exchange / 'log')}")
        return json.loads(result.read_text()) if result.exists() else {}, ended


def _run(command: Sequence[str], words: Sequence[str], log: Path, environment: dict[str, str], join: Callable[[], None]) -> float:
    """Run a room with these words in it, with a limit; returns when it had ended."""
    what, die = " ".join(words), die_with_parent(signal.SIGKILL)

    def first() -> None:
        die()
        join()

    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
            preexec_fn=first,
        )
        try:
            in_time = _has_ended(process.pid)
            ended = time.monotonic()
        finally:
            process.kill()
            process.wait()
    if not in_time:
        raise LabError(f"{what} did not end within {LIMIT_S:.0f} s. The end of its output:\n{tail(log)}")
    if process.returncode:
        raise LabError(f"{what} failed with exit code {process.returncode}. The end of its output:\n{tail(log)}")
    return ended


def _has_ended(pid: int) -> bool:
    """Wait, with a limit, until a child has ended. Popen.wait() notices it up to 0.05 s late."""
    handle, poll = os.pidfd_open(pid), select.poll()
    try:
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(LIMIT_S * 1000))
    finally:
        os.close(handle)


@contextmanager
def rooms() -> Iterator[Rooms]:
    """Rooms whose files are removed at the end. If this is killed, the next build of the lab or the next run removes them."""
    if os.geteuid() != 0:
        raise LabError("namespaces and mounts need root; run this as root")
    with cache.locked(NAME):
        folder = cache.root() / (NAME + cache.PARTIAL)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield Rooms(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def forget(tree: Path, write: bool = False) -> None:
    """Drop the files of a tree from memory, as after a jump. Their names stay in memory. write: those that are not on the disk yet, too."""
    for folder, _folders, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                handle = os.open(path, os.O_RDONLY)
                if write:
                    os.fdatasync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)


def cgroup_folder(memberships: str, mounts: str) -> Path | None:
    """The folder of this process in the second version of cgroups, by two files in /proc/self; None if it is not mounted. Pure."""
    own = next((line.removeprefix("0::") for line in memberships.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        before, _dash, after = line.partition(" - ")
        if own is not None and after.split()[:1] == ["cgroup2"]:
            root, point = before.split()[3:5]
            return Path(point) / own.removeprefix(root).lstrip("/")
    return None


@contextmanager
def cgroup() -> Iterator[Callable[[], None]]:
    """A cgroup for a room with systemd; a function with which a process joins it."""
    memberships, mounts = (path.read_text() for path in _CGROUPS)
    own = cgroup_folder(memberships, mounts)
    if own is None:
        raise LabError("this machine has no file system cgroup2")
    folder = own / f"kvm-liveupdate-bench-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise LabError(f"no cgroup can be made: {error}") from error

    def join() -> None:
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield join
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a cgroup and those below it. Its processes have ended, but the kernel may need a moment to notice."""
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            folder.rmdir()
        time.sleep(0.05)


@contextmanager
def _no_cgroup() -> Iterator[Callable[[], None]]:
    yield lambda: None
