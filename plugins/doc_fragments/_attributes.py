# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documentation of attributes that all modules share. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """What all modules of this collection support."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what a real run returns, without changing the host.
  diff_mode:
    description: With C(--diff), returns what changed, or what would change in C(check_mode).
  idempotent:
    description: A second run with the same options changes nothing.
  platform:
    description: The operating systems that the module supports.
    support: full
    platforms: linux
"""
