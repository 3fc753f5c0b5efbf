# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Send libvirt domains away, and bring them back: managed save, shutdown, live migration. PRIVATE to the collection.

A domain is defined on exactly one host at any time: a migration moves its definition too, so that no other host can start it. The updated
host's own virsh drives a migration in both directions, with this host's SSH keys. It talks to libvirt at both ends. Only the state itself
goes directly between the two libvirts.
"""

from __future__ import annotations

import json
import os
import time

from .. import _limits
from .._errors import LiveUpdateError, typed
from ..host import _commands
from . import _agent, _definition, _guests, _reasons, _room, _save_image
from . import _virsh as _libvirt_virsh

__all__ = ("about", "come_back", "is_back", "leave", "limit_s", "obstacles", "portable", "settle", "stay")

HERE = "qemu:///system"
AUTOSTART = "/etc/libvirt/qemu/autostart"
SHUTDOWN_LIMIT_S = _limits.GUEST_OFF
CANCEL_S = _limits.MIGRATION_CANCELLED
_POLL_S = 0.5


def about(record: dict) -> dict:
    """What the record of a running domain contains."""
    return {
        "bytes": sum(backend["size"] for backend in record["backends"]),
        "was_running": _libvirt_virsh.status(record) == "running",
        "autostart": _starts_with_host(record["name"]),
    }


def limit_s(away: dict) -> float:
    """The default limit in seconds to leave or to come back."""
    return SHUTDOWN_LIMIT_S if away["way"] == "shutdown" else _room.limit_s(away["bytes"])


def obstacles(away: dict) -> list[str]:
    """Why a running domain cannot leave that way; each with its remedy."""
    name, found = away["guest"], []
    if not _libvirt_virsh.is_defined(name):
        found.append(f"libvirt has no persistent definition of it, so it could not be brought back - {_reasons.define(away['uuid'])}")
    if away["way"] == "shutdown" and not away["was_running"]:
        found.append("it is paused and cannot shut down - resume it, or use the way save")
    if away["way"] in ("migrate", "save"):
        found += _without_ram(away)
    if away["way"] == "save":
        found += _room.shortage(away["bytes"], _room.free(_libvirt_virsh.SAVED), _libvirt_virsh.SAVED)
    return found


def _without_ram(away: dict) -> list[str]:
    """Whether a save or migration would not contain the domain's RAM, because an undo could not switch that off."""
    from ..vmm import _changes  # not on the boot path

    asked = json.dumps({"execute": "query-migrate-capabilities"})
    try:
        capabilities = json.loads(_libvirt_virsh.virsh("qemu-monitor-command", away["uuid"], asked))["return"]
    except (LiveUpdateError, LookupError, TypeError, ValueError) as err:
        unknown = f"its QEMU does not tell whether a save or migration contains its RAM ({err})"
        return [f"{unknown} - make sure that 'virsh list' answers, then try again"]
    return [_guests.ignore_shared_stays(away)] if _changes.ignores_shared(capabilities) else []


def leave(away: dict, limit: float) -> None:
    """Send a running domain away. After a failure it continues to run, or is where the message says.

    The error has the detail ``settled=False`` when the domain may still leave later.
    """
    {"save": _save, "shutdown": _shut_down, "migrate": _migrate_there}[away["way"]](away, limit)


def settle(away: dict) -> None:
    """Raise unless the domain, which does not run here, has left. A migrated one gets its autostart setting, which may be missing."""
    name, uuid, there = away["guest"], away["uuid"], away["destination"]
    if away["way"] == "migrate":
        seen = _seen(there, uuid)
        if seen not in ("running", "paused"):
            raise _not_there(away, seen)
        _restore_autostart(there, away)
    elif away["way"] == "save" and not _is_saved(name):
        raise LiveUpdateError(
            f"guest {name} does not run, and its saved state below {_libvirt_virsh.SAVED} is missing or incomplete. To start it from its"
            f" disks, run the module kvm.liveupdate.guest_away with 'state: back' and 'names: {json.dumps([name])}'"
        )


def stay(away: dict) -> None:
    """The domain starts with its host again: a migration removes that setting. Raises while libvirt works on it: it may still leave."""
    name, uuid = away["guest"], away["uuid"]
    if away["way"] != "migrate" or not away["autostart"] or _starts_with_host(name):
        return
    if _may_leave(HERE, uuid):
        raise LiveUpdateError(
            f"guest {name}: libvirt still works on it (migration, save or backup), so it may leave. Wait for the end of that job, or cancel"
            f" it with 'virsh domjobabort {uuid}'. Then run this again"
        )
    _restore_autostart(HERE, away)


def is_back(away: dict) -> bool:
    """Whether the domain is here again as it was."""
    return _seen(HERE, away["uuid"]) == _wanted(away)


def come_back(away: dict, limit: float) -> str:
    """Bring the domain back, or wait for its autostart if that was faster. Returns what was lost, in words; usually nothing."""
    if away["way"] == "migrate":
        _migrate_back(away, limit)
        return ""
    started, image = _start(away, limit)
    if away["way"] == "shutdown":
        return ""
    if away["was_running"]:
        _agent.correct_clock(away["guest"])
    lost = f"its saved state below {_libvirt_virsh.SAVED} was missing or incomplete, so it started from its disks"
    return lost if started and not image else ""


def _wanted(away: dict) -> str:
    """The state that the domain gets back. One that was shut down starts; another one continues as it was."""
    return "running" if away["was_running"] or away["way"] == "shutdown" else "paused"


def _save(away: dict, limit: float) -> None:
    name, uuid = away["guest"], away["uuid"]
    try:
        _libvirt_virsh.virsh("managedsave", uuid, limit=limit)
    except LiveUpdateError as err:
        _cancel(HERE, uuid)
        raise LiveUpdateError(
            f"guest {name}: {err}; its state is now {_seen(HERE, uuid)}. If it is shut off, run 'virsh start {uuid}' to continue it",
            **_may_leave(HERE, uuid),
        ) from err


def _shut_down(away: dict, limit: float) -> None:
    """Libvirt asks the guest's agent if there is one, else it presses the power button."""
    name, uuid = away["guest"], away["uuid"]
    until = time.monotonic() + limit
    try:
        _libvirt_virsh.virsh("shutdown", uuid)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}: {err}; the guest may have got the request, and may still power off", settled=False) from err
    while True:
        seen = _seen(HERE, uuid)
        if seen == "shut off":
            return
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: still {seen} {limit:g} s after the request to shut down. It is not killed, and may still power off. Check"
                " on its console whether it reacts to its power button, or raise the limit (timeouts.shutdown; in the role"
                " hypervisor_update_shutdown_timeout)",
                settled=False,
            )
        time.sleep(_POLL_S)


def _migrate_there(away: dict, limit: float) -> None:
    _migrate(away, (HERE, away["destination"]), away["migrate_uri"], limit)


def _migrate_back(away: dict, limit: float) -> None:
    """Never start the domain here: it may still run there."""
    uuid, there = away["uuid"], away["destination"]
    seen = _seen(there, uuid)
    if seen not in ("running", "paused"):
        raise _not_there(away, seen)
    _migrate(away, (there, HERE), away["back_uri"], limit)


def _not_there(away: dict, seen: str) -> LiveUpdateError:
    """What to do for a domain that does not run on its destination: start it on the host that has it."""
    name, uuid, there = away["guest"], away["uuid"], away["destination"]
    here = _seen(HERE, uuid)
    told = f"guest {name} does not run on its destination: on {there} it is {seen}, here {here}."
    if here == _wanted(away):
        return LiveUpdateError(f"{told} It is on this host, as before. Run this again")
    verb = {"running": "suspend", "paused": "resume", "pmsuspended": "dompmwakeup"}.get(here)
    if verb:
        return LiveUpdateError(f"{told} It is on this host. Run 'virsh {verb} {uuid}' here, then run this again")
    try:
        is_there = uuid in _virsh(there, "list", "--all", "--uuid").split()
    except LiveUpdateError:
        asks = f"virsh --connect {typed(there)} list --all"
        return LiveUpdateError(f"{told} Make sure that libvirt on {there} answers ('{asks}'), then run this again")
    if is_there:
        remedy = f"Start or resume it on {there}, then run this again"
    elif here == "shut off":
        remedy = (
            f"{there} does not have it, so its migration was cut off, for example by a reboot of this host. Make sure that it runs on no"
            f" other host. Then start it here with 'virsh start {uuid}', and run this again"
        )
    else:
        remedy = (
            f"{there} does not have it. Find the host that has it ('virsh list --all'). If this host has it, run this again. Otherwise"
            f" remove its record on this host: /var/lib/kvm-liveupdate/away/{name}.json"
        )
    return LiveUpdateError(f"{told} {remedy}")


def _migrate(away: dict, ends: tuple[str, str], uri: str, limit: float) -> None:
    """Move the domain with its definition and its autostart setting."""
    import tempfile
    import threading  # the command needs neither

    name, uuid, (source, target) = away["guest"], away["uuid"], ends
    where = ("--migrateuri", uri) if uri else ()
    # Killing virsh might not stop libvirt. So the migration is cancelled first, and virsh then ends by itself.
    cancel = threading.Timer(limit, _cancel, (source, uuid))
    cancel.start()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".xml", encoding="utf-8", errors="surrogateescape") as definition:
            definition.write(portable(_virsh(source, "dumpxml", "--migratable", "--security-info", uuid)))
            definition.flush()
            if away["autostart"]:  # if the source crashes once the domain runs at its target, its boot must not start it there too
                _virsh(source, "autostart", "--disable", uuid)
            words = ("--live", "--persistent", "--undefinesource", "--xml", definition.name, *where, uuid, target)
            _virsh(source, "migrate", *words, limit=limit + CANCEL_S)
    except LiveUpdateError as err:
        message = (
            f"guest {name}: {err}. The limit was {limit:g} s. Its state on {source} is now {_seen(source, uuid)}, and on {target}"
            f" {_seen(target, uuid)}. If it needs more time, raise timeouts.migrate (in the role hypervisor_update_migrate_timeout)"
        )
        raise LiveUpdateError(message, **(_may_leave(source, uuid) or _stays(source, away))) from err
    finally:
        cancel.cancel()
    _restore_autostart(target, away)


def _stays(uri: str, away: dict) -> dict:
    """Details of an error: whether the domain, which has not migrated, still lacks its autostart setting; then it stays on record."""
    if away["autostart"]:
        if _seen(uri, away["uuid"]) not in ("running", "paused"):
            return {"settled": False}
        try:
            _restore_autostart(uri, away)
        except LiveUpdateError:
            return {"settled": False}
    return {}


def _starts_with_host(name: str) -> bool:
    return os.path.lexists(f"{AUTOSTART}/{name}.xml")


def _restore_autostart(uri: str, away: dict) -> None:
    """:func:`_migrate` removes the setting. Only the record of the domain tells of it until this."""
    if not away["autostart"]:
        return
    try:
        _virsh(uri, "autostart", away["uuid"])
    except LiveUpdateError as err:
        raise LiveUpdateError(
            f"guest {away['guest']} runs on {uri}, but its autostart setting is still off there ({err}). Run this again"
        ) from err


def portable(xml: str) -> str:
    """The definition without the labels that this host's security module generated: another host may use another module. Pure.

    A label that the owner asked for has a base label, or is not dynamic. It stays.
    """
    elements = _definition.spans(xml.encode("utf-8", "surrogateescape"))
    asked_for = [label for label in elements if label.path == ("domain", "seclabel", "baselabel")]
    labels = [label for label in elements if label.path == ("domain", "seclabel") and label.attributes.get("type") == "dynamic"]
    made_up = [label for label in labels if not any(label.start < base.start < label.end for base in asked_for)]
    return _definition.without(xml, made_up)


def _may_leave(uri: str, uuid: str) -> dict:
    """Details of an error: whether libvirt may still be working on the domain, as far as libvirt tells."""
    try:
        at_work = bool(_reasons.job_reasons(_virsh(uri, "domjobinfo", uuid), uuid))
    except LiveUpdateError:
        at_work = True
    return {"settled": False} if at_work else {}


def _cancel(uri: str, uuid: str) -> None:
    """Cancel libvirt's job on the domain, so that the domain continues to run."""
    try:
        _virsh(uri, "domjobabort", uuid)
    except LiveUpdateError:
        return  # the job has already ended


def _start(away: dict, limit: float) -> tuple[bool, bool]:
    """Start the domain and wait until it is as before. Returns whether a start was needed, and whether a saved state existed."""
    name, uuid, until = away["guest"], away["uuid"], time.monotonic() + limit
    started, image, problem = False, False, ""
    while True:
        seen = _seen(HERE, uuid)
        if seen == _wanted(away):
            return started, image
        if seen == "shut off" and problem:
            raise LiveUpdateError(f"guest {name}: {problem}")
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name} is not {_wanted(away)} within {limit:g} s; last seen: {seen}. Look at 'virsh domstate {uuid}', or run the"
                f" module guest_away with a larger timeouts.{away['way']}"
            )
        if seen == "shut off":
            image = _is_saved(name)
            try:
                _libvirt_virsh.virsh("start", uuid, limit=limit)
                started = True
            except LiveUpdateError as err:
                problem = str(err)  # or its autostart was faster; the next look shows this
        else:
            time.sleep(_POLL_S)


def _is_saved(name: str) -> bool:
    """Whether libvirt has completed the domain's managed save. Libvirt ignores an incomplete one, and starts the domain from its disks."""
    try:
        with open(os.path.join(_libvirt_virsh.SAVED, f"{name}.save"), "rb") as image:
            return _save_image.is_complete(image.read(_save_image.HEADER))
    except OSError:
        return False


def _seen(uri: str, uuid: str) -> str:
    """The domain's state at that libvirt, or why it is unknown."""
    try:
        return _virsh(uri, "domstate", uuid).strip()
    except LiveUpdateError as err:
        return f"unknown ({err})"


def _virsh(uri: str, *words: str, limit: float = _limits.COMMAND) -> str:
    if uri == HERE:
        return _libvirt_virsh.virsh(*words, limit=limit)
    return _commands.run("virsh", "--quiet", "--connect", uri, *words, timeout=limit)
