# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The provider ``qemu``: guests that systemd units run through our exec wrapper. PRIVATE to the collection.

A provider is the only code that knows a VMM. ``record`` is what the wrapper wrote about the running guest.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from . import _limits, _paths, _processes
from ._errors import LiveUpdateError
from ._qmp import Qmp
from .vmm import _argv

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import on the boot path

__all__ = (
    "describe",
    "end_rehearsal",
    "foreign_reason",
    "go_on",
    "ignore_shared_stays",
    "inspect",
    "known",
    "load",
    "memory",
    "rehearse",
    "resume",
    "save",
    "status",
    "still_saved",
    "survey",
    "warn",
    "write_state",
)

LOOK_LIMIT_S = _limits.QEMU_LOOK
START_LIMIT_S = _limits.QEMU_START
SAVE_LIMIT_S = _limits.QEMU_SAVE
LOAD_LIMIT_S = _limits.QEMU_LOAD
GO_ON_LIMIT_S = _limits.DISK_LOCKS
UNDO_LIMIT_S = _limits.UNDO
SETTLE_LIMIT_S = _limits.QEMU_SETTLE
SAVES_SLOWLY = False
KEPT = ()
DAEMONS = ()
_STANDS = ("paused", "postmigrate", "finish-migrate")
_UNREAD = {"unit": "", "uuid": "", "pid": 0, "started": 0}
_LARGEST = 1 << 40  # the kernel cannot describe a memfd from here on (mm/memfd_luo.c)


def _reason(code: str, message: str, remedy: str) -> dict:
    return {"code": code, "message": message, "remedy": remedy}


def known() -> list[dict]:
    """The guests that run now, as their wrappers recorded them."""
    try:
        names = sorted(os.listdir(_paths.GUESTS_RUN))
    except FileNotFoundError:
        return []
    records = [_record(name.removesuffix(".json")) for name in names if name.endswith(".json")]
    return [record for record in records if record and _processes.start_time(record["pid"]) == record["started"]]


def _record(name: str) -> dict:
    """What the wrapper wrote about a guest. One that cannot be read is a guest that cannot be preserved, and nothing about the others."""
    path = os.path.join(_paths.GUESTS_RUN, f"{name}.json")
    try:
        return _paths.read_json(path)
    except LiveUpdateError as err:
        reason = _reason("record-damaged", str(err), f"restart the guest; if it does not run, remove {path}")
        return {"name": name, "provider": "qemu", **_UNREAD, "monitor": "", "ram": [], "argv": [], "reason": reason}


def inspect(record: dict) -> list[dict]:
    """Why this guest cannot be preserved: reasons with code, message and remedy; none when it can."""
    from .vmm import _files, _now  # not on the boot path

    reasons = _argv.reasons(record["argv"])
    if record.get("reason"):
        known_codes = {why["code"] for why in reasons}
        reasons += [record["reason"]] * (record["reason"]["code"] not in known_codes)
        if not record.get("monitor"):
            return reasons  # else its QEMU is asked all the same: a plan may still shut it down
    reasons += _files.replaced(record["pid"], record["argv"])
    for ram in record["ram"]:
        if not _is_memory_file(record["pid"], ram["fd"], ram["size"]):
            reasons.append(_reason("ram-gone", f"descriptor {ram['fd']} of QEMU is not its RAM any more", "restart the guest"))
        if ram["size"] >= _LARGEST:
            message = f"its RAM is one memory file of {ram['size'] >> 30} GiB; the kernel takes less than 1024 GiB"
            reasons.append(_reason("ram-size", message, "give it less"))
    try:
        with Qmp(record["monitor"], answer_s=LOOK_LIMIT_S) as monitor:
            state = monitor.status()
            blockers = monitor.query("query-migrate").get("blocked-reasons", [])
            jobs = monitor.execute("query-block-jobs")
            now = _now.ask(monitor)
    except LiveUpdateError as err:
        return [*reasons, _reason("monitor", str(err), "see the journal of its unit; restart the guest if QEMU hangs")]
    if state not in ("running", "paused"):
        reasons.append(_reason("run-state", f"QEMU is in state {state}", "bring the guest to running or paused first"))
    reasons += [_reason("qemu-blocker", f"QEMU says: {text}", "remove the device or feature that it names") for text in blockers]
    if jobs:
        reasons.append(_reason("block-job", "a block job is running (backup, mirror, commit)", "let it finish, or cancel it"))
    if now["ignores_shared"]:
        reasons.append(_now.left_on(ignore_shared_stays(record)))
    codes = {why["code"] for why in reasons}
    return reasons + [why for why in _now.differences(record["argv"], now) if why["code"] not in codes]


def survey(records: list[dict]) -> None:
    """Nothing to ask at once: each guest has a monitor of its own, and no program is started to ask it."""


def warn(record: dict) -> list[dict]:
    """What does not come over as it was, though the guest can be preserved."""
    from . import _libvirt_needs  # not on the boot path
    from .vmm import _opens, _options

    peers = _opens.peers(_options.read(record["argv"])[0])
    return _argv.warnings(record["argv"]) + _libvirt_needs.peer_warnings([{"path": peer, "what": text} for peer, text in peers.items()])


def describe(record: dict) -> dict:
    """What a policy may tell guests apart by; a command line has no labels."""
    argv = record["argv"]
    return {"memory_mib": _argv.ram_size(argv) >> 20, "devices": _argv.devices(argv), "labels": {}, "ladder": None}


def _is_memory_file(pid: int, fd: int, size: int) -> bool:
    """Whether the descriptor is a file of that size without a name, as a memfd is, also one that came over a jump."""
    try:
        seen = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0 and seen.st_size == size


def foreign_reason(pid: int) -> dict:
    """Why a QEMU that our wrapper did not start cannot be preserved: what backs its largest mapping."""
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
            backing, page_kib = largest_mapping(smaps)
    except OSError:
        backing, page_kib = "", 0
    if page_kib > 4:
        message = f"its RAM is on huge pages of {page_kib} KiB ({backing}), which the kernel cannot preserve"
        return _reason("ram-hugetlb", message, "run it through the wrapper, without them")
    if not backing:
        return _reason("ram-anonymous", "its RAM is anonymous memory, which no descriptor names", "run it through the wrapper")
    return _reason("not-managed", f"its RAM is {backing}, but no monitor is known for it", "run it through the wrapper")


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
    with Qmp(record["monitor"]) as monitor:
        return monitor.status()


def save(record: dict, path: str, running: bool) -> dict:  # pylint: disable=unused-argument  # QEMU's state says it
    """Pause the guest and write its device state (not its RAM) to ``path``, durably; it stays paused, also on a failure.

    Returns the ``times`` when it was ``paused`` and ``saved``, in seconds since the epoch, and what a restore needs to know.
    """
    from . import _tcp  # not on the boot path
    from .vmm import _block, _opens, _options

    interfaces, paths = _processes.interfaces(record["pid"]), _opens.needed(record["pid"], record["argv"])
    devices = {path: _block.identity(path) for path in _opens.devices(record["pid"], record["argv"])}
    peers = _opens.peers(_options.read(record["argv"])[0])
    ports = sorted({_tcp.port_of(peer) for peer in peers if _tcp.is_here(peer)})
    try:
        with Qmp(record["monitor"]) as monitor:
            paused = write_state(monitor, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        digest = _paths.digest(path)
    except (LiveUpdateError, OSError) as err:
        raise LiveUpdateError(f"guest {record['name']}: save: {err}") from err
    times = {"paused": paused, "saved": time.time()}
    needs = {"interfaces": interfaces, "paths": paths, "ports": ports, "devices": devices}
    return {"times": times, "argv": record["argv"], **needs, "digest": digest}


def write_state(monitor: Qmp, path: str) -> float:
    """Pause the guest and write its state without its RAM; returns when it was paused.

    QEMU writes into the file that it finds, and this one only root may read: a state has what the guest's processors had.
    """
    os.close(_paths.create(path))
    monitor.execute("stop")
    paused = time.time()
    monitor.ignore_shared(True)
    monitor.execute("migrate", uri=f"file:{path}")
    monitor.wait_migration(SAVE_LIMIT_S)
    return paused


def still_saved(records: list[dict]) -> list[str]:
    """Which of these guests do not stand still as :func:`save` left them. One that went on and was paused again is only "paused"."""
    from concurrent.futures import ThreadPoolExecutor  # not on the boot path

    with ThreadPoolExecutor(max_workers=max(1, len(records))) as pool:
        return [problem for problem in pool.map(_saved_problem, records) if problem]


def _saved_problem(record: dict) -> str:
    try:
        with Qmp(record["monitor"]) as monitor:
            limit = time.monotonic() + SETTLE_LIMIT_S
            while monitor.status() == "finish-migrate" and time.monotonic() < limit:
                time.sleep(0.005)  # what is left to do once the state is written
            state = monitor.status()
    except LiveUpdateError as err:
        return f"guest {record['name']}: whether it still stands still is not known: {err}; run the update again"
    if state == "postmigrate":
        return ""
    return (
        f"guest {record['name']} was saved and is {state} now: somebody else let it go on; keep others away from it, and run the update"
        " again"
    )


def resume(record: dict, running: bool) -> None:
    """Undo :func:`save`: the guest runs on, or stays paused, in the QEMU that it was saved from.

    A guest that is given up stays paused, so this is repeated for UNDO_LIMIT_S. An error has the detail ``ended`` when QEMU has ended.
    """
    until = time.monotonic() + UNDO_LIMIT_S
    whole = False  # later saves have its RAM again
    while True:
        problems: list[str] = []
        state = ""
        try:
            with Qmp(record["monitor"]) as monitor:
                if monitor.status() != "running":  # a save that was cut off may be under way: QEMU refuses the following meanwhile
                    _tried(problems, monitor.end_migration, SETTLE_LIMIT_S)
                whole = whole or _tried(problems, monitor.ignore_shared, False)
                if running and monitor.status() in ("paused", "postmigrate"):
                    _tried(problems, monitor.execute, "cont")
                state = monitor.status()
        except LiveUpdateError as err:
            problems.append(str(err))
        stands = not state or state in _STANDS
        if (whole and not (running and stands)) or not _processes.lives(record) or time.monotonic() > until:
            break
        time.sleep(0.5)
    why = "; ".join(problems) or "no command failed"
    if not _processes.lives(record):
        raise LiveUpdateError(f"its QEMU, process {record['pid']}, has ended", ended=True)
    if running and stands:
        raise LiveUpdateError(f"the guest is {state or 'in a state that QEMU does not tell'}, for {UNDO_LIMIT_S:g} s: {why}")
    if not whole:
        raise LiveUpdateError(f"{ignore_shared_stays(record)}: {why}")


def _tried(problems: list[str], step: t.Callable[..., object], *arguments: object) -> bool:
    """Whether the step was done; why not is one more of the ``problems``."""
    try:
        step(*arguments)
    except LiveUpdateError as err:
        problems.append(str(err))
        return False
    return True


def ignore_shared_stays(record: dict) -> str:
    """That QEMU still leaves the guest's RAM out of what it saves, and how to end that."""
    return (
        "QEMU's migration option x-ignore-shared is still on, and a later save or migration would be without the guest's RAM:"
        f" 'kvm-liveupdate resume {record['name']}' on the host switches it off"
    )


def go_on(monitor: Qmp, begin: t.Callable[[], None] = lambda: None, refused: t.Callable[[], None] = lambda: None) -> bool:
    """Let a loaded guest run; False when QEMU refused to, so that it has not run. Any other failure is an error.

    Only now QEMU opens the disks for writing, and what locks them may need a moment to let go. ``begin`` is called before each try, and
    ``refused`` after each one that QEMU refused: between the two nobody knows whether the guest has run.
    """
    limit = time.monotonic() + GO_ON_LIMIT_S
    while True:
        begin()
        try:
            monitor.execute("cont")
            return True
        except LiveUpdateError as err:
            if "refused" not in err.details or monitor.status() != "paused":
                raise
            refused()
            if time.monotonic() > limit:
                sys.stderr.write(f"kvm-liveupdate: {err}\n")
                return False
        time.sleep(0.1)


def load(monitor: Qmp, path: str, limit_s: float = LOAD_LIMIT_S) -> None:
    """Load a device state into a QEMU that waits for one; the guest is paused afterwards."""
    monitor.ignore_shared(True)
    monitor.execute("migrate-incoming", uri=f"file:{path}")
    monitor.wait_migration(limit_s)
    limit = time.monotonic() + limit_s
    while monitor.status() == "inmigrate":
        if time.monotonic() > limit:
            raise LiveUpdateError(f"QEMU still takes in {path} after {limit_s:g} s")
        time.sleep(0.005)
    monitor.ignore_shared(False)


def rehearse(record: dict, running: bool) -> float:  # pylint: disable=unused-argument  # stopping what is stopped does no harm
    """Pause the guest and load its state into a stand-in: :mod:`_qemu_rehearsal`. Returns when it was paused."""
    from . import _qemu_rehearsal  # not on the boot path

    return _qemu_rehearsal.rehearse(record)


def end_rehearsal(record: dict, running: bool) -> None:
    """Let the guest go on, and remove what is left of its rehearsal."""
    from . import _qemu_rehearsal

    _qemu_rehearsal.end(record, running)
