# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the lab waits, in seconds.

A limit only ends what would never end. The lab runs on machines that differ by a factor of four and have other work to do, so no
limit says how quick a thing has to be: each is many times what the thing takes on a quiet machine.
"""

from __future__ import annotations

# Programs on this machine that only have to end: tar, mke2fs, ssh-keygen, a query of apt.
TOOL = 1800.0
DOWNLOAD = 3600.0
BUILD = 3 * 3600.0
# Another run may build what this one waits for.
LOCK = BUILD

# From the start of a host to its SSH server, or one boot after another. An emulated host takes 25 to 70 s.
HOST_ANSWERS = 1200.0
# One try to log in. It is repeated until HOST_ANSWERS.
LOGIN = 60.0
# One command on a host.
HOST_COMMAND = 900.0
# What has to happen on a host or in a guest by itself: a boot, a tick, a pass over the memory, a connection.
HAPPENS = 900.0
# One module or one playbook on the lab's hosts.
MODULE = 1800.0
PLAYBOOK = 2 * 3600.0

# The end of a host's process, before it is killed.
HOST_ENDS = 60.0
# A guest that was not heard for so long is dead. A tick is due every half second or second.
SILENCE = 30.0
