# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an update will do with a host and each of its guests, and why. Pure. PRIVATE to the collection.

The same facts and the same policy give the same plan. The plan has every guest. No guest with a reason against it is preserved. A reason
that this file does not know leaves a guest only a shutdown. A test checks that this file knows all reasons.
"""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import told as _told
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _room
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease

from ._budget import check_seconds, expected_too_long
from ._failure import AFTER_COLD_BOOT
from ._patterns import matching
from ._policy import Policy, PolicyError, Rung

__all__ = ("chosen", "other_run", "plan")

# These reasons only prevent that RAM stays in place while QEMU ends. libvirt can still migrate or save the domain.
_ABOUT_STAYING = frozenset(
    ("ram-anonymous", "ram-backend", "ram-gone", "ram-on-disk", "ram-hugetlb", "ram-size", "hugepages", "discard", "memory-device")
) | {"snapshot-format", "confined", "unit", "memory-limit", "qemu-replaced"}
# A save also works with these, because two QEMUs on the same host write the disk one after the other.
_SAVEABLE = _ABOUT_STAYING | {"cache-unsafe"}
# A guest that is shut down starts again after a boot, from its unit or its definition. With these it cannot be asked to shut down.
_NOT_ASKED = frozenset(("monitor", "run-state", "left-paused", "libvirt-job"))
# With these it would start as another guest or on other disks: it does not start with what it has now, or loses it when QEMU ends.
_STARTS_AS_ANOTHER = frozenset(
    ("disk-changed", "device-changed", "network-changed", "file-replaced", "transient-disk", "unit-other", "argv-unread")
)
# With these it would not start.
_DOES_NOT_START = frozenset(
    (
        *("not-persistent", "unit-early", "unit-gone", "start-option", "server-waits", "peer-gone", "socket", "file-gone", "file-silent"),
        *("file-volatile", "file-in-memory", "network-transient", "network-no-autostart", "network-unknown", "pool-transient"),
        *("pool-no-autostart", "pool-unknown", "secret-gone", "secret-ephemeral", "secret-unknown", "disk-fdgroup"),
    )
)
# With these it was not examined, so it may have any of the reasons above.
_NOT_EXAMINED = frozenset(("name-long", "name-twice", "not-examined", "record-damaged"))
_NO_SHUTDOWN = _NOT_ASKED | _STARTS_AS_ANOTHER | _DOES_NOT_START | _NOT_EXAMINED
_NOT_BACK = ("not-back", "memory-wrong")
_BESIDE_MIB = _room.BESIDE_BYTES >> 20
_DONE = {"preserve": "preserved", "migrate": "migrated", "save": "saved", "shutdown": "shut down"}
_NO_PROVIDER = "neither libvirt nor kvm-liveupdate runs it - make it a libvirt domain, or a unit that starts it with kvm-liveupdate run"
_CHECKS = {
    "none": "resume {}",
    "sample": "compare a sample of the memory of {} with that before the jump, and resume",
    "full": "compare all memory of {} with that before the jump, and resume",
}
_UNPROVEN = "the new kernel is not installed yet. Whether it can take over is known when it is installed"
_SHOWN = 5
_SERVICES_SHOWN = 10


def plan(
    host: dict[str, t.Any],
    policy: Policy,
    rehearsal: str = "none",
    rehearsal_guests: dict[str, t.Any] | None = None,
    keep_units: t.Sequence[str] = (),
    blackout_max: float = 0.0,
    labels: dict[str, dict[str, t.Any]] | None = None,
    paused_max: dict[str, int] | None = None,
    essential: t.Sequence[str] = (),
    verify_memory: str = "sample",
) -> dict[str, t.Any]:
    """The plan of one host.

    ``host`` is what hypervisor_info returned. ``keep_units`` are the units that the update does not stop. ``blackout_max`` is the longest
    pause that is allowed, in seconds, 0 for any. ``labels`` are more labels of guests, by name. ``paused_max`` says for each label how many
    guests with the same value may be paused at once. ``essential`` are names and patterns of guests that the run itself depends on.
    ``verify_memory`` is how the memory is checked. The rest is as for :func:`chosen`. The plan has:

    ``verdict``      ``go``, ``refuse``, ``current`` (the host runs the kernel already and all guests are back), or ``unfinished`` (it runs
                     another kernel, and first the guests that an earlier update lost have to be reported)
    ``refusals``     why the host is refused: sentences with their remedies
    ``over_budget``  the refusal because of ``blackout_max``, empty if there is none
    ``other_run``    the refusal because another run has the lease of the host, empty if there is none
    ``kernel``       the release of the new kernel, its path if it is not installed yet
    ``unproven``     the warning that the new kernel is not installed yet, else empty
    ``guests``       of each ``name``, ``way``, ``why`` (a sentence), ``by`` (the setting that gave the ladder), ``passed_over`` (``way``
                     and ``why`` of the skipped ways), ``destination`` and ``back`` of a migration, ``warnings`` (sentences)
    ``staying``      the names of the guests that stay in memory, or did in the update that is ``unfinished``
    ``rehearse``     the names of those that are rehearsed
    ``leaving``      ``name``, ``way``, ``destination`` and ``back`` of the guests that leave, as guest_away takes them
    ``steps``        what is done, in order; none unless the verdict is ``go``
    ``room``         ``memory`` and ``saves`` (the disk of managed saves): ``needed_mib`` and ``free_mib`` (None if unknown)
    ``expected_pause``  seconds, the longest pause of the preserved guests in their last update, and ``check_pause``; None if unknown
    ``check_pause``  seconds of the pause for a full check of the memory (``memory_speed`` of ``host``), 0 if there is none
    ``unfinished``   the update whose run ended before it verified the host after the jump (or a cold boot), as kexec returns it; else empty
    ``members``      for each label of ``paused_max`` and each value of it the names of the guests that pause
    ``essential``    the names of the essential guests of this host
    ``essential_absent``  the names and patterns of essential guests that none of this host has
    ``table``        all of it for people, as lines
    """
    if not isinstance(host, dict) or not isinstance(host.get("guests"), list) or not isinstance(host.get("reasons"), list):
        raise PolicyError("this is not what hypervisor_info returns: guests or reasons are missing")
    free = host.get("free") or {}
    room = {name: {"needed_mib": 0, "free_mib": free.get(f"{name}_mib")} for name in ("memory", "saves")}
    host = {**host, "guests": [_labelled(facts, labels or {}) for facts in host["guests"]]}
    guests = [_guest(facts, policy, room) for facts in host["guests"]]
    staying = [guest["name"] for guest in guests if guest["way"] == "preserve"]
    unfinished = _unfinished(host)
    kept = [facts for facts, guest in zip(host["guests"], guests) if guest["way"] == "preserve"]
    sizes: dict[str, list[int]] = {}
    for facts in kept:
        sizes.setdefault(facts["provider"], []).append(facts.get("memory_mib") or 0)
    check = check_seconds(sizes, host.get("memory_speed") or {})
    pauses = [facts["last_pause"] - facts.get("last_check", 0.0) for facts in kept if facts.get("last_pause") is not None]
    expected = max(pauses) + check if pauses else None
    current = bool((host.get("target") or {}).get("current"))
    stays = current or bool(unfinished)
    over = "" if stays else expected_too_long(expected, blackout_max, check)
    members = {} if stays else _members(host["guests"], guests, paused_max or {})
    leased = other_run(host)
    against = _against_the_host(host, stays, leased, over) + _too_many(members, paused_max or {})
    refusals = against + [f"guest {guest['name']} {guest['why']}" for guest in guests if guest["way"] == "refuse" and not stays]
    verdict = "refuse" if refusals else "current" if current else "unfinished" if unfinished else "go"
    rehearse = chosen([facts for facts in host["guests"] if facts["name"] in staying], rehearsal, rehearsal_guests or {})
    away = _who_is_away(host) if refusals else []
    made = {
        "verdict": verdict,
        "refusals": refusals + away,
        "over_budget": over,
        "other_run": leased,
        "kernel": _target(host).get("release") or _not_installed(host),
        "unproven": _UNPROVEN if _not_installed(host) else "",
        "guests": guests,
        "staying": _to_verify(host, unfinished) if unfinished else staying,
        "rehearse": rehearse,
        "leaving": [
            {key: guest[key] for key in ("name", "way", "destination", "back")}
            for guest in guests
            if guest["way"] in ("migrate", "save", "shutdown")
        ],
        "steps": _steps(host, guests, rehearse, keep_units, verify_memory) if verdict == "go" else [],
        "room": room,
        "expected_pause": expected,
        "check_pause": check,
        "unfinished": unfinished,
        "members": members,
        "essential": _essential(guests, essential),
        "essential_absent": [pattern for pattern in essential if not _essential(guests, [pattern])],
    }
    return {**made, "table": _table(host, made, against + away, blackout_max)}


def _against_the_host(host: dict[str, t.Any], stays: bool, *others: str) -> list[str]:
    """Why the host itself is refused. One that does not jump is refused only while a guest waits to come back.

    ``others`` are more refusals, empty for none.
    """
    told = [_told(reason) for reason in host["reasons"] if not stays or reason["code"] in _NOT_BACK]
    return told + [other for other in others if other]


def other_run(host: dict[str, t.Any]) -> str:
    """The refusal because another run has the lease of the host, and may still work; empty if none has."""
    lease = host.get("lease") or {}
    return _lease.refusal(lease) if lease.get("left") and not lease.get("own") and not lease.get("ended") else ""


def _unfinished(host: dict[str, t.Any]) -> dict[str, t.Any]:
    """The update of a run that ended after the jump. Each run gives its lease back at the end of a host, so such a lease is still there.

    A cold boot after the commit counts too, whatever kernel it started: usually that is the old one, because the new one is not the boot
    default yet. Nobody has told yet that the guests have lost their memory.
    """
    lease, update = host.get("lease") or {}, host.get("last_update") or {}
    times, current = update.get("times") or {}, bool((host.get("target") or {}).get("current"))
    cut_off = update.get("outcome") == "rebooted"
    if not lease or lease["begun"] > times.get("committed", 0):
        return {}
    if not (update.get("outcome") == "jumped" or cut_off) or not (current or (cut_off and update["guests"])):
        return {}
    told = (
        f"the host did a cold boot during the update of an earlier run, or after it, and runs kernel {host['kernel']['release']} now."
        f" {AFTER_COLD_BOOT}" + ("" if current else ". Then run the update again")
    )
    return {
        **({"msg": told} if cut_off else {}),
        "outcome": update["outcome"],
        "journal": update,
        "times": times,
        "kernel_before": update["kernel"]["release"],
        "kernel_after": host["kernel"]["release"],
        "boot_id_before": update["boot_id"],
        "boot_id_after": host["boot_id"],
    }


def _to_verify(host: dict[str, t.Any], unfinished: dict[str, t.Any]) -> list[str]:
    """The guests of an unfinished update that still have to be verified.

    A guest that was discarded and does not run is gone for good.
    """
    update = unfinished["journal"]
    gone = set(update.get("discarded") or []).difference(guest["name"] for guest in host["guests"])
    return [name for name in update["guests"] if name not in gone]


def _labelled(facts: dict[str, t.Any], labels: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    """The facts of a guest with its labels from the inventory. These take precedence over those in its metadata."""
    more = labels.get(facts["name"]) or {}
    if not isinstance(more, dict):
        where = f"hypervisor_update_labels, {facts['name']}"
        raise PolicyError(f"{where}: {more!r} is not right; write labels with values, e.g. cluster: sales")
    return {**facts, "labels": {**(facts.get("labels") or {}), **{str(label): str(value) for label, value in more.items()}}}


def _members(facts: list[dict[str, t.Any]], guests: list[dict[str, t.Any]], paused_max: dict[str, int]) -> dict[str, t.Any]:
    """For each label with a limit the guests that stand still during the update, by the value of the label. Migrated guests run on."""
    found: dict[str, dict[str, list[str]]] = {}
    for known, guest in zip(facts, guests):
        for label, value in known["labels"].items():
            if label in paused_max and guest["way"] != "migrate":
                found.setdefault(label, {}).setdefault(str(value), []).append(guest["name"])
    return found


def _too_many(members: dict[str, t.Any], paused_max: dict[str, int]) -> list[str]:
    """Why the host is refused: it alone has too many guests that belong apart."""
    return [
        f"hypervisor_update_paused_max allows {paused_max[label]} paused guests with {label}={value}, and this host runs {len(names)}:"
        f" {_few(names)} - move some to other hosts, give them the way migrate (hypervisor_update_guests), or raise the limit"
        for label, values in members.items()
        for value, names in values.items()
        if len(names) > paused_max[label]
    ]


def _essential(guests: list[dict[str, t.Any]], wanted: t.Sequence[str]) -> list[str]:
    names = [guest["name"] for guest in guests]
    meant = matching(wanted, names)["names"]
    return [name for name in names if name in meant]


def _who_is_away(host: dict[str, t.Any]) -> list[str]:
    """The guests that an earlier update sent away and did not bring back, with the remedy."""
    names = [str(away["guest"]) for away in host.get("away") or []]
    if not names:
        return []
    are, them = ("guest {} is", "it") if len(names) == 1 else ("guests {} are", "them")
    away = are.format(", ".join(names))
    return [f"{away} still away since an earlier update - kvm.liveupdate.guest_away with state=back brings {them} back"]


def chosen(staying: list[dict[str, t.Any]], rehearsal: str, guests: dict[str, t.Any]) -> list[str]:
    """The names of the guests to rehearse, out of those that stay in memory. Pure.

    ``rehearsal`` is ``none``, ``canary`` (the first guest of each provider) or ``all``. ``guests`` overrides it by name: true or false.
    A paused guest is never rehearsed: QEMU can save it only once, and the update has to save it.
    """
    if not isinstance(guests, dict):
        raise PolicyError(f"hypervisor_update_rehearsal_guests is {guests!r}; write names of guests, each with true or false")
    for name, wanted in guests.items():
        if not isinstance(wanted, bool):  # the text "false" would count as true
            raise PolicyError(
                f"hypervisor_update_rehearsal_guests, {name}: {wanted!r} is not right; write true or false (of a variable:"
                " '{{ variable | bool }}')"
            )
    staying = [facts for facts in staying if not facts.get("paused")]
    canaries = {facts["provider"]: facts["name"] for facts in reversed(staying)}
    usual = {"none": [], "canary": list(canaries.values()), "all": [facts["name"] for facts in staying]}[rehearsal]
    return [facts["name"] for facts in staying if guests.get(facts["name"], facts["name"] in usual)]


def _guest(facts: dict[str, t.Any], policy: Policy, room: dict[str, t.Any]) -> dict[str, t.Any]:
    """The first way of the ladder that is possible. ``room`` is what the guests before this one need; this one adds its own need."""
    # A machine that no provider runs is always refused.
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
        "why": _what(rung) + (f" ({by})" if by else "") + "".join(f". Not {_DONE[over['way']]}: {over['why']}" for over in passed),
        "by": by,
        "passed_over": passed,
        "destination": rung.to,
        "back": rung.back,
        "warnings": [_told(warning) for warning in facts.get("warnings") or []],
    }


def _against(rung: Rung, facts: dict[str, t.Any], room: dict[str, t.Any]) -> str:
    """Why this way is not possible for a guest. Empty if it is."""
    reasons, way = facts.get("reasons") or [], rung.way
    if way == "refuse":
        return ""
    if way == "preserve":
        fill = facts.get("fill_mib") or 0
        return (
            _all_told(reasons)
            or ("" if facts.get("provider") else _NO_PROVIDER)
            or _shortage(room["memory"], fill, "its RAM needs {} MiB of memory that it has not used yet", "stop or move other guests first")
        )
    if way == "shutdown":
        return _all_told(reason for reason in reasons if reason["code"] in _NO_SHUTDOWN)
    if facts["provider"] != "libvirt":
        return "libvirt does not run it"
    if way == "migrate":
        no_destination = "" if rung.to else "the ladder names no destination - write {migrate: {to: URI of the other libvirt}}"
        return no_destination or _all_told(reason for reason in reasons if reason["code"] not in _ABOUT_STAYING)
    if facts.get("memory_mib") is None or room["saves"]["free_mib"] is None:
        return "the size of its RAM or the free disk space is unknown"
    size = facts["memory_mib"] + _BESIDE_MIB
    return _all_told(reason for reason in reasons if reason["code"] not in _SAVEABLE) or _shortage(
        room["saves"], size, "its RAM needs {} MiB on the disk of managed saves", "free space there"
    )


def _shortage(room: dict[str, t.Any], size: int, what: str, remedy: str) -> str:
    """Why there is no room for so many MiB. Empty if there is, or if the free space is unknown."""
    left = None if room["free_mib"] is None else room["free_mib"] - room["needed_mib"]
    return "" if left is None or size <= max(left, 0) else f"{what.format(size)}, but only {max(left, 0)} MiB are free - {remedy}"


def _all_told(reasons: t.Iterable[dict[str, str]]) -> str:
    return "; ".join(map(_told, reasons))


def _what(rung: Rung) -> str:
    """What happens to the guest. The text continues a sentence that begins with its name."""
    if rung.way == "migrate":
        return f"is migrated to {rung.to} and {'back afterwards' if rung.back else 'stays there'}"
    return {
        "preserve": "stays in memory",
        "save": "is saved to disk and restored afterwards",
        "shutdown": "is shut down and started again afterwards",
        "refuse": "stops the update",
    }[rung.way]


def _steps(
    host: dict[str, t.Any], guests: list[dict[str, t.Any]], rehearse: list[str], keep_units: t.Sequence[str], verify_memory: str
) -> list[str]:
    """What is done, in order."""
    names = {way: [guest["name"] for guest in guests if guest["way"] == way] for way in _DONE}
    returning = [guest["name"] for guest in guests if guest["way"] in ("migrate", "save", "shutdown") and guest["back"]]
    staying = _few(names["preserve"])
    pause = f"pause and save {staying}, " if staying else ""
    stopped = [unit for unit in host.get("services_to_stop") or [] if unit not in keep_units]
    others = f" ({len(stopped)}: {_few(stopped, _SERVICES_SHOWN)})" if stopped else ""
    steps = [
        f"stage {_kernel(host)}" + ("" if _not_installed(host) else f" with {_target(host).get('initrd') or 'no initial RAM disk'}"),
        f"rehearse {_few(rehearse)}: pause each for a moment and try to load its state" if rehearse else "",
        *(f"migrate {guest['name']} to {guest['destination']}" for guest in guests if guest["way"] == "migrate"),
        f"save {_few(names['save'])} to disk" if names["save"] else "",
        f"shut down {_few(names['shutdown'])}" if names["shutdown"] else "",
        f"preserve the RAM of {staying}" if staying else "",
        f"stop other services{others}, {pause}jump to the new kernel",
        _CHECKS[verify_memory].format(staying) if staying else "",
        f"bring back {_few(returning)}" if returning else "",
    ]
    return [step for step in steps if step]


def _target(host: dict[str, t.Any]) -> dict[str, t.Any]:
    return host.get("target") or {}


def _not_installed(host: dict[str, t.Any]) -> str:
    """The path of a new kernel that is installed later, else empty."""
    return "" if _target(host).get("installed", True) else _target(host)["path"]


def _kernel(host: dict[str, t.Any]) -> str:
    return _not_installed(host) or f"Linux {_target(host).get('release') or '(no kernel given)'}"


def _few(names: list[str], shown: int = _SHOWN) -> str:
    """Some names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _table(host: dict[str, t.Any], made: dict[str, t.Any], against: list[str], blackout_max: float) -> list[str]:
    """The plan for people. ``against`` is why the host itself is refused."""
    unfinished = {
        "jumped": ["An earlier run ended before it checked the guests of this host after the jump. This run checks them."],
        "rebooted": [
            "The host did a cold boot during the update of an earlier run, or after it. Its guests lost their memory. This run checks"
            " and reports each of them."
        ],
    }.get(made["unfinished"].get("outcome", ""), [])
    if made["unfinished"]:
        gone = [name for name in made["unfinished"]["journal"]["guests"] if name not in made["staying"]]
        if gone:
            unfinished.append(f"WARNING: these guests were discarded and do not run, so the update does not wait for them: {_few(gone)}")
    if made["verdict"] == "current":
        return [f"The host runs {_kernel(host)} already.", *unfinished]
    if made["verdict"] == "unfinished":
        return [*unfinished, f"It does not update the host. To update it to {_kernel(host)}, run the update again."]
    rows = [("guest", "way", "why"), *((guest["name"], guest["way"], guest["why"]) for guest in made["guests"])]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name.ljust(wide[0])}  {way.ljust(wide[1])}  {why}" for name, way, why in rows if rows[1:]] or ["No guest runs."]
    lines += [f"WARNING: {made['unproven']}"] if made["unproven"] else []
    lines += _ended_in_an_undo(host)
    lines += _warnings(made["guests"])
    if made["verdict"] == "refuse":
        return [f"The update to {_kernel(host)} is refused.", *against, *lines]
    return [
        f"The update to {_kernel(host)}:",
        *lines,
        *(f"{number}. {step}" for number, step in enumerate(made["steps"], start=1)),
        *_needs(made["room"]),
        *([f"Essential guests: {_few(made['essential'])}. This host is updated last, alone."] if made["essential"] else []),
        _pause(made["expected_pause"], made["check_pause"], blackout_max),
    ]


def _ended_in_an_undo(host: dict[str, t.Any]) -> list[str]:
    """A line about guests that were not back after the last update was undone, for a run that did not see that. Paused ones have a
    reason."""
    last = host.get("last_update") or {}
    ended = sorted(set(last.get("not_back") or []) - {guest["name"] for guest in host["guests"]})
    if last.get("outcome") != "aborted" or last.get("boot_id") != host.get("boot_id") or not ended:
        return []
    return [
        f"WARNING: the last update of this host was undone. These guests were not back after it, and do not run now: {_few(ended)}. If they"
        " run nowhere else, start them"
    ]


def _warnings(guests: list[dict[str, t.Any]]) -> list[str]:
    """A line for each warning, with all guests that it is about: many guests often have the same one."""
    about: dict[str, list[str]] = {}
    for guest in guests:
        for warning in guest["warnings"] if guest["way"] == "preserve" else ():
            about.setdefault(warning, []).append(guest["name"])
    return [f"WARNING {', '.join(names)}: {warning}" for warning, names in about.items()]


def _needs(room: dict[str, t.Any]) -> list[str]:
    """The memory and the disk space that the update needs."""
    names = {"memory": "Memory", "saves": "Disk for managed saves"}
    return [
        f"{names[name]}: {need['needed_mib']} MiB needed, "
        + ("free space unknown." if need["free_mib"] is None else f"{need['free_mib']} MiB free.")
        for name, need in room.items()
        if need["needed_mib"]
    ]


def _pause(expected: float | None, check: float, blackout_max: float) -> str:
    known = "unknown, no preserved guest was updated on this host before" if expected is None else f"{expected:.1f} s"
    whole = f", of which the full check of the memory takes about {check:.1f} s" if check and expected is not None else ""
    alone = f". The full check of the memory alone takes about {check:.1f} s" if check and expected is None else ""
    return f"Expected pause: {known}{whole}{alone}" + (f" ({blackout_max:g} s allowed)." if blackout_max > 0 else ".")
