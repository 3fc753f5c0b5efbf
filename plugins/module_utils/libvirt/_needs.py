# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt needs to start a domain as it runs now, and whether it exists after a boot. PRIVATE to the collection.

A running domain does not show what is missing: QEMU has its files open, its networks exist, and its secrets were read. After the jump
libvirt and QEMU look for everything again.

Source: https://libvirt.org/formatdomain.html, https://libvirt.org/formatsecret.html, tmpfiles.d(5).
"""

from __future__ import annotations

import os

from .._errors import reason, typed
from ..vmm import _disk_files
from . import _virsh

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import
    from xml.etree.ElementTree import Element

__all__ = ("OF_A_BOOT", "cards_since", "command_line", "devices", "disks", "links", "needs", "path_of", "reasons")

# Codes of reasons that count only when the host boots in between.
OF_A_BOOT = (
    *("file-in-memory", "network-no-autostart", "network-transient", "network-unknown", "pool-no-autostart", "pool-transient"),
    *("pool-unknown", "secret-ephemeral", "socket", "file-volatile"),
)
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Files that QEMU reads completely at its start. vmm/_reopened.py checks whether they were replaced.
_READ_ONCE = ("os/loader", "os/kernel", "os/initrd", "os/dtb", "os/shim", "os/acpi/table")
# Elements with an attribute that names a file. The template of firmware variables is not needed once the variables exist.
_NAMED_FILES = (
    ("sysinfo[@type='fwcfg']/entry[@file]", "file"),
    ("os/varstore", "path"),
    ("devices/*/rom[@file]", "file"),
    ("devices/disk//source/config", "file"),  # of Ceph
    ("devices/disk//source/identity", "keyfile"),  # of SSH
    ("devices/disk//source/knownHosts", "path"),
    ("devices/input/source", "dev"),
    ("devices/input/source", "evdev"),
    ("devices/interface/script", "path"),
)
_WITH_SECRETS = ("devices//secret", "os/nvram//secret")
_TCP_PORTS = {"nbd": "10809", "iscsi": "3260", "http": "80", "https": "443", "ftp": "21", "ftps": "990", "ssh": "22"}  # of disks
_PAST = "an option of <qemu:commandline>"
_OWN_FOLDERS = ("/run/libvirt/", "/var/lib/libvirt/", "/var/run/libvirt/")  # which libvirt creates
_OF_OTHERS = ("midonet", "openvswitch")  # virtual switches that keep their bridges themselves
_CHARACTERS = ("serial", "parallel", "console", "channel", "smartcard", "rng/backend", "redirdev")


def needs(xml: str) -> dict:
    """What the running domain's XML names: ``networks``, ``pools``, ``secrets``, ``files``, ``volumes`` and ``sockets``. Pure.

    A secret is a pair of UUID and usage, one of them empty. A file has its ``path``, ``what`` it is for, the ``target`` of a disk whose
    medium can be ejected, whether QEMU has it ``open``, whether it is a ``pipe``, and whether it is a ``folder`` in which QEMU creates
    something. A volume has ``pool``, ``volume`` and ``file``, whose path only libvirt knows.
    A socket has its ``path``, or HOST:PORT, and ``what`` it is for.
    """
    from xml.etree import ElementTree  # slow to import

    from ..vmm import _opens, _options

    domain = ElementTree.fromstring(xml)
    past = ["qemu", *command_line(xml)[0]]
    options = _options.read(past)[0]
    peers = (*_opens.connections(options), *_opens.peers(options))
    secrets = {(element.get("uuid", ""), element.get("usage", "")) for place in _WITH_SECRETS for element in domain.findall(place)}
    secrets |= {(element.get("secret", ""), "") for element in domain.findall("devices/tpm/backend/encryption[@secret]")}
    return {
        "networks": _named(domain, "devices/interface/source", "network"),
        "pools": _named(domain, "devices/disk//source", "pool"),
        "secrets": sorted(secrets),
        "files": [file for file in (*_files(domain), *_past_libvirt(past), *_folders(domain, past)) if file["path"].startswith("/")],
        "volumes": [volume for disk in domain.findall("devices/disk") for volume in _volumes(disk)],
        "sockets": [
            {"path": path, "what": what}
            for path, what in (*_connections(domain), *_peers(domain), *((path, _PAST) for path in peers))
            if path.startswith("/") or ":" in path
        ],
    }


def _named(domain: Element, path: str, key: str) -> list[str]:
    return sorted({name for name in (element.get(key) for element in domain.findall(path)) if name})


def _files(domain: Element) -> t.Iterator[dict]:
    for path in _READ_ONCE:
        for element in domain.findall(path):
            yield _file(element.text, f"<{element.tag}>")
    for path, key in _NAMED_FILES:
        for element in domain.findall(path):
            yield _file(element.get(key), f"<{element.tag}>")
    for element in domain.findall("devices/smartcard[@mode='host-certificates']/database"):
        yield _file(element.text, "<smartcard>")
    for element in domain.findall("devices/rng/backend[@model='random']"):
        yield _file(element.text, "<rng>")
    for state in domain.findall("devices/tpm/backend[@type='emulator']/source"):
        yield _file(state.get("path"), "the state of its TPM")
    for element in domain.findall("os/nvram"):
        source = element.find("source")
        yield _file(element.text if source is None else source.get("file"), "<nvram>", is_open=True)
    for disk in domain.findall("devices/disk"):
        for source in _sources(disk):
            yield _disk_file(disk, path_of(source))
    for kind in _CHARACTERS:
        for device in domain.findall(f"devices/{kind}"):
            backend, source = device.get("type", device.get("model")), device.find("source")
            if backend in ("dev", "pipe"):
                yield {**_file("" if source is None else source.get("path"), f"<{device.tag}>"), "pipe": backend == "pipe"}


def _past_libvirt(argv: list[str]) -> list[dict]:
    """The files that QEMU opens at its start because of options in ``<qemu:commandline>``."""
    from ..vmm import _opens, _options

    options = _options.read(argv)[0]
    return [
        *[_file(path, _PAST, is_open=True) for path in _opens.images(options)],
        *[_file(path, _PAST) for path in (*_opens.read_at_start(options, argv), *_opens.ports(options))],
        *[{**_file(path, _PAST), "pipe": True} for path in _opens.pipes(options)],
    ]


def _folders(domain: Element, argv: list[str]) -> list[dict]:
    """The folders in which QEMU creates sockets and logs. Libvirt creates its own, and no other."""
    from ..vmm import _opens, _options

    found = [(device.tag, log.get("file", "")) for device in domain.findall("devices/*") for log in device.findall("log")]
    for kind in _CHARACTERS:
        for path in (f"devices/{kind}[@type='file']/source", f"devices/{kind}[@type='unix']/source[@mode='bind']"):
            found += [(kind.partition("/")[0], source.get("path", "")) for source in domain.findall(path)]
    for graphics in domain.findall("devices/graphics"):
        found += [("graphics", element.get("socket", "")) for element in (graphics, *graphics.findall("listen"))]
    found += [("audio", audio.get("path", "")) for audio in domain.findall("devices/audio[@type='file']")]
    found += [("interface", backend.get("logFile", "")) for backend in domain.findall("devices/interface/backend")]
    named = [(f"<{tag}>", path) for tag, path in found if path and not path.startswith(_OWN_FOLDERS)]
    named += [(_PAST, path) for path in _opens.outputs(_options.read(argv)[0])]
    folders = {os.path.dirname(path): f"the directory of {path} ({what})" for what, path in reversed(named)}
    return [{**_file(folder, what), "folder": True} for folder, what in folders.items()]


def links(xml: str) -> dict[str, str]:
    """The network interfaces of the host that its cards are on and that libvirt does not create, each with what it is for. Pure."""
    from xml.etree import ElementTree

    from ..vmm import _argv_reasons

    found = {}
    for card in ElementTree.fromstring(xml).findall("devices/interface"):
        source, target, port = card.find("source"), card.find("target"), card.find("virtualport")
        kind, names = card.get("type", ""), []
        if port is not None and port.get("type") in _OF_OTHERS:
            continue
        if source is not None and kind in ("bridge", "direct", "network"):
            names = [source.get("bridge"), source.get("dev")]
        elif target is not None and kind == "ethernet" and target.get("managed") == "no":
            names = [target.get("dev")]
        found.update({name: f"<interface type='{kind}'>" for name in names if name})
    return {**found, **_argv_reasons.links(["qemu", *command_line(xml)[0]])}


def _sources(disk: Element) -> list[Element]:
    """The files of a disk. With a startup policy libvirt also starts the domain without the file."""
    return [source for source in disk.iter("source") if source.get("startupPolicy") not in ("optional", "requisite")]


def path_of(source: Element) -> str:
    """The file, block device or folder of this host with the content of a disk, or empty."""
    return source.get("file") or source.get("dev") or source.get("dir") or ""


def _disk_file(disk: Element, path: str | None) -> dict:
    target = disk.find("target")
    name, is_removable = ("", False) if target is None else (target.get("dev", ""), disk.get("device") in ("cdrom", "floppy"))
    is_shut = target is None or target.get("tray") != "open"
    return _file(path, f"disk {name}", is_shut and disk.get("type") != "dir", name if is_removable else "")


def _volumes(disk: Element) -> t.Iterator[dict]:
    for source in _sources(disk):
        pool, volume = source.get("pool", ""), source.get("volume", "")
        if pool and volume:
            yield {"pool": pool, "volume": volume, "file": _disk_file(disk, "")}


def devices(files: list[dict], wrong: dict[str, str]) -> dict[str, list[str]]:
    """The identities of the block devices, by their paths; not of those that have a problem."""
    from ..vmm import _block

    paths = [file["path"] for file in files if file["path"].startswith("/dev/") and not file.get("folder")]
    return {path: _block.identity(path) for path in paths if path not in wrong}


def disks(files: list[dict], wrong: dict[str, str], past_libvirt: list[str]) -> dict[str, dict]:
    """What identifies the disks and firmware variables, by their paths (:func:`_disk_files.identity`); not of those that have a problem.

    ``past_libvirt`` are the arguments of ``<qemu:commandline>``. Raises :class:`_slow_paths.Silent`.
    """
    from ..host import _slow_paths
    from ..vmm import _opens, _options, _reopened

    if "silent" in wrong.values():
        return {}  # which is a reason by itself
    paths = {file["path"]: bool(file["target"]) for file in files if file["open"] and file["path"] not in wrong}
    paths.update(dict.fromkeys(_opens.images(_options.read(["qemu", *past_libvirt], opens=False)[0]), False))
    mounts, hooks = _reopened.mounts(os.getpid()), _virsh.has_hooks()

    def look(say: t.Callable[[str], None]) -> dict[str, dict]:
        found = {}
        for path, is_medium in paths.items():
            say(path)
            try:
                found[path] = _disk_files.identity(path, _reopened.mount_of(os.path.realpath(path), mounts), is_medium and hooks)
            except OSError:
                continue  # on storage that root cannot access (NFS)
        return {path: known for path, known in found.items() if known}

    known: dict[str, dict] = _slow_paths.look(look) if paths else {}
    return known


def _file(path: str | None, what: str, is_open: bool = False, target: str = "") -> dict:
    return {"path": (path or "").strip(), "what": what, "open": is_open, "target": target}


def _connections(domain: Element) -> t.Iterator[tuple[str, str]]:
    for source in domain.findall("devices/tpm/backend[@type='external']/source"):
        yield source.get("path", ""), "its TPM (swtpm)"
    for source in domain.findall("devices/disk//reservations[@managed='no']/source"):
        yield source.get("path", ""), "its persistent reservations (qemu-pr-helper)"
    for host in domain.findall("devices/disk//source/host[@transport='unix']"):
        yield host.get("socket", ""), "its network disk"
    for kind in _CHARACTERS:
        for device in domain.findall(f"devices/{kind}[@type='unix']"):
            for source in device.findall("source[@mode='connect']"):
                yield source.get("path", ""), f"<{device.tag}>"


def _peers(domain: Element) -> t.Iterator[tuple[str, str]]:
    for source in domain.findall("devices/disk//source[@protocol]"):
        default = _TCP_PORTS.get(source.get("protocol", ""))
        for host in source.findall("host[@name]") if default else ():
            yield f"{host.get('name')}:{host.get('port') or default}", "its network disk"
    for source in domain.findall("devices/interface[@type='client']/source"):
        yield f"{source.get('address', '')}:{source.get('port', '')}", "<interface>"
    for kind in _CHARACTERS:
        for device in domain.findall(f"devices/{kind}[@type='tcp']"):
            for source in device.findall("source[@mode='connect']"):
                if source.find("reconnect[@enabled='yes']") is None:  # else QEMU starts without the other end
                    yield f"{source.get('host', '')}:{source.get('service', '')}", f"<{device.tag}>"


def command_line(xml: str) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that ``<qemu:commandline>`` gives to QEMU. Pure."""
    from xml.etree import ElementTree

    found = ElementTree.fromstring(xml).findall(f"{_QEMU}commandline/*")
    arguments = [element.get("value", "") for element in found if element.tag == f"{_QEMU}arg"]
    return arguments, {element.get("name", ""): element.get("value", "") for element in found if element.tag == f"{_QEMU}env"}


def cards_since(xml: str, argv: list[str]) -> list[str]:
    """Options for the network cards that were plugged in since QEMU started with this command line: they have loaded ROMs too. Pure."""
    from xml.etree import ElementTree

    from ..vmm import _options

    started = {option.get("id") for option in _options.read(argv, opens=False)[0] if option.name == "device"}
    found = []
    for card in ElementTree.fromstring(xml).findall("devices/interface"):
        alias, model, rom = card.find("alias"), card.find("model"), card.find("rom")
        if alias is None or model is None or alias.get("name") in started:
            continue
        kind, file = model.get("type", ""), "" if rom is None else rom.get("file", "")
        driver = "virtio-net" if kind.startswith("virtio") else kind
        own = rom is not None and (file or rom.get("enabled") == "no")
        found += ["-device", driver + (f",romfile={file.replace(',', ',,')}" if own else "")]
    return found


def reasons(wanted: dict, host: dict, wrong: dict[str, str], served: dict[str, str], uuid: str) -> list[dict]:
    """Reasons for what a domain needs (``wanted``) and a boot does not provide. Pure.

    ``host`` is what a survey saw of the host, ``wrong`` is from :func:`_after_boot.paths` and ``served`` from :func:`_after_boot.sockets`.
    Commands name the domain by its ``uuid``: :func:`_virsh.uuid_of`.
    """
    return [
        *_started("network", "net", wanted["networks"], host["networks"], host["problems"].get("networks", "")),
        *_started("pool", "pool", wanted["pools"], host["pools"], host["problems"].get("pools", "")),
        *_secret_reasons(wanted["secrets"], host["secrets"], host["problems"].get("secrets", "")),
        *[_file_reason(file, wrong[file["path"]], uuid) for file in wanted["files"] if file["path"] in wrong],
        *[_socket_reason(socket) for socket in wanted["sockets"] if not served.get(socket["path"])],
    ]


def _started(kind: str, verb: str, names: list[str], seen: dict, problem: str) -> list[dict]:
    found = []
    for name in names:
        if problem:
            message = f"it is unknown whether the {kind} {name} starts with the host: {problem}"
            found.append(reason(f"{kind}-unknown", message, f"make sure that 'virsh {verb}-list --all' answers, then run this again"))
        elif name not in seen["persistent"]:
            message = f"it uses the {kind} {name}, which has no persistent definition, so it does not exist after a boot"
            file, autostart = f"{name}.xml", f"virsh {verb}-autostart {typed(name)}"
            remedy = f"virsh {verb}-dumpxml {typed(name)} > {typed(file)} && virsh {verb}-define {typed(file)} && {autostart}"
            found.append(reason(f"{kind}-transient", message, remedy))
        elif name not in seen["autostart"]:
            message = f"it uses the {kind} {name}, which has no autostart, so a boot does not start it"
            found.append(reason(f"{kind}-no-autostart", message, f"virsh {verb}-autostart {typed(name)}"))
    return found


def _secret_reasons(wanted: list[tuple[str, str]], seen: dict, problem: str) -> list[dict]:
    """Libvirt stores the value of a secret on disk unless the secret is ephemeral."""
    found = []
    for uuid, usage in wanted:
        shown = uuid or usage
        known = [secret[0] for secret in seen.get("known", ()) if uuid == secret[0] or (not uuid and secret[2:] == [usage])]
        ephemeral = [secret[0] for secret in seen.get("ephemeral", ())]
        if problem:
            message = f"it is unknown whether its secret {shown} still exists: {problem}"
            found.append(reason("secret-unknown", message, "make sure that 'virsh secret-list' answers, then run this again"))
        elif not known:
            message = f"its secret {shown} does not exist any more, and libvirt cannot start the domain without it"
            found.append(reason("secret-gone", message, "define the secret again (virsh secret-define, virsh secret-set-value)"))
        elif known[0] in ephemeral:
            message = f"its secret {shown} is ephemeral, so it does not exist after a boot"
            found.append(reason("secret-ephemeral", message, "define the secret with ephemeral='no' and set its value again"))
    return found


def _file_reason(file: dict, wrong: str, uuid: str) -> dict:
    path, what = file["path"], file["what"]
    if file.get("folder") and wrong != "silent":
        message = f"{path}, {what}, does not exist after a boot, and QEMU creates that file there at its start"
        return reason("file-volatile", message, "let each boot create it (tmpfiles.d), or name another path and restart the domain")
    eject = f", or eject it: virsh change-media {uuid} {file['target']} --eject" if file["target"] else ""
    if wrong == "gone":
        return reason("file-gone", f"{path}, {what}, does not exist any more, so QEMU cannot open it again", f"restore the file{eject}")
    if wrong == "memory":
        message = f"{path}, {what}, is in memory or a temporary directory, so it does not exist after a boot"
        return reason("file-in-memory", message, f"move it to a disk and restart the domain{eject}")
    if wrong == "by-hand":
        message = f"{path}, {what}, is a loop, NBD or RAM device, which a boot does not set up"
        return reason("file-volatile", message, f"use the file itself or a permanent device in the XML, and restart the domain{eject}")
    if wrong == "silent":
        message = f"{path}, {what}, does not answer, so QEMU may not be able to open it again"
        return reason("file-silent", message, "make sure that its storage (NFS?) answers, or shut the domain down")
    message = f"{path}, {what}, is not the file that QEMU has open, so the domain would continue with another file"
    return reason("file-replaced", message, f"restore the first file, or restart the domain{eject}")


def _socket_reason(socket: dict) -> dict:
    message = f"{socket['what']} needs {socket['path']}, and no process that a boot starts listens there"
    return reason("socket", message, "run the process in an enabled systemd service, or shut the domain down for the update")
