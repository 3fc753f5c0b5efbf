# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kvm.liveupdate.trial: if the host is lost, the task fails, so that a rescue block runs."""

from __future__ import annotations

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._lost_host import ActionModule

__all__ = ("ActionModule",)
