# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All time limits of the code on hosts, in seconds. PRIVATE to the collection.

While guests run, a limit only ends what would never end by itself: a slow host, or one with hundreds of guests, must not fail. All steps
before the pause have one limit together, the operator's (``hypervisor_update_timeout``). Limits are short only while guests are paused and
an undo can resume them. During the restore they are long again: to give up costs a guest, to wait only costs time.
"""

from __future__ import annotations

# While guests run.

# A command that may hang: systemctl, virsh, and the like.
COMMAND = 600
# PID 1, which handles notifications in their order.
PID_1 = 120.0
# The live update device has one user at a time. During a boot PID 1 uses it too.
DEVICE_BUSY = 60.0
# One answer of a QEMU whose guest is examined. A late answer would be a reason against a guest that has no other.
QEMU_LOOK = 600.0
# One answer of libvirt's daemon when a whole host is examined, and all answers together. A late answer is a reason here too.
LIBVIRT_ANSWER = 600.0
LIBVIRT_ANSWERS = 1800.0
# The kernel allocates and pins the RAM of one guest: half a second for each GiB, and more on a slow host.
HOLD = 1800
# Another operation on this host: the commit of an update, or the rehearsal of another guest.
LOCK = 600.0
# update-grub, which may look for other systems on all disks.
BOOT_LOADER = 1800.0
# A guest that shuts down, or a unit that stops. The operator may raise it.
GUEST_OFF = 300.0
UNIT_STOP = 120.0
# For how long after its limit a guest may still shut down: it may install updates before it powers off.
GUEST_OFF_LATE = 1800.0
# The least for a save with all RAM or a migration. The limit grows with the RAM (libvirt/_room.py).
LEAVE_LEAST = 300.0
# The end of a migration in libvirt after it was cancelled.
MIGRATION_CANCELLED = 60.0
# A rehearsal pauses its guest, and resumes it at its end. The end waits for libvirt: if it were interrupted, the guest would stay paused.
REHEARSAL = 600
REHEARSAL_LOAD = 400.0
REHEARSAL_LOOK = 60.0
REHEARSAL_END = 900
# The end of a stand-in. Its guest is paused until then.
REHEARSAL_QUIT = 5.0

# One path of a guest, without the time in which the look waits for a processor: a network file system without its server never answers.
# And all paths of the guest.
PATHS = 30.0
PATHS_LONGEST = 1800.0

# A trial: the throw-away guest has filled and read its RAM once; its timer ticks. And for how long the boot watches the devices.
TRIAL_GUEST = 300.0
TRIAL_TICKS = 30.0
TRIAL_WATCH = 3600.0

# The update, until guests are paused.

# The default for the whole update. The guests must be paused within half of it.
UPDATE = 1800
# The answer to the commit must leave the host before the SSH session is stopped.
COMMIT_ANSWER = 3.0
# The end of a login or a container. After that it is killed.
SESSIONS = 30.0
# The stop of the services that feed a watchdog, and of those that start in their place.
WATCHDOGS = 30.0
# An unknown QEMU that may end by itself: libvirt starts one for a moment to ask for its features.
OTHER_VM = 10.0
# The new start of a stopped socket. Each attempt stops and starts. All attempts together stay below the limit of the unit's ExecStopPost=.
SOCKETS = 60

# The pause, and the undo that ends it.

# All commands together.
PAUSE = 180.0
# One answer of a QEMU whose guest is paused, also in a rehearsal. QEMU is busy for seconds if its guest has written much.
QEMU_ANSWER = 60.0
QEMU_SAVE = 60.0
LIBVIRT_SAVE = 120.0
# The status of the files of a guest's disks. A network file system without its server never answers.
DISK_SIZES = 30.0
# The time that QEMU needs after a state is written.
QEMU_SETTLE = 5.0
# The undo of one guest's save, whose steps are repeated until then, because a guest would stay paused. And one answer in it.
UNDO = 300.0
UNDO_ANSWER = 60.0
# The least for an answer in the undo of a domain, also if it is asked right before the limit of the undo.
UNDO_LAST_ANSWER = 10.0
# Each of the two waits of the shutdown for processes that do not end (systemd-system.conf(5), DefaultTimeoutStopSec=).
FINAL_KILL = 10
# A requested kexec ends every process long before this. Only if the host still runs then, the update is undone.
KEXEC = 120.0
KEXEC_AFTER_CRASH = 15.0

# The restore.

# One step. A failed step needs an operator; a slow one only needs time.
BACK = 1800.0
# The time between two tries to record a restored guest.
BACK_SETTLE = 30.0
# A QEMU from its start until its monitor answers; the load of a state; a domain's start by libvirt.
QEMU_START = 120.0
QEMU_LOAD = 120.0
LIBVIRT_START = 300.0
LIBVIRT_SOCKET = 300
# A start by libvirt whose memory is in use continues by itself. If nothing happens for so long, the daemon has ended.
LIBVIRT_STUCK = 60.0
# For how long a start of a domain from its disks is repeated. Not longer: somebody may start the guest on another host meanwhile.
COLD_START = 300.0
# An NFS server keeps the locks of a host that is gone for 90 s by default (nfsd(7), lease and grace time).
DISK_LOCKS = 300.0
# Device nodes and networks that the rest of the boot brings.
HOST_READY = 60
# The release of memory that another kexec left reserved. Guests that need as much wait for it. A part of it is the wait for D-Bus.
UNCLAIMED = 300
SYSTEM_BUS = 150.0
# How long the rest of the boot waits for guests that neither run nor are late.
BOOT_WAITS = 60.0
# The correction of a restored guest's clock through its agent; nothing waits for it. Libvirt synchronises with the agent before each
# command, and learns only from an event that the guest has the channel open.
CLOCK = 30.0
AGENT_CALL = 10.0
AGENT_ANSWER = 5
AGENT_CONNECT = 10.0
