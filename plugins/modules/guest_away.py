#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_away
short_description: Send guests away that cannot stay in memory during a live update, and bring them back
version_added: 0.2.0
description:
  - With O(state=away) the module saves each guest to disk with its RAM, shuts it down cleanly, or migrates it to another host. It handles
    one guest after the other.
  - With O(state=back) the module brings each guest back in the way it left. A guest may be back already, because its autostart was faster.
  - The host records below C(/var/lib/kvm-liveupdate/away) which guests are away and how they left. So another run can bring them back
    after the jump, after an update that was undone, or after the controller was lost. C(kvm-liveupdate status) shows the records.
  - The module never kills a guest. If a guest does not leave in time, it continues to run and the task fails. The guests before it in the
    list are away and on record. The guests after it stay.
  - A guest that did not shut down in time may still power off later. It stays on record. O(state=back) waits for it within O(timeouts)
    and starts it again. If the guest still runs half an hour after its limit, the module assumes that it stays.
  - If a guest cannot be brought back, the module continues with the others. The task then fails and names each such guest.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Whether the guests are away or back on this host.
    type: str
    choices: [away, back]
    required: true
  guests:
    description: The guests that leave, and how. Required with O(state=away).
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - The guest's name, as M(kvm.liveupdate.hypervisor_info) returns it.
          - A guest that does not run is no error, because it need not leave. Its RV(guests[].where) is V(off).
        type: str
        required: true
      way:
        description:
          - How the guest leaves.
          - V(save) is libvirt's managed save, for libvirt domains only. The guest later continues where it was. The guest's RAM must fit
            below C(/var/lib/libvirt/qemu/save).
          - V(shutdown) asks the guest to shut down, through its agent or with its power button. Later the guest starts again. A paused
            guest is refused.
          - V(migrate) is a live migration to O(guests[].destination), for libvirt domains only. The definition moves with the domain, and
            its autostart setting too. The domain's disks must be on storage that both hosts can access.
        type: str
        choices: [save, shutdown, migrate]
        required: true
      destination:
        description:
          - URI of the libvirt that receives the guest, as seen from this host. Required with O(guests[].way=migrate).
          - C(virsh) on this host drives the migration in both directions. So only root on this host needs an SSH key for the other host.
        type: str
      back:
        description: Whether O(state=back) migrates the guest back. With V(false) it stays at its destination.
        type: bool
        default: true
  names:
    description:
      - The names of the guests to bring back. The default is all guests that are on record.
      - A guest that is not on record is no error.
    type: list
    elements: str
  migrate_uri:
    description:
      - The address to which libvirt sends migrating guests, as in C(virsh migrate --migrateuri).
      - The default is the host name that the destination reports for itself.
    type: str
  back_uri:
    description:
      - The address for the migration back, which is this host as seen from the destination.
      - The default is the host name that this host reports for itself.
    type: str
  timeouts:
    description:
      - For how many seconds a guest may take to leave or to come back, for each way.
      - The default is 300 seconds. V(save) and V(migrate) get one more second for each 20 MiB of the guest's RAM. V(0) means the default.
    type: dict
    default: {}
    suboptions:
      save:
        description: The limit for V(save).
        type: int
      shutdown:
        description: The limit for V(shutdown).
        type: int
      migrate:
        description: The limit for V(migrate).
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

- name: Bring back all guests that are away
  kvm.liveupdate.guest_away:
    state: back

- name: Bring back one guest that starts slowly
  kvm.liveupdate.guest_away:
    state: back
    names: [web1]
    timeouts:
      save: 900
"""

RETURN = r"""
guests:
  description: The result of each guest, in the order in which the module handled them.
  returned: success, and failure after the guests were examined
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      returned: always
      type: str
    changed:
      description: Whether the guest left or came back, or would do so in check mode.
      returned: always
      type: bool
    failed:
      description: Whether the guest is not where it was requested to be.
      returned: always
      type: bool
    left:
      description: How the guest left, V(saved), V(shut down) or V(migrated). Empty if it did not leave.
      returned: always
      type: str
    where:
      description:
        - Where the guest is. V(here), V(saved), V(shut down), V(migrated), or V(off) for a guest that did not run when it was sent away.
        - Empty if the guest did not leave as requested.
      returned: always
      type: str
    msg:
      description: What the module did or would do, or what went wrong, as a sentence.
      returned: always
      type: str
  sample:
    - name: web1
      changed: true
      failed: false
      left: saved
      where: saved
      msg: guest web1 is saved to disk
msg:
  description: The messages of all guests. After a failure only those of the guests that failed.
  returned: always
  type: str
  sample: guest web1 is saved to disk
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away, _hold, _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot

POLL_S = 1.0


def answer(name: str, way: str, before: str, after: str, told: str) -> dict:
    """The result of a guest: where it was and is, and how it left. Pure."""
    left = _away.WHERE.get(way, "")
    place = {"name": name, "left": left, "before": before, "where": after}
    return {**place, "changed": before != after, "failed": False, "msg": f"guest {name} {told}"}


def failed(name: str, left: str, err: LiveUpdateError) -> dict:
    """The result of a guest for which the operation failed: it is where it was, or where the message says. Pure."""
    msg = ("" if err.message.startswith("guest ") else f"guest {name}: ") + err.message
    return {"name": name, "left": left, "before": left, "where": left, "changed": False, "failed": True, "msg": msg}


def has_left(away: dict) -> str:
    """Where a guest is that has left, in words. Pure."""
    what = {"save": "is saved to disk", "shutdown": "is shut down", "migrate": f"runs on {away['destination']}"}
    return what[away["way"]]


def plan(record: dict, asked: dict, held: bool) -> dict:
    """The record of a running guest that is to leave; refuses one that cannot."""
    provider = _providers.of(record).away
    known = {"guest": record["name"], **{key: record[key] for key in ("provider", "uuid", "unit", "pid", "started")}}
    away = {**known, **asked, **provider.about(record), "boot_id": _this_boot.boot_id()}
    problems = provider.obstacles(away)
    if held:
        problems.append("its RAM is preserved for an update - release it with kvm.liveupdate.guest, state: running")
    if problems:
        raise cannot_leave(away, problems)
    return away


def cannot_leave(away: dict, problems: list) -> LiveUpdateError:
    """Why a guest is not sent away. Pure."""
    return LiveUpdateError(f"guest {away['guest']}: {away['way']} is not possible: {'; '.join(problems)}")


def send(params: dict, check_mode: bool) -> list:
    """See that each guest is away. If one of them cannot leave, none does. If one does not leave in time, the next ones stay."""
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
        return [problems.get(name) or answer(name, "", "here", "here", "stays here, because another guest cannot leave") for name in ways]
    if check_mode:
        return [predicted(leaving[name]) if name in leaving else absent(name, check_mode) for name in ways]
    guests: list = []
    with _lock.Lock():
        for name in ways:
            if any(guest["failed"] for guest in guests):
                guests.append(answer(name, "", "here", "here", "stays here, because another guest did not leave"))
            elif name in leaving:
                guests.append(leave(leaving[name], params["timeouts"]))
            else:
                guests.append(absent(name, check_mode))
    return guests


def predicted(away: dict) -> dict:
    """The result of a guest that leaves. Pure."""
    return answer(away["guest"], away["way"], "here", _away.WHERE[away["way"]], has_left(away))


def absent(name: str, check_mode: bool) -> dict:
    """The result of a guest that does not run: it is away already, or off."""
    kept = _away.read(name)
    if not kept:
        return answer(name, "", "off", "off", "does not run, so it need not be sent away")
    if kept["state"] == "leaving" and not check_mode:
        # It left after its limit, or the run that sent it away ended before it wrote this.
        try:
            _providers.of(kept).away.settle(kept)
        except LiveUpdateError as err:
            return failed(name, "", err)
        _away.write(kept, "away")
    where = _away.WHERE[kept["way"]]
    return answer(name, kept["way"], where, where, f"{has_left(kept)} already")


def leave(away: dict, timeouts: dict) -> dict:
    """Send a guest away. A failure that leaves it here for certain leaves no record of it."""
    name, provider = away["guest"], _providers.of(away).away
    limit = timeouts.get(away["way"]) or provider.limit_s(away)
    if name not in _providers.known():
        return absent(name, False)  # it went off while others left
    problems = provider.obstacles(away)  # the others may have taken the room
    if problems:
        return failed(name, "", cannot_leave(away, problems))
    before, away = _away.read(name), _away.write({**away, "limit_s": limit}, "leaving")
    try:
        provider.leave(away, limit)
    except LiveUpdateError as err:
        if err.details.get("settled", True) and name in _providers.known():
            if before and may_leave(before):
                _away.write(before, "leaving")  # an earlier order stands
            else:
                _away.forget(name)
        return failed(name, "", err)
    _away.write(away, "away")
    return predicted(away)


def bring_back(params: dict, check_mode: bool) -> list:
    """See that none of them is away. Those that have not left yet come last, because this waits for them."""
    kept = {away["guest"]: away for away in _away.records()}
    names = list(kept) if params["names"] is None else list(dict.fromkeys(params["names"]))
    names.sort(key=lambda name: kept.get(name, {}).get("state") == "leaving")
    if check_mode or not set(names) & set(kept):
        return [come_back(name, kept.get(name, {}), params["timeouts"], check_mode) for name in names]
    with _lock.Lock():
        return [come_back(name, _away.read(name), params["timeouts"], check_mode) for name in names]


def come_back(name: str, away: dict, timeouts: dict, check_mode: bool) -> dict:
    """Bring one guest back."""
    if not away:
        return answer(name, "", "here", "here", "is not away")
    way, where = away["way"], _away.WHERE[away["way"]]
    if way == "migrate" and not away["back"] and away["state"] == "away":
        if not check_mode:
            _away.forget(name)
        return answer(name, way, where, where, f"has moved to {away['destination']} and stays there")
    provider, lost = _providers.of(away).away, ""
    limit = timeouts.get(way) or provider.limit_s(away)
    try:
        here = is_here(away, provider, 0 if check_mode else limit)
        if here and not check_mode:
            provider.stay(away)
        if here and may_leave(away):
            told = "runs, but an earlier request to shut down may still end it. It stays on record; run 'state: back' again later"
            return answer(name, "", "here", "here", told)
        if not check_mode:
            if not here:
                lost = provider.come_back(away, limit)
            _away.forget(name)
    except LiveUpdateError as err:
        return failed(name, where, err)
    told = f"is back{'' if lost else ', it was ' + where}{'; ' + lost if lost else ''}"
    if here and away["state"] == "leaving":
        return answer(name, "", "here", "here", "runs here, it did not leave")
    return answer(name, way, "here" if here else where, "here", told)


def is_here(away: dict, provider, limit: float) -> bool:
    """Whether the guest is back. Waits for one that may still leave."""
    until = time.monotonic() + limit
    while provider.is_back(away):
        if time.monotonic() > until or not may_leave(away):
            return True
        time.sleep(POLL_S)
    return False


def may_leave(away: dict) -> bool:
    """Whether the guest, which is here, may still power off."""
    return _away.may_leave(away, _providers.known().get(away["guest"], {}), _this_boot.boot_id(), time.time())


def manage(module):
    """Do what the state asks for, and sum up."""
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
