# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shutting down guests that systemd units run, and starting them again. PRIVATE to the collection."""

from __future__ import annotations

import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands
from ..vmm import _monitor
from . import _guests

__all__ = ("about", "come_back", "is_back", "leave", "limit_s", "obstacles")

LIMIT_S = _limits.GUEST_OFF
STOP_LIMIT_S = _limits.UNIT_STOP
_POLL_S = 0.5


def about(record: dict) -> dict:
    """What of a running guest goes into its record."""
    return {
        "bytes": sum(ram["size"] for ram in record["ram"]),
        "was_running": _guests.status(record) == "running",
        "autostart": False,
        "monitor": record["monitor"],
    }


def limit_s(away: dict) -> float:  # pylint: disable=unused-argument  # the same for all
    """How long it may take to leave or to come back, unless somebody knows better."""
    return LIMIT_S


def obstacles(away: dict) -> list[str]:
    """What keeps a running guest from leaving that way; each with its remedy."""
    if away["way"] != "shutdown":
        return [f"libvirt does not run it, and so cannot {away['way']} it - let it be preserved, or shut down"]
    return [] if away["was_running"] else ["it is not running and cannot shut down - resume it first"]


def leave(away: dict, limit: float) -> None:
    """Press the guest's power button, then stop its unit. A guest that does not heed it runs on.

    After a failure with the detail ``settled`` being False the guest may yet go off.
    """
    pressed = False
    try:
        with _monitor.Monitor(away["monitor"]) as monitor:
            # QEMU stays once the guest is off: were it to end by itself, its unit might start it again (Restart=).
            monitor.execute("set-action", shutdown="pause")
            pressed = True  # also when QEMU's answer to that is lost
            monitor.execute("system_powerdown")
            _wait_until_off(monitor, limit)
        _commands.run("systemctl", "stop", away["unit"], timeout=STOP_LIMIT_S)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {away['guest']}: {err}", **{**err.details, "settled": not pressed}) from err


def _wait_until_off(monitor: _monitor.Monitor, limit: float) -> None:
    until = time.monotonic() + limit
    while (seen := monitor.status()) != "shutdown":
        if time.monotonic() > until:
            monitor.execute("set-action", shutdown="poweroff")
            if monitor.status() == "shutdown":
                return  # it went off between the two
            raise LiveUpdateError(
                f"still {seen} {limit:g} s after its power button was pressed, and left so; it may yet go off. See on its"
                " console whether it heeds the button, or give it more time"
            )
        time.sleep(_POLL_S)


def is_back(away: dict) -> bool:
    """Whether the guest runs again."""
    return _seen(away) == "running"


def come_back(away: dict, limit: float) -> str:
    """Start the guest's unit, or wait for it where the boot was quicker. Nothing of a guest is lost that way: returns no words."""
    until = time.monotonic() + limit
    # The QEMU of a guest that is off is still there when its unit could not be stopped. It never starts the guest again.
    verb = "restart" if _seen(away) == "shutdown" else "start"
    _commands.run("systemctl", verb, away["unit"], timeout=limit)
    while (seen := _seen(away)) != "running":
        if time.monotonic() > until:
            raise LiveUpdateError(f"guest {away['guest']}: {seen} {limit:g} s after the start; 'journalctl -b -u {away['unit']}' says why")
        time.sleep(_POLL_S)
    return ""


def _seen(away: dict) -> str:
    here = [record for record in _guests.known() if record["name"] == away["guest"]]
    try:
        return _guests.status(here[0]) if here else "not running"
    except LiveUpdateError as err:
        return f"unknown ({err})"  # its QEMU has just started, or ends
