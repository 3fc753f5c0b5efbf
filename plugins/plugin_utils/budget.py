# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For how long the guests of a host may be paused: predicted before an update, checked after it. Pure. PRIVATE to the collection."""

from __future__ import annotations

__all__ = ("over_budget",)


def over_budget(expected: float | None, pauses: dict[str, float], limit: float) -> str:
    """What is over the limit (seconds, 0 for none), in a sentence; empty when nothing is, or nothing is known.

    Once guests were paused only that counts: ``pauses`` are the seconds by name. Before, what is ``expected``.
    """
    allowed = f"{limit:g} s are allowed (hypervisor_update_blackout_max)"
    if limit <= 0:
        return ""
    if not pauses:
        if expected is None or expected <= limit:
            return ""
        return (
            f"its guests would be paused for {expected:.1f} s, as in their last update, and {allowed}: allow more, or give the"
            " guests that cannot wait another ladder (hypervisor_update_guests)"
        )
    longest = sorted(((pause, name) for name, pause in pauses.items() if pause > limit), reverse=True)
    if not longest:
        return ""
    shown = ", ".join(f"{name} for {pause:.1f} s" for pause, name in longest[:5])
    rest = f" and {len(longest) - 5} others" if len(longest) > 5 else ""
    return f"guests were paused for too long, {allowed}: {shown}{rest}"
