#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest
short_description: Preserve the RAM of guests for a live update, or release it
version_added: 0.2.0
description:
  - With O(state=preserved) the kernel preserves the RAM of each guest in a live update session. The guest continues to run.
  - systemd keeps the session in the file descriptor store of the guest's unit. If systemd is older than 261, the unit
    C(kvm-liveupdate-hold@GUEST) keeps the session.
  - With O(state=running) each guest runs and its RAM is not preserved. Before a jump this undoes O(state=preserved). After a jump the
    module waits until the host has restored the guests.
  - With O(state=running) the module also resumes a guest that a rehearsal or an update left paused. It does not resume a guest that
    somebody else paused, or that was migrated to another host. RV(guests[].msg) reports such a guest.
  - If the module fails for one guest, it continues with the others. The task then fails and names each guest that failed, and RV(guests)
    has the result of every guest.
  - With O(state=preserved), if one guest cannot be preserved, the module preserves none.
  - One call for all guests of a host takes little more time than a call for one guest.
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
  names:
    description:
      - The names of the guests. The name of a guest in a unit is the one given to C(kvm-liveupdate run). The name of a libvirt domain is
        the domain's name. A guest that does not run is an error.
      - With an empty list the module does nothing.
    type: list
    elements: str
    required: true
  state:
    description: V(preserved) preserves the RAM of the guests. V(running) releases it, or waits until the guests are restored.
    type: str
    choices: [preserved, running]
    required: true
  timeout:
    description: With O(state=running), for how many seconds to wait until all guests are restored. Then the task fails.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Preserve the RAM of two guests
  kvm.liveupdate.guest:
    names: [web1, db1]
    state: preserved

- name: Release the RAM, or wait for the guests after the jump
  kvm.liveupdate.guest:
    names: [web1, db1]
    state: running
"""

RETURN = r"""
guests:
  description: The result of each guest, in the order of O(names).
  returned: success, and failure after the guests were examined
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      returned: always
      type: str
    changed:
      description: Whether the module changed the guest, or would change it in check mode.
      returned: always
      type: bool
    failed:
      description: Whether the guest does not have the requested state.
      returned: always
      type: bool
    msg:
      description: What the module did or would do, or what went wrong, as a sentence.
      returned: always
      type: str
    session:
      description: The name of the session that preserves the guest's RAM. Empty if no session does.
      returned: always
      type: str
    reasons:
      description: Why the guest cannot be preserved.
      returned: always
      type: list
      elements: dict
      contains:
        code:
          description: A short name of the reason, for programs.
          returned: always
          type: str
        message:
          description: The reason, with the value seen.
          returned: always
          type: str
        remedy:
          description: What to do about it.
          returned: always
          type: str
    last_update:
      description: What the last update did with the guest. Empty if no update involved the guest.
      returned: always
      type: dict
      contains:
        state:
          description: V(saved) until the guest is restored, then V(restored). V(lost) if its memory did not survive the reboot.
          returned: when an update involved the guest
          type: str
        times:
          description: When each step happened, in seconds since the epoch on the host's clock. More steps can be present.
          returned: when an update involved the guest
          type: dict
          contains:
            paused:
              description: The guest was paused.
              returned: when an update involved the guest
              type: float
            saved:
              description: Its state was written.
              returned: when an update involved the guest
              type: float
            resumed:
              description: The guest was resumed.
              returned: when the guest was restored
              type: float
        memory_check:
          description: How the update checked the memory of the guest, see O(kvm.liveupdate.kexec#module:verify_memory).
          returned: when an update involved the guest
          type: str
        memory_verified:
          description: What was compared after the jump, and is the same as before, V(none), V(sample) or V(full).
          returned: when the guest was restored
          type: str
        memory_wrong:
          description: Which parts of the memory differ from those before the jump. The guest is not started then.
          returned: when the memory differs
          type: str
        clock:
          description: The result of the correction of a domain's clock through its guest agent. It appears some time after the restore.
          returned: for libvirt domains, after a restore
          type: str
  sample:
    - name: web1
      changed: true
      failed: false
      msg: "guest web1: its 4096 MiB of RAM are preserved in session kvm-2f6f0d5a54f04f4e8f4b0b7e5c0f5c11"
      session: kvm-2f6f0d5a54f04f4e8f4b0b7e5c0f5c11
      reasons: []
      last_update: {}
msg:
  description: The messages of all guests. After a failure only those of the guests that failed.
  returned: always
  type: str
  sample: guest web1 runs
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, told, typed
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _paused, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal, _lock, _return, _session

POLL_S = 0.5


def done(name: str, changed: bool, msg: str, session: str = "") -> dict:
    """The result of a guest. Pure."""
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
    """See that each guest is held. If one of them cannot be, none is."""
    running = _providers.known()
    _reasons.survey([running[name] for name in names if name in running])
    records, refused = each(names, lambda name: examined(name, running))
    if refused:
        return [refused.get(name) or done(name, False, f"guest {name} is not preserved, because another guest cannot be") for name in names]
    held = _hold.held_each(list(records.values()))
    missing = [records[name] for name in names if name not in held]
    problems: dict = {}
    if missing and not check_mode:
        with _lock.Lock():
            problems = _hold.hold_each(missing)[1]
    return [failed(name, problems[name]) if name in problems else held_now(records[name], name in held) for name in names]


def held_now(record: dict, already: bool) -> dict:
    """The result of a guest that is held, or would be. Pure."""
    name, session = record["name"], _session.name_of(record["uuid"])
    mib = sum(ram["size"] for ram in record["ram"]) >> 20
    verb = "are already preserved" if already else "are preserved"
    return done(name, not already, f"guest {name}: its {mib} MiB of RAM {verb} in session {session}", session)


def run_free(names: list, timeout: int, check_mode: bool) -> list:
    """See that each guest runs and is not held; wait for their restores."""
    records, late = wait_until_back(names, timeout)
    ended = [name for name in names if name not in records and _hold.outlives(name)]
    held = _hold.held_each(list(records.values()))
    # Before the lock: usually there is nothing to do, and a running update would make this wait.
    states, silent = each(list(records), lambda name: _providers.of(records[name]).status(records[name]))
    ours, unknown = each(list(states), lambda name: _paused.by(records[name]))
    problems = {**late, **silent, **unknown}
    tied = [name for name in ours if name in held or ours[name]]

    def let_go(name: str) -> dict:
        if not _paused.let_go_on(records[name]):
            _hold.let_go_on(records[name], running=False)  # it stays as it is: nothing of ours paused it
        _hold.release(records[name])
        return let_go_of(records[name], states[name], ours[name])

    if check_mode:
        found = {name: let_go_of(records[name], states[name], ours[name]) for name in tied}
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
        each(list(records), lambda name: _paused.settle_running(records[name]))  # if the disk is full, this is repeated later
    return [problems.get(name) or found.get(name) or done(name, False, as_it_is(records[name], states[name])) for name in names]


def let_go_of(record: dict, state: str, ours: str) -> dict:
    """The result of a guest that was held, or that something of ours kept paused."""
    name = record["name"]
    if ours or state == "running":
        return done(name, True, f"guest {name} runs, and its RAM is no longer preserved")
    return done(name, True, f"{as_it_is(record, state)}; its RAM is no longer preserved")


def as_it_is(record: dict, state: str) -> str:
    """The message about a guest that is not changed: this resumes only what we paused."""
    name = record["name"]
    if state == "running":
        return f"guest {name} runs"
    is_domain = record["provider"] == "libvirt"
    if state == ("paused" if is_domain else "postmigrate") and _hold.was_saved_paused(record):
        by_virsh = f"run 'virsh resume {record['uuid']}' and then 'virsh suspend {record['uuid']}'"
        return (
            f"guest {name} is paused: its owner had paused it before an update that was undone. It is not resumed. QEMU saves a paused"
            " guest only once. So before the next update, "
            + (by_virsh if is_domain else "resume it in its QEMU monitor (cont), and pause it again (stop)")
        )
    if state == "postmigrate":  # QEMU stays in it at the source of a migration that succeeded
        return (
            f"guest {name} is in state {state}, and no update on record caused this: it was migrated or saved by other means. It is not"
            " resumed, because it may run on another host. If it runs nowhere else, resume it in its QEMU monitor (cont)"
        )
    return (
        f"guest {name} is {state}, and no update or rehearsal caused this. It is not resumed. To resume it, use 'virsh resume' or its QEMU"
        " monitor (cont)"
    )


def also_given_up(problem: dict) -> dict:
    """The result of a guest that does not run, and whose session was released. Pure."""
    return {**problem, "changed": True, "msg": f"{problem['msg']}. The memory that was preserved for it is released"}


def wait_until_back(names: list, timeout: int) -> tuple:
    """The records of the guests that run, once none is being restored, and the results of the others, both by name."""
    limit = time.monotonic() + timeout
    while True:
        over = time.monotonic() > limit
        journals = {name: _journal.of_guest(name) for name in names}
        saved = [name for name in names if journals[name].get("state") == "saved"]
        if over or not saved:  # until then their restores need the processors
            running = _providers.known()
            # A guest that no update involved is not waited for.
            missing = [name for name in names if journals[name] and name not in running]
            missing += [name for name in saved if name in running and not (over and may_be_back(running[name], journals[name]))]
            if over or not missing:
                break
        time.sleep(POLL_S)
    there = [name for name in names if name not in missing]
    records, unknown = each(there, lambda name: _providers.find(name, running))
    return records, {**unknown, **{name: failed(name, not_back(name, journals[name], name in running, timeout)) for name in missing}}


def may_be_back(record: dict, journal: dict) -> bool:
    """Whether the process that loaded the guest's state was killed before it noted that the guest runs. Then QEMU knows whether it does."""
    try:
        return _return.may_have_run(record["name"], journal) and _providers.of(record).status(record) in ("running", "paused")
    except LiveUpdateError:
        return False


def not_back(name: str, journal: dict, runs: bool, timeout: int) -> LiveUpdateError:
    """What was last seen of a guest that is not back at the limit. Pure."""
    unit = journal["unit"]
    told_by = f"'journalctl -b -u {typed(unit)}' shows why"
    give_up = f"run 'kvm-liveupdate discard {typed(name)}' on the host, then repeat the update"
    if journal["state"] == "saved" and journal.get("memory_wrong"):
        found = (
            f"its preserved memory is not the same as before the jump: {journal['memory_wrong']}. It is not started, and its memory and"
            " state are kept. Look for faults of the host's memory ('journalctl -k'). To start the guest from its disks, run"
            f" 'kvm-liveupdate discard {typed(name)}' on the host, then start it"
        )
    elif journal["state"] != "saved":
        found = (
            f"the update recorded it as {journal['state']}, and its QEMU does not run; {told_by}. The host does not preserve"
            f" memory of it any more. If its owner stopped it or moved it to another host, {give_up}. Otherwise start it"
        )
    elif runs:
        # A restart would end a QEMU that is about to resume the guest, or has already done so.
        found = (
            f"its QEMU runs, but may still load the saved state or wait for disks; {told_by}. Do not restart or stop {unit}. Wait, then"
            f" run this again. Its preserved memory and its saved state are kept. If its QEMU ends, run"
            f" 'systemctl start {typed(unit)}' to try again"
        )
    else:
        found = (
            f"its QEMU does not run. Its preserved memory and its saved state are kept; {told_by}. To try again, run"
            f" 'systemctl start {typed(unit)}'. If the guest is gone for good, {give_up}"
        )
    return LiveUpdateError(f"guest {name}: not restored within {timeout} s: {found}")


def each(names: list, step) -> tuple:
    """Do a step for each name; returns the results and the failures, both by name."""
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
    """Do what the state asks for, and sum up."""
    names, state = list(dict.fromkeys(module.params["names"])), module.params["state"]
    if not all(names):
        raise LiveUpdateError("names: one name is empty; remove it from the list")
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
