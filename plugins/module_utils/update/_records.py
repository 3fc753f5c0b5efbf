# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The records of all updates of this host: one JSON object a line. PRIVATE to the collection.

The controller makes a record (plugin_utils/_record.py). This adds what only the host knows.
"""

from __future__ import annotations

import json
import os
import stat

from ..host import _files
from ..kernel import _running

__all__ = ("UPDATES", "add", "completed", "crashes", "known", "read")

UPDATES = _files.STATE + "/updates.jsonl"
# Where the kernel shows what it wrote when it crashed, and where systemd-pstore.service moves that (systemd-pstore.service(8)).
_PSTORE = ("sys/fs/pstore", "var/lib/systemd/pstore")
# A record must stay small. The end of a log says most.
_FILES = 8
_TAIL = 2000
_IMAGE = ("path", "sha256", "signed")


def read(path: str) -> str:
    """The file with the records; empty if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def known(text: str) -> list[dict]:
    """The records of a file, the oldest first. A damaged line is none. Pure."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def add(path: str, text: str, record: dict) -> None:
    """Write the file ``text`` with one more record, durably."""
    _files.make_directory(os.path.dirname(path))
    end = "" if not text or text.endswith("\n") else "\n"
    _files.write_text(path, f"{text}{end}{json.dumps(record)}\n", 0o600)


def completed(record: dict, earlier: list[dict], crash_since: float | None, root: str = "/") -> dict:
    """The record with the image of the old kernel, and what the kernel left of a crash since then (None: there was no crash)."""
    added: dict = {}
    if record.get("image_before"):
        added["image_before"] = {**record["image_before"], **_old_image(record, earlier, root)}
    if crash_since is not None:
        added["pstore"] = crashes(crash_since, root)
    return {**record, **added}


def _old_image(record: dict, earlier: list[dict], root: str) -> dict:
    """The image that the old kernel was started from, as far as that is known.

    If a jump began the boot before this update, its record says so, whatever is in the file now. Otherwise the file counts if it has the
    same release and version.
    """
    kernel = record["image_before"]
    for one in reversed(earlier):
        image, cold = one.get("image") or {}, "pstore" in one
        same_boot = one.get("boot_id_after") == record.get("boot_id_before")
        if same_boot and not cold and image.get("release") == kernel.get("release"):
            return image
    found = _running.image_of(kernel, root)
    return {name: found[name] for name in _IMAGE if name in found}


def crashes(since: float, root: str = "/") -> list[dict]:
    """The files in persistent storage that are not older than this, the newest first: ``file`` and ``tail``, its last characters.

    A file that cannot be read has no tail.
    """
    found = []
    for folder in _PSTORE:
        for place, _folders, names in os.walk(os.path.join(root, folder)):
            for path in (os.path.join(place, name) for name in names):
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_mtime >= since:
                    found.append((status.st_mtime, path))
    return [{"file": path, "tail": _tail(path)} for _moment, path in sorted(found, reverse=True)[:_FILES]]


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
