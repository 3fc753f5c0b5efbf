# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the kernel takes to preserve a memory file whose pages are all there. On a lab host; argument: its MiB."""

import os
import sys
import time

sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")

from kvm_liveupdate.kernel import _luo

memory = os.memfd_create("bench", os.MFD_CLOEXEC)
piece = os.urandom(1 << 20)
for _number in range(int(sys.argv[1])):
    os.write(memory, piece)
session = _luo.create_session("kvm-liveupdate-bench")
begun = time.monotonic()
_luo.preserve_fd(session, memory, 1)
print(time.monotonic() - begun)
