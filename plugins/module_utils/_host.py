# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is and why it cannot be updated live. PRIVATE to the collection.

Reads below ``root``, so that tests can show it a host of their own.
"""

from __future__ import annotations

import os

from . import _cmdline, _kexec, _systemd
from ._errors import LiveUpdateError

__all__ = ("boot_id", "kernel", "random_uuid", "reasons", "require_root")


def _line(root: str, path: str) -> str:
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read().strip()


def boot_id(root: str = "/") -> str:
    """This boot's id, a UUID (random(4))."""
    return _line(root, "proc/sys/kernel/random/boot_id")


def random_uuid() -> str:
    """A fresh random UUID, from the kernel."""
    return _line("/", "proc/sys/kernel/random/uuid")


def kernel(root: str = "/") -> dict[str, str]:
    """The running kernel: ``release`` and ``version`` as uname -r and -v give them, and ``cmdline``."""
    return {
        "release": _line(root, "proc/sys/kernel/osrelease"),
        "version": _line(root, "proc/sys/kernel/version"),
        "cmdline": _kexec.current_cmdline(root),
    }


def require_root() -> None:
    """Everything here needs root; say so before the first permission error does."""
    if os.geteuid() != 0:
        raise LiveUpdateError(f"running as uid {os.geteuid()}: live update needs root; set become: true on the task or play")


def _reason(code: str, message: str, remedy: str) -> dict:
    return {"code": code, "message": message, "remedy": remedy}


def reasons(root: str, systemd_version: int, runtime_present: bool) -> list[dict]:
    """Why no live update can start from the running kernel: reasons with code, message and remedy; none when it can."""
    found = []
    if not os.path.exists(os.path.join(root, "dev/liveupdate")):
        found.append(_no_device(root))
    if not os.path.exists(os.path.join(root, "sys/kernel/kexec_loaded")):
        found.append(_reason("no-kexec", "this kernel has no kexec", "run a kernel with CONFIG_KEXEC_FILE=y"))
    elif _line(root, "proc/sys/kernel/kexec_load_disabled") != "0":
        found.append(
            _reason("kexec-disabled", "kernel.kexec_load_disabled is 1, until the next reboot", "remove that sysctl setting and reboot")
        )
    if systemd_version < _systemd.SURVIVE_VERSION:
        found.append(
            _reason(
                "systemd",
                f"systemd {systemd_version} keeps nothing alive through a shutdown",
                f"systemd {_systemd.SURVIVE_VERSION} or later is needed",
            )
        )
    if not runtime_present:
        found.append(
            _reason("runtime", "the host runtime is not installed, or is another version", "run the playbook kvm.liveupdate.setup")
        )
    return found


def _no_device(root: str) -> dict:
    missing = _cmdline.missing_options(_kexec.current_cmdline(root))
    if missing:
        return _reason(
            "cmdline",
            f"there is no /dev/liveupdate: the kernel command line lacks {' and '.join(missing)}",
            "the role hypervisor_setup adds what is missing, at the price of one ordinary reboot (hypervisor_setup_reboot_ok: true)",
        )
    return _reason(
        "no-device",
        "there is no /dev/liveupdate although kho=on and liveupdate=on are given",
        "run a kernel of 7.2 or later with CONFIG_LIVEUPDATE=y and CONFIG_KEXEC_HANDOVER=y; 'dmesg | grep -iE \"kho|luo\"' may say more",
    )
