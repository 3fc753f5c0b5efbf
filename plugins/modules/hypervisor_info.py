#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_info
short_description: Tell whether a hypervisor can be updated live, and why not
version_added: 0.1.0
description:
  - Examines the running kernel, systemd, the host runtime, the staged kernel and every virtual machine of the host.
  - Changes nothing. Every reason against a live update comes with its remedy.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: Changes nothing.
  idempotent:
    support: full
options:
  kernel:
    description:
      - Path on the host of the kernel to be updated to. RV(target) describes it, RV(proof) tells whether it can take over.
    type: path
  initrd:
    description:
      - Path on the host of its initial RAM disk, for which there has to be room too; V(none) for a kernel that is to run without.
      - The default is that of O(kvm.liveupdate.kexec_image#module:initrd).
    type: path
  cmdline:
    description: The command line that it is to run with. By default the running kernel's, without the boot loader's own words.
    type: str
  accept_unknown:
    description:
      - Pairs of kernels, as RV(proof.pair) names them, that are not refused although something about them is unknown.
      - What is known to go wrong is refused all the same.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Examine the host for an update to the given kernel
  kvm.liveupdate.hypervisor_info:
    kernel: /boot/vmlinuz-7.3.4
  register: host

- name: Show why the host cannot be updated live
  ansible.builtin.debug:
    msg: "{{ host.refusals }}"
  when: not host.ready
"""

RETURN = r"""
ready:
  description: Whether nothing speaks against a live update, neither on the host nor in any guest.
  returned: success
  type: bool
reasons:
  description:
    - Why the host cannot be updated live; each with V(code), V(message) and V(remedy). With O(kernel) also what keeps the jump into it
      from being proven.
  returned: success
  type: list
  elements: dict
  sample: []
proof:
  description:
    - Whether the kernel at O(kernel) can read what the running one preserves, proven from both images, V(there), and the other way,
      V(back).
    - Each has a V(verdict), V(proven), V(refused) or V(unknown), and V(reasons). Only a proven V(there) is no reason against an update.
  returned: when O(kernel) is given and is not the running kernel
  type: dict
  contains:
    pair:
      description: A name for these two builds and no others, for O(accept_unknown).
      type: str
    there:
      description: From the running kernel to the one at O(kernel).
      type: dict
    back:
      description: From the kernel at O(kernel) to the running one.
      type: dict
refusals:
  description: All reasons of host and guests as sentences with their remedies.
  returned: success
  type: list
  elements: str
  sample: []
guests:
  description:
    - Every virtual machine on the host with V(name), V(provider), V(uuid), V(unit), V(pid), V(held) (its RAM is in a session) and its own
      V(reasons).
    - V(memory_mib) is its RAM, V(fill_mib) what of that holding it takes beyond what it has touched so far.
    - V(devices) are words such as V(disk:virtio), V(interface:bridge), V(hostdev) and V(tpm). V(labels) and V(ladder) are what the metadata
      of a libvirt domain say; empty and V(null) for others.
    - V(last_pause) is for how many seconds its last update paused it, V(null) if none did.
    - V(warnings) are what does not come over as it was, of the same shape as reasons. They do not keep a guest from being preserved.
    - Machines that the host runtime does not run are listed too, with the reason why they would be lost and no warnings. They have V(name),
      V(unit) and V(pid), and nothing else.
  returned: success
  type: list
  elements: dict
away:
  description: The guests that M(kvm.liveupdate.guest_away) sent away and that are not back, each with V(guest), V(way) and V(state).
  returned: success
  type: list
  elements: dict
free:
  description: V(memory_mib) available, and V(saves_mib) on the disk where libvirt keeps managed saves.
  returned: success
  type: dict
services_to_stop:
  description:
    - The services that run now and that an update stops before it pauses the guests. Not systemd's own, and not those that run on because
      guests would notice their stop.
    - Those of O(kvm.liveupdate.kexec#module:keep_units) are among them, and those that only a guest's unit requires.
  returned: success
  type: list
  elements: str
boot_id:
  description: This boot's id.
  returned: success
  type: str
kernel:
  description: The running kernel's V(release), V(version) and V(cmdline).
  returned: success
  type: dict
systemd:
  description: The major version of systemd.
  returned: success
  type: int
image:
  description: The kernel that M(kvm.liveupdate.kexec_image) staged in this boot; empty when there is none.
  returned: success
  type: dict
target:
  description:
    - The kernel at O(kernel), with V(path), V(kind), V(release), V(version), V(size), V(sha256), the strings by which it knows what is
      handed to it (V(abi)), V(signed), its V(initrd) (null for none), and V(current) (it is the running one).
  returned: when O(kernel) is given
  type: dict
last_update:
  description: The journal of the last update of this host, with its V(outcome); empty when there was none.
  returned: success
  type: dict
examined_at:
  description: When the controller started this examination, by its own clock, in seconds since the epoch.
  returned: always
  type: float
"""

import os

from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, reason
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away, _hold, _memory, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _memory as _host_memory
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _initrd, _kexec, _proof
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _room, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _readiness, _services

TARGET = ("path", "kind", "release", "version", "size", "sha256", "abi", "signed")


UNSEEN = {"name-long", "name-twice", "not-examined"}  # reasons that stand for an examination
UNEXAMINED = {
    "held": False,
    "memory_mib": None,
    "devices": [],
    "labels": {},
    "ladder": None,
    "fill_mib": 0,
    "last_pause": None,
    "warnings": [],
}


def guest_facts(record: dict, held: bool) -> dict:
    """One managed guest as the module returns it. What goes wrong with its examination is a reason against it, and no other guest's."""
    identity = {key: record[key] for key in ("name", "unit", "provider", "uuid", "pid")}
    reasons = _reasons.name_reasons(record)
    if not reasons:
        try:
            return {**identity, **examined(record, held)}
        except (LiveUpdateError, OSError, ValueError, LookupError) as err:
            reasons = [reason("not-examined", f"it could not be examined: {err}", "mend what this names and examine the host again")]
    return {**identity, **UNEXAMINED, "reasons": reasons}


def examined(record: dict, held: bool) -> dict:
    """What an examination finds about a guest."""
    return {
        "held": held,
        **_reasons.describe(record),
        "fill_mib": 0 if held else _memory.fill(record) >> 20,
        "last_pause": _journal.pause(_journal.of_guest(record["name"])),
        "reasons": _reasons.inspect(record),
        "warnings": _reasons.warn(record),
    }


def update_facts(boot_id: str, release: str) -> dict:
    """The last update's journal and what became of it."""
    update = _journal.of_update()
    return {**update, "outcome": _journal.outcome(update, boot_id, release)} if update else {}


def refusals(reasons: list, guests: list) -> list:
    """All reasons as sentences. Pure."""
    sentences = [f"{reason['message']} - {reason['remedy']}" for reason in reasons]
    return sentences + [
        f"guest {guest['name']}: {reason['message']} - {reason['remedy']}" for guest in guests for reason in guest["reasons"]
    ]


def examine(module):
    """Read everything."""
    version = _systemd.version()
    kernel, boot_id = _this_boot.kernel(), _this_boot.boot_id()
    records = _providers.records()
    _reasons.survey(records)
    held = _hold.held_each([record for record in records if not _reasons.name_reasons(record)])
    guests = [guest_facts(record, record["name"] in held) for record in records]
    reasons = _readiness.reasons("/", version, not _runtime.outdated(_runtime.files([])))
    limits = {
        record["name"]: (sum(ram["size"] for ram in record["ram"]), _reasons.memory_limits(record))
        for record, guest in zip(records, guests)
        if UNSEEN.isdisjoint(why["code"] for why in guest["reasons"])
    }
    reasons += _memory.shared_limit_reasons(limits)
    reasons += _journal.not_back([record["name"] for record in records])
    guests += _providers.strangers(records)
    result: dict = {
        "changed": False,
        "guests": guests,
        "away": _away.records(),
        "free": {"memory_mib": _host_memory.available() >> 20, "saves_mib": _room.free(_virsh.SAVED) >> 20},
        "services_to_stop": _services.to_be_stopped(_services.services(), [guest["unit"] for guest in guests]),
        "boot_id": boot_id,
        "kernel": kernel,
        "systemd": version,
        "image": _kexec.record() if os.path.exists("/sys/kernel/kexec_loaded") else {},
        "last_update": update_facts(boot_id, kernel["release"]),
    }
    if module.params["kernel"]:
        image, cmdline = _image.read(module.params["kernel"], keep=_files.IMAGES), module.params["cmdline"]
        current = (image["release"], image["version"]) == (kernel["release"], kernel["version"])
        initrd = _initrd.of(image["path"], image["release"], module.params["initrd"])
        result["target"] = {**{key: image[key] for key in TARGET}, "initrd": initrd, "current": current}
        if not current:
            cmdline = _cmdline.next_cmdline(kernel["cmdline"]) if cmdline is None else cmdline
            result["proof"] = _proof.prove(image, cmdline, initrd, without=module.params["initrd"] == "none")
            reasons = reasons + _proof.objections(result["proof"], module.params["accept_unknown"])
    result["reasons"] = reasons
    result["refusals"] = refusals(reasons, guests)
    result["ready"] = not result["refusals"]
    return result


def main():
    """Spec and run."""
    run_module(
        examine,
        argument_spec={
            "kernel": {"type": "path"},
            "initrd": {"type": "path"},
            "cmdline": {"type": "str"},
            "accept_unknown": {"type": "list", "elements": "str", "default": []},
        },
    )


if __name__ == "__main__":
    main()
