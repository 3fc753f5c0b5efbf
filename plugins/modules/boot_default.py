#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_default
short_description: Keep a kernel the one that a cold boot comes up with
version_added: 0.1.0
description:
  - With O(state=present) a cold boot comes up with O(kernel), whatever kernels are installed or removed besides.
  - With O(state=absent) the boot loader chooses as it did before this module was first used.
  - Knows GRUB where C(update-grub) is, as on Debian, by the file C(/etc/default/grub.d/kvm-liveupdate-default.cfg), and C(grubby), as on
    Fedora and RHEL. The latter is not tested in a lab yet.
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
    description: Whether a default of this module's is to be in force.
    type: str
    choices: [present, absent]
    default: present
  kernel:
    description: Path on the host of the kernel image, C(/boot/vmlinuz-RELEASE). By default that of the running kernel.
    type: path
  only_kept:
    description: Change the default only where this module has set it before, and leave every other host alone.
    type: bool
    default: false
seealso:
  - module: kvm.liveupdate.kexec_image
"""

EXAMPLES = r"""
- name: Keep the running kernel the default before another one is installed
  kvm.liveupdate.boot_default:

- name: Make the new one the default after the update, where the old one was kept
  kvm.liveupdate.boot_default:
    kernel: /boot/vmlinuz-7.3.4
    only_kept: true
"""

RETURN = r"""
kept:
  description: The entry of GRUB's menu, or for grubby the image, that is the default from now on; empty when the boot loader chooses.
  returned: success
  type: str
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_default
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot


def manage(module) -> dict:
    """Read, and write unless it is so already."""
    kernel = module.params["kernel"] or f"/boot/vmlinuz-{_this_boot.kernel()['release']}"
    before = after = _boot_default.kept()
    if before or not module.params["only_kept"]:
        with _lock.Lock():
            before, after = _boot_default.change(kernel if module.params["state"] == "present" else "", module.check_mode)
    return {"changed": before != after, "kept": after, "diff": {"before": {"kept": before}, "after": {"kept": after}}}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "kernel": {"type": "path"},
            "only_kept": {"type": "bool", "default": False},
        },
    )


if __name__ == "__main__":
    main()
