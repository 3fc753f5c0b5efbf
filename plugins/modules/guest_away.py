#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_away
short_description: Send guests away that cannot stay in memory over a live update, and bring them back
version_added: 0.1.0
description:
  - With O(state=away) each guest is saved to disk with its RAM, shut down cleanly, or migrated to another host, one after the other.
  - With O(state=back) each is brought back the way it left, if it left at all. It may be back already, by its autostart.
  - Who is away, and how each left, is on record below C(/var/lib/kvm-liveupdate/away). So they can be brought back after the jump, after
    an update that was undone, or by another run when the controller was lost. C(kvm-liveupdate status) shows it.
  - No guest is ever killed. One that does not leave in time is left as it runs and the task fails. The guests behind it in the list are
    not sent away then; those before it are away and on record.
  - A guest that was asked to shut down and did not in time may yet go off. It stays on record, and O(state=back) waits for that, as long
    as it may take by O(timeouts), and starts the guest again. When it runs on for half an hour more, it is taken for one that stays.
  - A guest that cannot be brought back does not keep the others away. The task then fails, and names each such guest.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Where the guests are to be.
    type: str
    choices: [away, back]
    required: true
  guests:
    description: Who leaves, and how. Needed for O(state=away).
    type: list
    elements: dict
    suboptions:
      name:
        description: The guest's name, as M(kvm.liveupdate.hypervisor_info) returns it.
        type: str
        required: true
      way:
        description:
          - How it leaves.
          - V(save), for domains of libvirt, is a managed save. The guest goes on where it was. There has to be room for its RAM below
            C(/var/lib/libvirt/qemu/save).
          - V(shutdown) asks the guest to shut down, through its agent or by its power button, and starts it again. One that is paused is
            refused.
          - V(migrate), for domains of libvirt, is a live migration to O(guests[].destination) together with the definition. Only there it
            then runs, and starts with its host if it did so here. Its disks have to be on storage that both hosts reach.
        type: str
        choices: [save, shutdown, migrate]
        required: true
      destination:
        description:
          - URI of the libvirt that it is migrated to, as seen from this host. Needed for O(guests[].way=migrate).
          - This host's own virsh drives the migration at both ends, there and back. So only its root needs a key for the other one.
        type: str
      back:
        description: Whether O(state=back) migrates it back. Otherwise it has moved for good.
        type: bool
        default: true
  names:
    description: Who is brought back. By default everyone who is on record.
    type: list
    elements: str
  migrate_uri:
    description:
      - Where libvirt sends guests that are migrated away, as C(virsh migrate --migrateuri).
      - By default the name that the destination has for itself.
    type: str
  back_uri:
    description: The same for their way back, the address of this host as seen from the destination.
    type: str
  timeouts:
    description:
      - Seconds that a guest may take to leave or to come back, by its way.
      - By default, and with V(0), 300, and for V(save) and V(migrate) one more for each 20 MiB of its RAM.
    type: dict
    default: {}
    suboptions:
      save:
        description: Of a guest that is saved.
        type: int
      shutdown:
        description: Of a guest that is shut down.
        type: int
      migrate:
        description: Of a guest that is migrated.
        type: int
seealso:
  - module: kvm.liveupdate.guest
"""

EXAMPLES = r"""
- name: Save one guest to disk and migrate another to the next host
  kvm.liveupdate.guest_away:
    state: away
    guests:
      - name: web1
        way: save
      - name: db1
        way: migrate
        destination: qemu+ssh://root@hv2.example.org/system
    back_uri: tcp://hv1.example.org

- name: Bring back everyone who is away
  kvm.liveupdate.guest_away:
    state: back

- name: Bring back one of them, which may take its time to start
  kvm.liveupdate.guest_away:
    state: back
    names: [web1]
    timeouts:
      save: 900
"""

RETURN = r"""
guests:
  description: Each guest, in the order in which they were dealt with. After a failure too.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      type: str
    changed:
      description: Whether it went anywhere, or would.
      type: bool
    failed:
      description: Whether it is not where it was to be.
      type: bool
    left:
      description: How it left, V(saved), V(shut down) or V(migrated). Empty when it did not.
      type: str
    where:
      description:
        - V(saved), V(shut down), V(migrated), V(here), or V(off) for a guest that was asked to leave and did not run.
        - Empty for one that did not leave as it was to.
      type: str
    msg:
      description: What was done, or would be, or went wrong, in a sentence.
      type: str
msg:
  description: The same of all guests, in sentences; after a failure only of those that failed.
  returned: always
  type: str
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away as _guests_away
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _away
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _away as _qemu_away

PROVIDERS = {"libvirt": _away, "qemu": _qemu_away}
POLL_S = 1.0


def answer(name: str, way: str, before: str, after: str, told: str) -> dict:
    """What became of a guest: where it was and is, and how it left. Pure."""
    left = _guests_away.WHERE.get(way, "")
    place = {"name": name, "left": left, "before": before, "where": after}
    return {**place, "changed": before != after, "failed": False, "msg": f"guest {name} {told}"}


def failed(name: str, left: str, err: LiveUpdateError) -> dict:
    """The same of one for which it failed: it is where it was, or where the message says. Pure."""
    msg = ("" if err.message.startswith("guest ") else f"guest {name}: ") + err.message
    return {"name": name, "left": left, "before": left, "where": left, "changed": False, "failed": True, "msg": msg}


def has_left(away: dict) -> str:
    """What became of a guest that has left, in words. Pure."""
    what = {"save": "is saved to disk", "shutdown": "is shut down", "migrate": f"runs on {away['destination']}"}
    return what[away["way"]]


def plan(record: dict, asked: dict, held: bool) -> dict:
    """The record of a running guest that is to leave; refuses one that cannot."""
    provider = PROVIDERS[record["provider"]]
    known = {"guest": record["name"], **{key: record[key] for key in ("provider", "uuid", "unit", "pid", "started")}}
    away = {**known, **asked, **provider.about(record), "boot_id": _this_boot.boot_id()}
    problems = provider.obstacles(away)
    if held:
        problems.append("its RAM is held for an update - let go of it with kvm.liveupdate.guest, state: running")
    if problems:
        raise cannot_leave(away, problems)
    return away


def cannot_leave(away: dict, problems: list) -> LiveUpdateError:
    """Why a guest is not sent away. Pure."""
    return LiveUpdateError(f"guest {away['guest']} cannot leave by way of {away['way']}: {'; '.join(problems)}")


def send(params: dict, check_mode: bool) -> list:
    """See that each guest is away. Nobody leaves when one of them cannot; after one that does not leave the others stay."""
    common = {"migrate_uri": params["migrate_uri"], "back_uri": params["back_uri"]}
    ways = {guest["name"]: {**{key: guest[key] for key in ("way", "destination", "back")}, **common} for guest in params["guests"]}
    running = _providers.known()
    held = _hold.held_each([running[name] for name in ways if name in running])
    leaving, problems = {}, {}
    for name, asked in ways.items():
        try:
            if name in running:
                leaving[name] = plan(running[name], asked, name in held)
        except LiveUpdateError as err:
            problems[name] = failed(name, "", err)
    if problems:
        return [problems.get(name) or answer(name, "", "here", "here", "is left as it is") for name in ways]
    if check_mode:
        return [predicted(leaving[name]) if name in leaving else absent(name, check_mode) for name in ways]
    guests: list = []
    with _lock.Lock():
        for name in ways:
            if any(guest["failed"] for guest in guests):
                guests.append(answer(name, "", "here", "here", "is left as it is"))
            elif name in leaving:
                guests.append(leave(leaving[name], params["timeouts"]))
            else:
                guests.append(absent(name, check_mode))
    return guests


def predicted(away: dict) -> dict:
    """What becomes of a guest that leaves. Pure."""
    return answer(away["guest"], away["way"], "here", _guests_away.WHERE[away["way"]], has_left(away))


def absent(name: str, check_mode: bool) -> dict:
    """What became of a guest that does not run: it is away already, or off."""
    kept = _guests_away.read(name)
    if not kept:
        return answer(name, "", "off", "off", "does not run: nothing to send away")
    if kept["state"] == "leaving" and not check_mode:
        _guests_away.write(kept, "away")  # it left after its limit, or by a run that ended before it could say so
    where = _guests_away.WHERE[kept["way"]]
    return answer(name, kept["way"], where, where, f"{has_left(kept)} already")


def leave(away: dict, timeouts: dict) -> dict:
    """Send a guest away. A failure that leaves it here for certain leaves no record of it."""
    name, provider = away["guest"], PROVIDERS[away["provider"]]
    limit = timeouts.get(away["way"]) or provider.limit_s(away)
    if name not in _providers.known():
        return absent(name, False)  # it went off while others left
    problems = provider.obstacles(away)  # the others may have taken the room
    if problems:
        return failed(name, "", cannot_leave(away, problems))
    before, away = _guests_away.read(name), _guests_away.write({**away, "limit_s": limit}, "leaving")
    try:
        provider.leave(away, limit)
    except LiveUpdateError as err:
        if err.details.get("settled", True) and name in _providers.known():
            if before and may_leave(before):
                _guests_away.write(before, "leaving")  # an earlier order stands
            else:
                _guests_away.forget(name)
        return failed(name, "", err)
    _guests_away.write(away, "away")
    return predicted(away)


def bring_back(params: dict, check_mode: bool) -> list:
    """See that nobody of them is away; last those that have not left yet, because they are waited for."""
    kept = {away["guest"]: away for away in _guests_away.records()}
    names = list(kept) if params["names"] is None else list(dict.fromkeys(params["names"]))
    names.sort(key=lambda name: kept.get(name, {}).get("state") == "leaving")
    if check_mode or not set(names) & set(kept):
        return [come_back(name, kept.get(name, {}), params["timeouts"], check_mode) for name in names]
    with _lock.Lock():
        return [come_back(name, _guests_away.read(name), params["timeouts"], check_mode) for name in names]


def come_back(name: str, away: dict, timeouts: dict, check_mode: bool) -> dict:
    """Bring one guest back."""
    if not away:
        return answer(name, "", "here", "here", "is not away")
    way, where = away["way"], _guests_away.WHERE[away["way"]]
    if way == "migrate" and not away["back"] and away["state"] == "away":
        if not check_mode:
            _guests_away.forget(name)
        return answer(name, way, where, where, f"has moved to {away['destination']} and stays there")
    provider, lost = PROVIDERS[away["provider"]], ""
    limit = timeouts.get(way) or provider.limit_s(away)
    try:
        here = is_here(away, provider, 0 if check_mode else limit)
        if here and may_leave(away):
            told = "runs, but it was asked to leave and may yet go off: it stays on record, and the next 'state: back' looks again"
            return answer(name, "", "here", "here", told)
        if not check_mode:
            if not here:
                lost = provider.come_back(away, limit)
            _guests_away.forget(name)
    except LiveUpdateError as err:
        return failed(name, where, err)
    told = f"is back{'' if lost else ', it was ' + where}{'; ' + lost if lost else ''}"
    if here and away["state"] == "leaving":
        return answer(name, "", "here", "here", "runs, it has not left")
    return answer(name, way, "here" if here else where, "here", told)


def is_here(away: dict, provider, limit: float) -> bool:
    """Whether the guest is back. One that may yet leave is given the time to."""
    until = time.monotonic() + limit
    while provider.is_back(away):
        if time.monotonic() > until or not may_leave(away):
            return True
        time.sleep(POLL_S)
    return False


def may_leave(away: dict) -> bool:
    """Whether the guest, which is here, may yet go off."""
    return _guests_away.may_leave(away, _providers.known().get(away["guest"], {}), _this_boot.boot_id(), time.time())


def manage(module):
    """Dispatch on the state, and sum up."""
    carry_out = send if module.params["state"] == "away" else bring_back
    guests = carry_out({**module.params, "timeouts": module.params["timeouts"] or {}}, module.check_mode)
    diff = {
        "before": {guest["name"]: guest.pop("before") for guest in guests},
        "after": {guest["name"]: guest["where"] for guest in guests},
    }
    problems = [guest["msg"] for guest in guests if guest["failed"]]
    changed = any(guest["changed"] for guest in guests)
    if problems:
        raise LiveUpdateError("; ".join(problems), guests=guests, changed=changed)
    return {"changed": changed, "guests": guests, "msg": "; ".join(guest["msg"] for guest in guests), "diff": diff}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["away", "back"], "required": True},
            "guests": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "way": {"type": "str", "choices": ["save", "shutdown", "migrate"], "required": True},
                    "destination": {"type": "str"},
                    "back": {"type": "bool", "default": True},
                },
                "required_if": [("way", "migrate", ("destination",))],
            },
            "names": {"type": "list", "elements": "str"},
            "migrate_uri": {"type": "str"},
            "back_uri": {"type": "str"},
            "timeouts": {
                "type": "dict",
                "default": {},
                "options": {"save": {"type": "int"}, "shutdown": {"type": "int"}, "migrate": {"type": "int"}},
            },
        },
        required_if=[("state", "away", ("guests",))],
    )


if __name__ == "__main__":
    main()
