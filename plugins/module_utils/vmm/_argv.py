# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The QEMU command line that we run, and what a start must know of the one that is given. On the boot path. PRIVATE to the collection.

What speaks against a command line is in _argv_reasons.py. Source: qemu(1).
"""

from __future__ import annotations

from .._errors import LiveUpdateError
from . import _options
from ._options import Option

__all__ = ("RAM_ID", "bridges", "command", "nodes", "ram_size", "uuid_of")

# The RAM's name in the migration stream. It is QEMU's default for PC machines, so that other tools know it too.
RAM_ID = "pc.ram"
DEFAULT_RAM_BYTES = 128 << 20
_HUGE_PAGE = 2 << 20
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_NETWORKS = ("netdev", "nic", "net")
_BRIDGE = "br0"  # QEMU's default (include/net/net.h, DEFAULT_BRIDGE_INTERFACE)


def _given(argv: list[str], *names: str) -> list[Option]:
    """The options with these names, in order. Unreadable ones are left out: :func:`_argv_reasons.reasons` reports them."""
    return [option for option in _options.read(argv)[0] if option.name in names]


def ram_size(argv: list[str]) -> int:
    """The guest's RAM in bytes, from ``-m``: MiB unless a unit follows; 128 MiB when not given."""
    size = ([option.get("size") for option in _given(argv, "m") if option.get("size")] or [""])[-1]
    if not size:
        return DEFAULT_RAM_BYTES
    digits, shift = size, 20
    if size[-1].upper() in _UNITS:
        digits, shift = size[:-1], _UNITS[size[-1].upper()]
    if not digits.isdigit() or not int(digits):
        raise LiveUpdateError(f"-m {size} is not a size that the wrapper supports; use a whole number with K, M, G or T, e.g. -m 2G")
    return int(digits) << shift


def uuid_of(argv: list[str]) -> str:
    """The guest's UUID as given by ``-uuid``; empty when it has none."""
    return ([option.get("").lower() for option in _given(argv, "uuid")] or [""])[-1]


def nodes(argv: list[str]) -> list[str]:
    """The device nodes of the host that QEMU opens and that a kernel module provides: ``/dev/kvm`` and the like."""
    options = _options.read(argv)[0]
    nets = [option for option in options if option.name in _NETWORKS]
    wanted = {
        "/dev/kvm": any(option.name == "enable-kvm" or "kvm" in option.get("accel") for option in options),
        "/dev/net/tun": any(net.get("type") in ("tap", "bridge") for net in nets),
        "/dev/vhost-net": any(net.is_on("vhost") or net.is_on("vhostforce") for net in nets),
        "/dev/vhost-vsock": any(option.name == "device" and "vhost-vsock" in option.get("driver") for option in options),
    }
    return [node for node, needed in wanted.items() if needed]


def bridges(argv: list[str]) -> list[str]:
    """The bridges to which QEMU's helper adds a tap. If one does not exist, QEMU does not start."""
    nets = [option for option in _options.read(argv)[0] if option.name in _NETWORKS]
    named = [net.get("br") or (_BRIDGE if net.get("type") == "bridge" else "") for net in nets]
    return sorted({name for name in named if name})


def command(argv: list[str], monitor: str, ram_fd: int | None, size: int, incoming: bool) -> list[str]:
    """The command line to run: the user's with our monitor, the RAM behind ``ram_fd``, and the option to wait for a state if asked for.

    With ``ram_fd`` None the RAM stays as the user asked for it.
    """
    for option, _word in _options.split(argv):
        if option in ("daemonize", "incoming"):
            raise LiveUpdateError(
                f"-{option} is not possible with live update; remove the option, because systemd runs QEMU in the foreground"
            )
    added = ["-qmp", f"unix:{monitor},server=on,wait=off"]
    if ram_fd is not None:
        # Only a shared file *with a name* stays out of the migration stream (QEMU's migrate_ram_is_ignored), so this gives a path.
        # With this alignment a huge page of the file is also one for the processor, and needs only one page fault.
        file = f"memory-backend-file,id={RAM_ID},size={size},align={_HUGE_PAGE},share=on,mem-path=/proc/self/fd/{ram_fd}"
        added += ["-object", file]
        added += ["-machine", f"memory-backend={RAM_ID}"]
    if incoming:
        added += ["-incoming", "defer"]
    return argv + added
