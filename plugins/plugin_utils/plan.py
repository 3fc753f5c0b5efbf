# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an update will do with a host and each of its guests, and why. Pure. PRIVATE to the collection.

The same facts and the same policy give the same plan. Every guest is in it. None is preserved that has a reason against it, and what is
not known to be possible is passed over: a reason that this file does not know keeps a guest from everything but a shutdown. A test sees to
it that this file knows all reasons there are.
"""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _room

from .policy import Policy, PolicyError, Rung

__all__ = ("chosen", "plan", "who_is_away")

# Reasons that speak only against RAM that stays in place while QEMU ends. With them a domain can still be moved or saved by libvirt.
_ABOUT_STAYING = frozenset(
    ("ram-anonymous", "ram-backend", "ram-gone", "ram-on-disk", "ram-hugetlb", "ram-size", "hugepages", "discard", "memory-device")
) | {"confined", "unit", "memory-limit", "qemu-replaced"}
# What more can be saved: the disk is written by one QEMU after the other, on one host.
_SAVEABLE = _ABOUT_STAYING | {"cache-unsafe"}
# A guest that is shut down starts anew after a boot, from its unit or its definition. With these nobody can ask it to shut down, ...
_NOT_ASKED = frozenset(("monitor", "run-state", "left-paused", "libvirt-job"))
# ... it would not be the same guest, or on other disks: what it has now is not what it starts with, or is thrown away when QEMU ends, ...
_STARTS_AS_ANOTHER = frozenset(
    ("disk-changed", "device-changed", "network-changed", "file-replaced", "transient-disk", "unit-other", "argv-unread")
)
# ... it would not start at all, ...
_DOES_NOT_START = frozenset(
    (
        *("not-persistent", "unit-gone", "start-option", "server-waits", "peer-gone", "socket", "file-gone", "file-silent"),
        *("file-volatile", "file-in-memory", "network-transient", "network-no-autostart", "network-unknown", "pool-transient"),
        *("pool-no-autostart", "pool-unknown", "secret-gone", "secret-ephemeral", "secret-unknown"),
    )
)
# ... or it was not examined, and nobody knows which of these it has. A guest that is saved or migrated keeps all that it runs on.
_NOT_EXAMINED = frozenset(("name-long", "name-twice", "not-examined", "record-damaged"))
_NO_SHUTDOWN = _NOT_ASKED | _STARTS_AS_ANOTHER | _DOES_NOT_START | _NOT_EXAMINED
_NOT_BACK = "not-back"
_BESIDE_MIB = _room.BESIDE_BYTES >> 20
_DONE = {"preserve": "preserved", "migrate": "migrated", "save": "saved", "shutdown": "shut down"}
_SHOWN = 5
_SERVICES_SHOWN = 10


def plan(
    host: dict[str, t.Any],
    policy: Policy,
    rehearsal: str = "none",
    rehearsal_guests: dict[str, t.Any] | None = None,
    keep_units: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """The plan of one host. ``host`` is what hypervisor_info returned, ``keep_units`` the units that the update keeps, the rest is as for
    :func:`chosen`.

    ``verdict``      ``go``, ``refuse``, or ``current``: it runs the kernel already, all guests are back, and nothing is done
    ``refusals``     why it is refused: sentences with their remedies
    ``guests``       of each ``name``, ``way``, ``why`` (a sentence), ``by`` (who wants it so), ``passed_over`` (``way`` and ``why`` of the
                     rungs above), ``destination`` and ``back`` of a migration, ``warnings`` (sentences)
    ``staying``      the names of those that stay in memory, ``rehearse`` of those that are rehearsed before
    ``leaving``      ``name``, ``way``, ``destination`` and ``back`` of those that leave meanwhile, as guest_away takes them
    ``steps``        what is done, in order; none unless the verdict is ``go``
    ``room``         ``memory`` and ``saves`` (the disk of managed saves): ``needed_mib`` and ``free_mib`` (None: not known)
    ``expected_pause``  seconds, the longest pause that a guest which is preserved had in its last update; None when none has had one
    ``table``        all of it for people, line by line
    """
    if not isinstance(host, dict) or not isinstance(host.get("guests"), list) or not isinstance(host.get("reasons"), list):
        raise PolicyError("this is not what hypervisor_info returns: it has no guests and reasons")
    free = host.get("free") or {}
    room = {name: {"needed_mib": 0, "free_mib": free.get(f"{name}_mib")} for name in ("memory", "saves")}
    guests = [_guest(facts, policy, room) for facts in host["guests"]]
    current = bool((host.get("target") or {}).get("current"))
    # A host on the new kernel is not done with while a guest waits to be brought back.
    refusals = [_told(reason) for reason in host["reasons"] if not current or reason["code"] == _NOT_BACK]
    refusals += [f"guest {guest['name']} {guest['why']}" for guest in guests if guest["way"] == "refuse" and not current]
    verdict = "refuse" if refusals else "current" if current else "go"
    staying = [guest["name"] for guest in guests if guest["way"] == "preserve"]
    rehearse = chosen([facts for facts in host["guests"] if facts["name"] in staying], rehearsal, rehearsal_guests or {})
    pauses = [facts.get("last_pause") for facts, guest in zip(host["guests"], guests) if guest["way"] == "preserve"]
    made = {
        "verdict": verdict,
        "refusals": refusals,
        "guests": guests,
        "staying": staying,
        "rehearse": rehearse,
        "leaving": [
            {key: guest[key] for key in ("name", "way", "destination", "back")}
            for guest in guests
            if guest["way"] in ("migrate", "save", "shutdown")
        ],
        "steps": _steps(host, guests, rehearse, keep_units) if verdict == "go" else [],
        "room": room,
        "expected_pause": max((pause for pause in pauses if pause is not None), default=None),
    }
    return {**made, "table": _table(host, made)}


def chosen(staying: list[dict[str, t.Any]], rehearsal: str, guests: dict[str, t.Any]) -> list[str]:
    """The names of the guests that are rehearsed, of those that stay in memory. Pure.

    ``rehearsal`` is ``none``, ``canary`` (the first of each provider) or ``all``; ``guests`` says by name who is in any case, or is not.
    """
    canaries = {facts["provider"]: facts["name"] for facts in reversed(staying)}
    usual = {"none": [], "canary": list(canaries.values()), "all": [facts["name"] for facts in staying]}[rehearsal]
    return [facts["name"] for facts in staying if guests.get(facts["name"], facts["name"] in usual)]


def _guest(facts: dict[str, t.Any], policy: Policy, room: dict[str, t.Any]) -> dict[str, t.Any]:
    """The first rung that applies; ``room`` is what the guests before it have left, and it takes its own."""
    # A machine that no provider runs can only be refused, whatever anybody wants.
    rungs, by = policy.ladder(facts) if facts.get("provider") else ((Rung("preserve"),), "")
    passed: list[dict[str, str]] = []
    for rung in rungs:
        against = _against(rung, facts, room)
        if not against:
            break
        passed.append({"way": rung.way, "why": against})
    else:
        rung = Rung("refuse")
    if rung.way == "preserve":
        room["memory"]["needed_mib"] += facts.get("fill_mib") or 0
    elif rung.way == "save":
        room["saves"]["needed_mib"] += facts["memory_mib"] + _BESIDE_MIB
    return {
        "name": facts["name"],
        "way": rung.way,
        "why": _what(rung) + (f", as {by} says" if by else "") + "".join(f". Not {_DONE[over['way']]}: {over['why']}" for over in passed),
        "by": by,
        "passed_over": passed,
        "destination": rung.to,
        "back": rung.back,
        "warnings": [_told(warning) for warning in facts.get("warnings") or []],
    }


def _against(rung: Rung, facts: dict[str, t.Any], room: dict[str, t.Any]) -> str:
    """What keeps a guest from this way; empty when nothing does."""
    reasons, way = facts.get("reasons") or [], rung.way
    if way == "refuse":
        return ""
    if way == "preserve":
        fill = facts.get("fill_mib") or 0
        return (
            _all_told(reasons)
            or ("" if facts.get("provider") else "the host runtime does not run it - run it by a unit or as a domain, see docs/guests.md")
            or _shortage(room["memory"], fill, "holding it fills {} MiB that it has not touched yet", "stop or move other guests first")
        )
    if way == "shutdown":
        return _all_told(reason for reason in reasons if reason["code"] in _NO_SHUTDOWN)
    if facts["provider"] != "libvirt":
        return "libvirt does not run it"
    if way == "migrate":
        no_destination = "" if rung.to else "no destination is named - write {migrate: {to: URI of its libvirt}}"
        return no_destination or _all_told(reason for reason in reasons if reason["code"] not in _ABOUT_STAYING)
    if facts.get("memory_mib") is None or room["saves"]["free_mib"] is None:
        return "its RAM or the room for it on the disk is not known"
    size = facts["memory_mib"] + _BESIDE_MIB
    return _all_told(reason for reason in reasons if reason["code"] not in _SAVEABLE) or _shortage(
        room["saves"], size, "its RAM takes {} MiB on the disk of managed saves", "make room there"
    )


def _shortage(room: dict[str, t.Any], size: int, what: str, remedy: str) -> str:
    """Why so many MiB are too many; empty when they are not, or nobody knows what is free."""
    left = None if room["free_mib"] is None else room["free_mib"] - room["needed_mib"]
    return "" if left is None or size <= max(left, 0) else f"{what.format(size)}, and {max(left, 0)} are left - {remedy}"


def _told(reason: dict[str, str]) -> str:
    return f"{reason['message']} - {reason['remedy']}"


def _all_told(reasons: t.Iterable[dict[str, str]]) -> str:
    return "; ".join(map(_told, reasons))


def who_is_away(host: dict[str, t.Any]) -> str:
    """Which guests an earlier update sent away and has not brought back, and what brings them home; empty when none is away."""
    names = [str(away["guest"]) for away in host.get("away") or []]
    if not names:
        return ""
    are = "is" if len(names) == 1 else "are"
    them = "it" if len(names) == 1 else "them"
    return f"{', '.join(names)} {are} away since an earlier update: kvm.liveupdate.guest_away with state: back brings {them} home"


def _what(rung: Rung) -> str:
    """What happens to the guest, in words that go on from its name."""
    if rung.way == "migrate":
        return f"is migrated to {rung.to}{' and back afterwards' if rung.back else ' for good'}"
    return {
        "preserve": "stays in memory",
        "save": "is saved to disk and goes on from there afterwards",
        "shutdown": "is shut down and started again afterwards",
        "refuse": "stops the update",
    }[rung.way]


def _steps(host: dict[str, t.Any], guests: list[dict[str, t.Any]], rehearse: list[str], keep_units: t.Sequence[str]) -> list[str]:
    """What is done, in order."""
    names = {way: [guest["name"] for guest in guests if guest["way"] == way] for way in _DONE}
    returning = [guest["name"] for guest in guests if guest["way"] in ("migrate", "save", "shutdown") and guest["back"]]
    stay = f"pause and save {_few(names['preserve'])}, " if names["preserve"] else ""
    stopped = [unit for unit in host.get("services_to_stop") or [] if unit not in keep_units]
    others = f" ({len(stopped)}: {_few(stopped, _SERVICES_SHOWN)})" if stopped else ""
    steps = [
        f"stage {_kernel(host)} with {(host.get('target') or {}).get('initrd') or 'no initial RAM disk'}",
        f"pause {_few(rehearse)} for a moment, one by one, and try whether the saved state can be loaded" if rehearse else "",
        *(f"migrate {guest['name']} to {guest['destination']}" for guest in guests if guest["way"] == "migrate"),
        f"save {_few(names['save'])} to disk" if names["save"] else "",
        f"shut down {_few(names['shutdown'])}" if names["shutdown"] else "",
        f"hold the RAM of {_few(names['preserve'])}" if stay else "",
        f"stop other services{others}, {stay}jump",
        f"resume {_few(names['preserve'])}, and prove that it is the same memory" if stay else "",
        f"bring back {_few(returning)}" if returning else "",
    ]
    return [step for step in steps if step]


def _kernel(host: dict[str, t.Any]) -> str:
    return f"Linux {(host.get('target') or {}).get('release') or '(not given)'}"


def _few(names: list[str], shown: int = _SHOWN) -> str:
    """Some names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _table(host: dict[str, t.Any], made: dict[str, t.Any]) -> list[str]:
    """The plan for people."""
    if made["verdict"] == "current":
        return [f"The host runs {_kernel(host)} already and stays as it is."]
    rows = [("guest", "way", "why"), *((guest["name"], guest["way"], guest["why"]) for guest in made["guests"])]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name.ljust(wide[0])}  {way.ljust(wide[1])}  {why}" for name, way, why in rows if rows[1:]] or ["No guest runs."]
    lines += [
        f"WARNING {guest['name']}: {warning}" for guest in made["guests"] if guest["way"] == "preserve" for warning in guest["warnings"]
    ]
    if made["verdict"] == "refuse":
        away = [who_is_away(host)] if host.get("away") else []
        return [f"The update to {_kernel(host)} is refused.", *map(_told, host["reasons"]), *away, *lines]
    free = {name: "an unknown number" if room["free_mib"] is None else room["free_mib"] for name, room in made["room"].items()}
    needed = {name: room["needed_mib"] for name, room in made["room"].items()}
    pause = made["expected_pause"]
    return [
        f"The update to {_kernel(host)}:",
        *lines,
        *(f"{number}. {step}" for number, step in enumerate(made["steps"], start=1)),
        f"It takes {needed['memory']} MiB of memory of {free['memory']} available, and {needed['saves']} MiB on the disk of managed saves"
        f" of {free['saves']} free.",
        "Expected pause: " + ("not known, no guest that stays was updated here before." if pause is None else f"{pause:.1f} s."),
    ]
