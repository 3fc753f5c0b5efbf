#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_cmdline
short_description: Add words to the kernel command line of every cold boot
version_added: 0.1.0
description:
  - With O(state=present) the kernel of the next boot reads O(words). The module looks that up in GRUB's menu. It fails where another file
    wins, which it names, and on a host that another boot loader starts.
  - With O(state=absent) it takes the words away that it has added.
  - Knows GRUB where C(update-grub) is, as on Debian, by the file C(/etc/default/grub.d/kvm-liveupdate.cfg).
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
    details: In check mode the menu is not written, so that another file that wins is not seen.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Whether the words are to be on the command line.
    type: str
    choices: [present, absent]
    default: present
  words:
    description: All words that this module adds, each without blanks. Required with O(state=present).
    type: list
    elements: str
seealso:
  - module: kvm.liveupdate.boot_default
"""

EXAMPLES = r"""
- name: Let the kernel carry memory through a kexec from the next boot on
  kvm.liveupdate.boot_cmdline:
    words: [kho=on, liveupdate=on]
"""

RETURN = r"""
words:
  description: The words that this module adds from now on.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.bootloader import _boot_cmdline
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock


def manage(module) -> dict:
    """Read, and write unless it is so already."""
    words = module.params["words"] if module.params["state"] == "present" else []
    unfit = [word for word in words if not word or set(word) & set(" \t\n\"'\\$`")]
    if unfit:
        raise LiveUpdateError(f"words: {unfit[0]!r} is no plain word; give words without blanks, quotes, backslashes and dollar signs")
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
