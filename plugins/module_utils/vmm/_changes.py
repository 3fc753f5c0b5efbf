# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the present disks, devices and networks of a QEMU differ from its command line. PRIVATE to the collection.

After a jump QEMU starts with that command line again. It must open the disks that the guest has now, and a saved state loads only with the
same devices. Source: QEMU's qapi/block-core.json, qapi/qom.json, softmmu/qdev-monitor.c (aliases), net/net.c (info network).
"""

from __future__ import annotations

import re

from .._errors import reason
from . import _opens, _options
from ._options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._monitor import Monitor

__all__ = ("ask", "children", "differences", "ignores_shared", "images", "is_image", "is_type", "left_on", "unsafe")

# Other names of device types.
_ALIASES = {"ac97": "AC97", "ahci": "ich9-ahci", "e1000-82540em": "e1000", "es1370": "ES1370", "lsi": "lsi53c895a"}
# The devices with an ID, and those without one.
_FOLDERS = ("/machine/peripheral", "/machine/peripheral-anon")
_BUSES = ("-pci", "-ccw", "-device", "-s390")


def ask(monitor: Monitor) -> dict:
    """What QEMU has now: ``disks``, ``devices`` by ID, devices without ID (``nameless``), ``networks``, and the number of ``cpus``.

    ``hotplugged`` names the devices that were not on the command line. This takes a short question for each device.
    ``ignores_shared`` is whether it leaves its RAM out of its saves (:func:`ignores_shared`).
    """
    named, nameless = (children(monitor.execute("qom-list", path=folder)) for folder in _FOLDERS)
    return {
        "ignores_shared": ignores_shared(monitor.execute("query-migrate-capabilities")),
        "disks": monitor.execute("query-block"),
        "devices": dict(named),
        "nameless": [kind for _name, kind in nameless],
        "hotplugged": [
            f"{name} ({kind})" if devices is named else kind
            for folder, devices in zip(_FOLDERS, (named, nameless))
            for name, kind in devices
            if monitor.execute("qom-get", path=f"{folder}/{name}", property="hotplugged")
        ],
        "networks": monitor.execute("human-monitor-command", command_line="info network"),
        "cpus": len(list(monitor.execute("query-cpus-fast"))),  # type: ignore[call-overload]  # a list, as all of these
    }


def ignores_shared(capabilities: object) -> bool:
    """Whether x-ignore-shared is on, from the result of query-migrate-capabilities (qapi/migration.json). Pure."""
    return any(
        entry.get("capability") == "x-ignore-shared" and entry.get("state") is True
        for entry in (capabilities if isinstance(capabilities, list) else [])
    )


def left_on(text: str) -> dict:
    """That QEMU leaves the guest's RAM out of its saves, as a reason; ``text`` says so and, after a colon, the remedy. Pure."""
    message, _colon, remedy = text.partition(": ")
    return reason("ignore-shared", message, remedy)


def children(entries: object) -> list[tuple[str, str]]:
    """The names and types of devices, from the result of qom-list. Pure."""
    listed: list[dict] = entries if isinstance(entries, list) else []
    return [(entry["name"], entry["type"][len("child<") : -1]) for entry in listed if entry["type"].startswith("child<")]


def differences(argv: list[str], now: dict) -> list[dict]:
    """Reasons why QEMU would not start again as it is now. ``now`` is from :func:`ask`. Pure, but it reads ``-readconfig`` files."""
    options = _options.read(argv)[0]
    return _disks(options, now["disks"]) + _devices(options, now) + _networks(options, now["networks"]) + _cpus(options, now["cpus"])


def unsafe(disks: list[dict]) -> list[dict]:
    """A reason if QEMU does not flush the writes to one of these disks (the result of query-block). Pure."""
    inserted = [disk["inserted"] for disk in disks if disk.get("inserted")]
    named = [disk["file"] for disk in inserted if disk.get("cache", {}).get("no-flush") and not disk.get("ro")]
    message = f"QEMU has {', '.join(named)} open with cache.no-flush, so writes may be lost at the jump"
    return [reason("cache-unsafe", message, "use another cache mode (cache=none) and restart the guest")] if named else []


def _disks(options: list[Option], disks: list[dict]) -> list[dict]:
    found = unsafe(disks)
    if any(option.name == "snapshot" or (option.name == "drive" and option.is_on("snapshot")) for option in options):
        return found  # this is a reason already, and the names of their files are generated
    named = images(options)
    opened = [disk["inserted"]["file"] for disk in disks if disk.get("inserted")]
    for image in named[:]:
        match = next((file for file in opened if is_image(file, image)), None)
        if match is not None:
            opened.remove(match)
            named.remove(image)
    if named or opened:
        here = ", ".join(opened) or "nothing"
        there = ", ".join(image or text for image, _words, text in named) or "nothing"
        message = f"its disks differ from its command line: it has {here} instead of {there}"
        remedy = (
            "undo the change (block-commit merges a live snapshot; blockdev-change-medium changes the medium back),"
            " or write its present disks into its unit and restart the guest"
        )
        found.append(reason("disk-changed", message, remedy))
    return found


def images(options: list[Option]) -> list[tuple[str, set[str], str]]:
    """The images on the command line: each as its local file or "", all words about it, and the option's text."""
    nodes = {option.get("node-name"): option for option in options if option.name == "blockdev" and option.get("node-name")}
    used = {value for option in options if option.name in ("device", "machine") for value in option.keys.values()}
    found = []
    for option in options:
        if option.name == "drive" and any(map(option.get, ("file", "filename", "file.driver", "file.filename", "driver"))):
            found.append((_opens.local_file(option, {}), _words(option, {}), option.text))
        elif option.name == "blockdev" and option.get("node-name") in used:
            found.append((_opens.local_file(option, nodes), _words(option, nodes), option.text))
    return found


def _words(option: Option, nodes: dict[str, Option]) -> set[str]:
    """All words about an image, also those of the nodes below it."""
    found: set[str] = set()
    for value in option.keys.values():
        protocol, _colon, rest = value.partition(":")
        if protocol == "json":
            found |= set(_options.keys_of("blockdev", rest).values())
        found |= {value, rest, *_parts(value), *re.split("[:=,@]", value)}
        if value in nodes and nodes[value] is not option:
            found |= _words(nodes[value], {name: node for name, node in nodes.items() if node is not option})
    return found


def _parts(text: str) -> set[str]:
    return set(re.split(r"[^\w.~-]+", text)) - {""}


def is_image(opened: str, named: tuple[str, set[str], str]) -> bool:
    """Whether an open image is the one on the command line. QEMU describes an image that is not a plain file in its own words."""
    image, words, _text = named
    if opened.startswith("json:"):
        said = dict(_options.keys_of("blockdev", opened[len("json:") :]))
        names = {value for key, value in said.items() if not key.endswith("driver") and value not in ("on", "off") and not value.isdigit()}
        return names <= words
    if "://" in opened:
        return {part for part in _parts(opened) if not part.isdigit()} - {"socket"} <= words
    return opened == image if image else opened in words


def _devices(options: list[Option], now: dict) -> list[dict]:
    """The guest's devices: those with an ID by their IDs, the others by their types.

    A device that was unplugged and plugged in again may be at another port, so that a saved state does not load.
    """
    named = {option.get("id"): option.get("driver") for option in options if option.name == "device" and option.get("id")}
    nameless = [option.get("driver") for option in options if option.name == "device" and not option.get("id")]
    nameless += ["virtio-blk" for option in options if option.name == "drive" and option.get("if") == "virtio"]
    # Depending on the machine, these options create devices without a name, or no separate device.
    perhaps = ["virtio-blk" for option in options if option.name == "drive" and not option.get("if")]
    perhaps += ["virtio-9p" for option in options if option.name == "virtfs"] + [
        option.text for option in options if option.name == "watchdog"
    ]
    added = [f"{name} ({kind})" for name, kind in now["devices"].items() if name not in named or not is_type(kind, named[name])]
    gone = [f"{name} ({kind})" for name, kind in named.items() if not is_type(now["devices"].get(name, ""), kind)]
    more = list(now["nameless"])
    for wanted, kinds in ((True, nameless), (False, perhaps)):
        for kind in kinds:
            match = next((there for there in more if is_type(there, kind)), None)
            if match:
                more.remove(match)
            elif wanted:
                gone.append(kind)
    added += more
    again = [device for device in now["hotplugged"] if device not in added]
    if not (added or gone or again):
        return []
    told = (("added since its start", added), ("removed", gone), ("removed and plugged in again", again))
    words = [f"{what}: {', '.join(which)}" for what, which in told if which]
    restart = "restart the guest (to keep the change, write it into its unit before)"
    remedy = restart if gone or again else f"remove what was added (device_del), or {restart}"
    return [reason("device-changed", f"its devices differ from its command line; {'; '.join(words)}", remedy)]


def is_type(kind: str, driver: str) -> bool:
    """Whether a device has the type on the command line, which may omit the bus or be an alias."""
    return bool(kind) and kind in (driver, _ALIASES.get(driver), *(driver + bus for bus in _BUSES))


def _networks(options: list[Option], info: str) -> list[dict]:
    """Reasons about the backends of network cards. A backend without a card does not matter."""
    now = dict(re.findall(r"^[ \\]*(?:\S+: )?(\S+): index=\d+,(.*?)\r?$", info, re.MULTILINE))
    changed = []
    for option in options:
        if option.name == "netdev" and option.get("id"):
            said = now.get(option.get("id"), "")
            tap = option.get("ifname")
            if not said or (tap and "%d" not in tap and "ifname=" in said and f"ifname={tap}," not in f"{said},"):
                changed.append(f"{option.get('id')} is {said or 'gone'} instead of {option.text}")
    remedy = "undo the change (netdev_add), or write it into its unit and restart the guest"
    return [reason("network-changed", f"its networks differ from its command line: {'; '.join(changed)}", remedy)] if changed else []


def _cpus(options: list[Option], count: int) -> list[dict]:
    """A reason if processors were removed. One that was added is a device already."""
    wanted = ([option.get("cpus") for option in options if option.name == "smp"] or [""])[-1]
    if not wanted.isdigit() or count >= int(wanted):
        return []
    message = f"it has {count} processors instead of {wanted}"
    return [reason("device-changed", message, "restart the guest (to keep the change, change -smp in its unit before)")]
