#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime
short_description: Install the host side of live updates
version_added: 0.1.0
description:
  - Installs the command C(kvm-liveupdate), its Python files, its systemd units, and a drop-in for each guest's unit.
  - The role P(kvm.liveupdate.hypervisor_setup#role) calls it. Running guests are not touched; the fd store of a guest's unit is there
    from the unit's next start on.
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
    description: Whether the runtime is to be installed or removed. It is not removed while guests run under it.
    type: str
    choices: [present, absent]
    default: present
  guest_units:
    description: The units that run guests through C(kvm-liveupdate run).
    type: list
    elements: str
    default: []
  ram_size:
    description:
      - How large the RAM of all libvirt domains may become together, on the tmpfs that holds it, as a size of tmpfs(5).
      - Empty leaves what is set, which is V(95%) of the host's RAM unless this was ever given.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Install the runtime for two guests
  kvm.liveupdate.runtime:
    guest_units: [web1.service, db1.service]
"""

RETURN = r"""
files:
  description: The files that were written or removed, or would be.
  returned: success
  type: list
  elements: str
"""

import compileall
import os
import shutil

from ansible_collections.kvm.liveupdate.plugins.module_utils import _guests, _lock, _runtime, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module


def write(wanted: dict, paths: list, old: list) -> None:
    """Write files whole or not at all, remove old ones, byte-compile, prove that the command runs, and let systemd read its units again."""
    for directory in _runtime.DIRECTORIES:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    for path in paths:
        content, mode = wanted[path]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(part, mode)
        os.replace(part, path)
    for path in old:
        os.unlink(path)
    compileall.compile_dir(_runtime.LIBRARY, quiet=1)
    _systemd.run(_runtime.COMMAND, "status")
    _systemd.run("systemctl", "daemon-reload")
    if f"{_runtime.UNITS}/{_runtime.RAM_MOUNT}" in paths:
        _systemd.run("systemctl", "enable", "--now", _runtime.RAM_MOUNT)
    if _runtime.RAM_SIZE in paths:
        _systemd.run("systemctl", "reload", _runtime.RAM_MOUNT)  # what it holds stays


def refuse_to_erase(running: list) -> None:
    """Guests that run need what would be removed."""
    if running:
        raise LiveUpdateError(f"the runtime is in use by the guests {', '.join(running)}; stop them first")


def erase(paths: list) -> None:
    """Remove the files."""
    if f"{_runtime.UNITS}/{_runtime.RAM_MOUNT}" in paths:
        _systemd.run("systemctl", "disable", "--now", _runtime.RAM_MOUNT)
    for path in paths:
        os.unlink(path)
    shutil.rmtree(_runtime.LIBRARY, ignore_errors=True)  # its folders are empty by now
    _systemd.run("systemctl", "daemon-reload")


def manage(module):
    """Read, plan, write."""
    present = module.params["state"] == "present"
    wanted = _runtime.files(module.params["guest_units"], module.params["ram_size"])
    paths = _runtime.outdated(wanted) if present else [path for path in {**wanted, _runtime.RAM_SIZE: ""} if os.path.exists(path)]
    old = _runtime.left_over(wanted if present else [path for path in wanted if not path.startswith(_runtime.LIBRARY)])
    removed = old if present else sorted({*paths, *old})
    written = paths if present else []
    if removed and not present:
        refuse_to_erase(list(_guests.known()))
    if (written or removed) and not module.check_mode:
        with _lock.Lock():
            if present:
                write(wanted, written, removed)
            else:
                erase(removed)
    before = [*(f"{path}: absent or different\n" for path in written), *(f"{path}: present\n" for path in removed)]
    after = [*(f"{path}: present\n" for path in written), *(f"{path}: absent\n" for path in removed)]
    return {
        "changed": bool(written or removed),
        "files": [*written, *removed],
        "diff": {"before": "".join(before), "after": "".join(after)},
    }


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "guest_units": {"type": "list", "elements": "str", "default": []},
            "ram_size": {"type": "str", "default": ""},
        },
    )


if __name__ == "__main__":
    main()
