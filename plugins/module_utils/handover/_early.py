# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom a boot starts first, and whom it does not wait for. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os

from .. import _limits
from ..host import _files, _systemd, _units
from . import _journal

__all__ = ("BASE", "LIMIT_S", "POLL_S", "late", "link", "not_early", "settled", "start_early")

# What the first target has beside the guests (_texts.py).
BASE = ("systemd-journald.socket", "systemd-modules-load.service", "systemd-remount-fs.service")
LIMIT_S = _limits.BOOT_WAITS
POLL_S = 0.1


def start_early(unit: str, wanted: bool, ahead: bool = False) -> None:
    """Have the guest's unit start at the beginning of the next boot, or no longer; ``ahead``: of the rest of a boot of guests first.

    The guest runs now, so it is to run after the jump whether or not its unit is enabled for an ordinary boot.
    """
    link(f"{_units.FOLDER}/sysinit.target.wants/{unit}", wanted)
    link(f"{_units.FOLDER}/{_units.TARGET}.wants/{unit}", wanted and ahead)


def not_early(unit: str) -> None:
    """As :func:`start_early` with ``wanted`` false, in passing: a root file system that is read-only is no matter."""
    try:
        start_early(unit, False)
    except OSError as err:
        _systemd.log(f"{unit} is started early by the next boot too: {err}")


def link(path: str, wanted: bool) -> None:
    """Have a target want a unit, or no longer."""
    if not wanted:
        _files.remove(path)
    elif not os.path.islink(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../{os.path.basename(path)}", path)  # only the link's name counts
        _files.sync_directory(path)


def late(name: str) -> None:
    """Note that the rest of the boot need not wait for this guest: it waits for that itself, or does not come back.

    Never raises: what the guest itself needs goes on, and the rest of the boot starts at the limit.
    """
    try:
        _files.make_directory(_files.GUESTS_RUN)
        os.close(os.open(_files.run_path(name, "late"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as err:
        _systemd.log(f"{name}: the rest of the boot waits for it for {LIMIT_S:g} s at most: {err}")


def settled(name: str) -> bool:
    """Whether the guest runs again, is late, or was not saved: whoever took over the command line for another boot waits for nobody."""
    return os.path.exists(_files.run_path(name, "late")) or _journal.of_guest(name).get("state") != "saved"
