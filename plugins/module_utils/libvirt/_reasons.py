# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a libvirt domain cannot be preserved, and what its operator has to know when it can. Pure. PRIVATE to the collection.

What QEMU itself names as a migration blocker (invtsc, an emulated NVMe controller, virtio-snd and the like) is not looked for here.

Source: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from . import _ram, _setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = (
    "confinement_reasons",
    "definition_reasons",
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
    "set <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking> in its XML and restart it once, or let the setup"
    " playbook do it without a restart (hypervisor_setup_domains, hypervisor_setup_adopt)"
)
_BRIDGE = "move it to a bridge first"

# Code, where it stands in the XML, message, remedy. The message goes on with what was found there.
_REASONS = (
    (
        "hugepages",
        "memoryBacking/hugepages",
        "its RAM is on huge pages, which the kernel cannot preserve",
        "remove <hugepages/> and restart it",
    ),
    ("discard", "memoryBacking/discard", "its RAM is thrown away when QEMU ends", "remove <discard/> and restart it"),
    ("launch-security", "launchSecurity", "its memory is encrypted", "shut it down for the update"),
    ("hostdev", "devices/hostdev", "a device of the host is passed through to it", "detach the device first"),
    ("hostdev", "devices/interface[@type='hostdev']", "a network card of the host is passed through to it", _BRIDGE),
    ("vhost-user", "devices/interface[@type='vhostuser']", "its network runs in another process (vhost-user)", _BRIDGE),
    ("vdpa", "devices/interface[@type='vdpa']", "its network is a vDPA device of the host", _BRIDGE),
    ("filesystem", "devices/filesystem", "a file system is shared with it (virtiofs, 9p)", "unmount and detach it first"),
    ("shmem", "devices/shmem", "memory is shared with it (ivshmem)", "detach it first"),
    (
        "memory-device",
        "devices/memory",
        "it has memory devices (DIMM, virtio-mem, NVDIMM), which are not supported yet",
        "detach them, or remove them from its XML and restart it",
    ),
    (
        "cache-unsafe",
        "devices/disk/driver[@cache='unsafe']/..",
        "its disk has cache='unsafe': writes may be lost",
        "set another cache mode and restart it",
    ),
    (
        "transient-disk",
        "devices/disk[transient]",
        "what it wrote to its disk is thrown away when QEMU ends",
        "remove <transient/> and restart it",
    ),
    (
        "disk-nvme",
        "devices/disk[@type='nvme']",
        "an NVMe controller of the host is passed through to it",
        "give it the disk as <disk type='block'> and restart it",
    ),
    (
        "disk-vhost-user",
        "devices/disk[@type='vhostuser']",
        "its disk is served by another process (vhost-user)",
        "give it the disk as <disk type='block'> or <disk type='file'> and restart it",
    ),
    (
        "disk-vdpa",
        "devices/disk[@type='vhostvdpa']",
        "its disk is a vDPA device of the host",
        "give it the disk as <disk type='block'> or <disk type='file'> and restart it",
    ),
    (
        "tpm-passthrough",
        "devices/tpm/backend[@type='passthrough']",
        "the TPM of the host is passed through to it",
        "use <backend type='emulator'/>, which starts empty, and restart it",
    ),
)

_CPU_MESSAGE = "its processor is what the host offers, and a new kernel may offer another"
_CPU_REMEDY = "name the model with <cpu mode='custom' match='exact'> and restart it"
_WARNINGS = (
    (
        "genid",
        "genid",
        "libvirt gives it a new generation id when it comes back: it will take itself for a clone",
        "remove <genid/> and restart it, unless nothing in the guest minds",
    ),
    ("cpu-host", "cpu[@mode='host-passthrough']", _CPU_MESSAGE, _CPU_REMEDY),
    ("cpu-host", "cpu[@mode='maximum']", _CPU_MESSAGE, _CPU_REMEDY),
    # Usually the XML of a running domain has the model that libvirt made of it, and that is what the domain comes back with.
    ("cpu-host", "cpu[@mode='host-model']", _CPU_MESSAGE, _CPU_REMEDY),
    ("vsock", "devices/vsock", "its vsock connections are reset", "see that both ends connect again"),
    (
        "user-network",
        "devices/interface[@type='user']",
        "connections through its user-mode network (slirp, passt) are lost",
        "move it to a bridge, or see that both ends connect again",
    ),
)
# What tells one element from others of its kind, in order.
_NAMES = (("target", "dev"), ("target", "dir"), ("cid", "address"), ("device", "path"), ("alias", "name"))


def reason(code: str, message: str, remedy: str) -> dict:
    """A reason or a warning."""
    return {"code": code, "message": message, "remedy": remedy}


def memory_reasons(backends: list[dict], found: bool) -> list[dict]:
    """What speaks against the memory of a domain."""
    if all(backend["kind"] == "memory-backend-ram" for backend in backends):
        return [reason("ram-anonymous", "its RAM is anonymous memory, which no descriptor names", _PREPARE)]
    wrong = [backend for backend in backends if not backend["path"]]
    if wrong:
        kinds = ", ".join(f"{backend['id']} is a {backend['kind']}" for backend in wrong)
        return [reason("ram-backend", f"its RAM is no shared file that stays when QEMU ends ({kinds})", _PREPARE)]
    if not found:
        return [reason("ram-gone", "none of QEMU's descriptors is its RAM", "restart it; memory_backing_dir has to be on a tmpfs")]
    return []


def place_reasons(backends: list[dict], place: str) -> list[dict]:
    """Whether its RAM files lie where libvirt keeps RAM on this host: there the RAM is looked for after the jump, and nowhere else."""
    wrong = [backend["path"] for backend in backends if backend["path"] and not _ram.is_in_place(backend["path"], place)]
    if not wrong:
        return []
    message = f"its RAM file {', '.join(wrong)} is not below {place}, where libvirt looks for it after the jump (memory_backing_dir)"
    return [reason("ram-elsewhere", message, "qemu.conf was changed since it started: restart the domain once")]


def is_apparmors(label: str) -> bool:
    """Whether a process with this label (proc(5), attr/current) runs in the profile that libvirt made for its domain."""
    return label.startswith("libvirt-")


def confinement_reasons(label: str, ruled: bool) -> list[dict]:
    """Whether a security module would keep a domain's new QEMU from its memory in another process; ``ruled``: not AppArmor."""
    if not label or label.startswith("unconfined") or ":unconfined_t:" in label:
        return []
    if not is_apparmors(label):
        message = f"its QEMU is confined by SELinux ({label}): after the jump it would not be let at its memory"
        remedy = 'set security_driver = "none" in /etc/libvirt/qemu.conf, restart libvirtd and then the domain'
        return [reason("confined", message, remedy)]
    if ruled:
        return []
    message = f"its QEMU is confined by AppArmor ({label}), which would not let it at its memory after the jump"
    return [reason("confined", message, f"run the setup playbook, which writes {_setup.APPARMOR_RULE}")]


def definition_reasons(name: str, defined: bool) -> list[dict]:
    """Whether libvirt would know the domain when it does not run; only then it can keep a save of it."""
    if defined:
        return []
    message = f"libvirt has no definition of {name} (it is transient): it can neither be saved nor started again"
    remedy = f"define it as it runs: virsh dumpxml --inactive --security-info {name} > {name}.xml && virsh define {name}.xml"
    return [reason("not-persistent", message, remedy)]


def job_reasons(shown: str) -> list[dict]:
    """Whether libvirt is at work on the domain, from what ``virsh domjobinfo`` shows."""
    facts = {key.strip(): value.strip() for key, _colon, value in (line.partition(":") for line in shown.splitlines())}
    kind = facts.get("Job type", "unknown")
    if kind == "None":
        return []
    message = f"libvirt runs a job on it (migration, save, backup): {facts.get('Operation', kind)}"
    return [reason("libvirt-job", message, "let it finish, or cancel it with virsh domjobabort")]


def monitor_reasons(seen: dict) -> list[dict]:
    """What QEMU says of itself, from ``seen`` of a survey; that it says nothing is a reason too."""
    found = [
        reason("qemu-blocker", f"QEMU says: {text}", "remove the device or feature that it names") for text in seen.get("blockers", ())
    ]
    if seen.get("block_jobs"):
        found.append(reason("block-job", "a block job is running (backup, mirror, commit)", "let it finish, or cancel it"))
    if seen.get("state", "running") not in ("running", "paused"):
        found.append(reason("run-state", f"the domain is {seen['state']}", "bring it to running or paused first"))
    unasked = not {"xml", "job", "state", "blockers", "block_jobs", "capabilities"} <= set(seen)
    if seen["problem"] or unasked:
        message = seen["problem"] or "libvirt was at work on it, and its QEMU was not asked"
        found.append(
            reason("monitor", message, "see that 'virsh list' answers, then run this again; restart the guest if only its QEMU hangs")
        )
    return found


def xml_reasons(xml: str) -> list[dict]:
    """What a running domain's XML has that cannot be carried over."""
    return _look(xml, _REASONS)


def xml_warnings(xml: str) -> list[dict]:
    """What a running domain's XML has that does not come over as it was."""
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
    """An element as the operator finds it in the XML: its tag, and its name or text."""
    tag = element.tag + "".join(f" {key}='{value}'" for key, value in element.items())
    names = (child.get(key) for path, key in _NAMES for child in element.findall(path))
    return f"<{tag}> {next(filter(None, names), (element.text or '').strip())}".strip()
