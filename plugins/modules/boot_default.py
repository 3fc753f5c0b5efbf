#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_default
short_description: Set the kernel that a cold boot starts
version_added: 0.2.0
description:
  - With O(state=present) every cold boot starts O(kernel), also after other kernels are installed or removed.
  - With O(state=absent) the boot loader chooses the kernel as it did before the first use of this module.
  - The module supports GRUB with C(update-grub), as on Debian. There it writes the file
    C(/etc/default/grub.d/kvm-liveupdate-default.cfg), and then checks the result in GRUB's menu.
  - It also supports C(grubby), as on Fedora and RHEL. This part is not tested in a lab yet.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment:
  - kvm.liveupdate._attributes
  - kvm.liveupdate._action
  - kvm.liveupdate._run
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Whether this module sets the boot default.
    type: str
    choices: [present, absent]
    default: present
  kernel:
    description:
      - Path of the kernel image on the host, C(/boot/vmlinuz-RELEASE). The default is the image of the running kernel.
      - A kernel that the boot loader does not offer is an error.
    type: path
  only_kept:
    description:
      - Change the boot default only if an earlier call of this module set it. Otherwise change nothing.
      - The module then refuses a change while another run has the lease of the host, see M(kvm.liveupdate.update_lease).
    type: bool
    default: false
  ended:
    description:
      - The RV(kvm.liveupdate.hypervisor_info#module:lease.run) of a run that has certainly ended. Its lease does not count. Any other value
        has no effect.
    type: str
    default: ""
seealso:
  - module: kvm.liveupdate.kexec_image
"""

EXAMPLES = r"""
- name: Keep the running kernel as boot default before another one is installed
  kvm.liveupdate.boot_default:

- name: Make the new kernel the boot default after the update
  kvm.liveupdate.boot_default:
    kernel: /boot/vmlinuz-7.3.4
    only_kept: true

- name: Let the boot loader choose again
  kvm.liveupdate.boot_default:
    state: absent
"""

RETURN = r"""
kept:
  description:
    - The boot default that this module has set. For GRUB it is the menu entry, for grubby the path of the image.
    - Empty if the boot loader chooses.
  returned: success
  type: str
  sample: Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 7.3.4
lost:
  description: V(true) if the host did not answer, so that the result on the host is unknown. The task fails then.
  returned: when the host did not answer
  type: bool
  sample: true
"""

import time

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_default
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease


def manage(module) -> dict:
    """Read, and write if something differs."""
    kernel = module.params["kernel"] or f"/boot/vmlinuz-{_this_boot.kernel()['release']}"
    wanted = kernel if module.params["state"] == "present" else ""
    before = after = _boot_default.kept()
    if before or not module.params["only_kept"]:
        with _lock.Lock():
            if module.params["only_kept"]:
                before, after = _boot_default.change(wanted, True)
                if before != after:  # under the lock no other run can take the lease until the change is made
                    _lease.refuse_other(_lease.read(), module.params["run"] or "", time.time(), module.params["ended"])
            before, after = _boot_default.change(wanted, module.check_mode)
    return {"changed": before != after, "kept": after, "diff": {"before": {"kept": before}, "after": {"kept": after}}}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "kernel": {"type": "path"},
            "only_kept": {"type": "bool", "default": False},
            "run": {"type": "str"},
            "ended": {"type": "str", "default": ""},
        },
    )


if __name__ == "__main__":
    main()
