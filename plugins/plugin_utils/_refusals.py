# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles refuse apart from the plan: a host, a kernel, a guest that came back without its memory. Pure. PRIVATE to the collection.

Each function returns sentences, none if nothing is refused.
"""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import told
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _proof

__all__ = ("against_host", "against_kernel", "without_memory")

# Reasons of hypervisor_info that say nothing about the host itself.
_ABOUT_GUESTS = {"memory-limit", "memory-wrong", "not-back"}
# Reasons that the role hypervisor_setup ends. In check mode it changes nothing, so they are still there.
_ENDED_BY_SETUP = {"runtime", "cmdline"}


def against_host(host: dict[str, t.Any], check_mode: bool = False) -> list[str]:
    """Why a host cannot be updated live after its setup. ``host`` is what hypervisor_info returned."""
    left_aside = _ABOUT_GUESTS | (_ENDED_BY_SETUP if check_mode else set())
    return [told(reason) for reason in host["reasons"] if reason["code"] not in left_aside]


def against_kernel(host: dict[str, t.Any], accept_unknown: t.Sequence[str] = (), initrd_to_build: bool = False) -> list[str]:
    """Why the new kernel cannot take over. ``host`` is what hypervisor_info returned for it; it has no proof for the kernel that runs.

    ``accept_unknown`` are the pairs of kernels that need no proof. ``initrd_to_build``: check mode did not build the initial RAM disk.
    """
    if not host.get("proof"):
        return []
    reasons = _proof.objections(host["proof"], list(accept_unknown))
    return [told(reason) for reason in reasons if not (initrd_to_build and reason["code"] == "initrd-missing")]


def without_memory(guests: t.Sequence[dict[str, t.Any]], update_id: str) -> list[str]:
    """The guests that run, but that this update did not restore. ``guests`` is what the module guest returned."""
    found = []
    for guest in guests:
        last = guest.get("last_update") or {}
        if last.get("state") != "restored" or last.get("update_id") != update_id:
            found.append(f"guest {guest['name']} runs without its memory: {last.get('why') or 'this update did not restore it'}")
    return found
