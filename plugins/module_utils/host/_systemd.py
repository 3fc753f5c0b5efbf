# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Use systemd: unit properties, the fd store, notifications. PRIVATE to the collection.

Source: systemd.service(5), sd_notify(3), sd_listen_fds(3), systemctl(1), systemd-analyze(1).
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from . import _commands

__all__ = (
    "LUO_VERSION",
    "SURVIVE_VERSION",
    "fdstore",
    "fdstore_each",
    "forget_fd",
    "give_fd",
    "graph",
    "kexec_watchdog",
    "listen_fds",
    "log",
    "notify",
    "runtime_directories",
    "show",
    "show_each",
    "store_fd",
    "version",
    "wait_for_the_bus",
)

LUO_VERSION = 261  # the first systemd whose fd store survives a kexec
SURVIVE_VERSION = 255  # the first with SurviveFinalKillSignal=
# The number of unit names on one command line. Even with the longest names (255 bytes) this is far below the limit of execve(2).
_NAMES_AT_ONCE = 200
_NOTIFY_SOCKET = "/run/systemd/notify"
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_POLL_S = 0.1
_SCM_CREDENTIALS = 2  # unix(7); the socket module has no name for it


def version() -> int:
    """The major version of the running PID 1. The installed version may be newer (org.freedesktop.systemd1(5), Version)."""
    text = _commands.run("systemctl", "show", "--property=Version", "--value").strip()
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    if not digits:
        raise LiveUpdateError(f"systemd reports the version {text!r}, which is not a number; check that systemd is PID 1 on this host")
    return int(digits)


def kexec_watchdog() -> str:
    """KExecWatchdogSec= of the running PID 1: "0" if it is off (systemd-system.conf(5))."""
    return _commands.run("systemctl", "show", "--property=KExecWatchdogUSec", "--value").strip()


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit as ``systemctl show`` prints them."""
    return _properties(_commands.run("systemctl", "show", "--property=" + ",".join(properties), "--", unit))


def _properties(text: str) -> dict[str, str]:
    """Read properties, one in each line. A property with a line for each value (DeviceAllow) gets all values. Pure."""
    found: dict[str, str] = {}
    for key, equals, value in (line.partition("=") for line in text.splitlines()):
        if equals:
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


def show_each(units: list[str], *properties: str) -> dict[str, dict[str, str]]:
    """Properties of several units, by the given names. An unknown unit has empty or inactive ones."""
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(units), _NAMES_AT_ONCE):
        asked = units[start : start + _NAMES_AT_ONCE]
        # systemctl does not print empty properties. Every unit has an Id, so each unit gets its own block.
        text = _commands.run("systemctl", "show", "--property=" + ",".join(("Id", *properties)), "--", *asked)
        found.update(zip(asked, map(_properties, text.split("\n\n"))))
    return found


def runtime_directories(states: tuple[str, ...]) -> list[str]:
    """The folders below /run that the loaded services with these unit file states create (RuntimeDirectory=), as they name them.

    PID 1 collects all properties of all services for this, so it is only for what nothing else explains.
    """
    text = _commands.run("systemctl", "show", "--property=RuntimeDirectory,UnitFileState", "--", "*.service")
    shown = [_properties(block) for block in text.split("\n\n")]
    return [name for service in shown if service.get("UnitFileState") in states for name in service.get("RuntimeDirectory", "").split()]


def graph() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """For each loaded unit, the units that it starts (Requires=, Requisite=, BindsTo=, Wants=), and those that it starts after.

    This program asks PID 1 only for these properties. ``systemctl show`` would collect all properties of each unit. That takes ten times as
    long, minutes on a slow host. Source: systemd-analyze(1), dot, which explains the colours.
    """
    starts: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for line in _commands.run("systemd-analyze", "dot").splitlines():
        words = line.split('"')  # "a.service"->"b.target" [color="green"]; no unit has a quotation mark in its name
        if len(words) == 7:
            kind = {"green": after, "black": starts, "darkblue": starts, "gold": starts, "grey66": starts}.get(words[5])
            if kind is not None:
                kind.setdefault(words[1], []).append(words[3])
    return starts, after


def fdstore(unit: str) -> list[str]:
    """The names (FDNAME) of the descriptors in a unit's fd store."""
    return fdstore_each([unit])[unit]


def fdstore_each(units: list[str]) -> dict[str, list[str]]:
    """The same for several units, each named once. Runs at most two programs."""
    import json

    shown = show_each(units, "NFileDescriptorStore")
    # A unit that is not loaded has no such property, and systemd-analyze would fail.
    filled = [unit for unit in units if int(shown[unit].get("NFileDescriptorStore") or 0)]
    printed = _commands.run("systemd-analyze", "fdstore", "--json=short", "--", *filled).splitlines() if filled else []
    if len(printed) != len(filled):
        raise LiveUpdateError(
            f"systemd-analyze fdstore printed {len(printed)} answers for {len(filled)} units ({', '.join(filled)}); try again"
        )
    found: dict[str, list[str]] = {unit: [] for unit in units}
    for unit, line in zip(filled, printed):  # a line for each unit, in the order of the names (systemd, src/analyze/analyze-fdstore.c)
        found[unit] = [str(entry["fdname"]) for entry in json.loads(line)]
    return found


def notify(state: str, fds: tuple[int, ...] = (), pid: int = 0) -> None:
    """Send a notification to PID 1, as process ``pid`` if given (root may do this for a unit's main process)."""
    import array  # these are slow to import, and the boot path sends nothing before its guest runs
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "") if not pid else ""
    address = address or _NOTIFY_SOCKET
    ancillary: list[tuple[int, int, bytes]] = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()))
    if pid:
        credentials = struct.pack("=iII", pid, os.getuid(), os.getgid())
        ancillary.append((socket.SOL_SOCKET, _SCM_CREDENTIALS, credentials))
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendmsg([state.encode("utf-8", "surrogateescape")], ancillary, 0, target)
        except OSError as err:
            raise LiveUpdateError(f"systemd cannot be notified at {address}: {err.strerror}") from err


def _barrier(pid: int, limit: float = _limits.PID_1) -> None:
    """Wait until PID 1 has handled all earlier notifications (sd_notify_barrier(3))."""
    import select

    waiting, given = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", (given,), pid)
        os.close(given)
        given = -1
        poll = select.poll()
        poll.register(waiting, select.POLLHUP)
        if not poll.poll(limit * 1000):
            raise LiveUpdateError(f"systemd did not handle the notification within {limit:g} s; try again when the host is less busy")
    finally:
        os.close(waiting)
        if given >= 0:
            os.close(given)


def give_fd(pid: int, name: str, fd: int) -> None:
    """Push a descriptor into the unit's fd store on behalf of its main process. The caller must check whether it is stored."""
    notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", (fd,), pid)
    _barrier(pid)


def store_fd(unit: str, pid: int, name: str, fd: int) -> None:
    """Push a descriptor into the unit's fd store on behalf of its main process, and check that it is stored."""
    give_fd(pid, name, fd)
    stored = fdstore(unit)
    if name not in stored:
        raise LiveUpdateError(
            f"{unit}: systemd did not keep the descriptor {name} (its file descriptor store contains: {', '.join(stored) or 'nothing'});"
            " the unit needs FileDescriptorStorePreserve=yes, NotifyAccess=main or wider, and a FileDescriptorStoreMax= with"
            " room for one more"
        )


def forget_fd(unit: str, pid: int, name: str) -> None:
    """Remove a descriptor from the unit's fd store. Without a main process this clears the whole store."""
    if pid:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}", (), pid)
        _barrier(pid)
    else:
        _commands.run("systemctl", "clean", "--what=fdstore", "--", unit)
    if name in fdstore(unit):
        raise LiveUpdateError(
            f"{unit}: systemd has not removed the descriptor {name} from its file descriptor store; see 'systemd-analyze fdstore"
            f" {typed(unit)}'"
        )


def wait_for_the_bus(limit_s: float) -> None:
    """Wait until programs can reach D-Bus, at most until the limit. A boot has it only after its first units.

    :func:`forget_fd` without a process needs it, unlike :func:`show`. Source: systemd src/systemctl/systemctl-clean-or-freeze.c, BUS_FULL.
    """
    until = time.monotonic() + limit_s
    while not os.path.exists(_SYSTEM_BUS) and time.monotonic() < until:
        time.sleep(_POLL_S)


def listen_fds() -> dict[str, int]:
    """The descriptors that this process got from PID 1, by FDNAME (sd_listen_fds_with_names(3)), close-on-exec."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(key, None)  # not for the program that this one becomes
    handed = {}
    for index in range(count):
        os.set_inheritable(3 + index, False)
        handed[names[index] if index < len(names) else str(index)] = 3 + index
    return handed


def log(text: str) -> None:
    """Write one line to the unit's journal. In the pause its daemon may have ended; that does not matter."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"kvm-liveupdate: {text}\n")
