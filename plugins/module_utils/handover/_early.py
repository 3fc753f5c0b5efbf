# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests a boot starts first, and for which it does not wait. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import os

from .. import _limits
from ..host import _files, _systemd, _units
from . import _journal

__all__ = ("BASE", "LIMIT_S", "POLL_S", "late", "link", "not_early", "settled", "start_early")

# What the first target starts besides the guests (_unit_files.py).
BASE = ("systemd-journald.socket", "systemd-modules-load.service", "systemd-remount-fs.service")
LIMIT_S = _limits.BOOT_WAITS
POLL_S = 0.1
_ROOT_OF_PID_1 = "/proc/1/root"


def start_early(unit: str, wanted: bool, ahead: bool = False) -> None:
    """Make the guest's unit start at the beginning of the next boot, or undo that. ``ahead``: also before the rest of the boot.

    The guest runs now, so it must run after the jump, even if its unit is not enabled for an ordinary boot.
    """
    early, first = _links(unit)
    link(early, wanted)
    link(first, wanted and ahead)


def not_early(unit: str) -> None:
    """As :func:`start_early` with ``wanted`` false, but an error does not matter, such as a read-only root file system.

    For the process of a unit with ProtectSystem= the links are read-only, but not on the path through PID 1 (proc(5), root).
    """
    try:
        try:
            start_early(unit, False)
        except OSError:
            for path in _links(unit):
                link(_ROOT_OF_PID_1 + path, False)
    except OSError as err:
        _systemd.log(f"the early start of {unit} cannot be undone, so the next boot starts it early too: {err}")


def _links(unit: str) -> tuple[str, str]:
    return f"{_units.FOLDER}/sysinit.target.wants/{unit}", f"{_units.FOLDER}/{_units.TARGET}.wants/{unit}"


def link(path: str, wanted: bool) -> None:
    """Make a target want a unit, or undo that."""
    if not wanted:
        _files.remove(path)
    elif not os.path.islink(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../{os.path.basename(path)}", path)  # only the link's name counts
        _files.sync_directory(path)


def late(name: str) -> None:
    """Note that the rest of the boot need not wait for this guest, because the guest waits for the boot or cannot be restored.

    Never raises: the restore continues, and the rest of the boot starts at its limit.
    """
    try:
        _files.make_directory(_files.GUESTS_RUN)
        os.close(os.open(_files.run_path(name, "late"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as err:
        _systemd.log(f"{name}: the rest of the boot waits up to {LIMIT_S:g} s for this guest, because its mark cannot be written: {err}")


def settled(name: str) -> bool:
    """Whether the boot need not wait for the guest: it runs again, is late, or was not saved (another boot reuses the command line)."""
    return os.path.exists(_files.run_path(name, "late")) or _journal.of_guest(name).get("state") != "saved"
