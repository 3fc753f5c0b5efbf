#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_memory
short_description: Give a libvirt domain RAM that a live update can preserve
version_added: 0.1.0
description:
  - Changes the definition of a domain so that its RAM is a shared file, C(<source type='file'/>) and C(<access mode='shared'/>) in
    C(<memoryBacking>). Nothing else in the definition changes.
  - A domain that runs has the RAM that it was started with, until it is shut down and started again once. RV(restart_needed) says so;
    this module never restarts a guest. With O(adopt) it moves a running domain onto its new RAM without that.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
options:
  name:
    description: The domain's name, as C(virsh list --all) shows it.
    type: str
    required: true
  adopt:
    description:
      - Whether a domain that runs on other RAM is saved to disk with all of its RAM (C(virsh managedsave)) and started again from that.
      - The guest goes on where it was. It is paused for as long as its RAM is written and read, and that much room is needed below
        C(/var/lib/libvirt/qemu/save). Afterwards its clock is corrected through its guest agent, where it has one.
      - When the domain cannot be started on its new RAM it is started again on its old one, and the task fails.
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

- name: Prepare a domain that runs, without a restart of the guest
  kvm.liveupdate.domain_memory:
    name: db1
    adopt: true

- name: Tell that it has to be restarted
  ansible.builtin.debug:
    msg: "{{ web1.msg }}"
  when: web1.restart_needed
"""

RETURN = r"""
restart_needed:
  description: Whether the domain runs on RAM of another kind than its definition now has.
  returned: success
  type: bool
msg:
  description: What the domain is like, and what is left to do, in a sentence.
  returned: success
  type: str
"""

import os
import tempfile

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _adopt, _definition, _guests, _reasons, _virsh


def define(xml: str) -> None:
    """Let libvirt check and keep the definition."""
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
        define(_definition.with_shared_file(_virsh.virsh("dumpxml", uuid, "--inactive", "--security-info")))  # with the passwords in it
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
        msg += "; it was saved and goes on with it"
    elif restart:
        msg += " from its next start on; shut it down and start it once, a reboot inside the guest is not enough"
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
