# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A prepared host, kept as a disk: it went through the setup, and its guests start with it. Tests start hosts from overlays on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .. import cache, limits
from ..errors import LabError
from ..lab import Lab, build, uninterrupted
from ..machines.host import COPY, Host
from ..run import say
from ..watch import ledger
from .controller import HERE, Controller, Guest
from .domains import DISK, PLAIN, Domain, define_domains, shut_down, start_domains
from .night import start_guests, wait_until

# Without network cards: in a cold boot nothing makes a unit wait for the bridge.
UNITS: tuple[Guest, ...] = (Guest("web", 1, 128), Guest("db", 2, 192))
JOURNALLED = Domain(DISK.name, DISK.port, DISK.ram, disk=True)
DOMAINS: tuple[Domain, ...] = (JOURNALLED, PLAIN)
GUESTS: tuple[Guest, ...] = (*UNITS, *DOMAINS)

# What the setup consists of besides the code that runs on hosts (ledger.RUNTIME), and what defines the guests.
SETUP = ("playbooks", "roles/hypervisor_setup", "plugins/filter", "plugins/plugin_utils")
DEFINITIONS = ("guests.yml", "domains.yml", "domain.xml.j2")
KEPT = 4

# The image of the disk takes all its room at once. Otherwise a full file system of the host would also be an error of the guest's disk.
_ALLOCATE = """
set -e
cd /var/lib/libvirt/images
qemu-img convert -O qcow2 -o preallocation=full {0}.qcow2 {0}.full
mv {0}.full {0}.qcow2
"""


def disk(kind: str) -> Path:
    """The disk of a prepared host of this kind, in the cache. It must not be changed."""

    def make(folder: Path, _log: Path) -> None:
        say(f"prepared host of kind {kind}: start it, run the setup, start its guests once")
        lab = Lab(cache.root() / "lab-prepare")
        lab.down()
        try:
            (host,) = lab.up([kind])
            _prepare(Controller(lab), host)
            _power_off(host)
            (host.folder / COPY).rename(folder / COPY)
        finally:
            with uninterrupted():
                lab.down()

    image = build([kind]).images[kind]
    if not cache.place("prepared", inputs_of(kind, image)).is_dir():
        cache.prune("prepared", KEPT - 1)
    return cache.artefact("prepared", inputs_of(kind, image), make) / COPY


def inputs_of(kind: str, image: Path) -> dict[str, str]:
    """All inputs of the disk."""
    return {
        "kind": kind,
        "image": image.parent.name,
        "runtime": ledger.runtime(),
        "setup": digest(path for folder in SETUP for path in (ledger.COLLECTION / folder).rglob("*") if path.suffix != ".pyc"),
        "definitions": digest(HERE / name for name in DEFINITIONS),
        "guests": json.dumps([asdict(guest) for guest in GUESTS]),
        "recipe": cache.recipe(__file__),
    }


def digest(paths: Iterable[Path]) -> str:
    """The hash of these files, with their names."""
    found = [(str(path.relative_to(ledger.COLLECTION)), path.read_text()) for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _prepare(controller: Controller, host: Host) -> None:
    define_domains(controller, [host], DOMAINS)
    _there(host, _ALLOCATE.format(JOURNALLED.name))
    asked = {
        "hypervisor_setup_guest_units": [guest.unit for guest in UNITS],
        "hypervisor_setup_domains": [domain.name for domain in DOMAINS],
    }
    play = controller.play("kvm.liveupdate.setup", hypervisor_setup_reboot_ok=True, **asked)
    if play.code:
        raise LabError(f"the setup playbook failed:\n{play.output}")
    start_guests(controller, [host], UNITS)
    start_domains([host], DOMAINS)
    steps = [f"systemctl enable {guest.unit}" for guest in UNITS] + [f"virsh autostart {domain.name}" for domain in DOMAINS]
    _there(host, " && ".join(steps))


def _power_off(host: Host) -> None:
    """Shut the guests down, then the host."""
    _there(host, f"systemctl stop {' '.join(guest.unit for guest in UNITS)}")
    for domain in DOMAINS:
        shut_down(host, domain)
    host.ssh("sync; systemctl --no-block poweroff")
    wait_until(f"{host.name} off", lambda: (host.record is None, "its emulator runs"), limits.HOST_ANSWERS)


def _there(host: Host, command: str) -> None:
    done = host.ssh(command)
    if done.returncode:
        raise LabError(f"{host.name}: {done.stderr.strip() or done.stdout.strip()}")
