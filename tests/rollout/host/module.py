#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A STUB of every module but kexec, update_lease and update_record: it logs its call, and does what the test has planned for it."""

from __future__ import annotations

import json
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _lease

NAME = "@NAME@"
HOST, STAGE = os.environ["HOST"], os.environ["STAGE"]
WORDS = ("accept_unknown", "back", "back_uri", "cmdline", "guests", "initrd", "kernel", "migrate_uri", "names", "only_kept", "state")
WORDS += ("ended", "run", "timeout", "timeouts", "to_be_installed", "verify_memory")


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def act(planned: str) -> str:
    """Do what is planned: fail, die (the host, for good), wait (until the test goes on), or lose (the guest its memory)."""
    mark = f"{STAGE}/{HOST}/{planned}"
    if planned in ("die", "wait"):
        with open(mark, "w", encoding="utf-8"):
            pass
        while os.path.exists(mark):
            time.sleep(0.05)
    return f"{HOST}: {NAME} does not work" if planned == "fail" else ""


def answer(planned: str) -> dict:
    """What the module returns."""
    release, update = read("/proc/sys/kernel/osrelease"), _journal.of_update()
    boot_id = _this_boot.boot_id()
    if NAME == "hypervisor_info":
        last = {**update, "outcome": _journal.outcome(update, boot_id, release)} if update else {}
        guest = {"name": "web", "provider": "qemu", "memory_mib": 1, "reasons": [], "warnings": []}
        return {
            "ready": True,
            "reasons": [],
            "away": [{"guest": "db", "state": "away"}] if planned == "away" else [],
            "guests": [guest],
            "free": {"memory_mib": 9, "saves_mib": 9},
            "boot_id": boot_id,
            "kernel": {"release": release, "version": "#1", "cmdline": ""},
            "last_update": last,
            "target": {"current": release == "7.3.4", "release": "7.3.4", "initrd": None},
            "lease": _lease.seen(_lease.read(), time.time()),
        }
    if NAME == "guest":
        times = {"paused": 2.0, "resumed": 10.6}
        last = {"guest": "web", "state": "lost" if planned == "lose" else "restored", "update_id": update.get("id"), "times": times}
        return {"guests": [{"name": "web", "changed": False, "failed": False, "msg": "", "last_update": last}]}
    return {}


def main() -> None:
    module = AnsibleModule({word: {"type": "raw"} for word in WORDS}, supports_check_mode=True)
    call = " ".join(word for word in (NAME, str(module.params["state"] or "")) if word)
    with open(f"{STAGE}/log", "a", encoding="utf-8") as log:
        log.write(f"{HOST} {call}\n")
    planned = json.loads(read(f"{STAGE}/{HOST}/acts")).get(call, "")
    failure = act(planned)
    if failure:
        module.fail_json(msg=failure)
    module.exit_json(changed=NAME not in ("hypervisor_info", "boot_default"), **answer(planned))


if __name__ == "__main__":
    main()
