#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kexec_image
short_description: Stage the kernel that the host jumps into
version_added: 0.2.0
description:
  - The module checks that the running kernel can load the image with C(kexec_file_load(2)), the only call that carries preserved memory
    over. It unloads the image again and records it for this boot.
  - Nothing changes for the running system. C(systemctl reboot) is still an ordinary reboot.
  - M(kvm.liveupdate.kexec) loads RV(image) right before it jumps, and only if its files have not changed. O(state=unloaded) undoes the
    staging.
  - The module refuses a file that is missing, cut off or not a kernel. It also refuses a kernel or command line if it cannot prove that the
    kernel takes over what the running kernel preserves (see RV(kvm.liveupdate.hypervisor_info#module:proof)).
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
  state:
    description: Whether a kernel is staged.
    type: str
    choices: [staged, unloaded]
    default: staged
  kernel:
    description: Path of the kernel image on the host. Required with O(state=staged).
    type: path
  initrd:
    description:
      - Path of the initial RAM disk on the host.
      - The default is the file that a boot loader uses with this kernel. The page I(Kernels) of the documentation lists the layouts.
      - V(none) stages the kernel without an initial RAM disk.
      - The file must be complete. If none is found, the kernel is refused, unless the kernel can mount the root file system alone and the
        running kernel started without an initial RAM disk.
    type: path
  cmdline:
    description:
      - The command line of the next kernel.
      - The default is the command line of the running kernel, without the parameters that the boot loader adds for itself.
    type: str
  accept_unknown:
    description: Pairs of kernels that may be staged without proof, as in O(kvm.liveupdate.hypervisor_info#module:accept_unknown).
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
  description: The kernel that is now staged. Empty if none is.
  returned: success
  type: dict
  contains:
    path:
      description: The path of the kernel image.
      returned: when a kernel is staged
      type: str
    release:
      description: Its release, as C(uname -r) will show it.
      returned: when a kernel is staged
      type: str
    version:
      description: Its version, as C(uname -v) will show it.
      returned: when a kernel is staged
      type: str
    size:
      description: The size of the image in bytes.
      returned: when a kernel is staged
      type: int
    sha256:
      description: The SHA-256 digest of the image.
      returned: when a kernel is staged
      type: str
    initrd:
      description: The path of the initial RAM disk. V(null) for none.
      returned: when a kernel is staged
      type: str
    initrd_sha256:
      description: The SHA-256 digest of the initial RAM disk. V(null) for none.
      returned: when a kernel is staged
      type: str
    cmdline:
      description: The command line of the next kernel.
      returned: when a kernel is staged
      type: str
  sample:
    path: /boot/vmlinuz-7.3.4
    release: 7.3.4
    version: "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1"
    size: 12345678
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    initrd: /boot/initrd.img-7.3.4
    initrd_sha256: 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
    cmdline: root=/dev/vda1 ro kho=on liveupdate=on
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, told
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _initrd, _kexec, _proof


def wanted_image(params, running_cmdline: str) -> dict:
    """The image that the options ask for. Reads and refuses, changes nothing."""
    if params["state"] == "unloaded":
        return {}
    image = _kexec.describe(params["kernel"])
    initrd = _initrd.of(image["path"], image["release"], params["initrd"])
    cmdline = params["cmdline"] if params["cmdline"] is not None else _cmdline.next_cmdline(running_cmdline)
    image.update(initrd=initrd, initrd_sha256=_kexec.file_digest(initrd) if initrd else None, cmdline=cmdline)
    return image


def refuse_unproven(params, wanted) -> None:
    """Refuse a kernel if it is not proven that it takes over what the running one preserves."""
    image = _image.read(wanted["path"], keep=_files.IMAGES)
    if image["sha256"] != wanted["sha256"]:
        raise LiveUpdateError(f"kernel {wanted['path']} is not staged: the file changed while it was examined; run this again")
    proof = _proof.prove(image, wanted["cmdline"], wanted["initrd"], without=params["initrd"] == "none")
    reasons = _proof.objections(proof, params["accept_unknown"])
    if reasons:
        sentences = "; ".join(map(told, reasons))
        raise LiveUpdateError(f"kernel {wanted['path']} is not staged: {sentences}", reasons=reasons)


def manage(module):
    """Read, plan, write."""
    wanted = wanted_image(module.params, _this_boot.current_cmdline())
    staged, is_loaded = _kexec.record(), _kexec.loaded()
    # This unloads what another program loaded: it may carry no memory over, and an ordinary reboot would jump into it.
    changed = staged != wanted or is_loaded
    if wanted and changed:
        refuse_unproven(module.params, wanted)
    if changed and not module.check_mode:
        with _lock.Lock():  # an update that is under way keeps the image that it was committed with
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
