# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What speaks against a QEMU command line: reasons and warnings, and its devices for a policy. PRIVATE to the collection.

Source: qemu(1).
"""

from __future__ import annotations

import re

from .._errors import reason
from . import _opens, _options
from ._options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("devices", "links", "name_warnings", "ram_reason", "reasons", "warnings")

# A version (pc-q35-10.0, pc-q35-rhel9.4.0), or Ubuntu's name for one (pc-q35-noble).
_VERSIONED = re.compile(r"\d\.\d|^(pc-i440fx|pc-q35|pseries|s390-ccw-virtio|virt)-[a-z]")
# Disk names that depend on the order in which the kernel finds the disks.
_NUMBERED = re.compile(r"/dev/(?:(?:sd|vd|xvd|hd)[a-z]+\d*|(?:dm-|md|sr|sg)\d+|(?:nvme\d+n|mmcblk|bcache|rbd|zd)\d+(?:p\d+)?)$")
_NETWORKS = ("netdev", "nic", "net")
_BRIDGE = "br0"  # QEMU's default (include/net/net.h, DEFAULT_BRIDGE_INTERFACE)
_DISK = ("drive", "blockdev")
_DESCRIPTORS = ("fd", "fds", "vhostfd", "vhostfds", "sock_fd")
_DESCRIPTOR_PATHS = ("/dev/fdset/", "/dev/fd/", "/proc/self/fd/")
_ENCRYPTION = ("sev-guest", "sev-snp-guest", "tdx-guest", "pef-guest", "s390-pv-guest")

# Devices that QEMU does not serve alone, by the beginning of their names, and the code of the reason.
_DEVICES = (
    (("vfio-", "usb-host", "pci-assign", "kvm-pci-assign"), "hostdev"),
    (("vhost-user-fs", "virtio-9p"), "filesystem"),
    (("vhost-user-", "x-pci-proxy-dev"), "vhost-user"),
    (("vhost-vdpa-",), "vdpa"),
    (("ivshmem",), "shmem"),
    (("pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem", "cxl-type3"), "memory-device"),
)
_BLOCK_DRIVERS = {
    "nvme": "disk-nvme",
    "nvme-io_uring": "disk-nvme",
    "virtio-blk-vfio-pci": "hostdev",
    "virtio-blk-vhost-user": "disk-vhost-user",
    "virtio-blk-vhost-vdpa": "disk-vdpa",
}
_SAYS = {
    "hostdev": (
        "it uses a device of the host (passthrough)",
        "remove the device and restart the guest; use virtio disks and a tap on a bridge",
    ),
    "filesystem": ("it shares a directory of the host", "remove the device and restart the guest"),
    "vhost-user": (
        "another process serves one of its devices (vhost-user) and ends at the jump",
        "use a device that QEMU serves itself, and restart the guest",
    ),
    "vdpa": ("it uses a vDPA device of the host", "use a tap on a bridge and restart the guest"),
    "shmem": ("it shares memory with another process", "remove the device and restart the guest"),
    "memory-device": ("it has memory besides its RAM, which cannot be preserved", "give it all memory with -m and restart the guest"),
    "disk-nvme": ("one of its disks is an NVMe drive of the host", "use a file or block device and restart the guest"),
    "disk-vhost-user": (
        "another process serves one of its disks (vhost-user) and ends at the jump",
        "use a file or block device and restart the guest",
    ),
    "disk-vdpa": ("one of its disks is a vDPA device of the host", "use a file or block device and restart the guest"),
    "tpm-passthrough": ("it uses the TPM of the host (passthrough)", "use an emulated TPM and restart the guest"),
    "launch-security": ("its memory is encrypted for the processor", "shut the guest down for the update"),
    "transient-disk": (
        "one of its disks is transient: all writes are discarded when QEMU ends",
        "remove snapshot=on or -snapshot and restart the guest",
    ),
    "cache-unsafe": (
        "one of its disks has the cache mode unsafe, so writes may be lost at the jump",
        "use another cache mode (cache=none) and restart the guest",
    ),
    "start-option": ("with this option QEMU cannot load a saved state", "remove the option and restart the guest"),
    "server-waits": (
        "QEMU waits at its start until a client connects, so the guest would wait after the jump",
        "add wait=off to the option and restart the guest",
    ),
    "privileges": (
        "with this option QEMU drops the rights that it needs to write its state",
        "remove the option and restart the guest; restrict QEMU with -sandbox and settings of its unit instead",
    ),
    "inherited-fd": (
        "it uses file descriptors inherited from its parent process, which do not exist after the jump",
        "name the device instead, e.g. -netdev tap,ifname=tap0,script=no,downscript=no",
    ),
}


def ram_reason(argv: list[str]) -> dict | None:
    """The reason why the RAM of this command line cannot be preserved; None if it can."""
    given = [option for option in _options.read(argv)[0] if option.name in ("object", "mem-path", "numa", "machine")]
    for option in given:
        backend = option.name == "object" and option.get("qom-type").startswith("memory-backend-")
        if option.name == "mem-path" or (backend and option.is_on("hugetlb")):
            return reason(
                "ram-hugetlb",
                f"its RAM is on huge pages or in another file, which the kernel cannot preserve: {option.text}",
                "remove this option and restart the guest; the wrapper's RAM uses transparent huge pages",
            )
        if backend or option.get("memdev") or option.get("memory-backend"):
            return reason(
                "ram-backend",
                f"its command line has another RAM backend than the wrapper's: {option.text}",
                "remove -object memory-backend-..., memdev= and memory-backend= and restart the guest; the wrapper adds a backend",
            )
    return None


def reasons(argv: list[str]) -> list[dict]:
    """Reasons why a QEMU with this command line, or a part of one, cannot be preserved; none if it can."""
    options, unread = _options.read(argv)
    found = [
        reason("argv-unread", f"its command line cannot be read: {text}", "fix or remove that option and restart the guest")
        for text in unread
    ]
    ram = ram_reason(argv)
    found += [ram] if ram else []
    for option in options:
        for code in dict.fromkeys(_codes(option)):
            what, remedy = _SAYS[code]
            found.append(reason(code, f"{what}: {option.text}", remedy))
    return found


def _codes(option: Option) -> list[str]:
    """The codes of the reasons against one option."""
    name, kind = option.name, option.get("type")
    found = []
    if name in ("loadvm", "incoming", "daemonize", "preconfig") or (name == "icount" and option.get("rr")):
        found.append("start-option")
    if name in ("runas", "chroot") or (name == "run-with" and (option.get("user") or option.get("chroot"))):
        found.append("privileges")
    if name == "device" or name == "usbdevice":
        driver = option.get("driver")
        found += [code for starts, code in _DEVICES if driver.startswith(starts) or (name == "usbdevice" and driver.startswith("host:"))][
            :1
        ]
    if name in _NETWORKS:
        found += {"vhost-user": ["vhost-user"], "vhost-vdpa": ["vdpa"]}.get(kind, [])
    if name in ("fsdev", "virtfs", "virtfs_synth"):
        found.append("filesystem")
    if name == "tpmdev" and kind == "passthrough":
        found.append("tpm-passthrough")
    if (name == "object" and option.get("qom-type") in _ENCRYPTION) or (
        name == "machine" and (option.get("confidential-guest-support") or option.get("memory-encryption"))
    ):
        found.append("launch-security")
    if name == "snapshot":
        found.append("transient-disk")
    if name in _DISK:
        found += _disk_codes(option)
    if name in _opens.CHARACTER_DEVICES and _waits(option):
        found.append("server-waits")
    if name == "add-fd" or any(_is_descriptor(key, value) for key, value in option.keys.items()):
        found.append("inherited-fd")
    return found


def _is_descriptor(key: str, value: str) -> bool:
    last = key.rpartition(".")[2]
    return last in _DESCRIPTORS or (last == "type" and value == "fd") or value.startswith(_DESCRIPTOR_PATHS)


def _disk_codes(option: Option) -> list[str]:
    drivers = {value for key, value in option.keys.items() if key.rpartition(".")[2] == "driver"}
    drivers |= {file.partition(":")[0] for file in (option.get("file"), option.get("file.filename"))}
    found = [_BLOCK_DRIVERS[driver] for driver in sorted(drivers) if driver in _BLOCK_DRIVERS]
    if not _opens.is_read_only(option):
        if option.is_on("snapshot"):
            found.append("transient-disk")
        no_flush = any(option.is_on(key) for key in option.keys if f".{key}".endswith(".cache.no-flush"))
        if no_flush or option.get("cache") == "unsafe":
            found.append("cache-unsafe")
    return found


def _waits(option: Option) -> bool:
    """Whether QEMU waits for a client. That is the default in QEMU's own syntax, but not in JSON (qapi/char.json)."""
    if option.get("backend.type") == "socket":
        return option.is_on("backend.data.wait") and option.get("backend.data.server") != "off"
    return option.get("backend") == "socket" and option.is_on("server") and option.get("wait") != "off"


def devices(argv: list[str]) -> list[str]:
    """The guest's devices as words: ``device:virtio-net-pci`` (its driver), ``disk:virtio``, ``interface:tap``, ``hostdev``, ``tpm``."""
    found = set()
    for option in _options.read(argv)[0]:
        if option.name == "device":
            found.add("hostdev" if "hostdev" in _codes(option) else f"device:{option.get('driver')}")
        elif option.name == "drive" and option.get("if") != "none":  # else it is the disk of a -device
            found.add(f"disk:{option.get('if') or 'ide'}")  # except for ARM's virt and the like, where virtio is the default
        elif option.name in ("netdev", "nic") and option.get("type") != "none":
            found.add(f"interface:{option.get('type')}")
        elif option.name == "tpmdev":
            found.add("tpm")
    return sorted(found)


def name_warnings(paths: t.Iterable[str]) -> list[dict]:
    """A warning for each disk with a name that a boot may change. Pure."""
    return [
        reason(
            "device-name",
            f"its disk {path} may have another name after the jump, and the guest could then not be restored automatically",
            "use a permanent path (/dev/disk/by-id/, /dev/mapper/, /dev/zvol/) and restart the guest",
        )
        for path in dict.fromkeys(paths)
        if _NUMBERED.match(path)
    ]


def links(argv: list[str]) -> dict[str, str]:
    """The bridges and taps of the host that QEMU uses and does not set up itself, each with its option.

    Without a script QEMU creates a tap that does not exist, but nothing makes it part of a network. A script does that.
    """
    found = {}
    for net in (option for option in _options.read(argv)[0] if option.name in _NETWORKS):
        bridge = net.get("br") or (_BRIDGE if net.get("type") == "bridge" else "")
        tap = net.get("ifname") if net.get("type") == "tap" and net.get("script") == "no" else ""
        found.update({name: net.text for name in (bridge, tap) if name and "%" not in name})
    return found


def warnings(argv: list[str], whole: bool = True) -> list[dict]:
    """Warnings: what does not survive the jump unchanged, or would not with another QEMU. They have the same keys as reasons.

    Without ``whole`` this is a part of a command line: the machine, the names of disks and QEMU's defaults are not looked at.
    """
    options, found = _options.read(argv)[0], []
    machine = ([option.get("type") for option in options if option.name == "machine" and option.get("type")] or [""])[-1]
    if whole and not _VERSIONED.search(machine):
        seen = f"its machine type {machine!r} has no version" if machine else "its command line names no machine type"
        found.append(
            reason(
                "machine-version",
                f"{seen}: a newer QEMU would use a newer machine type, which may not load its state",
                "use a machine type with a version from '-machine help' (pc-q35-10.0), and restart the guest;"
                " if there is none, do not upgrade QEMU together with the update",
            )
        )
    processor = ([option for option in options if option.name == "cpu"] or [Option("cpu", {}, "")])[-1]
    if processor.get("model") in ("host", "max"):
        message = f"its processor model depends on the host, and a new kernel may change it: {processor.text}"
        found.append(reason("cpu-host", message, "name a model (-cpu EPYC-Rome, see '-cpu help') and restart the guest"))
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    disks = [option for option in options if option.name in _DISK and whole]
    found += name_warnings(_opens.local_file(disk, nodes) for disk in disks)
    for option in options:
        if option.name == "device" and "vhost-vsock" in option.get("driver"):
            found.append(reason("vsock", f"its vsock connections are reset: {option.text}", "make sure that both ends connect again"))
        if option.name == "device" and option.get("driver") == "vmgenid" and option.get("guid") == "auto":
            message = f"it gets a new generation ID after the jump, so software in the guest may treat it as a clone: {option.text}"
            found.append(reason("genid", message, "use a fixed generation ID (guid=UUID) and restart the guest"))
    return found + [
        reason(
            "user-network",
            f"connections through its user-mode network are lost: {text}",
            "use a tap on a bridge, or make sure that both ends connect again",
        )
        for text in _user_networks(options, whole)
    ]


def _user_networks(options: list[Option], whole: bool) -> list[str]:
    """The networks that QEMU serves itself. It makes one by default if the command line says nothing about networks and defaults."""
    names = {option.name for option in options}
    if whole and not names & {"nodefaults", *_NETWORKS}:
        return ["QEMU's default, because neither -nodefaults nor -nic none is given"]
    own = ("user", "passt")
    return [
        option.text
        for option in options
        if option.name in _NETWORKS and (option.get("type") in own or (option.name == "nic" and not option.get("type")))
    ]
