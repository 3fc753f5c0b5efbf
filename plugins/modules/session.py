#!/usr/bin/python
# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session
short_description: Preserve the memory files of any service across a live update
version_added: 0.2.0
description:
  - The module gives other services than guests direct access to the kernel's Live Update Orchestrator.
  - It preserves memory files (memfds) of the service's main process in a session. systemd keeps the session in the file descriptor
    store of the unit.
  - After the jump, systemd hands the session to the service at its start, under the session's name (see
    C(sd_listen_fds_with_names(3))). The service retrieves its memory from the session.
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
  name:
    description: The session's name, 1 to 38 bytes. Any other length is refused.
    type: str
    required: true
  unit:
    description:
      - The service unit that owns the memory.
      - The unit needs C(FileDescriptorStorePreserve=yes), and a C(FileDescriptorStoreMax=) with room for one more descriptor.
    type: str
    required: true
  state:
    description:
      - V(preserved) preserves O(memfds).
      - V(absent) releases a session before a jump. The memory stays with the service.
      - V(finished) ends a session after a jump. The kernel frees the memory that the service has not retrieved.
    type: str
    choices: [preserved, absent, finished]
    default: preserved
  memfds:
    description:
      - Names of the memory files, as given to C(memfd_create(2)). The token of a file is its position in this list, from 0.
      - A name that the main process of O(unit) does not have is an error. If several files have the same name, the module takes the one
        with the lowest descriptor.
      - Required with O(state=preserved).
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Preserve a cache
  kvm.liveupdate.session:
    name: cache
    unit: cache.service
    memfds: [index, pages]

- name: End the session after the service has retrieved its memory
  kvm.liveupdate.session:
    name: cache
    unit: cache.service
    state: finished
"""

RETURN = r"""
held:
  description: Whether the memory is preserved now, so that the file descriptor store of the unit contains the session.
  returned: success
  type: bool
  sample: true
"""

import os

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, typed
from ansible_collections.kvm.liveupdate.plugins.module_utils._module import run_module
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _lock
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo


def find_memfds(unit: str, names: list, links: dict) -> list:
    """The descriptors of the named memory files in a process, in the order of the names. Pure."""
    found = {}
    for fd, link in sorted(links.items()):
        if link.startswith("/memfd:"):
            found.setdefault(link[len("/memfd:") :].partition(" (deleted)")[0], fd)
    missing = [name for name in names if name not in found]
    if missing:
        raise LiveUpdateError(
            f"{unit}: its main process has no memory file named {', '.join(missing)}; use these names: {', '.join(found) or 'none'}"
        )
    return [found[name] for name in names]


def preserve(name: str, unit: str, pid: int, fds: list) -> None:
    """Create the session, preserve the files, and give the session to PID 1. A failure closes the session, which undoes everything."""
    session = _luo.create_session(name)
    try:
        for token, fd in enumerate(fds):
            taken = _processes.take_fd(pid, fd)
            try:
                _luo.preserve_fd(session, taken, token)
            finally:
                os.close(taken)
        _systemd.store_fd(unit, pid, name, session)
    finally:
        os.close(session)


def end(name: str, unit: str, pid: int, state: str) -> None:
    """Finish or release the session that PID 1 keeps."""
    holders = _processes.holders(_processes.SESSION_LINK + name)
    if not holders:
        raise LiveUpdateError(
            f"session {name} is in the file descriptor store of {unit}, but no process has it open; run"
            f" 'systemctl clean --what=fdstore {typed(unit)}' to clear the store"
        )
    session = _processes.take_fd(*holders[0])
    try:
        if _luo.is_incoming(session) != (state == "finished"):
            right = "absent" if state == "finished" else "finished"
            side = "before" if state == "finished" else "after"
            raise LiveUpdateError(f"session {name}: state {state} is not possible {side} the jump; use state {right}")
        if state == "finished":
            _luo.finish(session)
        _systemd.forget_fd(unit, pid, name)
    finally:
        os.close(session)


def manage(module):
    """Read, plan, write."""
    name, unit, state = module.params["name"], module.params["unit"], module.params["state"]
    if not 0 < len(name.encode()) <= _luo.NAME_MAX:
        raise LiveUpdateError(f"session name {name!r} has {len(name.encode())} bytes; use 1 to {_luo.NAME_MAX} bytes, the limit of systemd")
    pid = int(_systemd.show(unit, "MainPID").get("MainPID") or 0)
    before = name in _systemd.fdstore(unit)
    after = state == "preserved"
    if after and not before:
        if not pid:
            raise LiveUpdateError(f"{unit} has no main process, so there is no memory to preserve; start {unit}")
        fds = find_memfds(unit, module.params["memfds"], _processes.fd_links(pid))
    if before != after and not module.check_mode:
        with _lock.Lock():
            if after:
                preserve(name, unit, pid, fds)
            else:
                end(name, unit, pid, state)
    return {"changed": before != after, "held": after, "diff": {"before": {"held": before}, "after": {"held": after}}}


def main():
    """Spec and run."""
    run_module(
        manage,
        argument_spec={
            "name": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["preserved", "absent", "finished"], "default": "preserved"},
            "memfds": {"type": "list", "elements": "str"},
        },
        required_if=[("state", "preserved", ("memfds",))],
    )


if __name__ == "__main__":
    main()
