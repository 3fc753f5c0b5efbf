#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: update_record
short_description: Keep the record of an update on its host
version_added: 0.2.0
description:
  - The module adds one record to the file where the host keeps the records of its updates, one JSON object in each line. The role
    P(kvm.liveupdate.hypervisor_update#role) makes the record and calls this module.
  - The host adds what only it knows, the image of the old kernel and what a kernel that crashed left in persistent storage.
  - If the file has a record of the same update already, the module changes nothing.
author: kvm.liveupdate contributors (@kvm-liveupdate)
extends_documentation_fragment: kvm.liveupdate._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details: A record without C(update_id), of an update that was undone before its commit, is added each time.
options:
  record:
    description: The record, a dictionary of any keys. C(update_id) identifies the update.
    type: dict
    required: true
  crash_since:
    description:
      - For a jump that ended in a cold boot. When the update was committed, in seconds since the epoch. By default the module looks for no
        crash.
      - The record then has the names and the last 2000 characters of at most 8 files below C(/sys/fs/pstore) and
        C(/var/lib/systemd/pstore) that are not older. There a kernel that crashes leaves its messages, if the host can keep them.
    type: float
  path:
    description: The file on the host. The module creates it with its directory if it does not exist.
    type: path
    default: /var/lib/kvm-liveupdate/updates.jsonl
"""

EXAMPLES = r"""
- name: Record an update
  kvm.liveupdate.update_record:
    record:
      update_id: 6f4d0c7e-4a3a-4b5e-9a51-0a3c1f9c2b77
      outcome: updated
"""

RETURN = r"""
record:
  description: The record as it was added. Empty if the update had one already.
  returned: success
  type: dict
  sample:
    update_id: 6f4d0c7e-4a3a-4b5e-9a51-0a3c1f9c2b77
    outcome: updated
"""

from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _records


def keep(module):
    """Add the record, unless there is one of the same update."""
    record, path = module.params["record"], module.params["path"]
    text = _records.read(path)
    earlier = _records.known(text)
    update_id = record.get("update_id")
    if update_id and any(one.get("update_id") == update_id for one in earlier):
        return {"changed": False, "record": {}}
    record = _records.completed(record, earlier, module.params["crash_since"])
    if not module.check_mode:
        _records.add(path, text, record)
    return {"changed": True, "record": record}


def main():
    """Spec and run."""
    run_module(
        keep,
        argument_spec={
            "record": {"type": "dict", "required": True},
            "crash_since": {"type": "float"},
            "path": {"type": "path", "default": _records.UPDATES},
        },
    )


if __name__ == "__main__":
    main()
