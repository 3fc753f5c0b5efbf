#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest
short_description: Hold a guest's RAM for a live update, or see that it runs free of one
version_added: 0.1.0
description:
  - With O(state=preserved) the guest's RAM is preserved in a live update session. The guest runs on.
  - PID 1 holds the session for the guest's unit. Where systemd is older than 261 the unit C(kvm-liveupdate-hold@GUEST) does.
  - With O(state=running) the guest runs and nothing of it is held. Before a jump this is the undo of O(state=preserved);
    after a jump it waits until the host has brought the guest back. A guest that a rehearsal or an update left paused goes on.
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
  name:
    description: The guest's name, as given to C(kvm-liveupdate run) in its unit, or the name of the libvirt domain.
    type: str
    required: true
  state:
    description: What is to be.
    type: str
    choices: [preserved, running]
    required: true
  timeout:
    description: Seconds to wait with O(state=running) for a guest that is still being restored.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Hold the guest's RAM
  kvm.liveupdate.guest:
    name: web1
    state: preserved

- name: Let go of it, or wait for it after the jump
  kvm.liveupdate.guest:
    name: web1
    state: running
"""

RETURN = r"""
session:
  description: The name of the session that holds the guest's RAM; empty when none does.
  returned: success
  type: str
last_update:
  description:
    - What the last update did with the guest. V(state) is V(restored), V(saved) or V(lost), V(times) are the host's own clock stamps.
    - A while later V(clock) says whether the clock of a libvirt domain was corrected through its guest agent.
    - Empty when no update has touched the guest.
  returned: success
  type: dict
msg:
  description: What was done, or would be, in a sentence.
  returned: success
  type: str
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _holding, _incoming, _paused, _providers, _update
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module


def preserve(module) -> dict:
    """See that the guest is held."""
    name = module.params["name"]
    record = _guests.find(name)
    held = _holding.held(record)
    if not held:
        reasons = _guests.inspect(record)
        if reasons:
            raise LiveUpdateError(
                f"guest {name} cannot be preserved: " + "; ".join(f"{reason['message']} - {reason['remedy']}" for reason in reasons),
                reasons=reasons,
            )
    session = _holding.session_name(record["uuid"])
    mib = sum(ram["size"] for ram in record["ram"]) >> 20
    if not held and not module.check_mode:
        with _update.Lock():
            _holding.hold(record)
    verb = "is held already" if held else "is held"
    return {"changed": not held, "session": session, "msg": f"guest {name}: its {mib} MiB of RAM {verb} in session {session}"}


def run_free(module) -> dict:
    """See that the guest runs and is not held; wait for its restore."""
    name = module.params["name"]
    record = wait_until_back(name, module.params["timeout"])
    state = _providers.of(record).status(record)
    held = bool(_holding.held(record))
    paused = _paused.by(record)
    changed = held or bool(paused) or state == "postmigrate"
    if changed and not module.check_mode:
        with _update.Lock():
            if not _paused.let_go_on(record):
                _providers.of(record).resume(record, running=state == "postmigrate")
            _holding.release(record)
    if not module.check_mode:
        _incoming.settle_seen(name)
    done = "runs on, its RAM is no longer held" if changed else "runs"
    return {"changed": changed, "session": "", "msg": f"guest {name} {done}"}


def wait_until_back(name: str, timeout: int) -> dict:
    """The running guest, once no restore of it is under way; says after the limit what was last seen."""
    limit = time.monotonic() + timeout
    while True:
        journal, record = _guests.journal(name), _guests.known().get(name)
        if record and journal.get("state") != "saved":
            return record
        if not journal:
            return _guests.find(name)  # no update was ever here: nothing to wait for
        if time.monotonic() > limit:
            seen = "its QEMU runs, but its state is not loaded" if record else "its QEMU does not run"
            again = "restart" if record else "start"
            raise LiveUpdateError(
                f"guest {name}: not back within {timeout} s: {seen}. What was saved is kept; 'journalctl -b -u {journal['unit']}' says"
                f" why, 'systemctl {again} {journal['unit']}' tries again",
                last_update=journal,
            )
        time.sleep(0.5)


def manage(module):
    """Dispatch on the state."""
    result = preserve(module) if module.params["state"] == "preserved" else run_free(module)
    result["last_update"] = _guests.journal(module.params["name"])
    before, after = ("running", "preserved") if module.params["state"] == "preserved" else ("preserved", "running")
    result["diff"] = {"before": {"state": before if result["changed"] else after}, "after": {"state": after}}
    return result


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["preserved", "running"], "required": True},
            "timeout": {"type": "int", "default": 120},
        },
    )


if __name__ == "__main__":
    main()
