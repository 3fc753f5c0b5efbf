#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: update_lease
short_description: Let only one run at a time update a hypervisor
version_added: 0.2.0
description:
  - A lease is a record on the host that says which run of Ansible updates the host. Another run cannot take the lease before it expires.
    M(kvm.liveupdate.kexec) refuses the jump of another run.
  - If the process of a run has ended, a run on the same controller takes its lease over at once. Another controller cannot know this, and
    waits until the lease expires.
  - A lease only concerns runs. A host that jumps, boots, restores its guests or undoes an update does not need it.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
  - kvm.liveupdate._run
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details: Each call renews the lease.
options:
  state:
    description: V(present) takes the lease, or renews that of this run. V(absent) gives it back. It leaves the lease of another run alone.
    type: str
    choices: [present, absent]
    default: present
  seconds:
    description: How many seconds the lease lasts. M(kvm.liveupdate.kexec) renews it when it commits the jump.
    type: int
    default: 1800
  by:
    description: Who started the run, as a text for messages. The default names the user and the controller, or the job of AWX.
    type: str
  ended:
    description:
      - The RV(kvm.liveupdate.hypervisor_info#module:lease.run) of a run that has certainly ended. Its lease is taken over. Any other value
        has no effect.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Take the lease of the host
  kvm.liveupdate.update_lease:

- name: Give the lease back
  kvm.liveupdate.update_lease:
    state: absent

# ansible HOST -b -m kvm.liveupdate.update_lease -a 'ended=RUN seconds=1'
- name: End the lease of a run that has certainly ended
  kvm.liveupdate.update_lease:
    ended: "{{ host.lease.run }}"
    seconds: 1
"""

RETURN = r"""
taken_over:
  description: Whose lease this run took over, and why. Empty if there was no lease of another run.
  returned: with O(state=present)
  type: str
  sample: alice on controller1; its process has ended
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils import _limits
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease


def present(module):
    """Take the lease or renew it."""
    run, by, seconds, ended = (module.params[option] for option in ("run", "by", "seconds", "ended"))
    # A module of a run that was killed may still be at work.
    with _lock.Lock(_limits.LOCK):
        now = time.time()
        taken_over = _lease.refuse_other(_lease.read(), run, now, ended)
        if not module.check_mode:
            _lease.take(run, by, seconds, now)
    return {"changed": True, "taken_over": _lease.told(taken_over)}


def absent(module):
    """Give it back."""
    run = module.params["run"]
    with _lock.Lock():
        own = _lease.read().get("run") == run
        if not module.check_mode:
            _lease.release(run)
    return {"changed": own}


def main():
    """Spec and run."""
    run_module(
        lambda module: present(module) if module.params["state"] == "present" else absent(module),
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "seconds": {"type": "int", "default": 1800},
            "run": {"type": "str"},
            "by": {"type": "str"},
            "ended": {"type": "str", "default": ""},
        },
    )


if __name__ == "__main__":
    main()
