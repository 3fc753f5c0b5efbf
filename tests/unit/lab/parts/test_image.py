# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the hosts' disk image says about the boot."""

from __future__ import annotations

import re

from kvmlab.parts import bootloader, image


def test_the_boot_default_is_the_old_kernel() -> None:
    text = bootloader.script("01234567", "7.2.13")
    assert "grub-set-default 'gnulinux-advanced-01234567>gnulinux-7.2.13-advanced-01234567'" in text
    assert "GRUB_DEFAULT=saved\n" in dict(image.host_files())["etc/default/grub"]


def test_hosts_are_ready_for_live_updates() -> None:
    grub = dict(image.host_files())["etc/default/grub"]
    (line,) = re.findall(r'^GRUB_CMDLINE_LINUX="(.*)"$', grub, re.MULTILINE)
    assert {"kho=on", "liveupdate=on", "console=ttyS0", "rw"} <= set(line.split())
