#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_memory
short_description: Give a libvirt domain RAM that a live update can preserve
version_added: 0.2.0
description:
  - The module sets C(<source type='file'/>) and C(<access mode='shared'/>) in the C(<memoryBacking>) of a domain's definition, so that its
    RAM is a shared file. Nothing else in the definition changes.
  - A running domain keeps the RAM that it was started with until it is shut down and started again. RV(restart_needed) reports this.
    The module never restarts a guest.
  - With O(adopt=true) the module moves a running domain onto its new RAM without a restart of the guest.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
options:
  name:
    description: The domain's name, as C(virsh list --all) shows it. A name that no domain has is an error.
    type: str
    required: true
  adopt:
    description:
      - Save a domain that runs with other RAM to disk (C(virsh managedsave)) and start it again from there on its new RAM.
      - The guest continues where it was. It is paused while its RAM is written and read. The save needs as much free space below
        C(/var/lib/libvirt/qemu/save) as the guest has RAM.
      - Afterwards the module corrects the guest's clock through its guest agent, if it has one.
      - If the domain does not start on its new RAM, the module starts it on its old RAM and the task fails.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kvm.liveupdate.guest
"""

EXAMPLES = r"""
- name: Prepare a domain
  kvm.liveupdate.domain_memory:
    name: web1
  register: web1

- name: Prepare a running domain without a restart of the guest
  kvm.liveupdate.domain_memory:
    name: db1
    adopt: true

- name: Report that the domain needs a restart
  ansible.builtin.debug:
    msg: "{{ web1.msg }}"
  when: web1.restart_needed
"""

RETURN = r"""
restart_needed:
  description: Whether the domain must be restarted, because its RAM is not of the kind that its definition now has.
  returned: success
  type: bool
  sample: true
msg:
  description: The state of the domain's RAM and what is left to do, as a sentence.
  returned: success
  type: str
  sample: >-
    domain web1: its RAM is a shared file from its next start on. Shut it down and start it again; a reboot inside the guest is not enough
"""

import os
import tempfile

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _adopt, _definition, _guests, _reasons, _virsh


def define(xml: str) -> None:
    """Let libvirt check and store the definition."""
    handle, path = tempfile.mkstemp(suffix=".xml")
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(xml)
        _virsh.virsh("define", path, "--validate")
    finally:
        os.unlink(path)


def manage(module) -> dict:
    """Change the definition, and look at what the domain runs on."""
    name = module.params["name"]
    uuid = _virsh.uuid_of(name)
    shown = _virsh.virsh("dumpxml", uuid, "--inactive")
    wanted = _definition.with_shared_file(shown)
    if wanted != shown and not module.check_mode:
        define(_definition.with_shared_file(_virsh.virsh("dumpxml", uuid, "--inactive", "--security-info")))  # including passwords
    running = {record["name"]: record for record in _guests.known()}
    restart = name in running and bool(_reasons.memory_reasons(running[name]["backends"], bool(running[name]["ram"])))
    msg = f"domain {name}: its RAM is a shared file"
    adopted = restart and module.params["adopt"]
    if adopted and module.check_mode:
        _adopt.refuse(running[name])
    elif adopted:
        with _lock.Lock():
            _adopt.adopt(running[name])
    if adopted:
        msg += ". The domain was saved and started again on it"
    elif restart:
        msg += " from its next start on. Shut it down and start it again; a reboot inside the guest is not enough"
    return {
        "changed": adopted or wanted != shown,
        "restart_needed": restart and not adopted,
        "msg": msg,
        "diff": {"before": shown, "after": wanted},
    }


def main():
    """Spec and run."""
    run_module(manage, argument_spec={"name": {"type": "str", "required": True}, "adopt": {"type": "bool", "default": False}})


if __name__ == "__main__":
    main()
