# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The session with a guest's RAM and a note, which the kernel carries over a jump. On the boot path. PRIVATE to the collection."""

from __future__ import annotations

import json
import os

from .._errors import LiveUpdateError, typed
from ..host import _files, _systemd, _this_boot
from ..kernel import _luo

__all__ = ("FDNAME", "META_TOKEN", "RAM_TOKEN", "drop", "incoming", "name_of", "note", "read_note", "record_hold", "recorded_holds", "take")

FDNAME = "kvm-liveupdate"
META_TOKEN = 0
RAM_TOKEN = 1  # the first one: a guest may have several memory files


def name_of(guest_uuid: str) -> str:
    """The name of a guest's session: 36 characters, derived from its UUID, so that it can be found without a list."""
    return "kvm-" + guest_uuid.replace("-", "").lower()


def record_hold(record: dict) -> None:
    """Record durably that the guest's memory is held: ``session``, ``unit`` of the guest, ``boot_id`` (guests/_unclaimed.py)."""
    content = {"session": name_of(record["uuid"]), "unit": record["unit"], "boot_id": _this_boot.boot_id()}
    _files.write_json(_files.hold_path(record["name"]), content)


def recorded_holds() -> list[str]:
    """The names of the guests with a record of :func:`record_hold`."""
    try:
        return sorted(
            file.removesuffix(_files.HOLD_SUFFIX) for file in os.listdir(_files.GUESTS_STATE) if file.endswith(_files.HOLD_SUFFIX)
        )
    except FileNotFoundError:
        return []


def read_note(fd: int) -> dict:
    """The note in the session beside the RAM: ``hold``, ``guest``, ``uuid``, ``sizes``, ``qemu``."""
    return dict(json.loads(os.pread(fd, 1 << 16, 0)))


def incoming(journal: dict) -> int | None:
    """The incoming or outgoing session of this guest, from systemd, else from the kernel by its name; None if there is none.

    Raises if this is unknown: a guest must not start from its disks only because the search for its memory failed.
    """
    session = _systemd.listen_fds().get(FDNAME)
    if session is not None or journal.get("state") != "saved" or journal.get("boot_id") == _this_boot.boot_id():
        return session
    try:
        session = _luo.retrieve_session(journal["session"])
    except LiveUpdateError as err:
        _systemd.log(str(err))
        if not _luo.is_gone(err):
            busy = err.details.get("errno") == "EBUSY"
            remedy = (
                "this is repeated automatically"
                if busy
                else f"correct this, then run 'systemctl start {typed(journal['unit'])}' to try again"
            )
            raise LiveUpdateError(f"guest {journal['guest']}: {err}; {remedy}. Its memory is kept", again=busy) from err
        return None
    _systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={FDNAME}", (session,))  # from here on a crash loses nothing
    return session


def note(session: int | None) -> dict | None:
    """The note in a session from the previous kernel; None for any other session."""
    if session is None:
        return None
    try:
        fd = _luo.retrieve_fd(session, META_TOKEN)
    except LiveUpdateError as err:
        if err.details.get("errno") in ("EINVAL", "ENOENT"):
            return None  # outgoing, preserved for a jump that has not come; or already finished
        raise
    try:
        return read_note(fd)
    finally:
        os.close(fd)


def take(journal: dict, session: int) -> list[int]:
    """Retrieve the guest's memory files from the session, in order. They are charged to the caller's cgroup."""
    files = [_luo.retrieve_fd(session, RAM_TOKEN + index) for index in range(len(journal["sizes"]))]
    sizes = [os.fstat(fd).st_size for fd in files]
    if sizes != journal["sizes"]:
        raise LiveUpdateError(
            f"guest {journal['guest']}: its preserved memory has {sizes} bytes, not {journal['sizes']}. To start the guest from its disks,"
            f" run 'kvm-liveupdate discard {typed(journal['guest'])}', then start it"
        )
    return files


def drop(session: int | None, note: dict | None) -> None:
    """Release a session that is not needed, because the guest starts from its disks."""
    if session is None:
        return
    if note is not None:
        _luo.finish(session)
    os.close(session)
    _systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={FDNAME}")
