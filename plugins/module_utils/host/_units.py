# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The names of the systemd units that the collection installs. PRIVATE to the collection."""

from __future__ import annotations

__all__ = (
    "DAEMONS_TARGET",
    "FOLDER",
    "HOLD",
    "JUMP",
    "JUMP_TARGET",
    "REHEARSAL",
    "REST_UNIT",
    "RUN_FOLDER",
    "TARGET",
    "TRIAL",
    "TRIAL_WATCH",
    "UNCLAIMED_UNIT",
    "escape",
    "hold",
    "seconds",
)

TARGET = "kvm-liveupdate-guests.target"
DAEMONS_TARGET = "kvm-liveupdate-daemons.target"
REST_UNIT = "kvm-liveupdate-boot.service"
# Runs before every guest, and only if a hold was not followed by an update (guests/_unclaimed.py): never in a boot after a jump.
UNCLAIMED_UNIT = "kvm-liveupdate-unclaimed.service"
FOLDER = "/etc/systemd/system"

HOLD = "kvm-liveupdate-hold@.service"


def hold(name: str) -> str:
    """The unit whose process holds the session of guest ``name`` if no fd store does."""
    return HOLD.replace("@", f"@{escape(name)}")


JUMP = "kvm-liveupdate-jump.service"

REHEARSAL = "kvm-liveupdate-rehearsal@.service"

# A trial writes and removes these two. They do not belong to the runtime, so their names do not begin as those of its files (_runtime.py).
TRIAL = "liveupdate-trial.service"
TRIAL_WATCH = "liveupdate-trial-watch.service"


def escape(name: str) -> str:
    """A string escaped for the name of a unit (systemd.unit(5), string escaping). Pure."""
    plain = "".join(
        "-"
        if char == "/"
        else char
        if char.isascii() and (char.isalnum() or char in ":_.")
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in name
    )
    return f"\\x2e{plain[1:]}" if plain.startswith(".") else plain


_SPANS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800, "month": 2629800, "y": 31557600}


def seconds(span: str) -> float:
    """A time span as systemctl prints it, such as ``1min 30s`` or ``infinity`` (systemd.time(7)), in seconds; 0 if it is none. Pure."""
    if span == "infinity":
        return float("inf")
    parts = [(word.rstrip("abcdefghijklmnopqrstuvwxyz"), word.lstrip("0123456789.")) for word in span.split()]
    return sum(float(number) * _SPANS[unit] for number, unit in parts if number and unit in _SPANS)


JUMP_TARGET = "kvm-liveupdate.target"
RUN_FOLDER = "/run/systemd/system"  # drop-ins for this boot only
