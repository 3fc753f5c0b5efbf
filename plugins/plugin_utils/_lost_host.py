# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of the modules of an update: a host that is lost makes the task fail. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as Normal

__all__ = ("ActionModule",)


class ActionModule(Normal):
    """Run the module as any other, and fail when the host does not answer: neither rescue nor always runs for an unreachable host."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        try:
            result: dict[str, t.Any] = super().run(tmp, task_vars)
        except AnsibleConnectionFailure as err:
            host = (task_vars or {}).get("inventory_hostname", "the host")
            return {"failed": True, "lost": True, "msg": f"{host} cannot be reached: {err}"}
        return result
