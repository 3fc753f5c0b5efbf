#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kexec_image
short_description: Stage the kernel that the host will jump into
version_added: 0.1.0
description:
  - Proves that the running kernel can load this one with C(kexec_file_load(2)), the only way that carries preserved memory over, and
    records it for this boot.
  - Nothing changes for the running system, and nothing stays loaded. C(systemctl reboot) is an ordinary reboot as before.
  - M(kvm.liveupdate.kexec) loads RV(image) right before it jumps, and only if the files are still the same; V(unloaded) is the inverse.
  - Refuses a file that is missing, cut off or not a kernel, and a kernel and command line of which it is not proven that they take
    over what the running kernel preserves (see RV(kvm.liveupdate.hypervisor_info#module:proof)).
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
  state:
    description: Whether a kernel is to be staged, or none.
    type: str
    choices: [staged, unloaded]
    default: staged
  kernel:
    description: Path of the kernel image on the host. Required with O(state=staged).
    type: path
  initrd:
    description:
      - Path of the initial RAM disk on the host.
      - By default the one that a boot loader takes for this kernel (docs/kernels.md lists the layouts). V(none) stages the kernel without.
      - It has to be whole. Where none is found, the kernel is refused unless a kernel alone can mount the root file system and the running
        kernel came up without one.
    type: path
  cmdline:
    description:
      - The next kernel's command line.
      - By default the running kernel's, without what the boot loader added for itself.
    type: str
  accept_unknown:
    description: Pairs of kernels that may be staged unproven, as O(kvm.liveupdate.hypervisor_info#module:accept_unknown).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Stage a kernel
  kvm.liveupdate.kexec_image:
    kernel: /boot/vmlinuz-7.3.4
    initrd: /boot/initrd.img-7.3.4

- name: Leave the host without a staged kernel
  kvm.liveupdate.kexec_image:
    state: unloaded
"""

RETURN = r"""
image:
  description: What is staged afterwards, with V(path), V(release), V(version), V(sha256), V(initrd), V(cmdline); else empty.
  returned: success
  type: dict
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _initrd, _kexec, _proof


def wanted_image(params, running_cmdline: str) -> dict:
    """What the options ask for: read and refuse, change nothing."""
    if params["state"] == "unloaded":
        return {}
    image = _kexec.describe(params["kernel"])
    initrd = _initrd.of(image["path"], image["release"], params["initrd"])
    cmdline = params["cmdline"] if params["cmdline"] is not None else _cmdline.next_cmdline(running_cmdline)
    image.update(initrd=initrd, initrd_sha256=_kexec.file_digest(initrd) if initrd else None, cmdline=cmdline)
    return image


def refuse_unproven(params, wanted) -> None:
    """Refuse a kernel that may not take over what the running one preserves."""
    image = _image.read(wanted["path"], keep=_files.IMAGES)
    if image["sha256"] != wanted["sha256"]:
        raise LiveUpdateError(f"{wanted['path']} is not staged: the file changed while it was examined; run this again")
    proof = _proof.prove(image, wanted["cmdline"], wanted["initrd"], without=params["initrd"] == "none")
    reasons = _proof.objections(proof, params["accept_unknown"])
    if reasons:
        sentences = "; ".join(f"{reason['message']} - {reason['remedy']}" for reason in reasons)
        raise LiveUpdateError(f"{wanted['path']} is not staged: {sentences}", reasons=reasons)


def manage(module):
    """Read, plan, write."""
    wanted = wanted_image(module.params, _this_boot.current_cmdline())
    staged, is_loaded = _kexec.record(), _kexec.loaded()
    # What somebody else loaded is unloaded: it may carry no memory over, and an ordinary reboot would jump into it.
    changed = staged != wanted or is_loaded
    if wanted and changed:
        refuse_unproven(module.params, wanted)
    if changed and not module.check_mode:
        with _lock.Lock():  # one that is under way jumps into what it was told to
            if wanted:
                _kexec.stage(wanted)
            else:
                _kexec.unload()
    return {"changed": changed, "image": wanted, "diff": {"before": staged, "after": wanted}}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["staged", "unloaded"], "default": "staged"},
            "kernel": {"type": "path"},
            "initrd": {"type": "path"},
            "cmdline": {"type": "str"},
            "accept_unknown": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "staged", ("kernel",))],
    )


if __name__ == "__main__":
    main()
