# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What speaks against a guest in its unit: how systemd starts it, and what that brings. PRIVATE to the collection."""

from __future__ import annotations

import os
import re

from .._errors import reason
from ..host import _files, _processes
from ..kernel import _luo

__all__ = ("BRINGS", "RUN_AT_START", "drop_in_warnings", "reasons", "start_warnings")


def reasons(record: dict, shown: dict[str, str]) -> list[dict]:
    """What would keep a guest that a unit runs from its start after the jump."""
    from ..vmm import _reopened  # not on the boot path

    pid, unit = record["pid"], record["unit"]
    ram = {_processes.file_of(pid, memory["fd"]) for memory in record["ram"]}
    made_again = bool(_programs(shown, "ExecStartPre") or _starters(shown))
    brought = {unit, *" ".join(shown.get(key, "") for key in BRINGS).split()}
    found = start_reasons(unit, pid, shown) + file_reasons(unit, record["name"], shown)
    if shown.get("NeedDaemonReload") == "yes" and not _is_out_of_order(shown, _processes.started_at(pid)):
        message = f"the file of its unit {unit} was changed, and systemd has not read it since: the boot after the jump does"
        found.append(reason("unit", message, "systemctl daemon-reload, then run this again"))
    return found + rights_reasons(unit, pid) + _reopened.reasons(pid, record["argv"], ram, made_again, brought)


def rights_reasons(unit: str, pid: int) -> list[dict]:
    """Whether QEMU cannot write its state, or its unit's next start cannot ask for its memory: by its user and the files that it sees."""
    lacks = []
    user, inside = _processes.user_of(pid), f"/proc/{pid}/root"
    if user:
        lacks.append(f"it runs as user {user} instead of root (User=, DynamicUser=)")
    if os.path.isdir(_files.GUESTS_STATE):
        try:
            same = os.path.samefile(_files.GUESTS_STATE, inside + _files.GUESTS_STATE)
            if not same or os.statvfs(inside + _files.GUESTS_STATE).f_flag & os.ST_RDONLY:
                lacks.append(f"it may not write to {_files.GUESTS_STATE} (ProtectSystem=, ReadOnlyPaths=)")
        except OSError:
            lacks.append(f"it does not see {_files.GUESTS_STATE} (RootDirectory=, RootImage=, InaccessiblePaths=, TemporaryFileSystem=)")
    if os.path.exists(_luo.DEVICE) and not os.path.exists(inside + _luo.DEVICE):
        lacks.append(f"it does not see {_luo.DEVICE} (PrivateDevices=, RootDirectory=)")
    return [
        reason("unit", f"its QEMU in {unit} lacks what an update needs: {lack}", "remove that setting from the unit and restart the guest")
        for lack in lacks
    ]


def start_warnings(unit: str, properties: dict[str, str]) -> list[dict]:
    """What a unit runs at each start beside QEMU, and so when the guest comes back: a warning that names it."""
    runs = _starters(properties)
    for setting in ("ExecCondition", "ExecStartPre", "ExecStartPost"):
        runs += [f"{setting}={command}" for _path, command in _programs(properties, setting)]
    if not runs:
        return []
    message = f"{unit} runs this again when the guest comes back after the jump: {'; '.join(runs)}"
    return [reason("start-runs-again", message, "see that nothing of it makes a disk, firmware variables or a tap anew")]


def drop_in_warnings(unit: str, properties: dict[str, str]) -> list[dict]:
    """The drop-ins of a unit that are gone after a boot (``systemctl edit --runtime``), our own left out: a warning each. Pure."""
    gone = [path for path in properties.get("DropInPaths", "").split() if path.startswith("/run/") and not path.startswith(_GENERATED)]
    return [
        reason(
            "unit-runtime",
            f"what {path} sets in its unit {unit} is gone after the jump: a boot does not find that file",
            f"if the guest needs it, write the same by 'systemctl edit {unit}'",
        )
        for path in gone
        if os.path.basename(path) not in _OWN_DROP_INS
    ]


def _starters(properties: dict[str, str]) -> list[str]:
    """The programs of ``ExecStart=`` that are not our command, as a script that runs it."""
    started = _programs(properties, "ExecStart")
    return [f"ExecStart={command}" for path, command in started if os.path.basename(path) != "kvm-liveupdate"]


def _programs(properties: dict[str, str], setting: str) -> list[tuple[str, str]]:
    """The path and command of each program that a setting names, as systemctl shows them."""
    return re.findall(r"\{ path=(.*?) ; argv\[\]=(.*?) ; ignore_errors=", properties.get(setting, ""))


def start_reasons(unit: str, pid: int, properties: dict[str, str]) -> list[dict]:
    """What would keep the unit of a QEMU with this ``pid`` from finding its memory after the jump."""
    if properties.get("MainPID") != str(pid):
        message = f"its QEMU, process {pid}, is not the main process of {unit}, which alone is handed its memory"
        remedy = "let ExecStart= run kvm-liveupdate itself, or what runs it exec it, and restart the guest"
    elif _denied(properties):
        message = f"its unit {unit} may not open {_luo.DEVICE}, where it asks for its memory"
        remedy = f"add DeviceAllow={_luo.DEVICE} rw to it and restart the guest"
    else:
        return []
    return [{"code": "unit", "message": message, "remedy": remedy}]


def file_reasons(unit: str, name: str, properties: dict[str, str]) -> list[dict]:
    """What would have a boot not find the unit of the guest ``name`` as it is, or find it to run something else. Pure."""
    found = []
    file = properties.get("FragmentPath", "")
    if not file or (file.startswith("/run/") and not file.startswith(_GENERATED)):
        message = f"its unit {unit} is gone after a boot: its file is {file or 'not there'}"
        found.append(reason("unit-gone", message, f"write it as /etc/systemd/system/{unit}, and restart the guest"))
    for path, command in _programs(properties, "ExecStart"):
        program, said = os.path.basename(path), command.partition(" ")[2].partition(" -- ")[0]
        if program.startswith("qemu-") or program in ("kvm", "qemu"):
            message = f"its unit {unit} starts QEMU without the wrapper: ExecStart={command}"
            found.append(
                reason("unit-other", message, f"put 'kvm-liveupdate run {name} --' before it, daemon-reload, and restart the guest")
            )
        elif program == "kvm-liveupdate" and re.fullmatch(r"run [\w.:@-]+", said) and said != f"run {name}":
            message = f"its unit {unit} starts another guest: 'kvm-liveupdate {said}', not 'run {name}'"
            found.append(
                reason("unit-other", message, f"write {name} there again and daemon-reload, or restart the guest under the new name")
            )
    return found


def _is_out_of_order(properties: dict[str, str], started: float) -> bool:
    """Whether systemd takes a unit for changed only because ``set-property``, which the wrapper uses, put a drop-in behind later ones.

    The boot sorts them by name (src/core/unit.c, unit_need_daemon_reload). Then a file that is newer than the guest tells a change.
    """
    files = properties.get("DropInPaths", "").split()
    names = [os.path.basename(path) for path in files]
    if names == sorted(names):
        return False
    owned = [path for path in (properties.get("FragmentPath", ""), *files) if "/system.control/" not in path]
    try:
        return all(os.stat(path).st_mtime <= started for path in owned)
    except OSError:
        return False


def _denied(properties: dict[str, str]) -> bool:
    """Whether the unit has a list of devices without the one for live updates (systemd.resource-control(5))."""
    listed = properties.get("DeviceAllow", "").split()
    return (properties.get("DevicePolicy", "auto") != "auto" or bool(listed)) and not {_luo.DEVICE, "char-misc", "char-*"} & set(listed)


RUN_AT_START = ("ExecStart", "ExecCondition", "ExecStartPre", "ExecStartPost")
_GENERATED = ("/run/systemd/generator/", "/run/systemd/generator.early/", "/run/systemd/generator.late/")  # which each boot makes
# What setup writes, and what systemd writes for the wrapper's set-property: a boot makes them again.
_OWN_DROP_INS = ("40-kvm-liveupdate.conf", "50-StartupCPUWeight.conf", "50-StartupIOWeight.conf")
BRINGS = ("Requires", "Requisite", "BindsTo", "Wants")
