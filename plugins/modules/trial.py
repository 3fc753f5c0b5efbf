#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trial
short_description: Try what a jump does to the devices of a host without guests
version_added: 0.2.0
description:
  - With O(state=prepared), the module records the devices, drivers and links of the host, and starts a throw-away guest,
    C(liveupdate-trial). The update of the host then preserves this guest like any other. The role
    P(kvm.liveupdate.hypervisor_trial#role) does all of this.
  - The throw-away guest fills its RAM with known numbers and checks them all the time.
  - With O(state=compared), after the jump, the module compares the devices with the record, and checks the memory of the guest. It changes
    nothing. A unit of the host, C(liveupdate-trial-watch.service), records from the beginning of the boot when each device is back.
  - With O(state=absent), the module ends the guest and removes everything of the trial from the host.
  - Devices are read from sysfs only. A device is the same if its PCI address is the same, a disk if its own number is the same.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  state:
    description: Prepare the trial before the jump, compare after it, or remove the trial.
    type: str
    choices: [prepared, compared, absent]
    required: true
  qemu:
    description:
      - Path of QEMU on the host. If there is no QEMU, O(state=prepared) fails.
      - Empty means the first of C(/usr/bin/qemu-system-x86_64), C(/usr/libexec/qemu-kvm), C(/usr/bin/qemu-kvm) and C(/usr/bin/kvm) that
        exists.
    type: str
    default: ""
  within:
    description:
      - With O(state=compared), how long devices and links may be missing, in seconds since the start of the new kernel. The module waits
        for them until then. What is missing afterwards is a finding.
    type: float
    default: 300
  slow:
    description:
      - With O(state=compared), how long a network interface, link or disk may take to be back, in seconds since the start of the new
        kernel. One that is back later is a finding too.
    type: float
    default: 120
"""

EXAMPLES = r"""
- name: Record the devices and start the throw-away guest
  kvm.liveupdate.trial:
    state: prepared

- name: Compare after the jump
  kvm.liveupdate.trial:
    state: compared
  register: trial

- name: Show what is worse than before
  ansible.builtin.debug:
    msg: "{{ trial.findings }}"

- name: Remove the throw-away guest
  kvm.liveupdate.trial:
    state: absent
"""

RETURN = r"""
findings:
  description: What is missing or worse after the jump. Empty if nothing is.
  returned: with O(state=compared)
  type: list
  elements: dict
  contains:
    code:
      description: A short name of the finding, for programs.
      returned: always
      type: str
    message:
      description: The finding, with the device and the value before and after.
      returned: always
      type: str
    remedy:
      description: What to do about it.
      returned: always
      type: str
  sample:
    - code: link-slower
      message: "network interface ens3 (0000:01:00.0): the speed of its link is 1000 Mb/s now, 10000 Mb/s before"
      remedy: take the link down and up again, and compare with a reboot
notes:
  description: What is new after the jump, and disks with another name. These are not findings.
  returned: with O(state=compared)
  type: list
  elements: str
  sample: ["disk naa.5000c500a1b2c3d4 is called sdb now, before sda"]
times:
  description: When each device, driver and link was back.
  returned: with O(state=compared)
  type: list
  elements: dict
  contains:
    device:
      description: The device, driver or link.
      returned: always
      type: str
    seconds:
      description: Seconds since the start of the new kernel. V(null) if it is not back.
      returned: always
      type: float
    at_most:
      description: Whether it was back already when the host first looked. Then V(seconds) is an upper limit.
      returned: always
      type: bool
  sample:
    - device: link of ens3
      seconds: 14.2
      at_most: false
guest:
  description: The throw-away guest.
  returned: with O(state=compared)
  type: dict
  contains:
    runs:
      description: Whether it runs.
      returned: always
      type: bool
    goes_on:
      description: Whether its timer ticks.
      returned: always
      type: bool
    marked:
      description: Whether its memory is the memory from before the jump.
      returned: when it runs
      type: bool
    pages:
      description: How many pages of its memory the host checked.
      returned: when it runs
      type: int
    differ:
      description: How many of them differ from what the guest wrote.
      returned: when it runs
      type: int
    wrong:
      description: How many pages were wrong when the guest itself read them.
      returned: when it runs
      type: int
    passes:
      description: How often the guest has read all pages.
      returned: when it runs
      type: int
    ticks:
      description: The ticks of its timer.
      returned: when it runs
      type: int
  sample: {runs: true, goes_on: true, marked: true, pages: 16128, differ: 0, wrong: 0, passes: 9, ticks: 601}
devices:
  description: The devices of the host before and after the jump.
  returned: with O(state=compared)
  type: dict
  contains:
    before:
      description: The devices before the jump.
      returned: always
      type: dict
      contains:
        processors:
          description: How many processors are online.
          returned: always
          type: int
        pci:
          description: The PCI devices by address, with their ID, class, driver, NUMA node, link and virtual functions.
          returned: always
          type: dict
        interfaces:
          description: The network interfaces by the address of their device, with name, driver, MAC address, link, speed and queues.
          returned: always
          type: dict
        disks:
          description: The disks by their own number, with names, model, size, queues, and whether they are read-only.
          returned: always
          type: dict
    after:
      description: The devices after the jump.
      returned: always
      type: dict
      contains:
        processors:
          description: How many processors are online.
          returned: always
          type: int
        pci:
          description: The PCI devices by address, with their ID, class, driver, NUMA node, link and virtual functions.
          returned: always
          type: dict
        interfaces:
          description: The network interfaces by the address of their device, with name, driver, MAC address, link, speed and queues.
          returned: always
          type: dict
        disks:
          description: The disks by their own number, with names, model, size, queues, and whether they are read-only.
          returned: always
          type: dict
  sample:
    before:
      processors: 2
      pci: {}
      interfaces: {}
      disks:
        vda-serial: {names: [vda], model: "", size: 8589934592, read_only: false, queues: 2}
    after:
      processors: 2
      pci: {}
      interfaces: {}
      disks:
        vda-serial: {names: [vda], model: "", size: 8589934592, read_only: false, queues: 2}
waited:
  description: For how many seconds the module waited for devices.
  returned: with O(state=compared)
  type: float
  sample: 0.1
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _devices, _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.trial import _compare, _guest, _watch

POLL_S = 1.0


def is_prepared(boot_id: str) -> bool:
    """Whether there is nothing to prepare. A trial of an earlier boot is over, and a guest that started again has no mark."""
    trial = _files.read_json(_files.TRIAL)
    return bool(trial) and trial["boot_id"] == boot_id and _guest.is_marked(trial["mark"].encode())


def refuse_guests(names: list) -> None:
    """Raise if other guests run than that of the trial. Pure."""
    others = [name for name in names if name != _guest.NAME]
    if others:
        raise LiveUpdateError(
            f"a trial needs a host without guests, and {', '.join(others)} {'runs' if len(others) == 1 else 'run'} here; migrate or stop"
            " them, or choose another host"
        )


def prepare(module):
    """Record the devices, and start the guest."""
    records = _providers.records()
    refuse_guests([guest["name"] for guest in (*records, *_providers.strangers(records))])
    boot_id = _this_boot.boot_id()
    if is_prepared(boot_id):
        return {"changed": False}
    qemu = _guest.find_qemu(module.params["qemu"])
    if not module.check_mode:
        if _guest.exists():
            _guest.remove()
        mark = _this_boot.random_uuid()
        seed = int(mark[:7], 16)
        trial = {"boot_id": boot_id, "kernel": _this_boot.kernel()["release"], "mark": mark, "seed": seed, "devices": _devices.read()}
        with _lock.Lock():
            _guest.start(qemu, seed, mark.encode())
            _files.write_json(_files.TRIAL, trial)  # last: only a trial with all its parts is prepared
    return {"changed": True}


def compare(module):
    """Wait for what is missing, then tell what is worse."""
    trial, boot_id = _files.read_json(_files.TRIAL), _this_boot.boot_id()
    if not trial:
        raise LiveUpdateError("no trial is prepared on this host; use state=prepared before the jump")
    if trial["boot_id"] == boot_id:
        raise LiveUpdateError("the host has not jumped since the trial was prepared; jump first")
    before, begun = trial["devices"], time.monotonic()
    while True:
        after = _devices.read()
        found = _compare.findings(before, after)
        if not found or time.monotonic() > module.params["within"]:  # this clock began with the kernel
            break
        time.sleep(POLL_S)
    waited = time.monotonic() - begun
    watched = _watch.added(_watch.kept(boot_id), _devices.seen(), round(time.monotonic(), 2))
    guest = _guest.look(trial["seed"], trial["mark"].encode())
    return {
        "changed": False,
        "findings": [*_guest.findings(guest), *found, *_compare.late(before, watched, module.params["slow"])],
        "notes": _compare.notes(before, after),
        "times": _compare.times(before, watched),
        "guest": guest,
        "devices": {"before": before, "after": after},
        "waited": round(waited, 1),
    }


def remove(module):
    """End the guest, and remove what the trial wrote."""
    changed = _guest.exists()
    if changed and not module.check_mode:
        _guest.remove()
    return {"changed": changed}


def manage(module):
    """Do what the state asks for."""
    return {"prepared": prepare, "compared": compare, "absent": remove}[module.params["state"]](module)


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["prepared", "compared", "absent"], "required": True},
            "qemu": {"type": "str", "default": ""},
            "within": {"type": "float", "default": 300},
            "slow": {"type": "float", "default": 120},
        },
    )


if __name__ == "__main__":
    main()
