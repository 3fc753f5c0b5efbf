# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shut down guests that systemd units run, and start them again. PRIVATE to the collection."""

from __future__ import annotations

import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..host import _commands
from ..vmm import _monitor
from . import _guests

__all__ = ("about", "come_back", "is_back", "leave", "limit_s", "obstacles", "settle", "stay")

LIMIT_S = _limits.GUEST_OFF
STOP_LIMIT_S = _limits.UNIT_STOP
_POLL_S = 0.5


def about(record: dict) -> dict:
    """What the record of a running guest contains."""
    return {
        "bytes": sum(ram["size"] for ram in record["ram"]),
        "was_running": _guests.status(record) == "running",
        "autostart": False,
        "monitor": record["monitor"],
    }


def limit_s(away: dict) -> float:  # pylint: disable=unused-argument  # the same for all
    """The default limit in seconds to leave or to come back."""
    return LIMIT_S


def obstacles(away: dict) -> list[str]:
    """Why a running guest cannot leave that way; each with its remedy."""
    if away["way"] != "shutdown":
        return [f"only libvirt can {away['way']} a guest, and libvirt does not run it - use the way preserve or shutdown"]
    return [] if away["was_running"] else ["it is paused and cannot shut down - resume it"]


def leave(away: dict, limit: float) -> None:
    """Press the guest's power button, then stop its unit. A guest that ignores the button continues to run.

    After a failure with the detail ``settled=False`` the guest may still power off.
    """
    asked = changed = False
    try:
        with _monitor.Monitor(away["monitor"]) as monitor:
            asked = True  # also if QEMU's answer is lost
            # QEMU stays after the guest is off: if it ended by itself, its unit might start it again (Restart=).
            monitor.execute("set-action", shutdown="pause")
            changed = True
            monitor.execute("system_powerdown")
            _wait_until_off(monitor, limit)
        _commands.run("systemctl", "stop", away["unit"], timeout=STOP_LIMIT_S)
    except LiveUpdateError as err:
        settled = not asked or (not changed and "refused" in err.details)
        raise LiveUpdateError(f"guest {away['guest']}: {err}", **{**err.details, "settled": settled}) from err


def _wait_until_off(monitor: _monitor.Monitor, limit: float) -> None:
    until = time.monotonic() + limit
    while (seen := monitor.status()) != "shutdown":
        if time.monotonic() > until:
            monitor.execute("set-action", shutdown="poweroff")
            if monitor.status() == "shutdown":
                return  # it powered off between the two calls
            raise LiveUpdateError(
                f"still {seen} {limit:g} s after its power button was pressed. It is not killed, and may still power off. Check on its"
                " console whether it reacts to the button, or raise the limit (timeouts.shutdown; in the role"
                " hypervisor_update_shutdown_timeout)"
            )
        time.sleep(_POLL_S)


def settle(away: dict) -> None:  # pylint: disable=unused-argument  # a guest that does not run is off
    """Nothing is left to do."""


def stay(away: dict) -> None:
    """QEMU ends again when its guest powers off. A process that was killed in :func:`leave` has not set this back."""
    if not any((qemu["pid"], qemu["started"]) == (away["pid"], away["started"]) for qemu in _guests.known()):
        return  # a QEMU that was started later does not know the request
    with _monitor.Monitor(away["monitor"]) as monitor:
        monitor.execute("set-action", shutdown="poweroff")
        if monitor.status() == "shutdown":
            raise LiveUpdateError(f"guest {away['guest']}: it has just powered off. Run this again: this starts the guest")


def is_back(away: dict) -> bool:
    """Whether the guest runs again."""
    return _seen(away) == "running"


def come_back(away: dict, limit: float) -> str:
    """Start the guest's unit, or wait for it if the boot was faster. Returns an empty text, because nothing of the guest is lost."""
    until = time.monotonic() + limit
    # If its unit could not be stopped, the QEMU of a guest that is off still runs. It never starts the guest again.
    verb = "restart" if _seen(away) == "shutdown" else "start"
    _commands.run("systemctl", verb, away["unit"], timeout=limit)
    while (seen := _seen(away)) != "running":
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {away['guest']} is {seen} {limit:g} s after its start; 'journalctl -b -u {typed(away['unit'])}' shows why"
            )
        time.sleep(_POLL_S)
    return ""


def _seen(away: dict) -> str:
    here = [record for record in _guests.known() if record["name"] == away["guest"]]
    try:
        return _guests.status(here[0]) if here else "not running"
    except LiveUpdateError as err:
        return f"unknown ({err})"  # its QEMU is starting or ending
