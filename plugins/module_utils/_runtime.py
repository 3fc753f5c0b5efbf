# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the host runtime consists of: this same Python, a command, units. PRIVATE to the collection."""

from __future__ import annotations

import glob
import importlib.util
import os
import re

from . import (
    _boot_order,
    _cli,
    _holding,
    _incoming,
    _libvirt_ram,
    _libvirt_reasons,
    _libvirt_run,
    _limits,
    _lock,
    _paths,
    _rehearsal,
    _update,
)
from ._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable  # not at run time: slow to import

__all__ = ("DIRECTORIES", "files", "in_order", "left_over", "outdated", "stale")

LIBRARY = "/usr/local/lib/kvm-liveupdate"
COMMAND = "/usr/local/sbin/kvm-liveupdate"
UNITS = "/etc/systemd/system"
# What "systemctl set-property" writes is called 50-*.conf and is to win.
DROPIN = "40-kvm-liveupdate.conf"
DIRECTORIES = (_paths.STATE, _paths.GUESTS_STATE)
# What the command imports, also inside functions; a folder's __init__.py goes along.
_PARTS = (
    "_apart",
    "_away",
    "_boot_order",
    "_cli",
    "_clock",
    "_cmdline",
    "_errors",
    "_guests",
    "_holding",
    "_host",
    "_incoming",
    "_kexec",
    "_libvirt",
    "_libvirt_agent",
    "_libvirt_describe",
    "_libvirt_image",
    "_libvirt_needs",
    "_libvirt_ram",
    "_libvirt_reasons",
    "_libvirt_rehearsal",
    "_libvirt_run",
    "_libvirt_saves",
    "_libvirt_survey",
    "_libvirt_virsh",
    "_limits",
    "_lock",
    "_luo",
    "_memory",
    "_paths",
    "_paused",
    "_processes",
    "_providers",
    "_qemu",
    "_qemu_rehearsal",
    "_qemu_run",
    "_qmp",
    "_ram_file",
    "_rehearsal",
    "_systemd",
    "_tcp",
    "_unclaimed",
    "_update",
    "vmm._argv",
    "vmm._block",
    "vmm._files",
    "vmm._now",
    "vmm._opens",
    "vmm._options",
)

# Isolated and without site-packages: quick, and deaf to the environment and to what else is installed.
_COMMAND = f"""#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "{LIBRARY}")
from kvm_liveupdate._cli import main

sys.exit(main())
"""

_JUMP_SERVICE = f"""[Unit]
Description=Live update of this hypervisor: stop the rest, save the guests, jump into the staged kernel
DefaultDependencies=no
IgnoreOnIsolate=yes
RefuseManualStop=yes

[Service]
Type=exec
ExecStart={COMMAND} jump
ExecStopPost={COMMAND} recover
# The undo takes as long as libvirt and the services that start again let it; cut off it would leave guests paused.
TimeoutStopSec=30min
Nice=-10
"""

# While the host boots (systemd.resource-control(5)). PID 1 also starts first what weighs most.
_AHEAD = """StartupCPUWeight=10000
StartupIOWeight=10000
"""
# For what most guests need not wait for, and would share their processors with.
_NEXT = """StartupCPUWeight=300
StartupIOWeight=300
"""

_HOLD_SERVICE = f"""[Unit]
Description=Memory of guest %I, held for a live update
DefaultDependencies=no
RequiresMountsFor={_paths.STATE} {COMMAND}
After=systemd-remount-fs.service systemd-modules-load.service
Before=libvirtd.service virtqemud.service
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes

[Service]
Type=notify
# ":" because a name may have a dollar sign in it (systemd.service(5), command lines).
ExecStart=:{COMMAND} hold %I
# A domain that cannot be brought back yet is tried again until it is.
RestartForceExitStatus={_incoming.AGAIN}
RestartSec=5
# Not one of its own, in which the weights below would count for little.
Slice=system.slice
TimeoutStartSec={_holding.HOLD_LIMIT_S}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{_AHEAD}"""

# Whatever becomes of its process, and of the controller: the guest goes on.
_REHEARSAL_SERVICE = f"""[Unit]
Description=Rehearsal of a live update with guest %I

[Service]
Type=oneshot
NotifyAccess=main
ExecStart=:{COMMAND} rehearse %I
ExecStopPost=:{COMMAND} end-rehearsal %I
TimeoutStartSec={_rehearsal.UNIT_LIMIT_S}
TimeoutStopSec={_rehearsal.END_LIMIT_S}
"""

# What guests wait for goes ahead of the rest of the boot as well: a root file system that can be written to, KVM, the network, whose
# cards udev brings.
_BEFORE_GUESTS = (
    "systemd-remount-fs.service",
    "systemd-modules-load.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    *(unit for unit in _update.KEPT if unit.endswith(".service")),
)
# And what brings domains back. Not their own slice: a domain that runs again would keep the others' way from going on.
_BEFORE_DOMAINS = (
    "apparmor.service",
    "dbus.service",
    "libvirtd.service",
    "systemd-logind.service",
    "systemd-machined.service",
    "virtlogd.service",
    "virtqemud.service",
)

# The domains' RAM: on a file system of its own, so that nothing else can fill it up.
RAM_DIRECTORY = _libvirt_ram.DIRECTORY
RAM_MOUNT = "run-kvm\\x2dliveupdate\\x2dram.mount"
RAM_SIZE = f"{UNITS}/{RAM_MOUNT}.d/50-size.conf"
_RAM_OPTIONS = "mode=0755,size={size},huge=within_size"
_RAM_MOUNT = f"""[Unit]
Description=RAM of libvirt's domains
DefaultDependencies=no
Before=libvirtd.service virtqemud.service

[Mount]
What=tmpfs
Where={RAM_DIRECTORY}
Type=tmpfs
Options={_RAM_OPTIONS.format(size="95%%")}

[Install]
WantedBy=libvirtd.service virtqemud.service
"""

# Libvirt calls its hooks often; of interest are a domain that an update has saved and the stand-in of one that is rehearsed. Python is
# named because AppArmor's profile of libvirtd lets it run programs of /usr/bin only.
_HOOK = f"""#!/bin/sh
state="{_paths.GUESTS_STATE}/$1.state" run="{_paths.GUESTS_RUN}/$1"
[ -e "$state" ] || [ -e "$run.stand-in" ] || exit 0
case "$2/$3" in
    start/begin) exec /usr/bin/python3 -IS {COMMAND} hook "$1" ;;
    started/begin) [ ! -e "$state" ] || : > "$run.resumed" ;;
esac
"""

# A QEMU that AppArmor confines opens its RAM through /proc of the process that keeps it, which is not confined.
_APPARMOR = """# Live update: QEMU opens its memory in the process that held it.
ptrace (read) peer=unconfined,
"""

_TARGET = """[Unit]
Description=Only the guests and what they need, before a live update jumps
Requires=sysinit.target
After=sysinit.target
AllowIsolate=yes
"""

_GUESTS_TARGET = f"""[Unit]
Description=Guests that a live update brings back, before the rest of the boot
DefaultDependencies=no
Wants={" ".join((*_boot_order.BASE, _boot_order.REST_UNIT))}
"""

# The jump names the daemons, and what comes before them in an ordinary boot, in a drop-in.
_DAEMONS_TARGET = """[Unit]
Description=What guests that a live update brings back need of the boot
DefaultDependencies=no
"""

# One job of the boot is under way until the next ones are there, else PID 1 would take the boot for done.
_REST_SERVICE = f"""[Unit]
Description=The rest of the boot, after the guests
DefaultDependencies=no
OnFailure=default.target
After={" ".join(_boot_order.BASE)}

[Service]
Type=oneshot
ExecStart={COMMAND} boot
TimeoutStartSec={_boot_order.LIMIT_S * 2:.0f}
"""

# Memory that nobody takes is free again before guests start that need as much. After our own jump there is none, and nothing runs.
_UNCLAIMED_SERVICE = f"""[Unit]
Description=Give up memory that was held for guests before a kexec that was no live update
DefaultDependencies=no
ConditionPathExistsGlob={_holding.record_path("*")}
RequiresMountsFor={_paths.STATE} {COMMAND}
After=systemd-remount-fs.service
Before=libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart={COMMAND} give-up-unclaimed
TimeoutStartSec={_limits.UNCLAIMED}
"""
_EVERY_BOOT = f"""[Unit]
Wants={_boot_order.UNCLAIMED_UNIT}
"""

# PID 1 holds the guest's session and hands it back after the jump; the guest is neither stopped by the isolation before the
# jump nor does it wait for the ordinary boot after it; what it needs of that boot, the wrapper waits for.
_GUEST_DROPIN = f"""[Unit]
DefaultDependencies=no
RequiresMountsFor={_paths.STATE} {COMMAND}
Conflicts=shutdown.target
Before=shutdown.target
After={_boot_order.UNCLAIMED_UNIT}
IgnoreOnIsolate=yes

[Service]
NotifyAccess=all
# What a guest waits for that cannot be brought back yet is asked for again, whatever Restart= says.
RestartForceExitStatus={_incoming.AGAIN}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{_AHEAD}"""


def _source(part: str) -> str:
    """The source of a module or folder of the collection's Python, also when Ansible ships it in a zip file."""
    name = f"{_cli.__package__}.{part}"  # the import of the command is what makes Ansible ship all of them
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise LiveUpdateError(f"{name}: not found where this module runs; install the collection again on the controller")
    return str(spec.loader.get_source(name))  # type: ignore[attr-defined]  # a loader from a file or zip file has it


def _library() -> dict[str, str]:
    """Each Python file below :data:`LIBRARY`: path -> content."""
    package = f"{LIBRARY}/kvm_liveupdate"
    modules = {f"{package}/{part.replace('.', '/')}.py": _source(part) for part in _PARTS}
    folders = {part.rpartition(".")[0] for part in _PARTS} - {""}
    inits = {f"{package}/{folder.replace('.', '/')}/__init__.py": _source(folder) for folder in sorted(folders)}
    return {**modules, **inits, f"{package}/__init__.py": ""}


def has_libvirt(root: str = "/") -> bool:
    """Whether libvirt runs QEMU domains on this host."""
    return os.path.isdir(os.path.join(root, "etc/libvirt"))


def files(guest_units: list[str], ram_size: str = "") -> dict[str, tuple[str, int]]:
    """Every file of the runtime on a host: path -> (content, mode).

    ``ram_size`` is how large the domains' RAM may become all together, as tmpfs(5) writes it; empty leaves what is set.
    """
    for unit in guest_units:
        if not unit.endswith(".service"):
            raise LiveUpdateError(f"guest unit {unit!r}: not the name of a service unit; write {unit}.service")
    if ram_size and not re.fullmatch(r"[1-9][0-9]*[kKmMgG%]?", ram_size):
        raise LiveUpdateError(f"ram_size {ram_size!r}: not a size; use bytes, or k, m, g or % (of the host's RAM) behind a whole number")
    wanted = {path: (content, 0o644) for path, content in _library().items()}
    wanted[COMMAND] = (_COMMAND, 0o755)
    wanted[f"{UNITS}/{_lock.JUMP_UNIT}"] = (_JUMP_SERVICE, 0o644)
    wanted[f"{UNITS}/{_holding.RESIDENT}"] = (_HOLD_SERVICE, 0o644)
    wanted[f"{UNITS}/{_rehearsal.UNIT}"] = (_REHEARSAL_SERVICE, 0o644)
    wanted[f"{UNITS}/{_update.JUMP_TARGET}"] = (_TARGET, 0o644)
    wanted[f"{UNITS}/{_boot_order.TARGET}"] = (_GUESTS_TARGET, 0o644)
    wanted[f"{UNITS}/{_boot_order.DAEMONS_TARGET}"] = (_DAEMONS_TARGET, 0o644)
    wanted[f"{UNITS}/{_boot_order.REST_UNIT}"] = (_REST_SERVICE, 0o644)
    wanted[f"{UNITS}/{_boot_order.UNCLAIMED_UNIT}"] = (_UNCLAIMED_SERVICE, 0o644)
    wanted[f"{UNITS}/sysinit.target.d/{DROPIN}"] = (_EVERY_BOOT, 0o644)
    for unit in (*_BEFORE_GUESTS, *(_BEFORE_DOMAINS if has_libvirt() else ())):
        wanted[f"{UNITS}/{unit}.d/{DROPIN}"] = (f"[Service]\n{_NEXT if unit in _boot_order.BASE else _AHEAD}", 0o644)
    if has_libvirt():
        wanted[f"{UNITS}/{RAM_MOUNT}"] = (_RAM_MOUNT, 0o644)
        if ram_size:
            options = _RAM_OPTIONS.format(size=ram_size.replace("%", "%%"))
            wanted[RAM_SIZE] = (f"[Mount]\nOptions={options}\n", 0o644)
        wanted[_libvirt_run.HOOK] = (_HOOK, 0o755)
        if os.path.exists(_libvirt_reasons.APPARMOR_ABSTRACTION):
            wanted[_libvirt_reasons.APPARMOR_RULE] = (_APPARMOR, 0o644)
    for unit in guest_units:
        wanted[f"{UNITS}/{unit}.d/{DROPIN}"] = (_GUEST_DROPIN, 0o644)
    return wanted


def in_order(paths: list[str]) -> list[str]:
    """The files in the order to write them in: what a unit or a hook calls is there before it. Pure."""
    ranks = (LIBRARY, COMMAND, UNITS)
    return sorted(paths, key=lambda path: next((rank for rank, start in enumerate(ranks) if path.startswith(start)), len(ranks)))


def outdated(wanted: dict[str, tuple[str, int]], root: str = "/") -> list[str]:
    """Which of the files are missing or differ on this host."""
    found = []
    for path, (content, mode) in wanted.items():
        try:
            with open(os.path.join(root, path.lstrip("/")), encoding="utf-8") as file:
                same = file.read() == content and os.fstat(file.fileno()).st_mode & 0o777 == mode
        except OSError:
            same = False
        if not same:
            found.append(path)
    return found


def left_over(wanted: Iterable[str], root: str = "/") -> list[str]:
    """What lies in the library on this host and is not wanted: Python files of an older version, and their byte code."""
    kept = set(wanted)
    found = []
    for folder, _folders, names in os.walk(os.path.join(root, LIBRARY.lstrip("/"))):
        there = "/" + os.path.relpath(folder, root)
        for name in names:
            source = f"{os.path.dirname(there)}/{name.partition('.')[0]}.py" if there.endswith("/__pycache__") else f"{there}/{name}"
            if source not in kept:
                found.append(f"{there}/{name}")
    return sorted(found)


def stale(wanted: dict[str, tuple[str, int]], kept: list[str], root: str = "/") -> list[str]:
    """Which files on this host are the runtime's, and not of those that are wanted: of an older version, or of units that are not listed.

    The drop-ins of the units in ``kept`` stay: their guests run.
    """
    patterns = (
        f"{UNITS}/*.d/{DROPIN}",
        f"{UNITS}/kvm-liveupdate*.service",
        f"{UNITS}/kvm-liveupdate*.target",
    )
    found = left_over(wanted, root)
    found += [f"/{os.path.relpath(path, root)}" for pattern in patterns for path in glob.glob(os.path.join(root, pattern.lstrip("/")))]
    stay = {*wanted, *(f"{UNITS}/{unit}.d/{DROPIN}" for unit in kept)}
    return sorted(path for path in found if path not in stay)
