#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A STUB of hypervisor_info for the simulation of many hosts: it returns the facts that kvmbench/scale.py made up."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule

WORDS = ("accept_unknown", "cmdline", "initrd", "kernel", "to_be_installed", "verify_memory")


def main() -> None:
    module = AnsibleModule({word: {"type": "raw"} for word in WORDS}, supports_check_mode=True)
    with open("@FACTS@", encoding="utf-8") as facts:
        module.exit_json(changed=False, **json.load(facts))


if __name__ == "__main__":
    main()
