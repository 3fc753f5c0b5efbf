# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documentation of modules that have an action plugin. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """The attribute that says so."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action:
    description:
      - An action plugin on the controller does a part of the work. If the host does not answer, the task fails. Ansible does not report the
        host as unreachable, so a C(rescue) section can act.
    support: full
"""
