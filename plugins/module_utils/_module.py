# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place where this collection's utilities meet Ansible. PRIVATE to the collection."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._errors import LiveUpdateError

__all__ = ("require_root", "run_module")


def run_module(body: t.Callable[[AnsibleModule], dict[str, t.Any]], **module_arguments: t.Any) -> None:
    """Build the module, run ``body`` as root, and turn the collection's one error class into a failed task."""
    module = AnsibleModule(supports_check_mode=True, **module_arguments)
    try:
        require_root()
        result = body(module)
    except LiveUpdateError as err:
        module.fail_json(msg=err.message, **err.details)
    module.exit_json(**result)


def require_root() -> None:
    """Everything here needs root; say so before the first permission error does."""
    if os.geteuid() != 0:
        raise LiveUpdateError(f"running as uid {os.geteuid()}: live update needs root; set become: true on the task or play")
