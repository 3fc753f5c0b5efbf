# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of the host runtime: these Python files, a command, units. PRIVATE to the collection."""

from __future__ import annotations

import glob
import importlib.util
import os
import re

from . import _command, _unit_files
from ._errors import LiveUpdateError
from .handover import _early
from .host import _files, _units
from .libvirt import _setup, _virsh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("DIRECTORIES", "files", "in_order", "left_over", "outdated", "stale")

# "systemctl set-property" writes 50-*.conf, which must override this.
DROPIN = "40-kvm-liveupdate.conf"
DIRECTORIES = (_files.STATE, _files.GUESTS_STATE)
# All files that the command imports, also inside functions. The __init__.py of their folders are added.
_PARTS = (
    "_command",
    "_errors",
    "_limits",
    "guests._away",
    "guests._contract",
    "guests._discard",
    "guests._hold",
    "guests._memory",
    "guests._paused",
    "guests._providers",
    "guests._reasons",
    "guests._rehearsal",
    "guests._unclaimed",
    "handover._digests",
    "handover._early",
    "handover._journal",
    "handover._lock",
    "handover._return",
    "handover._session",
    "host._commands",
    "host._devices",
    "host._files",
    "host._links",
    "host._memory",
    "host._processes",
    "host._slow_paths",
    "host._systemd",
    "host._tcp",
    "host._this_boot",
    "host._units",
    "host._watchdogs",
    "kernel._cmdline",
    "kernel._kexec",
    "kernel._kvm",
    "kernel._luo",
    "kernel._modules",
    "libvirt._agent",
    "libvirt._away",
    "libvirt._batch",
    "libvirt._definition",
    "libvirt._differences",
    "libvirt._guests",
    "libvirt._hook",
    "libvirt._keeper",
    "libvirt._needs",
    "libvirt._probe_cache",
    "libvirt._ram",
    "libvirt._reasons",
    "libvirt._rehearsal",
    "libvirt._room",
    "libvirt._save",
    "libvirt._save_directory",
    "libvirt._save_image",
    "libvirt._setup",
    "libvirt._stand_in",
    "libvirt._start",
    "libvirt._survey",
    "libvirt._virsh",
    "qemu._away",
    "qemu._guests",
    "qemu._ram_file",
    "qemu._rehearsal",
    "qemu._save",
    "qemu._start",
    "qemu._unit",
    "trial._watch",
    "update._gate",
    "update._jump",
    "update._readiness",
    "update._rest_of_boot",
    "update._services",
    "vmm._after_boot",
    "vmm._argv",
    "vmm._argv_reasons",
    "vmm._block",
    "vmm._changes",
    "vmm._disk_files",
    "vmm._monitor",
    "vmm._opens",
    "vmm._options",
    "vmm._reopened",
)


def _source(part: str) -> str:
    """The source of a module or folder of the collection's Python, also when Ansible ships it in a zip file."""
    name = f"{_command.__package__}.{part}"  # Ansible ships all these files because this module imports the command
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise LiveUpdateError(f"Python module {name} is missing in the collection; install the collection again on the controller")
    return str(spec.loader.get_source(name))  # type: ignore[attr-defined]  # a loader from a file or zip file has it


def _library() -> dict[str, str]:
    """The Python files below :data:`_files.LIBRARY`: path -> content."""
    package = f"{_files.LIBRARY}/kvm_liveupdate"
    modules = {f"{package}/{part.replace('.', '/')}.py": _source(part) for part in _PARTS}
    folders = {part.rpartition(".")[0] for part in _PARTS} - {""}
    inits = {f"{package}/{folder.replace('.', '/')}/__init__.py": _source(folder) for folder in sorted(folders)}
    return {**modules, **inits, f"{package}/__init__.py": ""}


def files(guest_units: list[str], ram_size: str = "") -> dict[str, tuple[str, int]]:
    """Every file of the runtime on a host: path -> (content, mode).

    ``ram_size`` is the maximum size of the domains' RAM together, in the syntax of tmpfs(5); empty keeps the present size.
    """
    for unit in guest_units:
        if not unit.endswith(".service"):
            raise LiveUpdateError(f"guest_units: {unit!r} is not the name of a service unit; write it as NAME.service")
    if ram_size and not re.fullmatch(r"[1-9][0-9]*[kKmMgG%]?", ram_size):
        raise LiveUpdateError(
            f"ram_size: {ram_size!r} is not a size; use a whole number of bytes, or one followed by k, m, g or % (of the host's RAM)"
        )
    wanted = {path: (content, 0o644) for path, content in _library().items()}
    wanted[_files.COMMAND] = (_unit_files.COMMAND, 0o755)
    wanted[f"{_units.FOLDER}/{_units.JUMP}"] = (_unit_files.JUMP_SERVICE, 0o644)
    wanted[f"{_units.FOLDER}/{_units.HOLD}"] = (_unit_files.HOLD_SERVICE, 0o644)
    wanted[f"{_units.FOLDER}/{_units.REHEARSAL}"] = (_unit_files.REHEARSAL_SERVICE, 0o644)
    wanted[f"{_units.FOLDER}/{_units.JUMP_TARGET}"] = (_unit_files.TARGET, 0o644)
    wanted[f"{_units.FOLDER}/{_units.TARGET}"] = (_unit_files.GUESTS_TARGET, 0o644)
    wanted[f"{_units.FOLDER}/{_units.DAEMONS_TARGET}"] = (_unit_files.DAEMONS_TARGET, 0o644)
    wanted[f"{_units.FOLDER}/{_units.REST_UNIT}"] = (_unit_files.REST_SERVICE, 0o644)
    wanted[f"{_units.FOLDER}/{_units.UNCLAIMED_UNIT}"] = (_unit_files.UNCLAIMED_SERVICE, 0o644)
    wanted[f"{_units.FOLDER}/sysinit.target.d/{DROPIN}"] = (_unit_files.EVERY_BOOT, 0o644)
    for unit in (*_unit_files.BEFORE_GUESTS, *(_unit_files.BEFORE_DOMAINS if _setup.has_libvirt() else ())):
        weights = _unit_files.NEXT if unit in _early.BASE else _unit_files.AHEAD
        wanted[f"{_units.FOLDER}/{unit}.d/{DROPIN}"] = (f"[Service]\n{weights}", 0o644)
    if _setup.has_libvirt():
        wanted[f"{_units.FOLDER}/{_setup.RAM_MOUNT}"] = (_unit_files.RAM_MOUNT, 0o644)
        if ram_size:
            options = _setup.RAM_OPTIONS.format(size=ram_size.replace("%", "%%"))
            wanted[_setup.RAM_SIZE] = (f"[Mount]\nOptions={options}\n", 0o644)
        wanted[_virsh.HOOK] = (_unit_files.HOOK, 0o755)
        if os.path.exists(_setup.APPARMOR_ABSTRACTION):
            wanted[_setup.APPARMOR_RULE] = (_unit_files.APPARMOR, 0o644)
    for unit in guest_units:
        wanted[f"{_units.FOLDER}/{unit}.d/{DROPIN}"] = (_unit_files.GUEST_DROPIN, 0o644)
    return wanted


def in_order(paths: list[str]) -> list[str]:
    """The files in the order in which to write them: first what a unit or a hook calls. Pure."""
    ranks = (_files.LIBRARY, _files.COMMAND, _units.FOLDER)
    return sorted(paths, key=lambda path: next((rank for rank, start in enumerate(ranks) if path.startswith(start)), len(ranks)))


def outdated(wanted: dict[str, tuple[str, int]], root: str = "/") -> list[str]:
    """The files that are missing or differ on this host."""
    found = []
    for path, (content, mode) in wanted.items():
        try:
            with open(os.path.join(root, path.lstrip("/")), encoding="utf-8") as file:
                same = file.read() == content and os.fstat(file.fileno()).st_mode & 0o777 == mode
        except (OSError, ValueError):
            same = False
        if not same:
            found.append(path)
    return found


def left_over(wanted: Iterable[str], root: str = "/") -> list[str]:
    """Unwanted files in the library on this host: Python files of an older version, and their byte code."""
    kept = set(wanted)
    found = []
    for folder, _folders, names in os.walk(os.path.join(root, _files.LIBRARY.lstrip("/"))):
        there = "/" + os.path.relpath(folder, root)
        for name in names:
            source = f"{os.path.dirname(there)}/{name.partition('.')[0]}.py" if there.endswith("/__pycache__") else f"{there}/{name}"
            if source not in kept:
                found.append(f"{there}/{name}")
    return sorted(found)


def stale(wanted: dict[str, tuple[str, int]], kept: list[str], root: str = "/") -> list[str]:
    """Files of the runtime on this host that are no longer wanted: of an older version, or of units that are not listed.

    The drop-ins of the units in ``kept`` stay, because their guests run.
    """
    patterns = (
        f"{_units.FOLDER}/*.d/{DROPIN}",
        f"{_units.FOLDER}/kvm-liveupdate*.service",
        f"{_units.FOLDER}/kvm-liveupdate*.target",
    )
    found = left_over(wanted, root)
    found += [f"/{os.path.relpath(path, root)}" for pattern in patterns for path in glob.glob(os.path.join(root, pattern.lstrip("/")))]
    stay = {*wanted, *(f"{_units.FOLDER}/{unit}.d/{DROPIN}" for unit in kept)}
    return sorted(path for path in found if path not in stay)
