# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command tests/lab/lab."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from . import limits
from .errors import LabError
from .lab import Lab, build
from .machines.host import Host
from .machines.machine import HEARTBEATS
from .parts.kinds import KINDS, USUAL
from .watch import ledger, runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Print an error as a sentence, not as a traceback."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that "up" stops the hosts it has started if it is terminated
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "up": up,
        "status": status,
        "ssh": ssh,
        "down": down,
        "build": build_only,
        "report": report,
    }
    try:
        return commands[options.command](options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line options."""
    top = argparse.ArgumentParser(prog="lab", description="A lab of emulated hypervisors with live update kernels.")
    commands = top.add_subparsers(dest="command", required=True)
    up_command = commands.add_parser("up", help="build what is missing, then start the hosts")
    kinds = f"the kind of each host: {', '.join(KINDS)} (default: {','.join(USUAL)})"
    up_command.add_argument("--kinds", default=",".join(USUAL), metavar="KIND,...", help=kinds)
    commands.add_parser("status", help="show the hosts")
    ssh_command = commands.add_parser("ssh", help="log in to a host, or run a command there")
    ssh_command.add_argument("host")
    ssh_command.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    commands.add_parser("down", help="stop all hosts and delete their disks")
    commands.add_parser("build", help="build what is missing, start nothing")
    commands.add_parser("report", help="write the page of the documentation that says which test ran when")
    return top


def up(options: argparse.Namespace) -> int:
    """Start the hosts and print where the inventory is."""
    kinds = options.kinds.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise LabError(f"--kinds: unknown kind {unknown[0]!r}; use {', '.join(KINDS)}")
    lab = Lab()
    lab.up(kinds)
    print(f"inventory: {lab.inventory}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print a line for each host, and for each guest that has ever ticked."""
    hosts = Lab().hosts()
    if not hosts:
        print("no hosts")
    for host in hosts:
        record = host.record
        if record is None:
            print(f"{host.name}: down")
            continue
        print(f"{host.name}: {host.kind}, supervisor {record.pid}, SSH port {host.port}, kernel {_kernel(host)}")
        for number, name in enumerate(HEARTBEATS, start=1):
            ticks = host.heartbeat(number)
            if ticks:
                age = time.monotonic() - ticks[-1].arrived
                print(f"  guest on {name}: tick {ticks[-1].number}, {age:.1f} s ago, boot {ticks[-1].boot_id}")
    return 0


def _kernel(host: Host) -> str:
    """The release of the running kernel. A host that does not answer at once is not waited for."""
    try:
        done = host.ssh("uname -r", limit_s=limits.LOGIN)
    except subprocess.TimeoutExpired:
        return "unknown (no answer)"
    return done.stdout.strip() or f"unknown ({done.stderr.strip()})"


def ssh(options: argparse.Namespace) -> int:
    """Replace this process by an SSH client."""
    host = Lab().host(options.host)
    if host.record is None:
        raise LabError(f"{host.name} does not run; start it with tests/lab/lab up")
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    command = host.ssh_command(*words)
    os.execvp(command[0], command)


def down(options: argparse.Namespace) -> int:
    """Stop everything."""
    for host in Lab().down():
        print(f"{host.name}: down")
    return 0


def build_only(options: argparse.Namespace) -> int:
    """Build everything, start nothing."""
    parts = build()
    print(f"kernels: {', '.join(kernel.release for kernel in parts.kernels)}")
    for kind, image in parts.images.items():
        print(f"image of {kind}: {image}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Add the last runs of this machine to those of the repository, and write the page."""
    listed = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "--every", "tests/lab/tests"]
    found = subprocess.run(listed, cwd=ledger.COLLECTION, capture_output=True, text=True, check=False, timeout=limits.COLLECTS)
    if found.returncode:
        raise LabError(f"pytest cannot list the tests of the lab:\n{found.stdout}{found.stderr}")
    tests = [re.sub(r"^[^\[:]*/", "", line) for line in found.stdout.splitlines() if "::" in line]
    known = runs.latest(runs.read(runs.KEPT, runs.path()))
    runs.write(runs.KEPT, (known[test] for test in sorted(known)))
    runs.PAGE.write_text(runs.page(tests, known.values(), ledger.runtime(), KINDS), encoding="utf-8")
    print(f"written: {runs.KEPT} and {runs.PAGE}")
    return 0
