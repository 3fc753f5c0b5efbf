#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest
short_description: Hold the RAM of guests for a live update, or see that they run free of one
version_added: 0.1.0
description:
  - With O(state=preserved) the RAM of each guest is preserved in a live update session. The guest runs on.
  - PID 1 holds the session for the guest's unit. Where systemd is older than 261 the unit C(kvm-liveupdate-hold@GUEST) does.
  - With O(state=running) each guest runs and nothing of it is held. Before a jump this is the undo of O(state=preserved);
    after a jump it waits until the host has brought the guests back. A guest that a rehearsal or an update left paused goes on.
    Any other that stands still is left as it is, and RV(guests[].msg) says so, also one that was migrated to another host.
  - One call for all guests of a host costs little more than one for a single guest.
  - A guest for which it fails does not keep the others from being held, let go or waited for. The task then fails and names each such
    guest, and RV(guests) says what became of all of them. Only a guest that cannot be preserved is refused before any is held.
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
  names:
    description:
      - The guests' names, as given to C(kvm-liveupdate run) in their units, or the names of the libvirt domains.
      - With an empty list nothing is done.
    type: list
    elements: str
    required: true
  state:
    description: What is to be.
    type: str
    choices: [preserved, running]
    required: true
  timeout:
    description: Seconds to wait with O(state=running) until all the guests that are still being restored are back.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Hold the RAM of two guests
  kvm.liveupdate.guest:
    names: [web1, db1]
    state: preserved

- name: Let go of it, or wait for the guests after the jump
  kvm.liveupdate.guest:
    names: [web1, db1]
    state: running
"""

RETURN = r"""
guests:
  description: Each guest, in the order of O(names). After a failure too.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      type: str
    changed:
      description: Whether anything was done to it, or would be.
      type: bool
    failed:
      description: Whether it is not as it was to be.
      type: bool
    msg:
      description: What was done, or would be, or went wrong, in a sentence.
      type: str
    session:
      description: The name of the session that holds the guest's RAM; empty when none does.
      type: str
    reasons:
      description: Why it cannot be preserved; each with V(code), V(message) and V(remedy).
      type: list
      elements: dict
    last_update:
      description:
        - What the last update did with the guest. V(state) is V(restored), V(saved) or V(lost), V(times) are the host's own clock stamps.
        - A while later V(clock) says whether the clock of a libvirt domain was corrected through its guest agent.
        - Empty when no update has touched the guest.
      type: dict
msg:
  description: The same of all guests, in sentences; after a failure only of those that failed.
  returned: always
  type: str
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, told
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _paused, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal, _lock, _return, _session

POLL_S = 0.5


def done(name: str, changed: bool, msg: str, session: str = "") -> dict:
    """What became of a guest. Pure."""
    return {"name": name, "changed": changed, "failed": False, "msg": msg, "session": session, "reasons": []}


def failed(name: str, err: LiveUpdateError) -> dict:
    """The same of one for which it failed. Pure."""
    told_by = "" if err.message.startswith("guest ") else f"guest {name}: "
    return {**done(name, False, told_by + err.message), "failed": True, "reasons": err.details.get("reasons", [])}


def examined(name: str, running: dict) -> dict:
    """The guest's record; an error when it does not run, or cannot be preserved."""
    record = _providers.find(name, running)
    reasons = _reasons.inspect(record)
    if reasons:
        raise LiveUpdateError(f"guest {name} cannot be preserved: {'; '.join(map(told, reasons))}", reasons=reasons)
    return record


def preserve(names: list, check_mode: bool) -> list:
    """See that each guest is held. Nothing is held when one of them cannot be."""
    running = _providers.known()
    _reasons.survey([running[name] for name in names if name in running])
    records, refused = each(names, lambda name: examined(name, running))
    if refused:
        return [refused.get(name) or done(name, False, f"guest {name} is left as it is") for name in names]
    held = _hold.held_each(list(records.values()))
    missing = [records[name] for name in names if name not in held]
    problems: dict = {}
    if missing and not check_mode:
        with _lock.Lock():
            problems = _hold.hold_each(missing)[1]
    return [failed(name, problems[name]) if name in problems else held_now(records[name], name in held) for name in names]


def held_now(record: dict, already: bool) -> dict:
    """What became of a guest that is held, or would be. Pure."""
    name, session = record["name"], _session.name_of(record["uuid"])
    mib = sum(ram["size"] for ram in record["ram"]) >> 20
    verb = "is held already" if already else "is held"
    return done(name, not already, f"guest {name}: its {mib} MiB of RAM {verb} in session {session}", session)


def run_free(names: list, timeout: int, check_mode: bool) -> list:
    """See that each guest runs and is not held; wait for their restores."""
    records, late = wait_until_back(names, timeout)
    ended = [name for name in names if name not in records and _hold.outlives(name)]
    held = _hold.held_each(list(records.values()))
    # Seen before the lock is taken: most often there is nothing to do, and an update that is under way is waited for here.
    states, silent = each(list(records), lambda name: _providers.of(records[name]).status(records[name]))
    ours, unknown = each(list(states), lambda name: _paused.by(records[name]))
    problems = {**late, **silent, **unknown}
    tied = [name for name in ours if name in held or ours[name]]

    def let_go(name: str) -> dict:
        if not _paused.let_go_on(records[name]):
            _hold.let_go_on(records[name], running=False)  # as it is: nothing of ours keeps it from running
        _hold.release(records[name])
        return let_go_of(name, states[name], ours[name])

    if check_mode:
        found = {name: let_go_of(name, states[name], ours[name]) for name in tied}
        problems.update({name: also_given_up(problems[name]) for name in ended})
    elif tied or ended:
        with _lock.Lock():
            found, kept = each(tied, let_go)
            given_up, stuck = each(ended, _hold.release_ended)
            problems.update({**kept, **stuck})
            problems.update({name: also_given_up(problems[name]) for name in given_up})
    else:
        found = {}
    if not check_mode:
        each(list(records), lambda name: _paused.settle_running(records[name]))  # a disk that does not take that yet takes it later
    return [problems.get(name) or found.get(name) or done(name, False, as_it_is(name, states[name])) for name in names]


def let_go_of(name: str, state: str, ours: str) -> dict:
    """What became of a guest that was held, or that something of ours kept paused. Pure."""
    if ours or state == "running":
        return done(name, True, f"guest {name} runs on, its RAM is no longer held")
    return done(name, True, f"{as_it_is(name, state)}; its RAM is no longer held")


def as_it_is(name: str, state: str) -> str:
    """What is said of a guest that is let alone: only what we paused is let go on. Pure."""
    if state == "running":
        return f"guest {name} runs"
    if state == "postmigrate":  # QEMU stays in it at the source of a migration that succeeded
        return (
            f"guest {name} is {state}, and not by an update: somebody migrated or saved it. It is left as it is: if it runs on another"
            " host, it must not go on here. If it is nowhere else, let it go on at its monitor (cont)"
        )
    return f"guest {name} is {state}, and not by us: it is left as it is. Let it go on by its own means (virsh resume, or its monitor)"


def also_given_up(problem: dict) -> dict:
    """What became of a guest that does not run, whose session was given up. Pure."""
    return {**problem, "changed": True, "msg": f"{problem['msg']}. The memory that was held for it is given up"}


def wait_until_back(names: list, timeout: int) -> tuple:
    """The records of the guests that run, once no restore of them is under way, and what became of the others, both by name."""
    limit = time.monotonic() + timeout
    while True:
        over = time.monotonic() > limit
        journals = {name: _journal.of_guest(name) for name in names}
        saved = [name for name in names if journals[name].get("state") == "saved"]
        if over or not saved:  # until then their restores need the processors
            running = _providers.known()
            # Of a guest that no update was ever with there is nothing to wait for.
            missing = [name for name in names if journals[name] and name not in running]
            missing += [name for name in saved if name in running and not (over and may_be_back(running[name], journals[name]))]
            if over or not missing:
                break
        time.sleep(POLL_S)
    there = [name for name in names if name not in missing]
    records, unknown = each(there, lambda name: _providers.find(name, running))
    return records, {**unknown, **{name: failed(name, not_back(name, journals[name], name in running, timeout)) for name in missing}}


def may_be_back(record: dict, journal: dict) -> bool:
    """Whether it has not been noted that the guest has gone on, and its QEMU tells whether it has: what loaded its state was killed."""
    try:
        return _return.may_have_run(record["name"], journal) and _providers.of(record).status(record) in ("running", "paused")
    except LiveUpdateError:
        return False


def not_back(name: str, journal: dict, runs: bool, timeout: int) -> LiveUpdateError:
    """What was last seen of a guest that is not back at the limit. Pure."""
    unit, told_by = journal["unit"], f"'journalctl -b -u {journal['unit']}' says why"
    if journal["state"] != "saved":
        found = (
            f"the update left it {journal['state']}, and its QEMU does not run now; {told_by}. Nothing waits to be brought back: start it"
        )
    elif runs:
        # A restart would end a QEMU that is about to go on, or has gone on already.
        found = (
            f"its QEMU runs, and may still take in its state or wait for its disks; {told_by}. Do not restart or stop {unit}: wait, then"
            f" run this again. If its QEMU ends, 'systemctl start {unit}' tries again; what was saved is kept"
        )
    else:
        found = f"its QEMU does not run. What was saved is kept; {told_by}, 'systemctl start {unit}' tries again"
    return LiveUpdateError(f"guest {name}: not back within {timeout} s: {found}")


def each(names: list, step) -> tuple:
    """Do a step for each name; returns what it returned and for whom it failed, both by name."""
    found, problems = {}, {}
    for name in names:
        try:
            found[name] = step(name)
        except LiveUpdateError as err:
            problems[name] = failed(name, err)
        except OSError as err:
            problems[name] = failed(name, LiveUpdateError(str(err)))
    return found, problems


def manage(module):
    """Dispatch on the state, and sum up."""
    names, state = list(dict.fromkeys(module.params["names"])), module.params["state"]
    if not all(names):
        raise LiveUpdateError("names: one of them is empty; leave it out")
    found = preserve(names, module.check_mode) if state == "preserved" else run_free(names, module.params["timeout"], module.check_mode)
    guests = [{**guest, "last_update": _journal.of_guest(guest["name"])} for guest in found]
    problems = [guest["msg"] for guest in guests if guest["failed"]]
    changed = any(guest["changed"] for guest in guests)
    if problems:
        raise LiveUpdateError("; ".join(problems), guests=guests, changed=changed)
    other = {"preserved": "running", "running": "preserved"}[state]
    return {
        "changed": changed,
        "guests": guests,
        "msg": "; ".join(guest["msg"] for guest in guests),
        "diff": {
            "before": {guest["name"]: other if guest["changed"] else state for guest in guests},
            "after": {guest["name"]: state for guest in guests},
        },
    }


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["preserved", "running"], "required": True},
            "timeout": {"type": "int", "default": 120},
        },
    )


if __name__ == "__main__":
    main()
