# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run Ansible playbooks and modules on the lab's hosts, as an operator does."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import LabError
from ..lab import Lab
from ..machines.machine import HEARTBEATS
from ..machines.process import kill_tree

HERE = Path(__file__).parents[2]

_RECAP = re.compile(r"^(?P<host>\S+)\s+: (?P<counts>ok=\d+.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Guest:
    """A guest that every host of the lab runs. port is the number of its device in HEARTBEATS, from 1. ram is in MiB.

    bridged: it has a network card on the host's bridge. The boot creates the bridge, but the guest's unit does not declare this.
    """

    name: str
    port: int
    ram: int
    bridged: bool = False

    @property
    def unit(self) -> str:
        """The systemd unit that runs it."""
        return f"{self.name}.service"

    @property
    def tty(self) -> str:
        """The host's device that its heartbeat goes to."""
        return f"/dev/{HEARTBEATS[self.port - 1]}"


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
    return [{"name": guest.name, "tty": guest.tty, "ram": guest.ram, "bridged": guest.bridged} for guest in guests]


def variables() -> dict[str, Any]:
    """The variables that an operator would keep in the inventory."""
    return {
        "lab_guests": described(GUESTS),
        "hypervisor_setup_guest_units": [guest.unit for guest in GUESTS],
    }


class Running:
    """A playbook that runs. Somebody has to be in end(), which reads its output into lines."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        report: Path,
        folder: tempfile.TemporaryDirectory[str],
        show: bool = False,
    ) -> None:
        self._report, self._folder, self._show = report, folder, show
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def kill(self) -> None:
        """Kill the run and all its processes at once, as a crash of the controller does. Workers of Ansible have sessions of their own."""
        kill_tree(self._process.pid)

    def end(self) -> Play:
        """Wait for the end of the run."""
        try:
            assert self._process.stdout
            for line in self._process.stdout:
                self.lines.append(line)
                if self._show:
                    sys.stdout.write(line)
                    sys.stdout.flush()
            code = self._process.wait(limits.PLAYBOOK)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime - self._before.ru_utime + after.ru_stime - self._before.ru_stime
        output = "".join(self.lines)
        with self._folder:
            return Play(code, output, read_recap(output), read_report(self._report), cpu_s)


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
        return self.begin(playbook, *options, **extra).end()

    def begin(self, playbook: str, *options: str, **extra: Any) -> Running:
        """Start a playbook as :meth:`play` does, and do not wait for its end."""
        given = {**variables(), **extra}
        folder = tempfile.TemporaryDirectory()
        page = given.get("hypervisor_update_report") or f"{folder.name}/report.html"
        Path(f"{page}.json").unlink(missing_ok=True)  # of an earlier run
        given = {**given, "hypervisor_update_report": page}
        command = ["ansible-playbook", "-i", str(self._lab.inventory), "-e", json.dumps(given), *options, playbook]
        return Running(command, self._environment(), Path(f"{page}.json"), folder, self._show)

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


def lab_playbook(name: str) -> str:
    """The path of one of the lab's own playbooks."""
    return str(HERE / f"{name}.yml")
