# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long things may take, in seconds. PRIVATE to the collection.

While guests run, a limit only ends what would never end: a slow host, or one with hundreds of guests, is no failure. What is done before
the pause has one limit in all, the operator's (``hypervisor_update_timeout``). Limits are tight only where guests stand still and an undo
lets them go on. On the way back they are wide again: to give up costs a guest, to wait costs time.
"""

from __future__ import annotations

# While guests run.

# A command that hangs: systemctl, virsh, and the like.
COMMAND = 600
# PID 1, which takes notifications in their order.
PID_1 = 120.0
# The device has one user at a time; PID 1 is one of them at a boot.
DEVICE_BUSY = 60.0
# One answer of a QEMU whose guest is looked at. An answer that is late is a reason against a guest that lacks nothing.
QEMU_LOOK = 600.0
# One answer of libvirt's daemon when a whole host is looked at, and all answers together. What is late is a reason here too.
LIBVIRT_ANSWER = 600.0
LIBVIRT_ANSWERS = 1800.0
# The kernel fills and pins the RAM of one guest: half a second for a GiB, and more on a slow host.
HOLD = 1800
# Another operation on this host: the commit of an update, or the rehearsal of another guest.
LOCK = 600.0
# update-grub, which may look for other systems on all disks.
BOOT_LOADER = 1800.0
# A guest that shuts down, or a unit that stops. The operator may give it more.
GUEST_OFF = 300.0
UNIT_STOP = 120.0
# For how long after its limit a guest may still follow an order to leave: it may install updates before it goes off.
GUEST_OFF_LATE = 1800.0
# A save with all RAM or a migration has at least so much, and more by its size (libvirt/_room.py).
LEAVE_LEAST = 300.0
# For libvirt to end a migration that was cancelled.
MIGRATION_CANCELLED = 60.0
# A rehearsal pauses its guest, and ends that itself. Its end takes as long as libvirt lets it: cut off, it would leave the guest paused.
REHEARSAL = 600
REHEARSAL_LOAD = 400.0
REHEARSAL_LOOK = 60.0
REHEARSAL_END = 900
# A stand-in that was told to quit. Its guest is paused meanwhile.
REHEARSAL_QUIT = 5.0

# A look at all paths of one guest: a network file system without its server answers never.
PATHS = 30.0

# The update, until guests are paused.

# Of the whole update when nobody says it; until half of it the guests have to be paused.
UPDATE = 1800
# The commit's answer has to leave the host before its SSH session is stopped.
COMMIT_ANSWER = 3.0
# A login or a container that does not end by itself is killed then.
SESSIONS = 30.0
# A QEMU of nobody's that may end by itself: libvirt starts one for a moment to ask what it can.
OTHER_VM = 5.0
# The start of a stopped socket again. Each attempt stops and starts: all together stay below what the unit's ExecStopPost= has.
SOCKETS = 60

# The pause, and the undo that ends it.

# All commands together.
PAUSE = 180.0
# One answer of a QEMU, also in a rehearsal: its guest stands still. QEMU is busy for seconds when its guest has written much.
QEMU_ANSWER = 60.0
QEMU_SAVE = 60.0
LIBVIRT_SAVE = 120.0
# What QEMU has left to do once a state is written.
QEMU_SETTLE = 5.0
# The undo of one guest's save, whose steps are repeated until then. To give up here leaves a guest paused. And one answer in it.
UNDO = 300.0
UNDO_ANSWER = 60.0
# Each of the two waits of the shutdown for processes that do not end (systemd-system.conf(5), DefaultTimeoutStopSec=).
FINAL_KILL = 10
# A kexec that was asked for ends every process long before this; only a host that stays undoes the update.
KEXEC = 120.0
KEXEC_AFTER_CRASH = 15.0

# The way back.

# One step. A step that has failed costs an operator; one that is only slow costs its time.
BACK = 1800.0
# How long a step may leave what came over in doubt before a look at it counts.
BACK_SETTLE = 30.0
# A QEMU from its start until its monitor answers; the load of a state; a domain's start by libvirt.
QEMU_START = 120.0
QEMU_LOAD = 120.0
LIBVIRT_START = 300.0
LIBVIRT_SOCKET = 300
# A start by libvirt whose memory is in use goes on by itself; when it has stood still for so long, the daemon has ended meanwhile.
LIBVIRT_STUCK = 60.0
# A server of NFS keeps the locks of a host that is gone for 90 s by default (nfsd(7), lease and grace time).
DISK_LOCKS = 300.0
# Device nodes and networks that the rest of the boot brings.
HOST_READY = 60
# Memory that somebody else's kexec left reserved. Guests that need as much wait for that.
UNCLAIMED = 300
# How long the rest of the boot waits for guests that neither run nor are late.
BOOT_WAITS = 60.0
# The clock of a guest that runs again, through its agent: nobody waits for it. Libvirt asks for an agent's attention before each command,
# and learns only from an event that the guest has the channel open.
CLOCK = 30.0
AGENT_CALL = 10.0
AGENT_ANSWER = 5
AGENT_CONNECT = 10.0
