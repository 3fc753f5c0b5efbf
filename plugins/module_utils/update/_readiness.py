# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons why no update can start from the running kernel. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import reason
from ..host import _systemd, _this_boot
from ..kernel import _cmdline

__all__ = ("reasons",)


def reasons(root: str, systemd_version: int, runtime_present: bool) -> list[dict]:
    """Reasons why no live update can start from the running kernel; none if it can."""
    found = []
    if not os.path.exists(os.path.join(root, "dev/liveupdate")):
        found.append(_no_device(root))
    if not os.path.exists(os.path.join(root, "sys/kernel/kexec_loaded")):
        found.append(reason("no-kexec", "the running kernel has no kexec", "run a kernel with CONFIG_KEXEC_FILE=y"))
    elif _this_boot.line(root, "proc/sys/kernel/kexec_load_disabled") != "0":
        found.append(
            reason(
                "kexec-disabled",
                "the sysctl kernel.kexec_load_disabled is 1, which only a reboot resets",
                "remove that sysctl setting and reboot",
            )
        )
    if systemd_version < _systemd.SURVIVE_VERSION:
        found.append(
            reason(
                "systemd",
                f"systemd {systemd_version} cannot carry sessions through a shutdown",
                f"install systemd {_systemd.SURVIVE_VERSION} or later",
            )
        )
    if not runtime_present:
        found.append(
            reason(
                "runtime",
                "the host runtime is not installed, or it is of another version than this collection",
                "run the playbook kvm.liveupdate.setup",
            )
        )
    return found


def _no_device(root: str) -> dict:
    missing = _cmdline.missing_options(_this_boot.current_cmdline(root))
    if missing:
        return reason(
            "cmdline",
            f"/dev/liveupdate does not exist, because the kernel command line lacks {' and '.join(missing)}",
            "run the playbook kvm.liveupdate.setup, which adds this and reboots the host (hypervisor_setup_reboot_ok: true)",
        )
    return reason(
        "no-device",
        "/dev/liveupdate does not exist, although the kernel command line has kho=on and liveupdate=on",
        "run kernel 7.2 or later with CONFIG_LIVEUPDATE=y and CONFIG_KEXEC_HANDOVER=y; 'dmesg | grep -iE \"kho|luo\"' may show more",
    )
