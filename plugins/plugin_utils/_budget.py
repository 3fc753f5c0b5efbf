# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the guests of a host may pause, and what a full check of their memory adds. Pure. PRIVATE to the collection.

``limit`` is in seconds, 0 for no limit.
"""

from __future__ import annotations

import typing as t

__all__ = ("check_seconds", "expected_too_long", "paused_too_long")

_SHOWN = 5


def check_seconds(sizes_mib: dict[str, list[int]], speed: dict[str, t.Any]) -> float:
    """How long guests pause for a full check of their memory, before the jump and after it together. ``sizes_mib`` are by provider.

    ``speed`` is what hypervisor_info returns as memory_speed; if it is empty, there is no full check. Before the jump the guests of one
    provider are read after those of the other, and after the jump all are read at the same time.
    """
    if not speed:
        return 0.0
    groups = [*sizes_mib.values(), [size for sizes in sizes_mib.values() for size in sizes]]
    return sum(_together(sizes, speed["at_once"]) for sizes in groups) * (1 << 20) / float(speed["bytes_per_second"])


def _together(sizes: list[int], at_once: int) -> float:
    """How much is read one after the other if guests of these sizes are read together: the largest, or more if processors are busy."""
    return max(*sizes, sum(sizes) / min(len(sizes), at_once)) if sizes else 0.0


def expected_too_long(expected: float | None, limit: float, check: float = 0.0) -> str:
    """Why the expected pause is too long, with the remedy. Empty if it is not, or if it is unknown.

    ``check`` are the seconds that a full check of the memory takes; ``expected`` includes them. They count also if nothing else is known.
    """
    least = check if expected is None else expected
    if limit <= 0 or least <= limit:
        return ""
    remedy = "raise it, or give the guests that cannot wait another ladder (hypervisor_update_guests)"
    if not check:
        said = f"expected pause: {least:.1f} s (as in the last update)"
    elif expected is None:
        said = f"the full check of the memory alone takes about {check:.1f} s of the pause"
    else:
        said = f"expected pause: {least:.1f} s (as in the last update, with about {check:.1f} s for the full check of the memory)"
    if check:
        remedy = f"set hypervisor_update_verify_memory to sample, {remedy}"
    return f"{said}. hypervisor_update_blackout_max allows {limit:g} s - {remedy}"


def paused_too_long(pauses: dict[str, float], limit: float) -> str:
    """Which guests paused for too long. ``pauses`` are seconds by name. Empty if none did."""
    longest = sorted(((pause, name) for name, pause in pauses.items() if 0 < limit < pause), reverse=True)
    if not longest:
        return ""
    shown = ", ".join(f"{name} {pause:.1f} s" for pause, name in longest[:_SHOWN])
    rest = f" and {len(longest) - _SHOWN} more" if len(longest) > _SHOWN else ""
    return f"guests paused longer than hypervisor_update_blackout_max allows ({limit:g} s): {shown}{rest}"
