#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kexec
short_description: Jump into the staged kernel and restore the preserved guests
version_added: 0.2.0
description:
  - The module first checks that M(kvm.liveupdate.kexec_image) has staged a kernel, and that M(kvm.liveupdate.guest) has preserved every
    virtual machine of the host. Otherwise it refuses the jump.
  - Then the host acts alone. It stops the services that the guests do not need, ends logins and containers, pauses and saves all guests,
    jumps by kexec, and restores the guests. It does not need the controller for that.
  - The task waits until the host answers with another boot ID, and checks that it runs the staged kernel.
  - The task fails if the host undid the update before the jump or did not come back in time. It does not report the host as unreachable,
    so that a rescue block can act.
  - The task never waits longer than O(timeout).
  - If another run has the lease of the host (M(kvm.liveupdate.update_lease)), the jump is refused. A lease of this run is renewed.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
  - kvm.liveupdate._run
attributes:
  check_mode:
    support: full
    details: In check mode the module checks the maintenance window and the lease. Earlier tasks stage and preserve nothing then, so it does
      not check for that.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: The module always jumps. The role P(kvm.liveupdate.hypervisor_update#role) calls it only if the host runs another kernel.
options:
  guests:
    description: The names of all guests of the host. Their RAM must be preserved.
    type: list
    elements: str
    required: true
  keep_units:
    description:
      - Units that keep running until the guests are paused. Name the units that the guests' storage or network needs, with the full unit
        name, for example C(ceph-osd@3.service).
      - Some units keep running in any case. These are the guests, what their units require, mounts, the network, and the known packet
        filter, routing and storage services. The page I(Guests) of the documentation lists them.
      - A unit that the host does not have is refused.
      - If a cluster manager is active (Pacemaker, Corosync, SBD, Proxmox HA), the jump is refused unless this list names it.
    type: list
    elements: str
    default: []
  on_loss:
    description:
      - What happens to a guest whose memory did not survive the reboot.
      - V(start) boots it from its disks. V(stop) leaves it off.
    type: str
    choices: [start, stop]
    default: start
  verify_memory:
    description:
      - Whether the host checks after the jump that the memory of each guest is the same as before. It reads the memory while the guest is
        paused, before the jump and after it, and compares digests (CRC-32).
      - V(sample) reads at most 256 random pages of 4 KiB of each guest, and the first and the last page of each RAM file. V(full) reads all
        memory, so the pause grows with it. V(none) reads nothing.
      - If the memory differs, the guest is not started, whatever O(on_loss) says. Its memory and state are kept.
    type: str
    choices: [none, sample, full]
    default: sample
  timeout:
    description:
      - For how many seconds the host may take, from the commit until it answers with the new kernel. Then the task fails.
      - A value below 1 is refused.
      - The host must have paused its guests within half of this time. Otherwise it undoes the update and its guests continue to run.
    type: int
    default: 1800
  reuse_probe:
    description:
      - Whether libvirt may reuse its knowledge of QEMU after the jump. It does so only if KVM of the new kernel gives the same answers as
        KVM of the old one, and if QEMU, libvirt and the processor are the same.
      - Otherwise libvirt starts QEMU several times to find out what it can do, while the domains are paused.
    type: bool
    default: true
  until:
    description:
      - The end of a maintenance window, a date and a time with the offset from UTC, for example V(2026-12-01T04:00+01:00). After it, by the
        clock of the host, the module commits no jump. A value without an offset is refused. Empty means no end.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Jump into the staged kernel
  kvm.liveupdate.kexec:
    guests: [web1, db1]
"""

RETURN = r"""
journal:
  description: The record of the update, as it was committed.
  returned: when a jump was committed
  type: dict
  contains:
    id:
      description: The identifier of this update.
      returned: always
      type: str
    boot_id:
      description: The boot ID before the jump.
      returned: always
      type: str
    guests:
      description: The names of the guests.
      returned: always
      type: list
      elements: str
    image:
      description: The staged kernel. The other keys are those of RV(kvm.liveupdate.kexec_image#module:image).
      returned: always
      type: dict
      contains:
        path:
          description: The path of the kernel image.
          returned: always
          type: str
        release:
          description: Its release, as C(uname -r) shows it after the jump.
          returned: always
          type: str
    kernel:
      description: The kernel before the jump.
      returned: always
      type: dict
      contains:
        release:
          description: Its release, as C(uname -r) shows it.
          returned: always
          type: str
        version:
          description: Its version, as C(uname -v) shows it.
          returned: always
          type: str
        cmdline:
          description: Its command line.
          returned: always
          type: str
    timeout:
      description: The value of O(timeout).
      returned: always
      type: float
  sample:
    id: 6f4d0c7e-4a3a-4b5e-9a51-0a3c1f9c2b77
    boot_id: 1b0f1f5e-8f3c-4d5a-8a6b-3f0d3f8d1c11
    guests: [db1, web1]
    image: {path: /boot/vmlinuz-7.3.4, release: 7.3.4}
    kernel: {release: 7.2.13, version: "#1 SMP PREEMPT_DYNAMIC Debian 7.2.13-1", cmdline: root=/dev/vda1 ro kho=on liveupdate=on}
    timeout: 1800.0
boot_id_before:
  description: The boot ID before the jump.
  returned: when a jump was committed
  type: str
  sample: 1b0f1f5e-8f3c-4d5a-8a6b-3f0d3f8d1c11
boot_id_after:
  description: The boot ID after the jump.
  returned: when the host came back
  type: str
  sample: c52b7f1d-9a53-4d8c-bb1b-0d1b4c0f8a25
kernel_before:
  description: The kernel release before the jump.
  returned: when a jump was committed
  type: str
  sample: 7.2.13
kernel_after:
  description: The kernel release after the jump.
  returned: when the host came back
  type: str
  sample: 7.3.4
outcome:
  description:
    - V(jumped) - the host runs the staged kernel.
    - V(aborted) - the host undid the update before the jump. Its guests continue to run.
    - V(half_undone) - the host undid the update before the jump, but left guests paused, or their QEMU has ended. The message names them.
    - V(rebooted) - the host came back with another kernel, or by a cold boot. Its guests' memory is lost.
    - V(gone) - the host did not come back within O(timeout), or was still working on the update then.
    - V(stuck) - the host runs the old kernel, and no process on it continues the update.
    - V(lost) - the connection broke while the host was told to jump, or the host refused to jump but may have committed the update
      before. The host may have jumped.
  returned: when a jump was committed, or may have been
  type: str
  sample: jumped
times:
  description:
    - When each step began, in seconds since the epoch on the host's clock. The clock can step by up to a second at the jump.
  returned: when the host came back
  type: dict
  contains:
    committed:
      description: The update was committed.
      returned: when the host came back after an update
      type: float
    stopping:
      description: The host began to stop other services.
      returned: when the host came back after an update
      type: float
    gate:
      description: The host made its last checks before the pause.
      returned: when the host came back after an update
      type: float
    saving:
      description: The host began to pause and save the guests.
      returned: when the host came back after an update
      type: float
    jumping:
      description: The host began the kexec.
      returned: when the host came back after an update
      type: float
    kernel:
      description: The new kernel started.
      returned: when systemd reports it
      type: float
    initrd:
      description: The new kernel started systemd in its initial RAM disk.
      returned: when systemd reports it
      type: float
    userspace:
      description: PID 1 of the host started.
      returned: when systemd reports it
      type: float
    units:
      description: PID 1 had loaded its units.
      returned: when systemd reports it
      type: float
  sample:
    committed: 1790000000.1
    jumping: 1790000021.7
    kernel: 1790000022.3
elapsed:
  description: Seconds from the commit until the host answered, on the controller's clock. This is not the pause of the guests.
  returned: when the host came back
  type: float
  sample: 41.2
lost:
  description:
    - V(true) if the host did not answer when it was told to jump, may have committed the update although it refused, or did not come back
      in time. The task fails then.
  returned: when it is unknown what became of the host
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _jump, _lease, _window


def commit(module):
    """The part that runs on the host: the last checks, and the commit."""
    run, until, timeout = module.params["run"] or "", module.params["until"], module.params["timeout"]
    if timeout < 1:
        raise LiveUpdateError(f"timeout is {timeout}; write a number of seconds, 1 or more (in the roles: hypervisor_update_timeout)")
    if module.check_mode:
        now = time.time()
        _window.refuse_after(until, now)
        _lease.refuse_other(_lease.read(), run, now)
        return {"changed": True}
    with _lock.Lock():
        now = time.time()
        _window.refuse_after(until, now)
        _lease.renew(run, now)
        asked = [module.params[option] for option in ("guests", "keep_units", "on_loss", "timeout", "verify_memory", "reuse_probe")]
        return {"changed": True, "journal": _jump.commit(*asked)}


def main():
    """Spec and run."""
    run_module(
        commit,
        argument_spec={
            "guests": {"type": "list", "elements": "str", "required": True},
            "keep_units": {"type": "list", "elements": "str", "default": []},
            "on_loss": {"type": "str", "choices": ["start", "stop"], "default": "start"},
            "verify_memory": {"type": "str", "choices": ["none", "sample", "full"], "default": "sample"},
            "timeout": {"type": "int", "default": _jump.TIMEOUT_S},
            "reuse_probe": {"type": "bool", "default": True},
            "until": {"type": "str", "default": ""},
            "run": {"type": "str"},
        },
    )


if __name__ == "__main__":
    main()
