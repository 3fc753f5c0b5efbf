# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the guests of a host may pause: checked before an update and after it. Pure. PRIVATE to the collection.

``limit`` is in seconds, 0 for no limit.
"""

from __future__ import annotations

__all__ = ("expected_too_long", "paused_too_long")

_SHOWN = 5


def expected_too_long(expected: float | None, limit: float) -> str:
    """Why the expected pause is too long, with the remedy. Empty if it is not, or if it is unknown."""
    if limit <= 0 or expected is None or expected <= limit:
        return ""
    return (
        f"the expected pause is {expected:.1f} s, as in the last update, and hypervisor_update_blackout_max allows {limit:g} s - raise it,"
        " or give the guests that cannot wait another ladder (hypervisor_update_guests)"
    )


def paused_too_long(pauses: dict[str, float], limit: float) -> str:
    """Which guests paused for too long. ``pauses`` are seconds by name. Empty if none did."""
    longest = sorted(((pause, name) for name, pause in pauses.items() if 0 < limit < pause), reverse=True)
    if not longest:
        return ""
    shown = ", ".join(f"{name} {pause:.1f} s" for pause, name in longest[:_SHOWN])
    rest = f" and {len(longest) - _SHOWN} more" if len(longest) > _SHOWN else ""
    return f"guests paused longer than hypervisor_update_blackout_max allows ({limit:g} s): {shown}{rest}"
