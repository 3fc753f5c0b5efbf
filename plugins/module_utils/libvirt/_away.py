# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sending libvirt domains away, and bringing them back: managed save, shutdown, live migration. PRIVATE to the collection.

A domain is defined on exactly one host at any time: a migration moves its definition along, so that no second one can start it. Both
ways of a migration are driven from here, by the updated host's own virsh and SSH keys, which speaks to libvirt at both ends; only the
state itself goes from libvirt to libvirt.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands
from . import _agent, _definition, _reasons, _room
from . import _virsh as _libvirt_virsh

__all__ = ("about", "come_back", "is_back", "leave", "limit_s", "obstacles", "portable")

HERE = "qemu:///system"
AUTOSTART = "/etc/libvirt/qemu/autostart"
SHUTDOWN_LIMIT_S = _limits.GUEST_OFF
CANCEL_S = _limits.MIGRATION_CANCELLED
_POLL_S = 0.5


def about(record: dict) -> dict:
    """What of a running domain goes into its record."""
    return {
        "bytes": sum(backend["size"] for backend in record["backends"]),
        "was_running": _libvirt_virsh.status(record) == "running",
        "autostart": os.path.lexists(f"{AUTOSTART}/{record['name']}.xml"),
    }


def limit_s(away: dict) -> float:
    """How long it may take to leave or to come back, unless somebody knows better."""
    return SHUTDOWN_LIMIT_S if away["way"] == "shutdown" else _room.limit_s(away["bytes"])


def obstacles(away: dict) -> list[str]:
    """What keeps a running domain from leaving that way; each with its remedy."""
    name, found = away["guest"], []
    if not _libvirt_virsh.is_defined(name):
        found.append(f"libvirt would not know it any more once it has left - 'virsh define' its 'virsh dumpxml {name}'")
    if away["way"] == "shutdown" and not away["was_running"]:
        found.append("it is paused and cannot shut down - resume it, or save it instead")
    if away["way"] == "save":
        found += _room.shortage(away["bytes"], _room.free(_libvirt_virsh.SAVED), _libvirt_virsh.SAVED)
    return found


def leave(away: dict, limit: float) -> None:
    """Send a running domain away. After a failure it runs on, or is where the message says.

    The error has the detail ``settled=False`` when the domain may still leave later.
    """
    {"save": _save, "shutdown": _shut_down, "migrate": _migrate_there}[away["way"]](away, limit)


def is_back(away: dict) -> bool:
    """Whether the domain is here again as it was."""
    return _seen(HERE, away["uuid"]) == _wanted(away)


def come_back(away: dict, limit: float) -> str:
    """Bring the domain back, or wait for its autostart where that was quicker. Returns what was lost of it, in words; mostly nothing."""
    if away["way"] == "migrate":
        _migrate_back(away, limit)
        return ""
    started, image = _start(away, limit)
    if away["way"] == "shutdown":
        return ""
    if away["was_running"]:
        _agent.correct_clock(away["guest"])
    return f"its saved state was not below {_libvirt_virsh.SAVED} any more, it started clean" if started and not image else ""


def _wanted(away: dict) -> str:
    """A domain that was shut down starts anew, another one goes on as it was."""
    return "running" if away["was_running"] or away["way"] == "shutdown" else "paused"


def _save(away: dict, limit: float) -> None:
    name, uuid = away["guest"], away["uuid"]
    try:
        _libvirt_virsh.virsh("managedsave", uuid, limit=limit)
    except LiveUpdateError as err:
        _cancel(HERE, uuid)
        raise LiveUpdateError(
            f"guest {name}: {err}; it is {_seen(HERE, uuid)} now, 'virsh start {name}' goes on with it if it is off",
            **_may_leave(HERE, uuid),
        ) from err


def _shut_down(away: dict, limit: float) -> None:
    """Through the guest's agent where it has one, else by the power button: libvirt's own choice."""
    name, uuid = away["guest"], away["uuid"]
    until = time.monotonic() + limit
    try:
        _libvirt_virsh.virsh("shutdown", uuid)
    except LiveUpdateError as err:
        raise LiveUpdateError(f"guest {name}: {err}; it may have been told to shut down, and may yet go off", settled=False) from err
    while True:
        seen = _seen(HERE, uuid)
        if seen == "shut off":
            return
        if time.monotonic() > until:
            raise LiveUpdateError(
                f"guest {name}: still {seen} {limit:g} s after it was asked to shut down, and left so; it may yet go off. See on its"
                " console whether it heeds its power button, or give it more time",
                settled=False,
            )
        time.sleep(_POLL_S)


def _migrate_there(away: dict, limit: float) -> None:
    _migrate(away, (HERE, away["destination"]), away["migrate_uri"], limit)


def _migrate_back(away: dict, limit: float) -> None:
    """Never a start here: it may still run there."""
    name, uuid, there = away["guest"], away["uuid"], away["destination"]
    seen = _seen(there, uuid)
    if seen not in ("running", "paused"):
        raise LiveUpdateError(
            f"guest {name}: on {there} it is {seen}, here {_seen(HERE, uuid)}; only one that runs migrates back: see to it there, then run"
            " this again"
        )
    _migrate(away, (there, HERE), away["back_uri"], limit)


def _migrate(away: dict, ends: tuple[str, str], uri: str, limit: float) -> None:
    """Move the domain with its definition, and see that it starts with its host there if it did here."""
    name, uuid, (source, target) = away["guest"], away["uuid"], ends
    where = ("--migrateuri", uri) if uri else ()
    # A virsh that is killed may leave libvirt at work: the migration is cancelled first, and virsh then ends by itself.
    cancel = threading.Timer(limit, _cancel, (source, uuid))
    cancel.start()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".xml", encoding="utf-8", errors="surrogateescape") as definition:
            definition.write(portable(_virsh(source, "dumpxml", "--migratable", "--security-info", uuid)))
            definition.flush()
            words = ("--live", "--persistent", "--undefinesource", "--xml", definition.name, *where, uuid, target)
            _virsh(source, "migrate", *words, limit=limit + CANCEL_S)
        if away["autostart"]:
            _virsh(target, "autostart", uuid)
    except LiveUpdateError as err:
        message = f"guest {name}: {err}; on {source} it is {_seen(source, uuid)} now, on {target} {_seen(target, uuid)} (limit {limit:g} s)"
        raise LiveUpdateError(message, **_may_leave(source, uuid)) from err
    finally:
        cancel.cancel()


def portable(xml: str) -> str:
    """The definition without the labels that the security module of a host made up: another host may have another one. Pure.

    What its owner asked for has a base label, or is not dynamic.
    """
    elements = _definition.spans(xml.encode("utf-8", "surrogateescape"))
    asked_for = [label for label in elements if label.path == ("domain", "seclabel", "baselabel")]
    labels = [label for label in elements if label.path == ("domain", "seclabel") and label.attributes.get("type") == "dynamic"]
    made_up = [label for label in labels if not any(label.start < base.start < label.end for base in asked_for)]
    return _definition.without(xml, made_up)


def _may_leave(uri: str, uuid: str) -> dict:
    """Details of an error: libvirt may still be at work on the domain, or does not tell."""
    try:
        at_work = bool(_reasons.job_reasons(_virsh(uri, "domjobinfo", uuid)))
    except LiveUpdateError:
        at_work = True
    return {"settled": False} if at_work else {}


def _cancel(uri: str, uuid: str) -> None:
    """End what libvirt does to the domain: it runs on."""
    try:
        _virsh(uri, "domjobabort", uuid)
    except LiveUpdateError:
        return  # there was no job any more


def _start(away: dict, limit: float) -> tuple[bool, bool]:
    """Start the domain until it is as it was; returns whether that took a start, and whether there was a saved state to start from."""
    name, uuid, until = away["guest"], away["uuid"], time.monotonic() + limit
    started, image, problem = False, False, ""
    while True:
        seen = _seen(HERE, uuid)
        if seen == _wanted(away):
            return started, image
        if seen == "shut off" and problem:
            raise LiveUpdateError(f"guest {name}: {problem}")
        if time.monotonic() > until:
            raise LiveUpdateError(f"guest {name}: not {_wanted(away)} within {limit:g} s; last seen: {seen}")
        if seen == "shut off":
            image = os.path.exists(os.path.join(_libvirt_virsh.SAVED, f"{name}.save"))
            try:
                _libvirt_virsh.virsh("start", uuid, limit=limit)
                started = True
            except LiveUpdateError as err:
                problem = str(err)  # or its autostart was quicker: the next look tells
        else:
            time.sleep(_POLL_S)


def _seen(uri: str, uuid: str) -> str:
    """The domain's state at that libvirt, or why it is not known."""
    try:
        return _virsh(uri, "domstate", uuid).strip()
    except LiveUpdateError as err:
        return f"unknown ({err})"


def _virsh(uri: str, *words: str, limit: float = _limits.COMMAND) -> str:
    if uri == HERE:
        return _libvirt_virsh.virsh(*words, limit=limit)
    return _commands.run("virsh", "--quiet", "--connect", uri, *words, timeout=limit)
