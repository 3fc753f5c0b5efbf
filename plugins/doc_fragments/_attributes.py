# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Attributes that the modules share. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """The promises of this collection's modules."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what a real run would, without changing the host.
  diff_mode:
    description: Returns details on what has changed, or would change in C(check_mode), with C(--diff).
  idempotent:
    description: A second run with the same options changes nothing.
  platform:
    description: Hosts this can be run on.
    support: full
    platforms: linux
"""
