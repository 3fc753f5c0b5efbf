# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole lab: build the parts, start the hosts, stop the hosts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .errors import LabError
from .machines import inventory
from .machines.host import Host
from .machines.machine import MEMORY_MIB
from .parts import emulator, guest, image, initrd, kernel, packages, rootfs
from .parts.keys import Keys, keys, public
from .parts.kinds import KINDS, USUAL
from .run import say

GENERATIONS_KEPT = 2 * len(KINDS)


@dataclass(frozen=True)
class Parts:
    """Everything that is needed to start hosts."""

    emulator: tuple[str, ...]
    images: Mapping[str, Path]
    keys: Keys
    kernels: tuple[kernel.Kernel, kernel.Kernel]


def build(kinds: Sequence[str] = USUAL, twins: bool = False) -> Parts:
    """Build what is not in the cache yet, with one image for each kind of host.

    twins: build both kernels from one source, instead of from two kernel series.
    """
    resolution = packages.resolve()
    chosen = kernel.twins if twins else kernel.pair
    kernels = chosen(resolution)
    both_keys = keys()
    program = emulator.command(rootfs.tar(emulator.SUITE, resolution))
    images = {}
    for name in dict.fromkeys(kinds):
        kind = KINDS[name]
        root_tar = rootfs.tar(kind.suite, resolution, kind.packages)
        if kind.initrd:
            modular = chosen(resolution, modular=True)
            images[name] = initrd.host_image(kind, root_tar, modular, (kernels[0], guest.initramfs()), both_keys, program)
        else:
            images[name] = image.image(root_tar, kernels, guest.initramfs(), both_keys, program)
    return Parts(program, images, both_keys, kernels)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C while cleaning up, so that a second Ctrl-C does not interrupt it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Lab:
    """The hosts in one folder. Set KVM_LIVEUPDATE_LAB to another folder to run a second lab."""

    def __init__(self, folder: Path | None = None) -> None:
        chosen = os.environ.get("KVM_LIVEUPDATE_LAB")
        self.folder = (folder or Path(chosen or cache.root() / "lab")).resolve()
        self._lock = "lab-" + cache.key({"folder": str(self.folder)})

    @property
    def inventory(self) -> Path:
        """The Ansible inventory of the running hosts."""
        return self.folder / "inventory.yml"

    def hosts(self) -> list[Host]:
        """All hosts, running or not."""
        found = [Host(path.parent) for path in self.folder.glob("hv*/machine.json")]
        return sorted(found, key=lambda host: int(host.name.removeprefix("hv")))

    def host(self, name: str) -> Host:
        """The host with this name."""
        for host in self.hosts():
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts()) or "none, start some with tests/lab/lab up"
        raise LabError(f"no host {name}; known hosts: {known}")

    def up(
        self, kinds: Sequence[str], memory_mib: int = MEMORY_MIB, twins: bool = False, prepared: Mapping[str, Path] | None = None
    ) -> list[Host]:
        """Start hv1, hv2 and so on, one of each of these kinds. A host that runs already stays as it is.

        prepared: disks by kind. A new host of such a kind starts from this disk, not from the image of its kind.
        """
        disks = prepared or {}
        parts = build(kinds, twins)
        if not any(host.record for host in self.hosts()):
            for kind in ("deb", "emulator", "image", "rootfs"):
                cache.prune(kind, GENERATIONS_KEPT)
        with cache.locked(self._lock):
            self.folder.mkdir(parents=True, exist_ok=True)
            wanted = [Host(self.folder / f"hv{number}") for number in range(1, len(kinds) + 1)]
            started: list[Host] = []
            fresh = {host.name for host in wanted if not host.has_disk}
            try:
                for host, kind in zip(wanted, kinds, strict=True):
                    if host.record is None:
                        started.append(host)
                        more = {"prepared": disks[kind]} if kind in disks else {}
                        host.start(kind, parts.emulator, parts.images[kind], memory_mib, **more)
                        say(f"{host.name}: {host.kind}, started, SSH on 127.0.0.1:{host.port}, logs in {host.folder}")
                    elif host.image != str(disks.get(kind, parts.images[kind])):
                        say(f"{host.name}: runs from an older image; to renew it, run tests/lab/lab down, then tests/lab/lab up")
                self._write_files(parts.keys)
                for host in started:
                    begun = time.monotonic()
                    host.wait_ssh()
                    say(f"{host.name}: answers on SSH after {time.monotonic() - begun:.0f} s more")
            except BaseException:
                with uninterrupted():
                    self._end(started, forget=fresh)
                    self._write_files(parts.keys)
                raise
            return wanted

    def down(self) -> list[Host]:
        """Stop all hosts and delete their disks. The logs stay."""
        with cache.locked(self._lock):
            ended = self.hosts()
            self._end(ended, forget={host.name for host in ended})
            self.inventory.unlink(missing_ok=True)
            return ended

    def _end(self, hosts: list[Host], forget: set[str]) -> None:
        """Stop these hosts in parallel. Delete the disks of those in forget."""
        for host in hosts:
            host.stop()
        for host in hosts:
            host.ensure_stopped(forget=host.name in forget)

    def _write_files(self, both: Keys) -> None:
        """Write the SSH and Ansible files for the running hosts."""
        running = [host for host in self.hosts() if host.record]
        ports = {host.name: host.port for host in running}
        if not ports:
            self.inventory.unlink(missing_ok=True)
            return
        (self.folder / "known_hosts").write_text(inventory.known_hosts(public(both.host)))
        (self.folder / "ssh_config").write_text(inventory.ssh_config(self.folder, both.client, ports))
        self.inventory.write_text(inventory.inventory(self.folder, both.client, ports, {host.name: host.kind for host in running}))
