# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts of the units and scripts that a host is given. PRIVATE to the collection."""

from __future__ import annotations

from . import _limits
from .guests import _hold, _rehearsal
from .handover import _early, _return
from .host import _files, _units
from .libvirt import _setup
from .update import _services

__all__ = (
    "AHEAD",
    "APPARMOR",
    "BEFORE_DOMAINS",
    "BEFORE_GUESTS",
    "COMMAND",
    "DAEMONS_TARGET",
    "EVERY_BOOT",
    "GUESTS_TARGET",
    "GUEST_DROPIN",
    "HOLD_SERVICE",
    "HOOK",
    "JUMP_SERVICE",
    "NEXT",
    "RAM_MOUNT",
    "REHEARSAL_SERVICE",
    "REST_SERVICE",
    "TARGET",
    "UNCLAIMED_SERVICE",
)

# Isolated and without site-packages: quick, and deaf to the environment and to what else is installed.
COMMAND = f"""#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "{_files.LIBRARY}")
from kvm_liveupdate._command import main

sys.exit(main())
"""

JUMP_SERVICE = f"""[Unit]
Description=Live update of this hypervisor: stop the rest, save the guests, jump into the staged kernel
DefaultDependencies=no
IgnoreOnIsolate=yes
RefuseManualStop=yes

[Service]
Type=exec
ExecStart={_files.COMMAND} jump
ExecStopPost={_files.COMMAND} recover
# The undo takes as long as libvirt and the services that start again let it; cut off it would leave guests paused.
TimeoutStopSec=30min
Nice=-10
"""

# While the host boots (systemd.resource-control(5)). PID 1 also starts first what weighs most.
AHEAD = """StartupCPUWeight=10000
StartupIOWeight=10000
"""
# For what most guests need not wait for, and would share their processors with.
NEXT = """StartupCPUWeight=300
StartupIOWeight=300
"""

HOLD_SERVICE = f"""[Unit]
Description=Memory of guest %I, held for a live update
DefaultDependencies=no
RequiresMountsFor={_files.STATE} {_files.COMMAND}
After=systemd-remount-fs.service systemd-modules-load.service
Before=libvirtd.service virtqemud.service
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes

[Service]
Type=notify
# ":" because a name may have a dollar sign in it (systemd.service(5), command lines).
ExecStart=:{_files.COMMAND} hold %I
# A domain that cannot be brought back yet is tried again until it is.
RestartForceExitStatus={_return.AGAIN}
RestartSec=5
# Not one of its own, in which the weights below would count for little.
Slice=system.slice
TimeoutStartSec={_hold.HOLD_LIMIT_S}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{AHEAD}"""

# Whatever becomes of its process, and of the controller: the guest goes on.
REHEARSAL_SERVICE = f"""[Unit]
Description=Rehearsal of a live update with guest %I

[Service]
Type=oneshot
NotifyAccess=main
ExecStart=:{_files.COMMAND} rehearse %I
ExecStopPost=:{_files.COMMAND} end-rehearsal %I
TimeoutStartSec={_rehearsal.UNIT_LIMIT_S}
TimeoutStopSec={_rehearsal.END_LIMIT_S}
"""

# What guests wait for goes ahead of the rest of the boot as well: a root file system that can be written to, KVM, the network, whose
# cards udev brings.
BEFORE_GUESTS = (
    "systemd-remount-fs.service",
    "systemd-modules-load.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    *(unit for unit in _services.KEPT if unit.endswith(".service")),
)
# And what brings domains back. Not their own slice: a domain that runs again would keep the others' way from going on.
BEFORE_DOMAINS = (
    "apparmor.service",
    "dbus.service",
    "libvirtd.service",
    "systemd-logind.service",
    "systemd-machined.service",
    "virtlogd.service",
    "virtqemud.service",
)
RAM_MOUNT = f"""[Unit]
Description=RAM of libvirt's domains
DefaultDependencies=no
Before=libvirtd.service virtqemud.service

[Mount]
What=tmpfs
Where={_setup.RAM_DIRECTORY}
Type=tmpfs
Options={_setup.RAM_OPTIONS.format(size="95%%")}

[Install]
WantedBy=libvirtd.service virtqemud.service
"""

# Libvirt calls its hooks often; of interest are a domain that an update has saved and the stand-in of one that is rehearsed. Python is
# named because AppArmor's profile of libvirtd lets it run programs of /usr/bin only.
HOOK = f"""#!/bin/sh
state="{_files.GUESTS_STATE}/$1.state" run="{_files.GUESTS_RUN}/$1"
[ -e "$state" ] || [ -e "$run.stand-in" ] || exit 0
case "$2/$3" in
    start/begin) exec /usr/bin/python3 -IS {_files.COMMAND} hook "$1" ;;
    started/begin) [ ! -e "$state" ] || : > "$run.resumed" ;;
esac
"""

# A QEMU that AppArmor confines opens its RAM through /proc of the process that keeps it, which is not confined.
APPARMOR = """# Live update: QEMU opens its memory in the process that held it.
ptrace (read) peer=unconfined,
"""

TARGET = """[Unit]
Description=Only the guests and what they need, before a live update jumps
Requires=sysinit.target
After=sysinit.target
AllowIsolate=yes
"""

GUESTS_TARGET = f"""[Unit]
Description=Guests that a live update brings back, before the rest of the boot
DefaultDependencies=no
Wants={" ".join((*_early.BASE, _units.REST_UNIT))}
"""

# The jump names the daemons, and what comes before them in an ordinary boot, in a drop-in.
DAEMONS_TARGET = """[Unit]
Description=What guests that a live update brings back need of the boot
DefaultDependencies=no
"""

# One job of the boot is under way until the next ones are there, else PID 1 would take the boot for done.
REST_SERVICE = f"""[Unit]
Description=The rest of the boot, after the guests
DefaultDependencies=no
OnFailure=default.target
After={" ".join(_early.BASE)}

[Service]
Type=oneshot
ExecStart={_files.COMMAND} boot
TimeoutStartSec={_early.LIMIT_S * 2:.0f}
"""

# Memory that nobody takes is free again before guests start that need as much. After our own jump there is none, and nothing runs.
UNCLAIMED_SERVICE = f"""[Unit]
Description=Give up memory that was held for guests before a kexec that was no live update
DefaultDependencies=no
ConditionPathExistsGlob={_files.hold_path("*")}
RequiresMountsFor={_files.STATE} {_files.COMMAND}
After=systemd-remount-fs.service
Before=libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart={_files.COMMAND} give-up-unclaimed
TimeoutStartSec={_limits.UNCLAIMED}
"""
EVERY_BOOT = f"""[Unit]
Wants={_units.UNCLAIMED_UNIT}
"""

# PID 1 holds the guest's session and hands it back after the jump; the guest is neither stopped by the isolation before the
# jump nor does it wait for the ordinary boot after it; what it needs of that boot, the wrapper waits for.
GUEST_DROPIN = f"""[Unit]
DefaultDependencies=no
RequiresMountsFor={_files.STATE} {_files.COMMAND}
Conflicts=shutdown.target
Before=shutdown.target
After={_units.UNCLAIMED_UNIT}
IgnoreOnIsolate=yes

[Service]
NotifyAccess=all
# What a guest waits for that cannot be brought back yet is asked for again, whatever Restart= says.
RestartForceExitStatus={_return.AGAIN}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{AHEAD}"""
