# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Archives for initial RAM disks."""

from __future__ import annotations

import random


def cpio(*names, size=6000):
    """An archive by GNU cpio's newc format, its files filled with noise."""

    def member(name, data=b""):
        head = b"070701" + b"".join(b"%08X" % number for number in (1, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0))
        text = head + name.encode() + b"\0"
        text += bytes(-len(text) % 4) + data
        return text + bytes(-len(text) % 4)

    noise = random.Random(1).randbytes(size)
    return b"".join(member(name, noise) for name in names) + member("TRAILER!!!")
