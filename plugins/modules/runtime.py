#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime
short_description: Install or remove the host runtime
version_added: 0.2.0
description:
  - The host runtime is the part of the collection that acts on the host alone. The module installs the command C(kvm-liveupdate), its
    Python files, its systemd units, and a drop-in for each guest's unit.
  - The module does not touch running guests. A drop-in takes effect when the unit starts the next time. The role
    P(kvm.liveupdate.hypervisor_setup#role) calls the module.
  - The module removes files that an older version installed and this one does not need. It also removes the drop-ins of units that are no
    longer in O(guest_units), unless their guests run.
  - If an earlier call ended before its last step, the next call repeats its steps. If the tmpfs for the RAM of libvirt domains is not
    mounted and enabled, or does not have the size O(ram_size), the module corrects this too.
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
    description:
      - Whether the runtime is installed.
      - V(absent) is refused while guests run under the runtime, or a guest still waits to be restored.
      - V(absent) is also refused in the boot after a jump, until an ordinary reboot. The command line of its kernel contains
        C(systemd.unit=kvm-liveupdate-guests.target). A kexec with the same command line ends in rescue mode without this unit.
    type: str
    choices: [present, absent]
    default: present
  guest_units:
    description:
      - The units that run guests through C(kvm-liveupdate run), each as C(NAME.service). A name without this suffix is refused.
      - With O(state=absent) the module removes the drop-ins of all units, also of those that are not in this list.
    type: list
    elements: str
    default: []
  ram_size:
    description:
      - The maximum size of the tmpfs that holds the RAM of all libvirt domains. It is a number of bytes, a number with V(k), V(m) or V(g)
        (KiB, MiB, GiB), or a percentage of the host's RAM, for example V(80%). Any other value is refused.
      - An empty value keeps the current size. The initial size is V(95%).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Install the runtime for two guests
  kvm.liveupdate.runtime:
    guest_units: [web1.service, db1.service]

- name: Remove the runtime
  kvm.liveupdate.runtime:
    state: absent
"""

RETURN = r"""
files:
  description: The files that the module wrote or removed, or would write or remove in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/web1.service.d/40-kvm-liveupdate.conf]
"""

import contextlib
import importlib.util
import os
import py_compile
import shutil

from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, told
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal, _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _systemd, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup


def write(wanted: dict, paths: list, stale: list) -> None:
    """Write files whole and durable, prove that the command runs, and let systemd read its units again."""
    for directory in _runtime.DIRECTORIES:
        _files.make_directory(directory)
        os.chmod(directory, 0o700)
    for path in _runtime.in_order(paths):
        content, mode = wanted[path]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _files.write_text(path, content, mode)
        if path.startswith(_files.LIBRARY):
            compile_durably(path)
    remove(stale)
    _commands.run(_files.COMMAND, "status")
    _commands.run("systemctl", "daemon-reload")
    if f"{_units.FOLDER}/{_setup.RAM_MOUNT}" in wanted:
        _commands.run("systemctl", "enable", "--now", _setup.RAM_MOUNT)
    if _setup.RAM_SIZE in wanted:
        _commands.run("systemctl", "reload", _setup.RAM_MOUNT)  # the files on it stay


def undone(wanted: dict, ram_size: str) -> list:
    """What the mount of the domains' RAM lacks on this host, although its files may be there: an earlier call may have failed."""
    if f"{_units.FOLDER}/{_setup.RAM_MOUNT}" not in wanted:
        return []
    shown = _systemd.show(_setup.RAM_MOUNT, "ActiveState", "UnitFileState")
    if (shown.get("ActiveState"), shown.get("UnitFileState")) != ("active", "enabled"):
        return [f"{_setup.RAM_MOUNT}: not enabled and active"]
    return [f"{_setup.RAM_DIRECTORY}: its size is not {ram_size}"] if ram_size and not has_size(ram_size) else []


def has_size(size: str) -> bool:
    """Whether the tmpfs of the domains' RAM has this size, to 1 %: the host's RAM may change a little after the mount."""
    number = int(size.rstrip("kKmMgG%"))
    there = os.statvfs(_setup.RAM_DIRECTORY)
    if size.endswith("%"):
        wanted = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * number // 100
    else:
        wanted = number << {"k": 10, "m": 20, "g": 30}.get(size[-1].lower(), 0)
    return abs(there.f_blocks * there.f_frsize - wanted) <= max(wanted // 100, there.f_frsize)


def compile_durably(path: str) -> None:
    """Byte-compile a file of the library, durably: Python trusts compiled files, so a power cut must not leave half of one."""
    compiled = py_compile.compile(path, doraise=True)
    handle = os.open(compiled, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    _files.sync_directory(compiled)


def remove(paths: list) -> None:
    """Remove files, their compiled forms, and the directories that are empty then."""
    for path in paths:
        _files.remove(path)
        if path.endswith(".py"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(importlib.util.cache_from_source(path))
        with contextlib.suppress(OSError):  # the directory is not empty
            os.rmdir(os.path.dirname(path))


def refuse_to_hide(guests: list) -> None:
    """Refuse to mount the tmpfs over RAM files of domains: libvirt could not remove them, and their RAM would stay in use."""
    files = _setup.would_hide()
    if files:
        names = ", ".join(_setup.in_run(guests))
        remedy = f"Shut down or migrate these domains first: {names}"
        if not names:
            remedy = f"Shut down the domains that use these files, then remove the files that are left: {', '.join(files)}"
        raise LiveUpdateError(
            f"no tmpfs is mounted on {_setup.RAM_DIRECTORY}, and RAM files of domains are there. A mount would hide them, and their memory"
            f" would stay in use until the next boot. {remedy}. Then run this again"
        )


def refuse_to_erase(running: list) -> None:
    """Refuse while guests run, or wait to be restored, or the next kernel may be told to start our target: they need the files."""
    if running:
        raise LiveUpdateError(f"the host runtime is in use by the running guests {', '.join(running)}; stop these guests first")
    for why in _journal.not_back(running):
        raise LiveUpdateError(told(why))
    if _cmdline.is_in(_this_boot.current_cmdline(), _cmdline.GUESTS_FIRST):
        raise LiveUpdateError(
            f"the command line of the running kernel contains {_cmdline.GUESTS_FIRST}, because this boot followed a jump. Without the"
            " runtime, a kexec with the same command line ends in rescue mode. Do an ordinary reboot, then run this again"
        )


def erase(paths: list) -> None:
    """Remove the files."""
    if f"{_units.FOLDER}/{_setup.RAM_MOUNT}" in paths:
        _commands.run("systemctl", "disable", "--now", _setup.RAM_MOUNT)
    remove(paths)
    shutil.rmtree(_files.LIBRARY, ignore_errors=True)  # its folders are empty by now
    _commands.run("systemctl", "daemon-reload")


def manage(module):
    """Read, plan, write."""
    present = module.params["state"] == "present"
    wanted = _runtime.files(module.params["guest_units"], module.params["ram_size"])
    guests = _providers.known()
    in_use = [*guests.values(), *(saved for saved in _journal.of_guests().values() if saved.get("state") == "saved")]
    stale = _runtime.stale(wanted, [record["unit"] for record in in_use])
    if present:
        outdated = _runtime.outdated(wanted)
        paths = outdated + stale
    else:
        paths = [path for path in (*wanted, _setup.RAM_SIZE, _files.MODULES) if os.path.exists(path)] + stale
    left = ["an earlier call of this module: not finished"] if os.path.exists(_files.UNFINISHED) else []
    left += undone(wanted, module.params["ram_size"]) if present else []
    if present and f"{_units.FOLDER}/{_setup.RAM_MOUNT}" in wanted:
        refuse_to_hide(list(guests.values()))
    if paths and not present:
        refuse_to_erase(list(guests))
    if (paths or left) and not module.check_mode:
        with _lock.Lock():
            _files.write_text(_files.UNFINISHED, "", 0o600)  # the next call repeats the steps if one of them fails
            if present:
                write(wanted, outdated, stale)
            else:
                erase(paths)
            _files.remove(_files.UNFINISHED)
    before, after = ("absent or different", "present") if present else ("present", "absent")
    diff = {
        "before": "".join(f"{path}: {'not wanted' if present and path in stale else before}\n" for path in paths)
        + "".join(f"{lack}\n" for lack in left),
        "after": "".join(f"{path}: {'absent' if present and path in stale else after}\n" for path in paths),
    }
    return {"changed": bool(paths or left), "files": paths, "diff": diff}


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
