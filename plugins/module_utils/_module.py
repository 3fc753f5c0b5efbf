# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place where these utilities import Ansible. PRIVATE to the collection."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._errors import LiveUpdateError

__all__ = ("require_root", "run_module")


def run_module(body: t.Callable[[AnsibleModule], dict[str, t.Any]], **module_arguments: t.Any) -> None:
    """Build the module, run ``body`` as root, and turn a LiveUpdateError into a failed task."""
    module = AnsibleModule(supports_check_mode=True, **module_arguments)
    try:
        require_root()
        result = body(module)
    except LiveUpdateError as err:
        module.fail_json(msg=err.message, **err.details)
    module.exit_json(**result)


def require_root() -> None:
    """Raise a clear error if this does not run as root, before the first permission error."""
    if os.geteuid() != 0:
        raise LiveUpdateError(f"the module runs as uid {os.geteuid()}, but live update needs root; set become: true on the task or play")
