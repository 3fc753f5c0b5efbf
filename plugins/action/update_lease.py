# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.update_lease: it names the run."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _lost_host, _run

__all__ = ("ActionModule",)


class ActionModule(_lost_host.ActionModule):
    """The module, with the run and who started it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        given = {name: value for name, value in self._task.args.items() if value is not None}
        self._task.args = {"run": _run.this_run(), "by": _run.by(task_vars or {}, os.environ), **given}
        return super().run(tmp, task_vars)
