# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The places of the collection's files on a host, and how to write files atomically. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
import stat

from .._errors import LiveUpdateError

__all__ = (
    "AWAY",
    "BOOT_DEFAULT",
    "COMMAND",
    "GUESTS_RUN",
    "GUESTS_STATE",
    "HOLD_SUFFIX",
    "IMAGES",
    "IMAGE_RECORD",
    "LEASE",
    "LIBRARY",
    "LOCK",
    "MODULES",
    "OUTCOME",
    "RUN",
    "SEEN",
    "STATE",
    "TRIAL",
    "TRIAL_FIRMWARE",
    "UPDATE",
    "create",
    "digest",
    "hold_path",
    "journal_path",
    "make_directory",
    "open_ordinary",
    "read_json",
    "remove",
    "remove_all",
    "run_path",
    "state_path",
    "sync_directory",
    "write_json",
    "write_text",
)

RUN = "/run/kvm-liveupdate"
GUESTS_RUN = RUN + "/guests"
IMAGES = RUN + "/images"
IMAGE_RECORD = RUN + "/image.json"
LOCK = RUN + "/lock"
OUTCOME = RUN + "/update-outcome.json"
SEEN = RUN + "/devices-seen.json"
UNFINISHED = RUN + "/runtime-unfinished"
STATE = "/var/lib/kvm-liveupdate"
GUESTS_STATE = STATE + "/guests"
AWAY = STATE + "/away"
BOOT_DEFAULT = STATE + "/boot-default.json"
LEASE = STATE + "/lease.json"
TRIAL = STATE + "/trial.json"
TRIAL_FIRMWARE = STATE + "/trial.bin"
UPDATE = STATE + "/update.json"

HOLD_SUFFIX = ".hold"

# What systemd-modules-load.service loads in each boot (modules-load.d(5)).
MODULES = "/etc/modules-load.d/kvm-liveupdate.conf"

LIBRARY = "/usr/local/lib/kvm-liveupdate"
COMMAND = "/usr/local/sbin/kvm-liveupdate"


def read_json(path: str) -> dict:
    """The record at ``path``; empty if there is none. A damaged record is an error, and is never treated as missing."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except PermissionError as err:
        raise LiveUpdateError(
            f"record {path}: {err.strerror}; only root may read it. Run this as root, and a guest's unit without User= and DynamicUser="
        ) from err
    except (OSError, ValueError) as err:
        raise LiveUpdateError(
            f"record {path} is damaged: {err}; look at it, and remove it if its guest runs or its update is over"
        ) from err


def sync_directory(path: str) -> None:
    """Make a change in the directory of ``path`` durable."""
    handle = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: str) -> None:
    """Make a directory of the runtime and its missing parents, for root only."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            continue  # another process made it first
        sync_directory(directory)


def create(path: str, mode: int = 0o600) -> int:
    """The descriptor of a new file that replaces what is at ``path``. This does not follow a link. Close-on-exec."""
    _unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_ordinary(path: str) -> int:
    """The descriptor, for reading, of the regular file at ``path``, or where a link there leads. Close-on-exec.

    Anything else raises a ValueError and is not opened: opening a watchdog resets the host, and a pipe has only one reader.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # which opens nothing (open(2))
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise ValueError("it is not a regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # the same file, whatever is at the path now
    finally:
        os.close(place)


def digest(path: str) -> dict[str, int]:
    """The ``size`` and the ``crc32`` of a file: enough to detect that a saved state is not the one that was written."""
    import zlib  # not every process needs it

    # QEMU's user may put a link or a pipe there.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        content = file.read()
    return {"size": len(content), "crc32": zlib.crc32(content)}


def write_json(path: str, record: dict) -> None:
    """Write a record as :func:`write_text` does, readable by root only."""
    make_directory(os.path.dirname(path))
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n", 0o600)


def write_text(path: str, text: str, mode: int) -> None:
    """Write a file atomically, with this mode regardless of the umask. It is durable when this returns."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(create(part), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        _unlink(part)
        raise
    sync_directory(path)


def remove(path: str) -> bool:
    """Remove a file durably; false if there was none."""
    if not _unlink(path):
        return False
    sync_directory(path)
    return True


def remove_all(paths: list[str]) -> None:
    """Remove files of one directory durably, with one write to its disk. Missing files are no error."""
    removed = [_unlink(path) for path in paths]
    if any(removed):
        sync_directory(paths[0])


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def run_path(name: str, suffix: str = "json") -> str:
    """The path of a file about the guest that is valid for this boot only."""
    return os.path.join(GUESTS_RUN, f"{name}.{suffix}")


def journal_path(name: str) -> str:
    """The guest's durable record."""
    return os.path.join(GUESTS_STATE, f"{name}.json")


def state_path(name: str) -> str:
    """The guest's device state, which exists only between the pause and the resume."""
    return os.path.join(GUESTS_STATE, f"{name}.state")


def hold_path(name: str) -> str:
    """The durable record that the guest's RAM is held and no update has saved the guest since (guests/_unclaimed.py)."""
    return os.path.join(GUESTS_STATE, f"{name}{HOLD_SUFFIX}")
