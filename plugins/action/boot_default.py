# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.boot_default: it names the run, and if the host is lost, the task fails for a rescue block."""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _lost_host, _run

__all__ = ("ActionModule",)


class ActionModule(_lost_host.ActionModule):
    """The module, with the run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        given = {name: value for name, value in self._task.args.items() if value is not None}
        self._task.args = {"run": _run.this_run(), **given}
        return super().run(tmp, task_vars)
