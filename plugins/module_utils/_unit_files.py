# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts of the units and scripts that a host gets. PRIVATE to the collection."""

from __future__ import annotations

from . import _limits
from .guests import _hold, _rehearsal
from .handover import _early, _return
from .host import _files, _units
from .libvirt import _setup, _virsh
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
    "TRIAL_SERVICE",
    "TRIAL_WATCH_SERVICE",
    "UNCLAIMED_SERVICE",
)

# Isolated and without site-packages: fast, and independent of the environment and of other installed packages. Paths and names are UTF-8
# whatever the locale is, as what virsh and systemctl print. Linux passes all options of a script's first line as one word.
_PYTHON = "/usr/bin/python3 -ISXutf8"
COMMAND = f"""#!{_PYTHON}
import sys

sys.path.insert(0, "{_files.LIBRARY}")
from kvm_liveupdate._command import main

sys.exit(main())
"""

JUMP_SERVICE = f"""[Unit]
Description=Live update of this hypervisor: stop services, save the guests, jump into the staged kernel
DefaultDependencies=no
IgnoreOnIsolate=yes
RefuseManualStop=yes

[Service]
Type=exec
ExecStart={_files.COMMAND} jump
ExecStopPost={_files.COMMAND} recover
# The undo waits for libvirt and for services that start again. If systemd killed it, guests would stay paused.
TimeoutStopSec=30min
# Each virsh of a domain needs a few descriptors, and domains are saved in parallel: 1024 are too few for hundreds.
LimitNOFILE=65536
Nice=-10
"""

# Weights while the host boots (systemd.resource-control(5)). PID 1 also starts the units with the largest weights first.
AHEAD = """StartupCPUWeight=10000
StartupIOWeight=10000
"""
# For units that most guests do not wait for, and that would take processor time from them.
NEXT = """StartupCPUWeight=300
StartupIOWeight=300
"""

HOLD_SERVICE = f"""[Unit]
Description=Preserved memory of guest %I
DefaultDependencies=no
RequiresMountsFor={_files.STATE} {_files.COMMAND} {_virsh.SAVED}
After=systemd-remount-fs.service systemd-modules-load.service
Before=libvirtd.service virtqemud.service
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes
# No limit of starts: a start is repeated until the domain is restored (systemd.unit(5)).
StartLimitIntervalSec=0

[Service]
Type=notify
# ":" because a name may contain a dollar sign (systemd.service(5), command lines).
ExecStart=:{_files.COMMAND} hold %I
# If a domain cannot be restored yet, try again.
RestartForceExitStatus={_return.AGAIN}
RestartSec=5
# Not a slice of its own, in which the weights below would have little effect.
Slice=system.slice
TimeoutStartSec={_hold.HOLD_LIMIT_S}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{AHEAD}"""

# The end of the unit resumes the guest, whatever happens to its process and to the controller.
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

# What guests wait for also has priority over the rest of the boot: a writable root file system, KVM, and the network, whose cards need
# udev.
BEFORE_GUESTS = (
    "systemd-remount-fs.service",
    "systemd-modules-load.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    *(unit for unit in _services.KEPT if unit.endswith(".service")),
)
# And what restores domains. Not their own slice: a domain that already runs would delay the restore of the others.
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
Description=RAM of libvirt domains
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

# Libvirt calls its hooks often. Only two cases matter: a domain that an update has saved, and the stand-in of a rehearsal. The script names
# Python because AppArmor's profile of libvirtd allows only programs in /usr/bin.
HOOK = f"""#!/bin/sh
state="{_files.GUESTS_STATE}/$1.state" run="{_files.GUESTS_RUN}/$1"
[ -e "$state" ] || [ -e "$run.stand-in" ] || exit 0
case "$2/$3" in
    start/begin) exec {_PYTHON} {_files.COMMAND} hook "$1" ;;
    started/begin) [ ! -e "$state" ] || : > "$run.resumed" ;;
esac
"""

# A QEMU that AppArmor confines opens its RAM through /proc of the process that keeps it open, which is not confined.
APPARMOR = """# Live update: QEMU opens its RAM through /proc of the process that keeps it open.
ptrace (read) peer=unconfined,
"""

TARGET = """[Unit]
Description=Guests and what they need, before the jump of a live update
Requires=sysinit.target
After=sysinit.target
AllowIsolate=yes
"""

GUESTS_TARGET = f"""[Unit]
Description=Guests that a live update restores before the rest of the boot
DefaultDependencies=no
Wants={" ".join((*_early.BASE, _units.REST_UNIT))}
"""

# The update writes a drop-in with the daemons, and what starts before them in an ordinary boot.
DAEMONS_TARGET = """[Unit]
Description=Services that guests need before a live update can restore them
DefaultDependencies=no
"""

# This job of the boot runs until the next jobs exist. Otherwise PID 1 would consider the boot complete.
REST_SERVICE = f"""[Unit]
Description=Start the rest of the boot after the guests
DefaultDependencies=no
OnFailure=default.target
After={" ".join(_early.BASE)}

[Service]
Type=oneshot
ExecStart={_files.COMMAND} boot
TimeoutStartSec={_early.LIMIT_S * 2:.0f}
"""

# Memory that no guest uses is released before guests start that need as much. After an update's jump there is none, and this does not run.
UNCLAIMED_SERVICE = f"""[Unit]
Description=Release guest memory that was preserved before a kexec that was not a live update
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

# PID 1 holds the guest's session and hands it back after the jump. The isolation before the jump does not stop the guest. After the jump
# the guest does not wait for the ordinary boot; the wrapper waits for what it needs.
GUEST_DROPIN = f"""[Unit]
DefaultDependencies=no
RequiresMountsFor={_files.STATE} {_files.COMMAND}
Conflicts=shutdown.target
Before=shutdown.target
After={_units.UNCLAIMED_UNIT} systemd-modules-load.service
IgnoreOnIsolate=yes

[Service]
NotifyAccess=all
# If the guest cannot be restored yet, try again, regardless of Restart=.
RestartForceExitStatus={_return.AGAIN}
FileDescriptorStoreMax=4
FileDescriptorStorePreserve=yes
{AHEAD}"""

# The throw-away guest of a trial: an ordinary guest in a unit, with the lines of the drop-in. Its {command} starts QEMU.
TRIAL_SERVICE = f"""[Unit]
Description=Throw-away guest of a trial of this host

[Service]
ExecStart={_files.COMMAND} run {{name}} -- {{command}}

{GUEST_DROPIN}"""

# It begins with the boot and takes no processor time from what the boot does.
TRIAL_WATCH_SERVICE = f"""[Unit]
Description=Watch which devices come back after the jump of a trial
DefaultDependencies=no
ConditionPathExists={_files.TRIAL}
RequiresMountsFor={_files.STATE} {_files.COMMAND}
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=exec
ExecStart={_files.COMMAND} watch-devices
Nice=19
CPUWeight=1
IOWeight=1
"""
