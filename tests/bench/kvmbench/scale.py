# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the check run costs the controller for many hosts. A SIMULATION: there is no host, only what hypervisor_info says of one.

Playbooks, roles, filters and action plugins are the real ones. Each run is compared with a run of as many tasks that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmlab.errors import LabError
from kvmlab.run import say
from kvmlab.story.controller import read_recap

from .cli import REPOSITORY, machine
from .facts import POLICY, guest, host

GUESTS = 40
HOSTS = (10, 100, 500)
LIMIT_S = 14400
STUB = REPOSITORY / "tests/bench/simulation/module.py"
_STATISTIC = re.compile(r"RUN: (\{.*\})")


@dataclass(frozen=True)
class Cost:
    """What a run of ansible-playbook took. The processor time is that of all its processes, the memory that of the largest one."""

    wall_s: float
    cpu_s: float
    memory_mib: float


@dataclass(frozen=True)
class Row:
    """A check run of so many hosts, and a run of tasks that do nothing. Sizes are in KiB. ``tasks`` are those of one host."""

    hosts: int
    tasks: int
    check: Cost
    nothing: Cost
    artifact_kib: float
    page_kib: float
    data_kib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    top = argparse.ArgumentParser(prog="tests/bench/scale", description="Measure the check run of many simulated hosts.")
    top.add_argument("hosts", type=int, nargs="*", default=list(HOSTS), help="how many hosts, once or more often (default: 10 100 500)")
    top.add_argument("--forks", type=int, default=5, help="how many hosts Ansible works on at a time (default: 5, as Ansible's)")
    options = top.parse_args(arguments)
    rows = []
    try:
        for hosts in options.hosts:
            say(f"simulation of {hosts} hosts with {GUESTS} guests each")
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(Path(folder), hosts, options.forks))
    except LabError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scale: interrupted", file=sys.stderr)
        return 130
    print(table(rows, f"{machine()}, ansible-core {version()}, {options.forks} forks"))
    return 0


def measure(folder: Path, hosts: int, forks: int) -> Row:
    """One check run, and one of tasks that do nothing, in a folder of their own."""
    lay_out(folder, hosts)
    check, output = run(folder, forks, "--check", "kvm.liveupdate.update")
    recap = read_recap(output)
    counts = recap.get(f"hv{hosts}", {})  # the last host has no task that runs once for all
    told = _STATISTIC.search(output)
    if len(recap) != hosts or not told:
        raise LabError(f"the check run did not reach its end:\n{output[-3000:]}")
    brief = json.loads(told[1])["liveupdate_summary"]
    if brief["hosts"] != {"checked": hosts}:
        raise LabError(f"not all hosts can be updated: {brief}")
    (folder / "nothing.yml").write_text(json.dumps(idle(counts["ok"], counts["skipped"])))
    nothing, output = run(folder, forks, "--check", str(folder / "nothing.yml"))
    if read_recap(output).get(f"hv{hosts}", {}).get("ok") != counts["ok"]:
        raise LabError(f"the tasks that do nothing are not as many as those of the check run:\n{output[-3000:]}")
    page, data = folder / "page.html", folder / "page.html.json"
    sizes = [len(json.dumps(brief)), page.stat().st_size, data.stat().st_size]
    return Row(hosts, counts["ok"] + counts["skipped"], check, nothing, *(size / 1024 for size in sizes))


def lay_out(folder: Path, hosts: int) -> None:
    """Write the inventory, the facts, and the collection with the stub."""
    root = folder / "ansible_collections/kvm/liveupdate"
    (root / "plugins/modules").mkdir(parents=True)
    for part in ("galaxy.yml", "meta", "playbooks", "roles"):
        (root / part).symlink_to(REPOSITORY / part)
    for source in (REPOSITORY / "plugins").iterdir():
        if source.name != "modules":
            (root / "plugins" / source.name).symlink_to(source)
    for source in (REPOSITORY / "plugins/modules").glob("[a-z]*.py"):
        (root / "plugins/modules" / source.name).symlink_to(source)
    stub = root / "plugins/modules/hypervisor_info.py"
    stub.unlink()
    stub.write_text(STUB.read_text().replace("@FACTS@", str(folder / "facts.json")))
    (folder / "facts.json").write_text(json.dumps(facts()))
    names = [f"hv{number}" for number in range(1, hosts + 1)]
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "hypervisor_update_kernel": "/boot/vmlinuz-7.3.4",
        "hypervisor_update_policy": POLICY,
        "hypervisor_update_report": str(folder / "page.html"),
    }
    inventory = {"hypervisors": {"vars": variables, "hosts": {name: {} for name in names}}}
    (folder / "hosts.yml").write_text(json.dumps(inventory))


def facts() -> dict[str, Any]:
    """What hypervisor_info says of each host: it can be updated, and its guests take several ways."""
    guests = [{**guest(number), "reasons": []} for number in range(GUESTS)]
    kernel = {"release": "7.2.13", "version": "#1", "cmdline": ""}
    return {**host(), "ready": True, "away": [], "boot_id": "b1", "kernel": kernel, "last_update": {}, "guests": guests}


def idle(ok: int, skipped: int) -> list[dict[str, Any]]:
    """A playbook with so many tasks for each host: one runs a module that does nothing, the others run nothing at all."""
    ping = {"name": "Run a module", "ansible.builtin.ping": {}}
    done = [{"name": f"Do nothing {number}", "ansible.builtin.debug": {"msg": ""}} for number in range(1, ok)]
    left = [{"name": f"Skip {number}", "ansible.builtin.debug": {"msg": ""}, "when": False} for number in range(skipped)]
    return [{"name": "Do nothing", "hosts": "hypervisors", "gather_facts": False, "tasks": [ping, *done, *left]}]


def run(folder: Path, forks: int, *words: str) -> tuple[Cost, str]:
    """Run ansible-playbook to its end; what it took and what it printed."""
    command = [
        "timeout",
        "--kill-after=60",
        str(LIMIT_S),
        "ansible-playbook",
        "-i",
        str(folder / "hosts.yml"),
        "--forks",
        str(forks),
        *words,
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": "",
    }
    output, begun = folder / "output", time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        _pid, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    text = output.read_text()
    if process.returncode:
        raise LabError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{text[-3000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024), text


def version() -> str:
    """Of ansible-core."""
    done = subprocess.run(["ansible", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r"core (\S+?)\]", done.stdout)
    return found[1] if found else "unknown"


def table(rows: Sequence[Row], where: str) -> str:
    """For docs/docsite/rst/rollout.rst. Pure."""
    head = ("hosts", "tasks a host", "wall, s a host", "CPU, s a host", "memory, MiB", "artifact, KiB", "page and data, KiB")
    lines = [
        (
            str(row.hosts),
            str(row.tasks),
            f"{row.check.wall_s / row.hosts:.2f} ({row.nothing.wall_s / row.hosts:.2f})",
            f"{row.check.cpu_s / row.hosts:.2f} ({row.nothing.cpu_s / row.hosts:.2f})",
            f"{row.check.memory_mib:.0f} ({row.nothing.memory_mib:.0f})",
            f"{row.artifact_kib:.1f}",
            f"{row.page_kib:.0f} and {row.data_kib:.0f}",
        )
        for row in rows
    ]
    text = "".join(f"   * - {line[0]}\n" + "".join(f"     - {cell}\n" for cell in line[1:]) for line in (head, *lines))
    return f"A simulation on {where}:\n\n.. list-table::\n   :header-rows: 1\n\n{text}"


if __name__ == "__main__":
    sys.exit(main())
