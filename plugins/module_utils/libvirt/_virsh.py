# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls of virsh, and the places of libvirt's files. PRIVATE to the collection."""

from __future__ import annotations

import os

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands

__all__ = (
    "HOOK",
    "PIDS",
    "SAVED",
    "domain_xml",
    "has_hooks",
    "image_path",
    "is_busy",
    "is_defined",
    "other_hooks",
    "status",
    "status_file",
    "uuid_in",
    "uuid_of",
    "virsh",
)

START_LIMIT_S = _limits.LIBVIRT_START
PIDS = "/run/libvirt/qemu"
DEFINITIONS = "/etc/libvirt/qemu"
SAVED = "/var/lib/libvirt/qemu/save"


def virsh(*words: str, limit: float = _limits.COMMAND) -> str:
    """The output of ``virsh`` with these words. Name a domain by its UUID: see :func:`uuid_of`."""
    return _commands.run("virsh", "--quiet", "--connect", "qemu:///system", *words, timeout=limit)


def is_defined(name: str) -> bool:
    """Whether libvirt has a domain of this name; false where there is no libvirt."""
    return os.path.exists(os.path.join(DEFINITIONS, f"{name}.xml"))


def uuid_of(name: str) -> str:
    """The UUID of the domain ``name``, for calls of virsh. If the domain has none: its name, if virsh cannot confuse it.

    Virsh first reads a number as an ID, then 36 characters as a UUID, and only then a word as a name (tools/virsh-util.c,
    virshLookupDomainInternal). So it would confuse a domain with the name 1 with the domain that has the ID 1.
    """
    uuid = uuid_in(status_file(name)) or uuid_in(_read(os.path.join(DEFINITIONS, f"{name}.xml")))
    if not uuid and (name.strip().lstrip("+").isdigit() or len(name) == 36):
        raise LiveUpdateError(f"domain {name!r} does not exist; 'virsh list --all' shows the names of all domains")
    return uuid or name


def uuid_in(xml: str) -> str:
    """The UUID in a domain's XML; empty if there is none. Libvirt writes it right after the name, before any text of the owner. Pure."""
    uuid = xml.partition("</name>")[2].partition("<uuid>")[2].partition("</uuid>")[0]
    return uuid if len(uuid) == 36 else ""


def status_file(name: str) -> str:
    """Libvirt's status file of a running domain: the job that runs on it, then its XML; empty for any other domain."""
    return _read(os.path.join(PIDS, f"{name}.xml"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def is_busy(name: str) -> bool:
    """Whether libvirt runs a job on the domain (migration, save, backup), by its status file (qemuDomainObjPrivateXMLFormatJob)."""
    job = status_file(name).partition("<domain ")[0].partition("<job ")[2].partition(">")[0]
    return " async='" in f" {job}" and "async='none'" not in job


def domain_xml(record: dict) -> str:
    """The running domain's XML, as it is now."""
    return virsh("dumpxml", record["uuid"])


def status(record: dict) -> str:
    """The domain's state: ``running``, ``paused``, or libvirt's other words."""
    return virsh("domstate", record["uuid"]).strip()


def image_path(name: str) -> str:
    """Where libvirt looks for a domain's managed save."""
    return os.path.join(SAVED, f"{name}.save")


HOOKS = "/etc/libvirt/hooks"
HOOK = f"{HOOKS}/qemu.d/kvm-liveupdate"


def has_hooks() -> bool:
    """Whether the owner has hooks of QEMU domains. At a start they may make a medium again, or attach what a disk needs."""
    folder, ours = os.path.split(HOOK)
    if os.path.exists(f"{os.path.dirname(folder)}/qemu"):
        return True
    try:
        return bool(set(os.listdir(folder)) - {ours})
    except (FileNotFoundError, NotADirectoryError):
        return False


def other_hooks() -> list[str]:
    """The programs beside ours that libvirt runs at the start of each domain (https://libvirt.org/hooks.html)."""
    folder = f"{HOOKS}/qemu.d"
    named = [f"{HOOKS}/qemu", *(f"{folder}/{name}" for name in (sorted(os.listdir(folder)) if os.path.isdir(folder) else ()))]
    return [path for path in named if path != HOOK and os.path.isfile(path) and os.access(path, os.X_OK)]
