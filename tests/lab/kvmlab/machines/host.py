# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One host of the lab: start it, log in, cut its power, read its guests' heartbeats."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from .. import limits
from ..errors import LabError
from ..run import say, tail
from ..watch.heartbeat import Tick, Verdict, read_ticks, verdict
from . import overlay
from .disk import replace_file
from .machine import CARD, HEARTBEATS, MEMORY_MIB, SEGMENT_IN, SEGMENT_OUT, Machine, segment_mac
from .process import Record, read_record

PROGRESS_EVERY_S = 10.0
# The part of the network settings that differs between hosts. The bridge itself is in hostfs.
SEGMENT_CARD = """[Match]
MACAddress={mac}
[Network]
Bridge=br0
"""
SEGMENT_BRIDGE = """[Match]
Name=br0
[Network]
Address={address}/24
LinkLocalAddressing=no
IPv6AcceptRA=no
LLDP=no
ConfigureWithoutCarrier=yes
KeepConfiguration=static
"""
# The disk of a host: a copy of an image, or what differs from a prepared disk.
COPY, OVERLAY = "disk.raw", "disk.qcow2"
NOISE = "TCG doesn't support requested feature"


class Host:
    """A host, with its folder for state and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @property
    def record(self) -> Record | None:
        """The process of its supervisor, or None if that does not run."""
        record = read_record(self.folder / "supervisor.json")
        return record if record and record.alive() else None

    @property
    def machine(self) -> dict[str, object] | None:
        """How it was started, or None if it was not."""
        try:
            data: dict[str, object] = json.loads((self.folder / "machine.json").read_text())
        except (OSError, ValueError):
            return None
        return data

    @property
    def port(self) -> int:
        """The loopback port of its SSH server."""
        machine = self.machine
        if machine is None:
            raise LabError(f"{self.name} does not exist; start it with tests/lab/lab up")
        return int(str(machine["ssh_port"]))

    @property
    def image(self) -> str | None:
        """The image that its disk was copied from."""
        machine = self.machine
        return str(machine["image"]) if machine else None

    @property
    def number(self) -> int:
        """Its number, which is part of its name and addresses."""
        return int(self.name.removeprefix("hv"))

    @property
    def address(self) -> str:
        """Its address on the segment, the network between the hosts."""
        return f"10.77.0.{self.number}"

    @property
    def kind(self) -> str:
        """The name of its kind."""
        machine = self.machine
        return str(machine["kind"]) if machine else ""

    @property
    def has_disk(self) -> bool:
        """Whether it has a disk from an earlier start."""
        return any((self.folder / name).exists() for name in (COPY, OVERLAY))

    def start(self, kind: str, emulator: tuple[str, ...], image: Path, memory_mib: int = MEMORY_MIB, prepared: Path | None = None) -> None:
        """Start it from its own disk. If it has none, copy the image first. prepared: a host's disk to start from instead of the image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made_from = str(prepared or image)
        if self.has_disk:
            kind, made_from = self.kind or kind, self.image or made_from
        else:
            self._clear()
            if prepared:
                overlay.make(self.folder / OVERLAY, prepared)
            else:
                self._make_disk(image)
        others = {host.port for host in neighbours(self.folder)}
        disk, disk_format = (OVERLAY, "qcow2") if (self.folder / OVERLAY).exists() else (COPY, "raw")
        machine = Machine(emulator, disk, ssh_port=free_port(others), number=self.number, memory_mib=memory_mib, disk_format=disk_format)
        content = {"name": self.name, "kind": kind, "image": made_from, "command": machine.command(), **asdict(machine)}
        (self.folder / "machine.json").write_text(json.dumps(content, indent=1) + "\n")
        self._spawn()

    def stop(self) -> None:
        """Tell its supervisor to stop it. Does not wait."""
        record = self.record
        if record:
            record.send(signal.SIGTERM)

    def ensure_stopped(self, forget: bool) -> None:
        """Wait until its supervisor has ended, and kill it after a limit. With forget, delete its disk."""
        record = self.record
        if record and not record.wait_gone(limits.HOST_ENDS):
            say(f"{self.name}: process {record.pid} did not end within {limits.HOST_ENDS:.0f} s, killing it")
            record.send(signal.SIGKILL)  # the kernel then kills QEMU, too (die_with_parent)
            if not record.wait_gone(limits.HOST_ENDS):
                raise LabError(f"{self.name}: process {record.pid} does not end after SIGKILL; see /proc/{record.pid}/status")
        if forget:
            sockets = (*(f"{name}.sock" for name in ("qmp", *HEARTBEATS)), SEGMENT_IN, SEGMENT_OUT)
            for name in (COPY, OVERLAY, "machine.json", "supervisor.json", *sockets):
                (self.folder / name).unlink(missing_ok=True)

    def ssh_command(self, *words: str) -> list[str]:
        """The SSH command that logs in and runs these words."""
        return ["ssh", "-F", str(self.folder.parent / "ssh_config"), self.name, *words]

    def ssh(self, command: str, limit_s: float = limits.HOST_COMMAND, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host."""
        words = self.ssh_command("--", command)
        return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=limit_s, check=False)

    def wait_ssh(self, limit_s: float = limits.HOST_ANSWERS, not_boot_id: str | None = None) -> str:
        """Wait until the host answers, and return its boot id. If not_boot_id is given, wait for another boot."""
        started = time.monotonic()
        next_line = started + PROGRESS_EVERY_S
        seen = "no answer yet"
        while time.monotonic() - started < limit_s:
            if self.record is None:
                raise LabError(f"{self.name} ended before it answered on SSH.\n{self.last_words()}")
            try:
                done = self.ssh("cat /proc/sys/kernel/random/boot_id", limit_s=limits.LOGIN)
                seen = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
                boot_id = done.stdout.strip()
                if done.returncode == 0 and boot_id:
                    if boot_id != not_boot_id:
                        return boot_id
                    seen = f"still boot {boot_id}"
            except subprocess.TimeoutExpired:
                seen = f"no login within {limits.LOGIN:.0f} s"
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + PROGRESS_EVERY_S
                say(f"  {self.name}: {time.monotonic() - started:.0f} s, {tail(self.folder / 'console.log', 1).strip()[:100]}")
            time.sleep(0.5)
        raise LabError(f"{self.name} did not answer on SSH within {limit_s:.0f} s (last seen: {seen}).\n{self.last_words()}")

    def reboot_hard(self, limit_s: float = limits.HOST_ANSWERS) -> str:
        """Cut the power and boot again. RAM and unwritten data are lost. Returns the new boot id."""
        record = self.record
        if record is None:
            raise LabError(f"{self.name}: cannot cut the power, it does not run")
        before = self.wait_ssh(limit_s)
        record.send(signal.SIGUSR1)
        return self.wait_ssh(limit_s, not_boot_id=before)

    def cut_power(self) -> None:
        """Cut the power, whether the host answers or not, and boot again. Does not wait."""
        record = self.record
        if record is None or not record.send(signal.SIGUSR1):
            raise LabError(f"{self.name}: cannot cut the power, it does not run")

    def freeze(self) -> None:
        """Stop its processor. The host does not answer, but loses nothing."""
        self._tell_emulator("stop")

    def thaw(self) -> None:
        """Let its processor run again."""
        self._tell_emulator("cont")

    def plug(self, connected: bool) -> None:
        """Pull out the cable of the card that SSH uses, or put it in again."""
        self._tell_emulator("set_link", name=CARD, up=connected)

    def _tell_emulator(self, command: str, **arguments: object) -> None:
        """Run one QMP command on the emulator's monitor."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(limits.HOST_ENDS)
            monitor.connect(os.path.relpath(self.folder / "qmp.sock"))  # a socket path is limited to 108 bytes
            stream = monitor.makefile("rw", encoding="utf-8")
            stream.readline()  # the greeting
            for name, given in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    if "error" in answer:
                        raise LabError(f"{self.name}: its QEMU refused the QMP command {name}: {answer['error']}")

    def guest_address(self, guest: int) -> str:
        """The address of a guest on the segment, if it has a card."""
        return f"{self.address}{guest}"

    def heartbeat_log(self, guest: int) -> Path:
        """The log of a guest's heartbeat. Guest 1 uses the first device of HEARTBEATS. Those after the last use the network."""
        name = self.guest_address(guest) if on_network(guest) else HEARTBEATS[guest - 1]
        return self.folder / f"heartbeat-{name}.log"

    def heartbeat(self, guest: int) -> list[Tick]:
        """All ticks of a guest since the host got its disk."""
        return read_ticks(self.heartbeat_log(guest))

    def verdict(self, guest: int, since: float = 0.0) -> Verdict:
        """Whether a guest has survived since a moment of time.monotonic()."""
        return verdict(self.heartbeat(guest), since=since, now=time.monotonic(), lossy=on_network(guest))

    def last_words(self) -> str:
        """The last lines of the host's logs, for an error message."""
        parts = []
        for name in ("supervisor.log", "console.log"):
            lines = [line for line in tail(self.folder / name, 60).splitlines() if NOISE not in line]
            parts.append(f"The end of {self.folder / name}:\n" + "\n".join(lines[-25:]))
        return "\n".join(parts)

    def _clear(self) -> None:
        """Remove the files of an earlier host with this name."""
        for path in self.folder.iterdir():
            if path.is_file() or path.is_socket():
                path.unlink()

    def _make_disk(self, image: Path) -> None:
        """Copy the image and write the host's name and addresses into the copy."""
        partial = self.folder / "disk.partial"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, partial], check=True, timeout=limits.TOOL)
        replace_file(partial, "/etc/hostname", self.name + "\n")
        replace_file(partial, "/etc/systemd/network/05-segment.network", SEGMENT_CARD.format(mac=segment_mac(self.number)))
        replace_file(partial, "/etc/systemd/network/05-bridge.network", SEGMENT_BRIDGE.format(address=self.address))
        partial.rename(self.folder / COPY)

    def _spawn(self) -> None:
        """Start the supervisor in its own session and wait until it has written its record."""
        package = Path(__file__).parents[2]
        with (self.folder / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kvmlab.machines.supervisor"],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(package)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + limits.HOST_ENDS
        while self.record is None:
            if process.poll() is not None or time.monotonic() > until:
                raise LabError(f"{self.name}: the supervisor did not start.\n{self.last_words()}")
            time.sleep(0.1)


def on_network(guest: int) -> bool:
    """Whether the ticks of a guest are datagrams, because there is no device of the host for them."""
    return guest > len(HEARTBEATS)


def neighbours(folder: Path) -> list[Host]:
    """The other hosts of the same lab."""
    return [Host(path.parent) for path in folder.parent.glob("hv*/machine.json") if path.parent != folder]


def free_port(taken: Collection[int] = ()) -> int:
    """A loopback port that is free now and not among those in taken, which other hosts will use soon."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
