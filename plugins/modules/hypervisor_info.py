#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_info
short_description: Report whether a hypervisor can be updated live, and why not
version_added: 0.2.0
description:
  - The module examines the running kernel, systemd, the host runtime, the staged kernel, and every virtual machine of the host.
  - It changes nothing. Each reason against a live update comes with its remedy.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: The module changes nothing.
  idempotent:
    support: full
options:
  kernel:
    description:
      - Path on the host of the kernel that the update jumps into. RV(target) describes this kernel, and RV(proof) reports whether it can
        take over. A file that is missing or not a kernel is an error.
      - By default the module examines only the host and its guests.
    type: path
  initrd:
    description:
      - Path on the host of the initial RAM disk of O(kernel). V(none) means that the kernel runs without one.
      - The default is that of O(kvm.liveupdate.kexec_image#module:initrd).
    type: path
  cmdline:
    description:
      - The command line of O(kernel).
      - The default is the command line of the running kernel, without the parameters that the boot loader adds for itself.
    type: str
  accept_unknown:
    description:
      - Pairs of kernels, as RV(proof.pair) names them, that are accepted although something about them is unknown. Other pairs have no
        effect.
      - A kernel that is known to fail is refused in any case.
    type: list
    elements: str
    default: []
  verify_memory:
    description:
      - How an update will check the memory of the guests, see O(kvm.liveupdate.kexec#module:verify_memory).
      - With V(full), the module measures how fast this host reads memory for such a check, on 64 MiB of its own memory. RV(memory_speed)
        has the result.
    type: str
    choices: [none, sample, full]
    default: none
  to_be_installed:
    description:
      - Whether O(kernel) is installed later. Then it is no error if it does not exist yet. RV(target.installed) is V(false), there is no
        RV(proof), and all else is examined.
    type: bool
    default: false
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
  description: Whether the host can be updated live. V(true) if neither the host nor a guest has a reason against it.
  returned: success
  type: bool
  sample: true
reasons:
  description:
    - Why the host cannot be updated live. With O(kernel) also why it is not proven that this kernel can take over.
  returned: success
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
    verdict:
      description: V(refused) if the jump would fail, V(unknown) if this cannot be known.
      returned: for reasons about O(kernel)
      type: str
  sample:
    - code: runtime
      message: the host runtime is not installed, or it is of another version than this collection
      remedy: run the playbook kvm.liveupdate.setup
proof:
  description:
    - Whether O(kernel) can read what the running kernel preserves, and the other way round. Both kernel images are read for this.
  returned: when O(kernel) is given and is not the running kernel
  type: dict
  contains:
    pair:
      description: A name for these two builds and no others, for O(accept_unknown).
      returned: always
      type: str
    there:
      description: The jump from the running kernel to O(kernel). Any verdict but V(proven) is a reason against an update.
      returned: always
      type: dict
      contains:
        verdict:
          description: V(proven), V(refused) or V(unknown).
          returned: always
          type: str
        reasons:
          description: The reasons, if the verdict is not V(proven).
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
            verdict:
              description: V(refused) if the jump would fail, V(unknown) if this cannot be known.
              returned: always
              type: str
    back:
      description: The jump from O(kernel) back to the running kernel. Its verdict is not a reason against an update.
      returned: always
      type: dict
      contains:
        verdict:
          description: V(proven), V(refused) or V(unknown).
          returned: always
          type: str
        reasons:
          description: The reasons, if the verdict is not V(proven).
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
            verdict:
              description: V(refused) if the jump would fail, V(unknown) if this cannot be known.
              returned: always
              type: str
  sample:
    pair: 3b1f0a5c77de-9f86d081884c
    there: {verdict: proven, reasons: []}
    back: {verdict: proven, reasons: []}
refusals:
  description: All reasons of the host and of the guests, as sentences with their remedies.
  returned: success
  type: list
  elements: str
  sample:
    - "guest db1: its RAM is on huge pages, which the kernel cannot preserve - remove <hugepages/> and restart the domain"
guests:
  description:
    - Every virtual machine on the host.
    - A virtual machine that neither the host runtime nor libvirt runs is listed too, because a jump would end it. It has only V(name),
      V(unit), V(pid), V(reasons) and an empty list of V(warnings).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The guest's name.
      returned: always
      type: str
    provider:
      description: V(qemu) for a guest that a systemd unit runs, V(libvirt) for a domain.
      returned: for guests that can be managed
      type: str
    uuid:
      description: The guest's UUID.
      returned: for guests that can be managed
      type: str
    unit:
      description: The systemd unit that restores the guest after a jump.
      returned: always
      type: str
    pid:
      description: The process ID of its QEMU.
      returned: always
      type: int
    held:
      description: Whether its RAM is preserved in a session.
      returned: for guests that can be managed
      type: bool
    memory_mib:
      description: The size of its RAM in MiB. V(null) if unknown.
      returned: for guests that can be managed
      type: int
    fill_mib:
      description:
        - How much more memory the host needs to preserve its RAM, in MiB. The kernel allocates all of the RAM, also the part that the guest
          has not used yet.
      returned: for guests that can be managed
      type: int
    devices:
      description: Its devices as words such as V(disk:virtio), V(interface:bridge), V(hostdev) and V(tpm).
      returned: for guests that can be managed
      type: list
      elements: str
    labels:
      description: The labels in the metadata of a libvirt domain, as names with values. Empty for others.
      returned: for guests that can be managed
      type: dict
    ladder:
      description: The ladder, an ordered list of ways to handle the guest, in the metadata of a libvirt domain. V(null) for others.
      returned: for guests that can be managed
      type: list
      elements: raw
    paused:
      description: Whether it is paused. V(false) if unknown.
      returned: for guests that can be managed
      type: bool
    last_pause:
      description: For how many seconds its last update paused it. V(null) if no update did.
      returned: for guests that can be managed
      type: float
    last_check:
      description: How many seconds of this pause a full check of its memory took. V(0.0) if there was none.
      returned: for guests that can be managed
      type: float
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
    warnings:
      description: What does not survive the update unchanged. A warning does not keep a guest from being preserved.
      returned: always
      type: list
      elements: dict
      contains:
        code:
          description: A short name of the warning, for programs.
          returned: always
          type: str
        message:
          description: The warning, with the value seen.
          returned: always
          type: str
        remedy:
          description: What to do about it.
          returned: always
          type: str
  sample:
    - name: web1
      provider: qemu
      uuid: 2f6f0d5a-54f0-4f4e-8f4b-0b7e5c0f5c11
      unit: web1.service
      pid: 1234
      held: false
      memory_mib: 4096
      fill_mib: 512
      devices: ["disk:virtio", "interface:tap"]
      labels: {}
      ladder: null
      paused: false
      last_pause: 8.6
      last_check: 0.0
      reasons: []
      warnings: []
away:
  description: The guests that M(kvm.liveupdate.guest_away) sent away and that are not back yet.
  returned: success
  type: list
  elements: dict
  contains:
    guest:
      description: The guest's name.
      returned: always
      type: str
    way:
      description: How it left, V(save), V(shutdown) or V(migrate).
      returned: always
      type: str
    state:
      description: V(leaving) until the guest has left, then V(away).
      returned: always
      type: str
  sample:
    - guest: db1
      way: save
      state: away
free:
  description: The free memory and disk space of the host.
  returned: success
  type: dict
  contains:
    memory_mib:
      description: The available memory in MiB.
      returned: always
      type: int
    saves_mib:
      description: The free space in MiB on the disk where libvirt stores managed saves.
      returned: always
      type: int
  sample:
    memory_mib: 5120
    saves_mib: 81920
memory_speed:
  description: How fast this host reads memory for a full check.
  returned: when O(verify_memory=full)
  type: dict
  contains:
    bytes_per_second:
      description: The bytes that the check of one guest reads in a second.
      returned: always
      type: float
    at_once:
      description: The number of guests that the host can check at the same time with this speed.
      returned: always
      type: int
  sample:
    bytes_per_second: 5400000000.0
    at_once: 16
services_to_stop:
  description:
    - The services that run now and that an update stops before it pauses the guests.
    - Services of systemd itself are not listed, nor services that keep running because guests would notice their stop, or because the QEMU
      of a guest is connected to them.
    - Services in O(kvm.liveupdate.kexec#module:keep_units), and services that only a guest's unit requires, are listed although they keep
      running.
  returned: success
  type: list
  elements: str
  sample: [cron.service, ssh.service]
boot_id:
  description: The ID of this boot.
  returned: success
  type: str
  sample: 1b0f1f5e-8f3c-4d5a-8a6b-3f0d3f8d1c11
kernel:
  description: The running kernel.
  returned: success
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
  sample:
    release: 7.2.13
    version: "#1 SMP PREEMPT_DYNAMIC Debian 7.2.13-1"
    cmdline: root=/dev/vda1 ro kho=on liveupdate=on
systemd:
  description: The major version of systemd.
  returned: success
  type: int
  sample: 257
image:
  description: The kernel that M(kvm.liveupdate.kexec_image) staged in this boot. Empty if none is staged.
  returned: success
  type: dict
  contains:
    path:
      description: The path of the kernel image. The other keys are those of RV(kvm.liveupdate.kexec_image#module:image).
      returned: when a kernel is staged
      type: str
  sample:
    path: /boot/vmlinuz-7.3.4
    release: 7.3.4
    initrd: /boot/initrd.img-7.3.4
target:
  description:
    - The kernel at O(kernel).
    - If it is not installed yet (O(to_be_installed)), only V(path), V(installed) and V(current) are known. All else is V(null).
  returned: when O(kernel) is given
  type: dict
  contains:
    path:
      description: The path of the image.
      returned: always
      type: str
    installed:
      description: Whether the image exists.
      returned: always
      type: bool
    kind:
      description: The kind of the image, for example V(bzImage).
      returned: always
      type: str
    release:
      description: Its release.
      returned: always
      type: str
    version:
      description: Its version.
      returned: always
      type: str
    size:
      description: The size of the image in bytes.
      returned: always
      type: int
    sha256:
      description: The SHA-256 digest of the image.
      returned: always
      type: str
    abi:
      description: The ABI strings by which the kernel recognises preserved memory. V(null) for a string that is not found.
      returned: always
      type: dict
      contains:
        kho:
          description: The version of the Kexec Handover, for example V(kho-v4).
          returned: always
          type: str
        luo:
          description: The version of the Live Update Orchestrator, for example V(luo-v5).
          returned: always
          type: str
        memfd:
          description: The version of preserved memory files, for example V(memfd-v2).
          returned: always
          type: str
    signed:
      description: Whether the image has a signature.
      returned: always
      type: bool
    initrd:
      description: The path of its initial RAM disk. V(null) for none.
      returned: always
      type: str
    current:
      description: Whether this is the running kernel.
      returned: always
      type: bool
  sample:
    path: /boot/vmlinuz-7.3.4
    kind: bzImage
    installed: true
    release: 7.3.4
    version: "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1"
    size: 12345678
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    abi: {kho: kho-v4, luo: luo-v5, memfd: memfd-v2}
    signed: false
    initrd: /boot/initrd.img-7.3.4
    current: false
last_update:
  description: The record of the last update of this host. Empty if there was none.
  returned: success
  type: dict
  contains:
    id:
      description: The identifier of the update.
      returned: when there was an update
      type: str
    state:
      description: The last step that the host recorded, for example V(jumping), or V(aborted).
      returned: when there was an update
      type: str
    outcome:
      description:
        - V(pending), V(aborted), V(jumped), or V(rebooted) if the host did a cold boot, or came up with another kernel than planned.
      returned: when there was an update
      type: str
    guests:
      description: The names of its guests.
      returned: when there was an update
      type: list
      elements: str
    discarded:
      description: The names of those guests that C(kvm-liveupdate discard) removed from the records of the host after the jump.
      returned: when there was an update
      type: list
      elements: str
    times:
      description: When each step began, in seconds since the epoch on the host's clock.
      returned: when there was an update
      type: dict
      contains:
        committed:
          description: The update was committed.
          returned: when there was an update
          type: float
        stopping:
          description: The host began to stop other services.
          returned: if the update came to this step
          type: float
        gate:
          description: The host made its last checks before the pause.
          returned: if the update came to this step
          type: float
        saving:
          description: The host began to pause and save the guests.
          returned: if the update came to this step
          type: float
        jumping:
          description: The host began the kexec.
          returned: if the update came to this step
          type: float
        aborted:
          description: The host had undone the update.
          returned: when the update was undone
          type: float
    error:
      description: Why the update was undone.
      returned: when the update was undone
      type: str
    not_back:
      description: The names of guests that the undo left paused, or whose QEMU has ended.
      returned: when the update was undone
      type: list
      elements: str
  sample:
    id: 6f4d0c7e-4a3a-4b5e-9a51-0a3c1f9c2b77
    state: jumping
    outcome: jumped
    guests: [db1, web1]
    times: {committed: 1790000000.1, stopping: 1790000003.4, gate: 1790000020.2, saving: 1790000020.3, jumping: 1790000021.7}
lease:
  description: Which run updates this host, from M(kvm.liveupdate.update_lease). Empty if no run updates the host.
  returned: success
  type: dict
  contains:
    run:
      description: The identifier of the run.
      returned: when there is a lease
      type: str
    by:
      description: Who started it.
      returned: when there is a lease
      type: str
    begun:
      description: When the first of the runs that did not give their lease back took it, in seconds since the epoch.
      returned: when there is a lease
      type: float
    since:
      description: When this run took the lease or renewed it, in seconds since the epoch.
      returned: when there is a lease
      type: float
    seconds:
      description: How long the lease lasts.
      returned: when there is a lease
      type: int
    until:
      description: When it expires, by the clock of the host.
      returned: when there is a lease
      type: str
    left:
      description: The seconds that are left of it. V(0) if it has expired.
      returned: when there is a lease
      type: float
    own:
      description: Whether the run that calls this module has the lease.
      returned: when there is a lease
      type: bool
    ended:
      description: Whether the controller knows that the process of the run has ended.
      returned: when there is a lease
      type: bool
  sample:
    run: 1b0f1f5e-8f3c-4d5a-8a6b-3f0d3f8d1c11/4026531836/4711/1234567
    by: alice on controller1
    begun: 1795951500.2
    since: 1795951500.2
    seconds: 1980
    until: "2026-11-29T11:58:00+00:00"
    left: 1925.6
    own: false
    ended: false
examined_at:
  description: When the controller started this examination, by its own clock, in seconds since the epoch.
  returned: always
  type: float
  sample: 1795951554.6
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import os
import time

from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, reason, told
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _away, _hold, _memory, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _memory as _host_memory
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _initrd, _kexec, _proof
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _room, _setup, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease, _readiness, _services

TARGET = ("path", "kind", "release", "version", "size", "sha256", "abi", "signed")


UNSEEN = {"name-long", "name-twice", "not-examined"}  # with these reasons a guest was not examined
UNEXAMINED = {
    "held": False,
    "memory_mib": None,
    "devices": [],
    "labels": {},
    "ladder": None,
    "paused": False,
    "fill_mib": 0,
    "last_pause": None,
    "last_check": 0.0,
    "warnings": [],
}


def guest_facts(record: dict, held: bool) -> dict:
    """One managed guest as the module returns it. If its examination fails, that is a reason against this guest only."""
    identity = {key: record[key] for key in ("name", "unit", "provider", "uuid", "pid")}
    reasons = _reasons.name_reasons(record)
    if not reasons:
        try:
            return {**identity, **examined(record, held)}
        except (LiveUpdateError, OSError, ValueError, LookupError, SyntaxError) as err:  # Python's parser of XML raises the last
            reasons = [reason("not-examined", f"it cannot be examined: {err}", "fix that problem and examine the host again")]
    return {**identity, **UNEXAMINED, "reasons": reasons}


def examined(record: dict, held: bool) -> dict:
    """What an examination finds about a guest."""
    journal, reasons = _journal.of_guest(record["name"]), _reasons.inspect(record)
    return {
        "held": held,
        **_reasons.describe(record),
        "fill_mib": 0 if held else _memory.fill(record) >> 20,
        "last_pause": _journal.pause(journal),
        "last_check": _journal.check_s(journal),
        "reasons": reasons,
        "warnings": _reasons.warn(record),
    }


def refusals(reasons: list, guests: list) -> list:
    """All reasons as sentences. Pure."""
    return [told(why) for why in reasons] + [f"guest {guest['name']}: {told(why)}" for guest in guests for why in guest["reasons"]]


def mount_reasons(records: list) -> list:
    """A reason if the RAM of domains is in libvirt's directory for it and no tmpfs is mounted there."""
    names = ", ".join(_setup.in_run(records))
    if not names:
        return []
    message = f"no tmpfs is mounted on {_setup.RAM_DIRECTORY}, so the RAM of domains is in /run, which is too small for it: {names}"
    return [reason("runtime", message, "shut down or migrate these domains first, then run the playbook kvm.liveupdate.setup")]


def examine(module):
    """Read everything."""
    if module.params["kernel"] == "":
        raise LiveUpdateError(
            "kernel is empty; write the path of a kernel image on the host, e.g. /boot/vmlinuz-7.3.4"
            " (in the roles: hypervisor_update_kernel)"
        )
    version = _systemd.version()
    kernel, boot_id = _this_boot.kernel(), _this_boot.boot_id()
    records = _providers.records()
    _reasons.survey(records)
    held = _hold.held_each([record for record in records if not _reasons.name_reasons(record)])
    guests = [guest_facts(record, record["name"] in held) for record in records]
    reasons = _readiness.reasons("/", version, not _runtime.outdated(_runtime.files([])))
    reasons += mount_reasons(records)
    limits = {
        record["name"]: (sum(ram["size"] for ram in record["ram"]), _reasons.memory_limits(record))
        for record, guest in zip(records, guests)
        if UNSEEN.isdisjoint(why["code"] for why in guest["reasons"])
    }
    reasons += _memory.shared_limit_reasons(limits)
    reasons += _journal.not_back([record["name"] for record in records])
    guests += _providers.strangers(records)
    kept = [*(guest["unit"] for guest in guests), *(unit for record in records for unit in record.get("servers", ()))]
    result: dict = {
        "changed": False,
        "guests": guests,
        "away": _away.records(),
        "free": {"memory_mib": _host_memory.available() >> 20, "saves_mib": _room.free(_virsh.SAVED) >> 20},
        "services_to_stop": _services.to_be_stopped(_services.services(), kept),
        "boot_id": boot_id,
        "kernel": kernel,
        "systemd": version,
        "image": _kexec.record() if os.path.exists("/sys/kernel/kexec_loaded") else {},
        "last_update": _journal.last_update(),
        "lease": _lease.seen(_lease.read(), time.time()),
    }
    if module.params["verify_memory"] == "full":
        result["memory_speed"] = {"bytes_per_second": _digests.speed(), "at_once": max(1, (os.cpu_count() or 1) // _digests.MOST_THREADS)}
    path = module.params["kernel"]
    if path and module.params["to_be_installed"] and not os.path.exists(path):
        result["target"] = {**dict.fromkeys(TARGET), "path": path, "installed": False, "initrd": None, "current": False}
    elif path:
        image, cmdline = _image.read(path, keep=_files.IMAGES), module.params["cmdline"]
        current = (image["release"], image["version"]) == (kernel["release"], kernel["version"])
        initrd = _initrd.of(image["path"], image["release"], module.params["initrd"])
        result["target"] = {**{key: image[key] for key in TARGET}, "installed": True, "initrd": initrd, "current": current}
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
            "verify_memory": {"type": "str", "choices": ["none", "sample", "full"], "default": "none"},
            "to_be_installed": {"type": "bool", "default": False},
        },
    )


if __name__ == "__main__":
    main()
