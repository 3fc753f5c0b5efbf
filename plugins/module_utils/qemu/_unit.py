# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons against a guest, and warnings, in the systemd unit that starts it. PRIVATE to the collection.

Source: systemd.unit(5), systemd.exec(5); systemd's src/systemctl/systemctl-show.c, which prints no conditions.
"""

from __future__ import annotations

import os
import re

from .. import _limits
from .._errors import reason, typed
from ..handover import _early
from ..host import _files, _processes, _slow_paths, _units
from ..kernel import _luo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("PROPERTIES", "reasons", "warnings")


def reasons(record: dict, shown: dict[str, str]) -> list[dict]:
    """Reasons why the unit of a guest could not restore it after the jump.

    Without any, ``record`` gets what identifies its ``disks``, the services to which QEMU connects (``servers``), and what else its restore
    ``needs``: the save must not look for it, because a path that does not answer then would keep all guests paused.
    """
    from ..vmm import _reopened  # not on the boot path

    pid, unit = record["pid"], record["unit"]
    ram = {_processes.file_of(pid, memory["fd"]) for memory in record["ram"]}
    made_again = bool(_programs(shown, "ExecStartPre") or _starters(shown))
    services = record.get("brought", {})
    brought = {unit, *" ".join(shown.get(key, "") for key in _BRINGS).split()}
    makes: list[str] | None = [
        f"/run/{name}" for service in (shown, *services.values()) for name in service.get("RuntimeDirectory", "").split()
    ]
    if made_again or any(map(_is_oneshot, services.values())):
        makes = None
    found = start_reasons(unit, pid, shown) + file_reasons(unit, record["name"], shown)
    if shown.get("NeedDaemonReload") == "yes" and not _is_out_of_order(shown, _processes.started_at(pid)):
        message = f"the file of its unit {unit} has changed, and systemd has not loaded the change, but the boot after the jump will"
        found.append(reason("unit", message, "run 'systemctl daemon-reload', then run this again"))
    found += rights_reasons(unit, pid) + start_file_reasons(unit, pid, shown)
    found += _reopened.reasons(pid, record["argv"], ram, made_again, brought, makes)
    if not found:
        try:
            record["disks"] = _reopened.disks(pid, record["argv"], ram, made_again)
            record["servers"] = _reopened.servers(record["argv"])
            record["needs"] = _slow_paths.look(lambda say: _for_restore(pid, record["argv"], say))
        except _slow_paths.Silent as err:
            found.append(_reopened.silent(err))
    return found


def _for_restore(pid: int, argv: list[str], say: t.Callable[[str], None]) -> dict:
    """What the restore of a guest needs beside its files: ``interfaces``, ``paths``, ``ports`` of this host, and ``devices`` with their
    identity. It calls ``say`` with each path before it accesses that path.
    """
    from ..host import _tcp  # not on the boot path
    from ..vmm import _block, _opens, _options

    peers = _opens.peers(_options.read(argv)[0])
    devices = {}
    for path in _opens.devices(pid, argv):
        say(path)
        devices[path] = _block.identity(path)
    return {
        "interfaces": _processes.interfaces(pid),
        "paths": _opens.needed(pid, argv),
        "ports": sorted({_tcp.port_of(peer) for peer in peers if _tcp.is_here(peer)}),
        "devices": devices,
    }


def warnings(record: dict, shown: dict[str, str]) -> list[dict]:
    """Warnings about the unit of a guest that can be preserved, and about the networks that nothing sets up before it starts."""
    from ..vmm import _after_boot, _argv_reasons  # not on the boot path

    unit = record["unit"]
    runs = start_warnings(unit, shown, record.get("brought"))
    networks = [] if runs else _after_boot.link_warnings(_argv_reasons.links(record["argv"]))  # else these commands may set them up
    return runs + drop_in_warnings(unit, shown) + mount_warnings(record, shown) + networks + limit_warnings(unit, shown)


def limit_warnings(unit: str, shown: dict[str, str]) -> list[dict]:
    """A warning if systemd gives up a start that has to be repeated (systemd.unit(5)). Pure. Each try waits for the host."""
    burst, interval = int(shown.get("StartLimitBurst") or 0), _units.seconds(shown.get("StartLimitIntervalUSec", ""))
    enough = burst * _limits.BOOT_WAITS
    if not burst or interval < enough:
        return []
    message = (
        f"{unit} may start only {burst} times in {shown['StartLimitIntervalUSec']}. If its restore has to be repeated more often, systemd"
        " gives up: the guest stays off until somebody starts it, and its memory is kept"
    )
    return [reason("start-limit", message, f"set StartLimitIntervalSec= of {unit} below {enough:g} s, or to 0")]


def rights_reasons(unit: str, pid: int) -> list[dict]:
    """Reasons why QEMU cannot write its state, or its next start cannot get its memory, because of its user or the files that it sees."""
    lacks = []
    user, inside = _processes.user_of(pid), f"/proc/{pid}/root"
    if user:
        lacks.append(f"it runs as user {user}, not as root (User=, DynamicUser=)")
    if os.path.isdir(_files.GUESTS_STATE):
        try:
            same = os.path.samefile(_files.GUESTS_STATE, inside + _files.GUESTS_STATE)
            if not same or os.statvfs(inside + _files.GUESTS_STATE).f_flag & os.ST_RDONLY:
                lacks.append(f"it cannot write to {_files.GUESTS_STATE} (ProtectSystem=, ReadOnlyPaths=)")
        except OSError:
            lacks.append(f"it cannot see {_files.GUESTS_STATE} (RootDirectory=, RootImage=, InaccessiblePaths=, TemporaryFileSystem=)")
    if os.path.exists(_luo.DEVICE) and not os.path.exists(inside + _luo.DEVICE):
        lacks.append(f"it cannot see {_luo.DEVICE} (PrivateDevices=, RootDirectory=)")
    if os.path.isdir(f"{inside}/proc") and not os.path.exists(inside + _BOOT_ID):
        lacks.append(f"it cannot see {_BOOT_ID} (ProcSubset=)")
    return [
        reason("unit", f"its QEMU in {unit} lacks rights for an update: {lack}", "remove that setting from the unit and restart the guest")
        for lack in lacks
    ]


def start_warnings(unit: str, properties: dict[str, str], brought: dict[str, dict[str, str]] | None = None) -> list[dict]:
    """A warning about the commands that a unit runs at each start besides QEMU, so also when the guest is restored.

    A boot also runs those of the services that it brings in (``brought``).
    """
    runs = _starters(properties) + _beside(properties)
    for name, service in (brought or {}).items():
        started = [f"ExecStart={command}" for _path, command in _programs(service, "ExecStart")] if _is_oneshot(service) else []
        runs += [f"{name} {command}" for command in (*started, *_beside(service))]
    if not runs:
        return []
    message = f"{unit} runs these commands again when the guest is restored after the jump: {'; '.join(runs)}"
    return [reason("start-runs-again", message, "make sure that none of them creates or overwrites disks, firmware variables or taps")]


def _beside(properties: dict[str, str]) -> list[str]:
    settings = ("ExecCondition", "ExecStartPre", "ExecStartPost")
    return [f"{setting}={command}" for setting in settings for _path, command in _programs(properties, setting)]


def _is_oneshot(properties: dict[str, str]) -> bool:
    """Whether this is a service that does its work at the start and ends."""
    return properties.get("Type") == "oneshot"


def drop_in_warnings(unit: str, properties: dict[str, str]) -> list[dict]:
    """A warning for each drop-in that does not exist after a boot (``systemctl edit --runtime``), except our own. Pure."""
    gone = [path for path in properties.get("DropInPaths", "").split() if path.startswith("/run/") and not path.startswith(_GENERATED)]
    return [
        reason(
            "unit-runtime",
            f"its unit {unit} has the drop-in {path}, which does not exist after the jump",
            f"if the guest needs the settings, write them with 'systemctl edit {typed(unit)}'",
        )
        for path in gone
        if os.path.basename(path) not in _OWN_DROP_INS
    ]


def mount_warnings(record: dict, properties: dict[str, str]) -> list[dict]:
    """A warning for each mount with a disk of the guest after which its unit does not start.

    After a jump the guest waits for its own disk (:func:`_disk_files.amiss`). In another boot the drop-in of the setup also lets the unit
    start before the mounts of the boot, and then nothing is known of the disk. This accesses no path, because its storage may not answer.
    """
    from ..vmm import _opens, _options, _reopened

    unit, pid, after = record["unit"], record["pid"], properties.get("After", "").split()
    mounts = _reopened.mounts(os.getpid())  # one that only QEMU sees is made by its unit
    paths = _opens.images(_options.read(record["argv"])[0], _processes.folder_of(pid))
    paths += [path for path, flags in _processes.open_paths(pid).values() if not _opens.is_output(flags)]
    found: dict[str, str] = {}
    for path in paths:
        point = _mounted_later(path, mounts, after)
        if point:
            found.setdefault(point, path)
    return [
        reason(
            "mount-unordered",
            f"its unit {unit} may start before {point} is mounted, where its disk {path} is. After the jump the guest waits for it; in"
            " another boot QEMU may find no disk there, or another one",
            f"add RequiresMountsFor={point} to the unit (systemctl edit {typed(unit)})",
        )
        for point, path in found.items()
    ]


def start_file_reasons(unit: str, pid: int, properties: dict[str, str]) -> list[dict]:
    """Reasons for files and folders without which systemd does not start the unit, if a boot does not have them when it starts it.

    A setting with "-" needs nothing. For the folder of WorkingDirectory= systemd waits until it is mounted.
    """
    from ..vmm import _reopened

    after = properties.get("After", "").split()
    makers = [other for other in after if _may_make_files(other)]
    own = {f"/run/{name.partition(':')[0]}" for name in properties.get("RuntimeDirectory", "").split()}
    folder = properties.get("WorkingDirectory", "")
    wanted = [("EnvironmentFile", path) for path in re.findall(r"(/\S*) \(ignore_errors=no\)", properties.get("EnvironmentFiles", ""))]
    wanted += _conditions([properties.get("FragmentPath", ""), *properties.get("DropInPaths", "").split()])
    wanted += [("WorkingDirectory", folder)] if folder.startswith("/") and folder not in own else []
    mounts, its_mounts = _reopened.mounts(os.getpid()), _reopened.mounts(pid)
    points = {mount[0] for mount in its_mounts}
    found = []
    for setting, path in wanted:
        point = "" if setting == "WorkingDirectory" else _mounted_later(path, mounts, after)
        if _reopened.is_volatile(path, its_mounts):
            if not makers and path not in points and not path.startswith(_OF_EACH_BOOT):
                message = f"its unit {unit} has {setting}={path}, which does not exist after the jump, so systemd would not start it"
                remedy = "name a path on a disk, or let a service make it that the unit requires and starts after (Requires=, After=)"
                found.append(reason("file-volatile", message, f"{remedy}; then run 'systemctl daemon-reload'"))
        elif point or (path.startswith(_OF_UDEV) and not makers):
            message = f"its unit {unit} has {setting}={path}, which may not be there yet when a boot starts the unit: then systemd does not"
            remedy = f"add RequiresMountsFor={point} to the unit" if point else "remove the setting, because the guest waits for its disks"
            found.append(reason("unit-early", message, f"{remedy} (systemctl edit {typed(unit)})"))
    return found


def _mounted_later(path: str, mounts: list[tuple[str, str, str, str, str]], after: list[str]) -> str:
    """The mount point of a path if a boot may mount it only after it starts a unit that starts after these; else empty. Pure."""
    from ..vmm import _reopened

    point, kind, _source = _reopened.mount_of(path, mounts)
    if point in _ALWAYS_MOUNTED or path.startswith(_NOT_MOUNTED):
        return ""
    is_remote = kind.startswith("fuse") or kind in _REMOTE
    known = {f"{_units.escape(point.strip('/'))}.mount", "remote-fs.target", *(() if is_remote else _LOCAL_MOUNTS)}
    return "" if known & set(after) else point


def _may_make_files(unit: str) -> bool:
    """Whether a unit that starts before the guest's may make files, or starts after systemd-tmpfiles has made them."""
    return unit in _AFTER_TMPFILES or (unit.endswith(".service") and unit not in (*_early.BASE, _units.UNCLAIMED_UNIT))


def _conditions(files: list[str]) -> list[tuple[str, str]]:
    """The conditions and assertions in unit files that need a path, each as setting and path. ``!`` needs none, ``|`` not this one."""
    found: list[tuple[str, str]] = []
    for file in files:
        try:
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                settings = [line.partition("=") for line in lines]
        except OSError:
            continue
        for name, _equals, value in ((name.strip(), equals, value.strip()) for name, equals, value in settings):
            if re.fullmatch(r"(Condition|Assert)(Path|File|Directory)\w+", name):
                found = [] if not value else found  # an empty one removes all
                found += [(name, value.replace("%t/", "/run/"))] if value.startswith(("/", "%t/")) else []
    return found


def _starters(properties: dict[str, str]) -> list[str]:
    """The programs in ``ExecStart=`` that are not our command, for example a script that runs it."""
    started = _programs(properties, "ExecStart")
    return [f"ExecStart={command}" for path, command in started if os.path.basename(path) != "kvm-liveupdate"]


def _programs(properties: dict[str, str], setting: str) -> list[tuple[str, str]]:
    """The path and the command of each program in a setting, as systemctl shows them."""
    return re.findall(r"\{ path=(.*?) ; argv\[\]=(.*?) ; ignore_errors=", properties.get(setting, ""))


def start_reasons(unit: str, pid: int, properties: dict[str, str]) -> list[dict]:
    """Reasons why the unit of the QEMU with this ``pid`` could not get its memory after the jump."""
    if properties.get("MainPID") != str(pid):
        message = f"its QEMU, process {pid}, is not the main process of {unit}, and systemd gives its memory only to the main process"
        remedy = "run kvm-liveupdate directly in ExecStart=, or with exec in the script there, and restart the guest"
    elif _denied(properties):
        message = f"its unit {unit} may not open {_luo.DEVICE}, which it needs to get its memory back"
        remedy = f"add DeviceAllow={_luo.DEVICE} rw to the unit and restart the guest"
    else:
        return []
    return [reason("unit", message, remedy)]


def file_reasons(unit: str, name: str, properties: dict[str, str]) -> list[dict]:
    """Reasons why a boot does not find the unit of the guest ``name``, or starts something else with it. Pure."""
    found = []
    file = properties.get("FragmentPath", "")
    if not file or (file.startswith("/run/") and not file.startswith(_GENERATED)):
        message = f"its unit {unit} does not exist after a boot: its file is {file or 'missing'}"
        found.append(reason("unit-gone", message, f"write the unit to /etc/systemd/system/{unit}, and restart the guest"))
    for path, command in _programs(properties, "ExecStart"):
        program, said = os.path.basename(path), command.partition(" ")[2].partition(" -- ")[0]
        if program.startswith("qemu-") or program in ("kvm", "qemu"):
            message = f"its unit {unit} starts QEMU without the wrapper: ExecStart={command}"
            found.append(
                reason(
                    "unit-other",
                    message,
                    f"put 'kvm-liveupdate run {name} --' before QEMU, run 'systemctl daemon-reload', and restart the guest",
                )
            )
        elif program == "kvm-liveupdate" and re.fullmatch(r"run [\w.:@-]+", said) and said != f"run {name}":
            message = f"its unit {unit} starts another guest: 'kvm-liveupdate {said}', not 'run {name}'"
            found.append(
                reason(
                    "unit-other",
                    message,
                    f"change the name there back to {name} and run 'systemctl daemon-reload', or restart the guest under the new name",
                )
            )
    return found


def _is_out_of_order(properties: dict[str, str], started: float) -> bool:
    """Whether systemd reports a unit as changed only because of the order of drop-ins: ``set-property``, which the wrapper uses, adds its
    drop-in at the end, but a reload sorts them by name (src/core/unit.c, unit_need_daemon_reload).

    Then a file that is newer than the guest shows a real change.
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
    """Whether the unit has a list of allowed devices without the live update device (systemd.resource-control(5))."""
    listed = properties.get("DeviceAllow", "").split()
    return (properties.get("DevicePolicy", "auto") != "auto" or bool(listed)) and not {_luo.DEVICE, "char-misc", "char-*"} & set(listed)


_BRINGS = ("Requires", "Requisite", "BindsTo", "Wants")
PROPERTIES = (
    *("Type", "ExecStart", "ExecCondition", "ExecStartPre", "ExecStartPost", *_BRINGS),
    *("MainPID", "DevicePolicy", "DeviceAllow", "DropInPaths", "FragmentPath", "NeedDaemonReload"),
    *("After", "EnvironmentFiles", "RuntimeDirectory", "StartLimitBurst", "StartLimitIntervalUSec", "WorkingDirectory"),
)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"  # a restore reads it (_this_boot.py)
_GENERATED = ("/run/systemd/generator/", "/run/systemd/generator.early/", "/run/systemd/generator.late/")  # each boot creates these
# What systemd makes at the beginning of each boot, or for the unit.
_OF_EACH_BOOT = ("/run/credentials/", "/run/systemd/", "/run/udev/")
_AFTER_TMPFILES = ("systemd-tmpfiles-setup.service", "sysinit.target", "basic.target", "multi-user.target")
_OF_UDEV = ("/dev/disk/", "/dev/mapper/")
_NOT_MOUNTED = ("/dev/", "/memfd:", "/proc/", "/run/", "/sys/")  # by a unit of the boot
_ALWAYS_MOUNTED = ("", "/", "/usr")  # the last two by the initial RAM disk
_REMOTE = ("9p", "ceph", "cifs", "nfs", "nfs4", "smb3")
_LOCAL_MOUNTS = ("local-fs.target", "sysinit.target", "basic.target")
# The drop-in of the setup, and those that systemd writes for the wrapper's set-property. They exist again after a boot.
_OWN_DROP_INS = ("40-kvm-liveupdate.conf", "50-StartupCPUWeight.conf", "50-StartupIOWeight.conf")
