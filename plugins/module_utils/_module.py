# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place where these utilities import Ansible. PRIVATE to the collection."""

from __future__ import annotations

import os
import sys
import typing as t

from ansible.module_utils import basic
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common import respawn

from ._errors import LiveUpdateError

__all__ = ("require_root", "run_module")

# A respawn passes the arguments of the module through a pipe, which takes 64 KiB, and waits for ever if they are longer.
_MOST_ARGUMENTS = 48_000


def run_module(body: t.Callable[[AnsibleModule], dict[str, t.Any]], **module_arguments: t.Any) -> None:
    """Build the module, run ``body`` as root, and turn a LiveUpdateError into a failed task."""
    module = AnsibleModule(supports_check_mode=True, **module_arguments)
    try:
        _use_utf8()
        require_root()
        result = body(module)
    except LiveUpdateError as err:
        module.fail_json(**_told({"msg": err.message, **err.details}))
    module.exit_json(**_told(result))


def _told(value: t.Any) -> t.Any:
    """The same without bytes that are no UTF-8, which a path or a command line may have: Ansible would refuse the whole answer."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_told(key): _told(inner) for key, inner in value.items()}
    return [_told(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _use_utf8() -> None:
    """Run the module again in an interpreter whose paths are UTF-8, if they are not: the locale of the login decides.

    The paths in definitions and the names of guests are UTF-8 whatever the locale is. In another encoding they would be other files. An
    interpreter cannot change the encoding of paths once it has started (PEP 540).
    """
    if sys.getfilesystemencoding() == "utf-8" or respawn.has_respawned():
        return
    size = len(basic._ANSIBLE_ARGS)
    if size > _MOST_ARGUMENTS:
        raise LiveUpdateError(
            f"the locale of the login on this host is not UTF-8, and the arguments of the module have {size} bytes, too many to run it"
            f" again with UTF-8 (at most {_MOST_ARGUMENTS}); set environment: {{PYTHONUTF8: '1'}} on the task or play"
        )
    os.environ["PYTHONUTF8"] = "1"
    respawn.respawn_module(sys.executable)


def require_root() -> None:
    """Raise a clear error if this does not run as root, before the first permission error."""
    if os.geteuid() != 0:
        raise LiveUpdateError(f"the module runs as uid {os.geteuid()}, but live update needs root; set become: true on the task or play")
