#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_cmdline
short_description: Add parameters to the kernel command line of every cold boot
version_added: 0.2.0
description:
  - With O(state=present) the module adds the parameters in O(words) to the command line that GRUB gives to a kernel. It writes the file
    C(/etc/default/grub.d/kvm-liveupdate.cfg) and runs C(update-grub).
  - Then it reads GRUB's menu and checks that the next boot gets all of them. It fails if another configuration file removes them, and names
    that file.
  - With O(state=absent) the module removes the parameters that it added.
  - The module supports GRUB with C(update-grub), as on Debian. It fails on a host that another boot loader starts.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
    details: In check mode the module does not write the menu, so it cannot detect that another file removes the parameters.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Whether the command line contains the parameters.
    type: str
    choices: [present, absent]
    default: present
  words:
    description:
      - The kernel parameters that this module adds, as a complete list. Parameters of an earlier call that are not in the list are removed.
      - A parameter is not empty and contains no blanks, quotes, backquotes, backslashes or dollar signs. Any other is refused.
      - Required with O(state=present).
    type: list
    elements: str
seealso:
  - module: kvm.liveupdate.boot_default
"""

EXAMPLES = r"""
- name: Enable KHO and LUO from the next boot on
  kvm.liveupdate.boot_cmdline:
    words: [kho=on, liveupdate=on]

- name: Remove the parameters again
  kvm.liveupdate.boot_cmdline:
    state: absent
"""

RETURN = r"""
words:
  description: The kernel parameters that this module now adds to the command line.
  returned: success
  type: list
  elements: str
  sample: [kho=on, liveupdate=on]
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_cmdline
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock


def manage(module) -> dict:
    """Read, and write if something differs."""
    words = module.params["words"] if module.params["state"] == "present" else []
    unfit = [word for word in words if not word or set(word) & set(" \t\n\"'\\$`")]
    if unfit:
        raise LiveUpdateError(
            f"words: {unfit[0]!r} is not allowed; use kernel parameters without blanks, quotes, backquotes, backslashes and dollar signs"
        )
    with _lock.Lock():
        before, after, changed = _boot_cmdline.change(words, module.check_mode)
    return {"changed": changed, "words": after, "diff": {"before": {"words": before}, "after": {"words": after}}}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "words": {"type": "list", "elements": "str"},
        },
        required_if=[("state", "present", ("words",))],
    )


if __name__ == "__main__":
    main()
