# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Record when each device comes back in the boot after the jump of a trial. PRIVATE to the collection.

The kernel does not keep when a link came up, and each driver's message about it is different. So a unit looks again and again.
"""

from __future__ import annotations

import os
import time

from .. import _limits
from ..host import _devices, _files, _this_boot

__all__ = ("kept", "watch")

LIMIT_S = _limits.TRIAL_WATCH
POLL_S = 0.5


def watch() -> None:
    """Look until the trial is over, or until the limit. In the boot in which the trial began there is nothing to watch."""
    until = time.monotonic() + LIMIT_S
    boot_id, trial = _this_boot.boot_id(), _files.read_json(_files.TRIAL)
    if not trial or trial.get("boot_id") == boot_id:
        return
    found: dict = {}
    while time.monotonic() < until and os.path.exists(_files.TRIAL):
        new = added(found, _devices.seen(), _since_the_start())
        if new != found:
            found = new
            _files.write_json(_files.SEEN, {**found, "boot_id": boot_id})
        time.sleep(POLL_S)


def added(found: dict, there: set[str], now: float) -> dict:
    """What was found so far with what is there ``now``: ``from``, the first look, and ``seen``, when each was first there. Pure."""
    seen = found.get("seen", {})
    new = {key: now for key in sorted(there) if key not in seen}
    return {"from": found.get("from", now), "seen": {**seen, **new}}


def kept(boot_id: str) -> dict:
    """What this boot's watch has recorded; empty for none."""
    found = _files.read_json(_files.SEEN)
    return found if found.get("boot_id") == boot_id else {}


def _since_the_start() -> float:
    """Seconds since the start of the kernel (clock_gettime(2), CLOCK_MONOTONIC), to 0.01."""
    return round(time.monotonic(), 2)
