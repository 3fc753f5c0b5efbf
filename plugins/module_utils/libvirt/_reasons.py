# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons why a libvirt domain cannot be preserved, and warnings if it can. Pure. PRIVATE to the collection.

This does not look for what QEMU itself reports as a migration blocker (invtsc, an emulated NVMe controller, virtio-snd and the like).

Source: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from .._errors import reason
from . import _ram, _setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = (
    "RESTART",
    "confinement_reasons",
    "define",
    "definition_reasons",
    "format_reasons",
    "hook_warnings",
    "is_apparmors",
    "job_reasons",
    "memory_reasons",
    "monitor_reasons",
    "place_reasons",
    "reason",
    "xml_reasons",
    "xml_warnings",
)

_PREPARE = (
    "set <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking> in its XML and restart the domain, or let the playbook"
    " kvm.liveupdate.setup do it without a restart (hypervisor_setup_domains, hypervisor_setup_adopt)"
)
# A daemon that runs since before qemu.conf was written still uses the old place.
RESTART = "restart libvirt's daemon (libvirtd or virtqemud), then restart the domain"
_BRIDGE = "use a network interface on a bridge instead"

# Code, path in the XML, message, remedy. The elements that are found follow the message.
_REASONS = (
    (
        "hugepages",
        "memoryBacking/hugepages",
        "its RAM is on huge pages, which the kernel cannot preserve",
        "remove <hugepages/> and restart the domain",
    ),
    ("discard", "memoryBacking/discard", "its RAM is discarded when QEMU ends", "remove <discard/> and restart the domain"),
    ("launch-security", "launchSecurity", "its memory is encrypted", "shut the domain down for the update"),
    ("hostdev", "devices/hostdev", "it uses a device of the host (passthrough)", "detach the device"),
    ("hostdev", "devices/interface[@type='hostdev']", "it uses a network card of the host (passthrough)", _BRIDGE),
    ("vhost-user", "devices/interface[@type='vhostuser']", "another process serves its network (vhost-user)", _BRIDGE),
    ("vdpa", "devices/interface[@type='vdpa']", "its network is a vDPA device of the host", _BRIDGE),
    ("filesystem", "devices/filesystem", "it shares a directory of the host (virtiofs, 9p)", "unmount and detach the file system"),
    ("shmem", "devices/shmem", "it shares memory with other processes (ivshmem)", "detach the device"),
    (
        "memory-device",
        "devices/memory",
        "it has memory devices (DIMM, virtio-mem, NVDIMM), which cannot be preserved yet",
        "detach them, or remove them from its XML and restart the domain",
    ),
    (
        "cache-unsafe",
        "devices/disk/driver[@cache='unsafe']/..",
        "its disk has cache='unsafe', so writes may be lost at the jump",
        "set another cache mode and restart the domain",
    ),
    (
        "transient-disk",
        "devices/disk[transient]",
        "its disk is transient: all writes are discarded when QEMU ends",
        "remove <transient/> and restart the domain",
    ),
    (
        "disk-nvme",
        "devices/disk[@type='nvme']",
        "it uses an NVMe controller of the host (passthrough)",
        "use the disk as <disk type='block'> and restart the domain",
    ),
    (
        "disk-vhost-user",
        "devices/disk[@type='vhostuser']",
        "another process serves its disk (vhost-user)",
        "use the disk as <disk type='block'> or <disk type='file'> and restart the domain",
    ),
    (
        "disk-vdpa",
        "devices/disk[@type='vhostvdpa']",
        "its disk is a vDPA device of the host",
        "use the disk as <disk type='block'> or <disk type='file'> and restart the domain",
    ),
    (
        "disk-fdgroup",
        ".//source[@fdgroup]",
        "another program opened its disk and gave libvirt the file descriptor",
        "name the file without fdgroup and restart the domain",
    ),
    (
        "tpm-passthrough",
        "devices/tpm/backend[@type='passthrough']",
        "it uses the TPM of the host (passthrough)",
        "use <backend type='emulator'/>, which starts empty, and restart the domain",
    ),
)

_CPU_MESSAGE = "its processor model depends on the host, and a new kernel may change it"
_CPU_REMEDY = "name a model with <cpu mode='custom' match='exact'> and restart the domain"
_WARNINGS = (
    (
        "genid",
        "genid",
        "libvirt gives it a new generation ID after the jump, so software in the guest may treat it as a clone",
        "if this is a problem, remove <genid/> and restart the domain",
    ),
    ("cpu-host", "cpu[@mode='host-passthrough']", _CPU_MESSAGE, _CPU_REMEDY),
    ("cpu-host", "cpu[@mode='maximum']", _CPU_MESSAGE, _CPU_REMEDY),
    # Usually the XML of a running domain has a fixed model instead, which libvirt chose at its start and uses again after the jump.
    ("cpu-host", "cpu[@mode='host-model']", _CPU_MESSAGE, _CPU_REMEDY),
    ("vsock", "devices/vsock", "its vsock connections are reset", "make sure that both ends connect again"),
    (
        "user-network",
        "devices/interface[@type='user']",
        "connections through its user-mode network (slirp, passt) are lost",
        "use a network interface on a bridge, or make sure that both ends connect again",
    ),
)
# What distinguishes an element from others of its kind, in order.
_NAMES = (("target", "dev"), ("target", "dir"), ("cid", "address"), ("device", "path"), ("alias", "name"))


def memory_reasons(backends: list[dict], found: bool) -> list[dict]:
    """Reasons against a domain in the kind of its memory."""
    if all(backend["kind"] == "memory-backend-ram" for backend in backends):
        return [reason("ram-anonymous", "its RAM is anonymous memory, which has no file descriptor", _PREPARE)]
    wrong = [backend for backend in backends if not backend["path"]]
    if wrong:
        kinds = ", ".join(f"{backend['id']} is a {backend['kind']}" for backend in wrong)
        return [reason("ram-backend", f"its RAM is not a shared file that exists after QEMU ends ({kinds})", _PREPARE)]
    if not found:
        return [
            reason(
                "ram-gone",
                "QEMU has no open file that is its RAM",
                "set memory_backing_dir in qemu.conf to a directory on a tmpfs and restart the domain",
            )
        ]
    return []


def place_reasons(backends: list[dict], place: str) -> list[dict]:
    """Whether the domain's RAM files are in libvirt's folder for RAM on this host: after the jump libvirt looks only there."""
    wrong = [backend["path"] for backend in backends if backend["path"] and not _ram.is_in_place(backend["path"], place)]
    if not wrong:
        return []
    message = f"its RAM file {', '.join(wrong)} is not below {place} (memory_backing_dir), where libvirt looks for it after the jump"
    return [reason("ram-elsewhere", message, RESTART)]


def format_reasons(configured: str) -> list[dict]:
    """Whether libvirt compresses the images of snapshots (qemu.conf): only a plain one can be changed so that a start loads it."""
    if configured in ("", "raw"):
        return []
    message = f"libvirt would write its state in the format {configured} (snapshot_image_format in qemu.conf), which cannot be used"
    return [reason("snapshot-format", message, "set it to raw in qemu.conf and restart libvirt's daemon (libvirtd or virtqemud)")]


def is_apparmors(label: str) -> bool:
    """Whether a process with this label (proc(5), attr/current) runs in the profile that libvirt made for its domain."""
    return label.startswith("libvirt-")


def confinement_reasons(label: str, ruled: bool) -> list[dict]:
    """Whether a security module would forbid a domain's new QEMU to open its memory in another process; ``ruled``: AppArmor allows it."""
    if not label or label.startswith("unconfined") or ":unconfined_t:" in label:
        return []
    if not is_apparmors(label):
        message = f"its QEMU is confined by SELinux ({label}), which would forbid access to its memory after the jump"
        remedy = "SELinux is not supported yet: give the guest another way (hypervisor_update_ladder), or shut it down for the update"
        return [reason("confined", message, remedy)]
    if ruled:
        return []
    message = f"its QEMU is confined by AppArmor ({label}), which would forbid access to its memory after the jump"
    return [reason("confined", message, f"run the playbook kvm.liveupdate.setup, which writes {_setup.APPARMOR_RULE}")]


def definition_reasons(name: str, uuid: str, defined: bool) -> list[dict]:
    """Whether libvirt has a definition of the domain: without one it cannot store a save."""
    if defined:
        return []
    message = f"libvirt has no persistent definition of {name}, so it cannot save the domain or start it again"
    return [reason("not-persistent", message, define(uuid))]


def define(uuid: str) -> str:
    """How to give a running domain a definition. Its name might be the ID of another one."""
    return f"define it: virsh dumpxml --inactive --security-info {uuid} > {uuid}.xml && virsh define {uuid}.xml"


def job_reasons(shown: str, uuid: str) -> list[dict]:
    """Whether libvirt runs a job on the domain, from the output of ``virsh domjobinfo``."""
    facts = {key.strip(): value.strip() for key, _colon, value in (line.partition(":") for line in shown.splitlines())}
    kind = facts.get("Job type", "unknown")
    if kind == "None":
        return []
    message = f"libvirt runs a job on it (migration, save, backup): {facts.get('Operation', kind)}"
    return [reason("libvirt-job", message, f"wait until the job has ended, or cancel it with 'virsh domjobabort {uuid}'")]


def monitor_reasons(seen: dict, uuid: str) -> list[dict]:
    """Reasons that QEMU reports, from ``seen`` of a survey. No answer from QEMU is a reason too.

    Libvirt says "paused" also of a QEMU in ``postmigrate``. QEMU refuses the save of such a guest until it has run (migration/migration.c,
    migrate_prepare), and a pause does not leave that state.
    """
    found = [
        reason("qemu-blocker", f"QEMU cannot save it: {text}", "remove the device or feature that QEMU names")
        for text in seen.get("blockers", ())
    ]
    if seen.get("block_jobs"):
        cancel = f"'virsh blockjob {uuid} DISK --abort' ('virsh domblklist {uuid}' shows the disks)"
        remedy = f"wait until the job has ended, or cancel it with {cancel}"
        found.append(reason("block-job", "a block job is running (backup, mirror, commit)", remedy))
    if seen.get("state", "running") not in ("running", "paused"):
        found.append(reason("run-state", f"the domain is {seen['state']}", "make it running or paused"))
    if seen.get("status", {}).get("status") == "postmigrate":
        message = "QEMU paused it for a save or a migration (postmigrate), and can save it again only after it has run"
        remedy = f"if it runs on no other host, run 'virsh resume {uuid}' and then 'virsh suspend {uuid}'"
        found.append(reason("run-state", message, remedy))
    unasked = not {"xml", "job", "state", "status", "blockers", "block_jobs", "capabilities", "blocks", "devices", "nameless"} <= set(seen)
    if seen["problem"] or unasked:
        message = seen["problem"] or "libvirt was busy with the domain, so its QEMU was not asked"
        found.append(
            reason(
                "monitor", message, "make sure that 'virsh list' answers, then run this again; if only its QEMU hangs, restart the domain"
            )
        )
    return found


def hook_warnings(hooks: list[str]) -> list[dict]:
    """A warning about programs of the owner that libvirt runs when it starts a domain."""
    if not hooks:
        return []
    message = f"libvirt runs {', '.join(hooks)} again when it starts the domain after the jump"
    return [reason("start-runs-again", message, "make sure that none of them creates or overwrites disks, firmware variables or taps")]


def xml_reasons(xml: str) -> list[dict]:
    """Reasons in a running domain's XML."""
    return _look(xml, _REASONS)


def xml_warnings(xml: str) -> list[dict]:
    """Warnings in a running domain's XML."""
    return _look(xml, _WARNINGS)


def _look(xml: str, checks: tuple) -> list[dict]:
    from xml.etree import ElementTree  # slow to import

    domain = ElementTree.fromstring(xml)
    found = []
    for code, path, message, remedy in checks:
        elements = domain.findall(path)
        if elements:
            found.append(reason(code, f"{message}: {', '.join(map(_shown, elements))}", remedy))
    return found


def _shown(element: Element) -> str:
    """An element as it is in the XML: its tag, and its name or text."""
    tag = element.tag + "".join(f" {key}='{value}'" for key, value in element.items())
    names = (child.get(key) for path, key in _NAMES for child in element.findall(path))
    return f"<{tag}> {next(filter(None, names), (element.text or '').strip())}".strip()
