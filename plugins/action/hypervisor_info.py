# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.hypervisor_info: if the host is lost, the task fails, so that a rescue block runs."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _lost_host, _run

__all__ = ("ActionModule",)


class ActionModule(_lost_host.ActionModule):
    """The module, with what only the controller knows: when it ran it, and whether the run that has the lease still exists."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        begun = time.time()
        result = super().run(tmp, task_vars)
        if lease := result.get("lease"):
            result["lease"] = {**lease, "own": lease["run"] == _run.this_run(), "ended": _run.ended(lease["run"])}
        return {**result, "examined_at": begun}
