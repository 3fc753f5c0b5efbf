# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documentation of the option that names a run. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """The option ``run``."""

    DOCUMENTATION = r"""
options:
  run:
    description:
      - The identifier of the run that calls the module. Leases name it, see M(kvm.liveupdate.update_lease).
      - By default it identifies the process of C(ansible-playbook).
    type: str
"""
