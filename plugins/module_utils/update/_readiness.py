# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons why no update can start from the running kernel. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import reason
from ..host import _systemd, _this_boot, _watchdogs
from ..kernel import _cmdline

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("armed", "reasons", "watchdogs")

# The update keeps it running until the jump, for sanlock's leases, and while sanlock has one it does not stop its watchdog at its end.
_KEPT_FEEDER = "wdmd.service"


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
    return found + watchdogs(root)


def watchdogs(root: str = "/", keep_units: t.Collection[str] = ()) -> list[dict]:
    """Reasons for watchdogs that could reset the host before its guests are back. The update does not stop ``keep_units``."""
    seen = _watchdogs.read(root)
    return watchdog_reasons(seen, _systemd.kexec_watchdog(), keep_units) if seen else []


def watchdog_reasons(seen: list[dict], kexec_watchdog: str, keep_units: t.Collection[str] = ()) -> list[dict]:
    """The same for these devices (:func:`_watchdogs.read`) and this KExecWatchdogSec= of PID 1. Pure.

    PID 1 feeds its watchdog until the kexec and stops it there, unless KExecWatchdogSec= is set (src/core/main.c, become_shutdown). The new
    kernel feeds one that runs only when its driver is loaded, which may be after the guests. A service that the update stops, stops its
    watchdog, if it can; :func:`armed` looks whether it did, and an undo starts the service again. It cannot start another process again.
    """
    found = []
    if kexec_watchdog not in ("", "0"):
        found.append(
            reason(
                "watchdog",
                f"systemd arms the watchdog {_name(seen[0])} for each kexec (KExecWatchdogSec={kexec_watchdog}): it may reset the host"
                " while the guests are restored, and all guests are lost",
                "set KExecWatchdogSec=off in /etc/systemd/system.conf or its drop-in, and run 'systemctl daemon-reload'",
            )
        )
    for device in seen:
        if not device["active"]:
            continue
        if device["nowayout"] == "1":
            message = f"the watchdog {_name(device)} is active, and nothing can stop it (nowayout=1)"
            remedy = "set nowayout=0 for its driver ('options DRIVER nowayout=0' in a file in /etc/modprobe.d), then do an ordinary reboot"
        elif not device["fed_by"]:
            message = f"the watchdog {_name(device)} is active, and no program feeds it"
            remedy = (
                "start the program that fed it again, then stop that program (a service with 'systemctl stop'). If the watchdog stays"
                f" active ({_how_seen(device)}), do an ordinary reboot without that program"
            )
        elif _KEPT_FEEDER in device["fed_by"]:
            message = f"{_KEPT_FEEDER} feeds the watchdog {_name(device)} until the jump, and does not stop it while sanlock has a lease"
            remedy = f"stop the guests with leases of sanlock, then sanlock.service and {_KEPT_FEEDER}"
        elif set(device["fed_by"]) & set(keep_units):
            unit = min(set(device["fed_by"]) & set(keep_units))
            message = f"{unit} feeds the watchdog {_name(device)}, and hypervisor_update_keep_units keeps it running until the jump"
            remedy = f"remove {unit} from hypervisor_update_keep_units, so that the update stops it"
        elif any(feeder.startswith("process ") for feeder in device["fed_by"]):
            message = f"{' and '.join(device['fed_by'])} feeds the watchdog {_name(device)}; the update ends it and cannot start it again"
            remedy = f"end it, and check that the watchdog is off ({_how_seen(device)}); or run it as a service with a unit file"
        else:
            continue
        found.append(reason("watchdog", f"{message}: it may reset the host in the update, and all guests are lost", remedy))
    return found


def armed(seen: list[dict]) -> list[dict]:
    """Reasons for watchdogs that still run when all other services have stopped, except one of PID 1. Pure."""
    found = []
    for device in seen:
        if not device["active"] or device["fed_by"] == ["PID 1"]:
            continue
        message = f"the watchdog {_name(device)} is still active after the services have stopped"
        if device["fed_by"]:
            message += f"; {' and '.join(device['fed_by'])} feeds it. It may reset the host during the pause"
            remedy = (
                f"before the update, stop the program that feeds it, and check that the watchdog is off ({_how_seen(device)}). If its unit"
                " is in hypervisor_update_keep_units, remove it there"
            )
        else:
            message += ", and no program feeds it. It may reset the host at any moment"
            remedy = (
                "make sure that the program that fed it runs again now. Before the next update, configure it to stop the watchdog when it"
                " ends (magic close)"
            )
        found.append(reason("watchdog", message, remedy))
    return found


def _how_seen(device: dict) -> str:
    return f"'cat /sys/class/watchdog/{device['name']}/state' prints 'active' or 'inactive'"


def _name(device: dict) -> str:
    return f"/dev/{device['name']} ({device['identity'] or 'of unknown kind'})"


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
