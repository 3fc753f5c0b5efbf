# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The provider ``qemu``: guests that systemd units run through our exec wrapper. PRIVATE to the collection.

A provider is the only code that knows a VMM. ``record`` is what the wrapper wrote about the running guest.
"""

from __future__ import annotations

import os
import stat

from .. import _limits
from .._errors import LiveUpdateError, reason, typed
from ..host import _files, _processes
from ..vmm import _argv, _monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("describe", "foreign_reason", "ignore_shared_stays", "inspect", "known", "memory", "status", "survey", "warn")

LOOK_LIMIT_S = _limits.QEMU_LOOK
KEPT = ()
DAEMONS = ()
_UNREAD = {"unit": "", "uuid": "", "pid": 0, "started": 0}
_WRAP = "run it with 'kvm-liveupdate run NAME --' in a systemd unit, or as a libvirt domain"
_LARGEST = 1 << 40  # the kernel cannot describe a memfd from here on (mm/memfd_luo.c)


def known() -> list[dict]:
    """The guests that run now, as their wrappers recorded them."""
    try:
        names = sorted(os.listdir(_files.GUESTS_RUN))
    except FileNotFoundError:
        return []
    records = [_record(name.removesuffix(".json")) for name in names if name.endswith(".json")]
    return [record for record in records if record and _processes.start_time(record["pid"]) == record["started"]]


def _record(name: str) -> dict:
    """The wrapper's record of a guest. If it cannot be read, only this guest cannot be preserved."""
    path = os.path.join(_files.GUESTS_RUN, f"{name}.json")
    try:
        return _files.read_json(path)
    except LiveUpdateError as err:
        damaged = reason("record-damaged", str(err), f"restart the guest; if the guest does not run, remove {path}")
        return {"name": name, "provider": "qemu", **_UNREAD, "monitor": "", "ram": [], "argv": [], "reason": damaged}


def inspect(record: dict) -> list[dict]:
    """Why this guest cannot be preserved: reasons with code, message and remedy; none when it can."""
    from ..vmm import _argv_reasons, _changes, _reopened  # not on the boot path

    reasons = _argv_reasons.reasons(record["argv"])
    if record.get("reason"):
        known_codes = {why["code"] for why in reasons}
        reasons += [record["reason"]] * (record["reason"]["code"] not in known_codes)
        if not record.get("monitor"):
            return reasons  # else its QEMU is asked too: a plan may still shut it down
    reasons += _reopened.replaced(record["pid"], record["argv"])
    for ram in record["ram"]:
        if not _is_memory_file(record["pid"], ram["fd"], ram["size"]):
            reasons.append(reason("ram-gone", f"descriptor {ram['fd']} of its QEMU is no longer its RAM", "restart the guest"))
        if ram["size"] >= _LARGEST:
            message = f"its RAM is one memory file of {ram['size'] >> 30} GiB, and the kernel preserves less than 1024 GiB in one file"
            reasons.append(reason("ram-size", message, "give the guest less RAM"))
    try:
        with _monitor.Monitor(record["monitor"], answer_s=LOOK_LIMIT_S) as monitor:
            state = monitor.status()
            migration = monitor.query("query-migrate")
            jobs = monitor.execute("query-block-jobs")
            now = _changes.ask(monitor)
    except LiveUpdateError as err:
        return [*reasons, reason("monitor", str(err), "see the journal of its unit; if QEMU hangs, restart the guest")]
    record["state"] = state
    if state == "postmigrate":
        message = "QEMU paused it for a save or a migration (postmigrate), and can save it again only after it has run"
        remedy = "if it runs on no other host, resume it in its QEMU monitor (cont); then you can pause it again (stop)"
        reasons.append(reason("run-state", message, remedy))
    elif state not in ("running", "paused"):
        reasons.append(reason("run-state", f"its QEMU is in state {state}", "make the guest running or paused"))
    elif migration.get("status", "none") not in _monitor.OVER:
        message = f"another program migrates or saves it (migration {migration['status']})"
        remedy = "wait until that migration or save has ended, or cancel it in the QEMU monitor of the guest (migrate_cancel)"
        reasons.append(reason("run-state", message, remedy))
    blockers = migration.get("blocked-reasons", [])
    reasons += [reason("qemu-blocker", f"QEMU cannot save it: {text}", "remove the device or feature that QEMU names") for text in blockers]
    if jobs:
        remedy = "wait until the job has ended, or cancel it in the QEMU monitor of the guest (block_job_cancel)"
        reasons.append(reason("block-job", "a block job is running (backup, mirror, commit)", remedy))
    if now["ignores_shared"]:
        reasons.append(_changes.left_on(ignore_shared_stays(record)))
    codes = {why["code"] for why in reasons}
    return reasons + [why for why in _changes.differences(record["argv"], now) if why["code"] not in codes]


def survey(records: list[dict]) -> None:
    """Nothing to do: each guest has its own monitor, and no program is needed to ask it."""


def warn(record: dict) -> list[dict]:
    """Warnings: what does not survive the jump unchanged, although the guest can be preserved."""
    from ..vmm import _after_boot, _argv_reasons, _opens, _options  # not on the boot path

    peers = _opens.peers(_options.read(record["argv"])[0])
    warnings = _argv_reasons.warnings(record["argv"])
    return warnings + _after_boot.peer_warnings([{"path": peer, "what": text} for peer, text in peers.items()])


def describe(record: dict) -> dict:
    """The facts for a policy. A command line has no labels. Only :func:`inspect` asks QEMU whether the guest is paused."""
    from ..vmm import _argv_reasons  # not on the boot path

    argv = record["argv"]
    told = {"memory_mib": _argv.ram_size(argv) >> 20, "devices": _argv_reasons.devices(argv), "labels": {}, "ladder": None}
    return {**told, "paused": record.get("state") == "paused"}


def _is_memory_file(pid: int, fd: int, size: int) -> bool:
    """Whether the descriptor is a file of this size without a name. A memfd is one, also after a jump."""
    try:
        seen = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0 and seen.st_size == size


def foreign_reason(pid: int) -> dict:
    """Why a QEMU that the wrapper did not start cannot be preserved, from the kind of its largest mapping."""
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
            backing, page_kib = largest_mapping(smaps)
    except OSError:
        backing, page_kib = "", 0
    if page_kib > 4:
        message = f"its RAM is on huge pages of {page_kib} KiB ({backing}), which the kernel cannot preserve"
        return reason("ram-hugetlb", message, f"use RAM without huge pages, and {_WRAP}")
    if not backing:
        return reason("ram-anonymous", "its RAM is anonymous memory, which has no file descriptor", _WRAP)
    return reason("not-managed", f"its RAM is {backing}, but neither the wrapper nor libvirt runs it", _WRAP)


def largest_mapping(smaps: t.Iterable[str]) -> tuple[str, int]:
    """What backs the largest writable mapping (empty for anonymous memory), and its page size in KiB (proc(5), smaps). Pure."""
    largest, found, current = 0, ("", 0), False
    for line in smaps:
        fields = line.split(None, 5)
        if fields[0].endswith(":"):
            if current and fields[0] == "KernelPageSize:":
                found = (found[0], int(fields[1]))
            continue
        low, high = (int(part, 16) for part in fields[0].split("-"))
        current = high - low > largest and "w" in fields[1]
        if current:
            largest, found = high - low, (fields[5].strip() if len(fields) > 5 else "", 0)
    return found


def memory(record: dict) -> list[int]:
    """Descriptors of the guest's RAM; the caller closes them."""
    return [_processes.take_fd(record["pid"], ram["fd"]) for ram in record["ram"]]


def status(record: dict) -> str:
    """QEMU's run state."""
    with _monitor.Monitor(record["monitor"]) as monitor:
        return monitor.status()


def ignore_shared_stays(record: dict) -> str:
    """The message that QEMU still leaves the guest's RAM out of its saves, with the remedy."""
    return (
        "QEMU's migration option x-ignore-shared is still on, so a later save or migration would not contain the guest's RAM:"
        f" run 'kvm-liveupdate resume {typed(record['name'])}' on the host to switch it off"
    )
