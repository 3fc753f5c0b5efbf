# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the lab waits, in seconds.

A limit only stops what would hang forever. It does not say how fast something must be: some machines are four times slower than
others, or busy. So each limit is many times what the step takes on an idle machine.
"""

from __future__ import annotations

# A short program on this machine: tar, mke2fs, ssh-keygen, an apt query.
TOOL = 1800.0
DOWNLOAD = 3600.0
BUILD = 3 * 3600.0
# Another run may be building what this one waits for.
LOCK = BUILD

# From the start or reboot of a host until SSH answers. An emulated host takes 25 to 70 s.
HOST_ANSWERS = 1200.0
# One attempt to log in. It is repeated until HOST_ANSWERS.
LOGIN = 60.0
# pytest lists the tests of the lab.
COLLECTS = 600.0
# One command on a host.
HOST_COMMAND = 900.0
# An event on a host or in a guest: a boot, a tick, one pass over the memory, a connection.
HAPPENS = 900.0
# One module or one playbook on the lab's hosts.
MODULE = 1800.0
PLAYBOOK = 2 * 3600.0

# A host's process has this long to end before it is killed.
HOST_ENDS = 60.0
# A guest that is silent for this long counts as dead. It ticks once or twice a second.
SILENCE = 30.0

# After a fault: an undo with all its own limits, or a boot and all restores.
SETTLES = 2700.0
# A guest that is silent this long on a host that does nothing by itself any more does not come back by itself.
STANDS_STILL = 120.0
