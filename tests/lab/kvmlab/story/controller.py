# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run Ansible playbooks and modules on the lab's hosts, as an operator does."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import LabError
from ..lab import Lab
from ..machines.machine import HEARTBEATS
from ..watch.heartbeat import Tick

HERE = Path(__file__).parents[2]

# PR_SET_CHILD_SUBREAPER: what its children leave behind becomes its own.
_KEEPER = "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); sys.exit(subprocess.call(sys.argv[1:]))"
_POLL_S = 0.2
_RECAP = re.compile(r"^(?P<host>\S+)\s+: (?P<counts>ok=\d+.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Guest:
    """A guest that every host of the lab runs. port is the number of its device in HEARTBEATS, from 1. ram is in MiB.

    bridged: it has a network card on the host's bridge. The boot creates the bridge, but the guest's unit does not declare this.
    words: more words for its kernel's command line (guest/init.c).
    """

    name: str
    port: int
    ram: int
    bridged: bool = False
    words: str = ""
    cpus: int = 1

    @property
    def unit(self) -> str:
        """The systemd unit that runs it."""
        return f"{self.name}.service"

    @property
    def tty(self) -> str:
        """The host's device that its heartbeat goes to."""
        return f"/dev/{HEARTBEATS[self.port - 1]}"

    def tells_all(self, tick: Tick) -> bool:
        """Whether a tick says all that this guest has to say, so that a verdict can be about all of it."""
        return self.cpus == 1 or (len(tick.processors) == self.cpus and min(tick.processors) > 0)


GUESTS = (Guest("web", 1, 128), Guest("db", 2, 192, bridged=True))


@dataclass(frozen=True)
class Play:
    """The result of a playbook run. cpu_s is the processor time that it took on this machine."""

    code: int
    output: str
    recap: dict[str, dict[str, int]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0


def described(guests: Iterable[Guest]) -> list[dict[str, Any]]:
    """These guests as the variable of the playbook guests.yml."""
    keys = ("name", "tty", "ram", "bridged", "words", "cpus")
    return [{key: getattr(guest, key) for key in keys} for guest in guests]


def variables() -> dict[str, Any]:
    """The variables that an operator would keep in the inventory."""
    return {
        "lab_guests": described(GUESTS),
        "hypervisor_setup_guest_units": [guest.unit for guest in GUESTS],
    }


class Run:
    """A playbook that runs in the background, with all processes that it has started.

    Among them are masters of SSH connections, which ssh puts into the background: a process that starts ansible-playbook gets them.
    page: where it writes its report.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], page: Path) -> None:
        self._page, self._before = page, resource.getrusage(resource.RUSAGE_CHILDREN)
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name) / "output"
        with self._output.open("wb") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-c", _KEEPER, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Stop all its processes (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let all its processes go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill all its processes. Nothing of it is left on this machine."""
        self._keeper.send_signal(signal.SIGSTOP)  # if it ended first, nobody would know the others any more
        self._signal(signal.SIGKILL)
        self._keeper.kill()
        self._keeper.wait(limits.HOST_ENDS)

    def states(self) -> set[str]:
        """The states of all its processes, as in proc(5)."""
        return {state for pid in self._processes() if (state := state_of(pid)) not in ("", "Z")}

    def ended(self) -> bool:
        """Whether it has ended."""
        return self._keeper.poll() is not None

    def output(self) -> str:
        """What it has written until now."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def end(self, show: bool = False) -> Play:
        """Wait for its end. show: print what it writes. It is killed if the wait is interrupted."""
        until = time.monotonic() + limits.PLAYBOOK
        try:
            with self._output.open(encoding="utf-8", errors="replace") as said:
                ended = False
                while not ended:
                    ended = self.ended()
                    if show:
                        sys.stdout.write(said.read())
                        sys.stdout.flush()
                    if not ended and time.monotonic() > until:
                        raise LabError(f"a playbook runs for more than {limits.PLAYBOOK} s:\n{self.output()[-2000:]}")
                    time.sleep(0 if ended else _POLL_S)
        except BaseException:
            self.kill()
            raise
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime - self._before.ru_utime + after.ru_stime - self._before.ru_stime
        output = self.output()
        return Play(self._keeper.wait(), output, read_recap(output), read_report(Path(f"{self._page}.json")), cpu_s)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to each process, also to those that a process started before it got its own."""
        told: set[int] = set()
        while left := [pid for pid in self._processes() if pid not in told]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                told.add(pid)

    def _processes(self) -> list[int]:
        found: list[int] = []
        left = [self._keeper.pid]
        while left:
            pid = left.pop()
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
            found.append(pid)
        return found[1:]


class Controller:
    """Runs Ansible. Finds the commands in PATH and the collection in ANSIBLE_COLLECTIONS_PATH. tests/setup.sh sets both."""

    def __init__(self, lab: Lab, show: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self._lab = lab
        self._show = show
        self._more = environment or {}
        if "ANSIBLE_COLLECTIONS_PATH" not in os.environ:
            raise LabError("ANSIBLE_COLLECTIONS_PATH is not set; use tests/lab/demo or tests/run, which set it")

    def play(self, playbook: str, *options: str, **extra: Any) -> Play:
        """Run a playbook: one of the collection by its full name, one of the lab by its path."""
        with tempfile.TemporaryDirectory() as folder:
            page = extra.get("hypervisor_update_report") or f"{folder}/report.html"
            return self.start(playbook, Path(page), *options, **extra).end(self._show)

    def start(self, playbook: str, page: Path, *options: str, **extra: Any) -> Run:
        """Start a playbook in the background. It writes its report to page."""
        Path(f"{page}.json").unlink(missing_ok=True)  # of an earlier run
        given = {**variables(), **extra, "hypervisor_update_report": str(page)}
        command = ["ansible-playbook", "-i", str(self._lab.inventory), "-e", json.dumps(given), *options, playbook]
        return Run(command, self._environment(), page)

    def ask(self, host: str, module: str, *options: str, **arguments: Any) -> dict[str, Any]:
        """Run a module of the collection on one host and return its result."""
        command = ["ansible", host, "-i", str(self._lab.inventory), "-m", f"kvm.liveupdate.{module}", *options]
        if arguments:
            command += ["-a", json.dumps(arguments)]
        done = subprocess.run(
            command, env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limits.MODULE, check=False
        )
        headline, arrow, answer = done.stdout.partition("=> ")
        if not arrow:
            raise LabError(f"no result from {' '.join(command)}: {done.stdout}{done.stderr}")
        result: dict[str, Any] = json.loads(answer[: answer.rindex("}") + 1])
        return {**result, "failed": "| FAILED!" in headline or "| UNREACHABLE!" in headline}

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "ANSIBLE_CONFIG": str(HERE / "ansible.cfg"), "LC_ALL": "C.UTF-8", **self._more}


def read_recap(output: str) -> dict[str, dict[str, int]]:
    """The counts of each host in the play recap. Pure."""
    recap = {}
    for line in _RECAP.finditer(output):
        pairs = (word.split("=") for word in line["counts"].split())
        recap[line["host"]] = {name: int(count) for name, count in pairs}
    return recap


def read_report(data: Path) -> dict[str, Any]:
    """The data of the update role's report, by host. Empty if the run wrote none."""
    report: dict[str, Any] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    return report


def state_of(pid: int) -> str:
    """The state of a process, as in proc(5). Empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def lab_playbook(name: str) -> str:
    """The path of one of the lab's own playbooks."""
    return str(HERE / f"{name}.yml")
