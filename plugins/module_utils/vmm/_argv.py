# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU command lines: what one says about the guest's RAM, and the one that we run. PRIVATE to the collection.

Pure functions. Source: qemu(1).
"""

from __future__ import annotations

import json

from .._errors import LiveUpdateError

__all__ = ("RAM_ID", "command", "devices", "nodes", "ram_size", "reasons", "unpreservable", "uuid_of", "warnings")

# The RAM's name in the migration stream. QEMU's own default for PC machines, so that other tools know it too.
RAM_ID = "pc.ram"
DEFAULT_RAM_BYTES = 128 << 20
_HUGE_PAGE = 2 << 20
# QEMU's and Ubuntu's names for whichever version is the latest; without a name it is pc.
_UNVERSIONED = ("", "pc", "q35", "ubuntu", "ubuntu-q35")
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def _values(argv: list[str], *options: str) -> list[str]:
    """The values given to an option, in order; QEMU takes one dash or two."""
    wanted = {dash + option for option in options for dash in ("-", "--")}
    return [value for option, value in zip(argv, argv[1:]) if option in wanted]


def ram_size(argv: list[str]) -> int:
    """The guest's RAM in bytes, from ``-m``: MiB unless a unit follows; 128 MiB when not given."""
    size = ""
    for value in _values(argv, "m"):
        for part in value.split(","):
            key, equals, rest = part.partition("=")
            if not equals or key == "size":
                size = rest if equals else key
    if not size:
        return DEFAULT_RAM_BYTES
    digits, shift = size, 20
    if size[-1].upper() in _UNITS:
        digits, shift = size[:-1], _UNITS[size[-1].upper()]
    if not digits.isdigit() or not int(digits):
        raise LiveUpdateError(f"-m {size}: not a size this wrapper understands; use whole numbers with K, M, G or T, e.g. -m 2G")
    return int(digits) << shift


def uuid_of(argv: list[str]) -> str:
    """The guest's UUID as given by ``-uuid``; empty when it has none."""
    return (_values(argv, "uuid") or [""])[-1].lower()


def nodes(argv: list[str]) -> list[str]:
    """The device nodes of the host that it opens, as far as they come with a kernel module: ``/dev/kvm`` and the like."""
    accelerators = _values(argv, "accel", "machine", "M")
    nets = [value.replace(" ", "") for value in _values(argv, "netdev", "nic", "net")]
    wanted = {
        "/dev/kvm": "-enable-kvm" in argv or "--enable-kvm" in argv or any("kvm" in value for value in accelerators),
        "/dev/net/tun": any(net.startswith(("tap", "type=tap", "bridge", "type=bridge")) or '"type":"tap"' in net for net in nets),
        "/dev/vhost-net": any("vhost=on" in net or '"vhost":true' in net for net in nets),
        "/dev/vhost-vsock": any("vhost-vsock" in device for device in _values(argv, "device")),
    }
    return [node for node, needed in wanted.items() if needed]


def unpreservable(argv: list[str]) -> dict | None:
    """Why the RAM that this command line asks for cannot be preserved: a reason, or None when it can."""
    objects = [value for value in _values(argv, "object") if value.startswith(("memory-backend-", "qom-type=memory-backend-"))]
    if any("hugetlb=on" in value for value in objects) or _values(argv, "mem-path"):
        return _reason(
            "ram-hugetlb",
            "its RAM comes from huge pages or a file of its own (hugetlb=on or -mem-path), which the kernel cannot preserve",
            "remove these options: the wrapper gives RAM that transparent huge pages can back",
        )
    if objects or any("memdev=" in value for value in _values(argv, "numa")):
        return _reason(
            "ram-backend",
            f"it has RAM backends of its own ({'; '.join(objects) or '-numa memdev='})",
            "remove -object memory-backend-... and memory-backend=: the wrapper adds one that can be preserved",
        )
    if any("memory-backend=" in value for value in _values(argv, "machine", "M")):
        return _reason("ram-backend", "-machine names a memory-backend", "remove memory-backend= from -machine")
    inherited = [value for value in argv if ",fd=" in value or ",fds=" in value or ",vhostfd" in value]
    if inherited:
        return _reason(
            "inherited-fd",
            f"it uses descriptors inherited from its starter ({inherited[0]}), which do not exist after the jump",
            "name the device instead, e.g. -netdev tap,ifname=tap0,script=no,downscript=no",
        )
    return None


def reasons(argv: list[str]) -> list[dict]:
    """Why a QEMU with this command line, or these words of one, cannot be preserved; none when it can."""
    found = unpreservable(argv)
    return [found] if found else []


def devices(argv: list[str]) -> list[str]:
    """The guest's devices in words: ``device:virtio-net-pci`` (its driver), ``disk:virtio``, ``interface:tap``, ``hostdev``, ``tpm``."""
    found = set()
    for value in _values(argv, "device"):
        driver = str(json.loads(value).get("driver", "")) if value.startswith("{") else value.partition(",")[0].rpartition("driver=")[2]
        found.add("hostdev" if driver.startswith("vfio-") else f"device:{driver}")
    for value in _values(argv, "drive"):
        bus = _option(value, "if") or "ide"  # but for ARM's virt and the like, whose default is virtio
        if bus != "none":  # it is the disk of a -device
            found.add(f"disk:{bus}")
    for value in _values(argv, "netdev", "nic"):
        kind = str(json.loads(value).get("type", "")) if value.startswith("{") else value.partition(",")[0].rpartition("type=")[2]
        found.add(f"interface:{kind}")
    if _values(argv, "tpmdev"):
        found.add("tpm")
    return sorted(found - {"interface:none"})


def _option(value: str, wanted: str) -> str:
    """What ``wanted=`` says among an option's parts; empty when it is not there."""
    return next((rest for key, _equals, rest in (part.partition("=") for part in value.split(",")) if key == wanted), "")


def warnings(argv: list[str]) -> list[dict]:
    """What of this command line does not come over as it was, or would not with another QEMU: of the same shape as a reason."""
    found = []
    machine = _machine(argv)
    if machine in _UNVERSIONED:
        seen = f"its machine type {machine!r} has no version" if machine else "its command line names no machine type"
        found.append(
            _reason(
                "machine-version",
                f"{seen}: a QEMU that was upgraded since makes another machine of it, which may not take its state",
                "name it with its version, as -machine help lists it (pc-q35-10.0), and restart the guest",
            )
        )
    cpu = (_values(argv, "cpu") or [""])[-1]
    if cpu.partition(",")[0] in ("host", "max"):
        message = f"its processor is what the host offers, and a new kernel may offer another: -cpu {cpu}"
        found.append(_reason("cpu-host", message, "name the model (-cpu EPYC-Rome, see -cpu help) and restart the guest"))
    devices = _values(argv, "device")
    for device in devices:
        if "vhost-vsock" in device:
            found.append(_reason("vsock", f"its vsock connections are reset: -device {device}", "see that both ends connect again"))
        if "vmgenid" in device and "guid=auto" in device:
            message = f"it gets a new generation id when it comes back and will take itself for a clone: -device {device}"
            found.append(_reason("genid", message, "give it a guid of its own (guid=UUID) and restart the guest"))
    for net in _values(argv, "netdev", "nic", "net"):
        if net.partition(",")[0] in ("user", "type=user"):
            message = f"connections through its user-mode network are lost: {net}"
            found.append(_reason("user-network", message, "use a tap on a bridge, or see that both ends connect again"))
    return found


def _machine(argv: list[str]) -> str:
    """The machine type; empty when none is named."""
    machine = ""
    for value in _values(argv, "machine", "M"):
        for place, part in enumerate(value.split(",")):
            key, equals, rest = part.partition("=")
            if key == "type" or (place == 0 and not equals):
                machine = rest if equals else key
    return machine


def _reason(code: str, message: str, remedy: str) -> dict:
    return {"code": code, "message": message, "remedy": remedy}


def command(argv: list[str], monitor: str, ram_fd: int | None, size: int, incoming: bool) -> list[str]:
    """The command line to run: the user's, with our monitor, the RAM behind ``ram_fd``, and waiting for a state or not.

    ``ram_fd`` None leaves the RAM as the user asked for it.
    """
    for option in ("daemonize", "incoming"):
        if f"-{option}" in argv or f"--{option}" in argv:
            raise LiveUpdateError(f"-{option} does not go together with live update: remove it, systemd runs QEMU in the foreground")
    added = ["-qmp", f"unix:{monitor},server=on,wait=off"]
    if ram_fd is not None:
        # Only a *named file* that is shared stays out of the migration stream (QEMU's migrate_ram_is_ignored), hence the path.
        # Aligned, a huge page of the file is one for the processor too, and comes with one fault.
        file = f"memory-backend-file,id={RAM_ID},size={size},align={_HUGE_PAGE},share=on,mem-path=/proc/self/fd/{ram_fd}"
        added += ["-object", file]
        added += ["-machine", f"memory-backend={RAM_ID}"]
    if incoming:
        added += ["-incoming", "defer"]
    return argv + added
