# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read QEMU command lines as QEMU reads them: words, options, keys and values. PRIVATE to the collection.

Source: QEMU's system/vl.c, util/qemu-option.c (implied_opt_name), util/keyval.c, qobject/json-lexer.c, chardev/char.c, qemu-options.hx.
"""

from __future__ import annotations

import json
import re

from ..host import _files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("WITH_WORD", "Option", "keys_of", "read", "split")

# Options without an argument, of all versions since 2.0.
_FLAG_TEXT = """
alt-grab async-teardown audio-help ctrl-grab curses daemonize enable-fips enable-hax enable-kvm enable-sync-profile full-screen h help
jitdump localtime mem-prealloc no-acpi no-fd-bootchk no-frame no-hpet no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-quit
no-reboot no-shutdown no-user-config nodefaults nodefconfig nographic old-param only-migratable perfmap portrait preconfig rtc-td-hack
s S sdl semihosting singlestep snapshot tdf usb version win2k-hack xen-attach xen-create xen-domid-restrict
"""
_FLAGS = frozenset(_FLAG_TEXT.split())
# Options whose argument is the next word, even if that begins with a dash.
_WITH_WORD_TEXT = """
accel acpitable action add-fd append audio audiodev balloon bios blockdev boot bt cdrom chardev chroot clock compat cpu d D debugcon
device dfilter display drive dtb dump-vmstate echr fda fdb fsdev fw_cfg g gdb global hda hdb hdc hdd icount incoming initrd iscsi k
kernel L loadvm m M machine mem-path mon monitor msg mtdblock name net netdev nic numa object option-rom overcommit parallel pflash
pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig realtime redir rotate rtc run-with runas sandbox sd seed
semihosting-config serial set smbios smp soundhw spice startdate tb-size tpmdev trace trace-unassigned usbdevice uuid vga virtfs
virtfs_synth vnc watchdog watchdog-action writeconfig xen-domid
"""
WITH_WORD = frozenset(_WITH_WORD_TEXT.split())
# The key of a first value without a key.
_FIRST = {
    "accel": "accel",
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "boot": "order",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "display": "type",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "icount": "shift",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "name": "guest",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "option-rom": "romfile",
    "plugin": "file",
    "sandbox": "enable",
    "smp": "cpus",
    "tpmdev": "type",
    "trace": "enable",
    "usbdevice": "driver",
    "virtfs": "fsdriver",
    "vnc": "vnc",
}
# Short forms of other options, and what they stand for.
_DISKS = {
    "": {"if": "ide"},
    "cdrom": {"if": "ide", "media": "cdrom"},
    "fda": {"if": "floppy"},
    "fdb": {"if": "floppy"},
    "hda": {"if": "ide"},
    "hdb": {"if": "ide"},
    "hdc": {"if": "ide"},
    "hdd": {"if": "ide"},
    "mtdblock": {"if": "mtd"},
    "pflash": {"if": "pflash"},
    "sd": {"if": "sd"},
}
_CHARACTER_DEVICES = ("debugcon", "gdb", "monitor", "parallel", "qmp", "qmp-pretty", "serial")
# Options whose argument is not a list of keys and values.
_PLAIN_TEXT = """
append bios chroot d D dfilter dtb dump-vmstate echr incoming initrd k kernel L loadvm mem-path pidfile qtest qtest-log readconfig
rotate runas seed uuid vga watchdog watchdog-action
"""
_PLAIN = frozenset(_PLAIN_TEXT.split())
_CONFIG_GROUPS = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot"}
_LARGEST_CONFIG = 1 << 20  # bytes; such a file has some lines
_STRING = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)


class Option:
    """One option: its ``name`` (that of the option it stands for), its ``keys`` and values, and its ``text`` for people."""

    __slots__ = ("keys", "name", "text")

    def __init__(self, name: str, keys: dict[str, str], text: str) -> None:
        self.name, self.keys, self.text = name, keys, text

    def get(self, key: str, default: str = "") -> str:
        """The value of a key."""
        return self.keys.get(key, default)

    def is_on(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.get(key) in ("on", "yes", "true", "y")


def split(argv: list[str]) -> list[tuple[str, str]]:
    """The options in order, each as its name without dashes and its argument; both may be empty. Pure.

    A first word without dash is the program. A word that belongs to no option is a disk, with the name "". An unknown option takes the next
    word, unless that is an option.
    """
    found, place = [], 1 if argv and not argv[0].startswith("-") else 0
    while place < len(argv):
        word, place = argv[place], place + 1
        if not word.startswith("-"):
            found.append(("", word))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        takes = name in WITH_WORD or (name not in _FLAGS and place < len(argv) and not argv[place].startswith("-"))
        if takes and place < len(argv):
            found.append((name, argv[place]))
            place += 1
        else:
            found.append((name, ""))
    return found


def read(argv: list[str], opens: bool = True) -> tuple[list[Option], list[str]]:
    """The options of the command line, with those that ``-readconfig`` files and ``-set`` add; and sentences about what cannot be read.

    Without ``opens`` this opens no file. Use that for a command line from /proc: a compromised QEMU can change its own.
    """
    found: list[Option] = []
    unread: list[str] = []
    for name, word in split(argv):
        try:
            if name == "readconfig":
                found += _config(word) if opens else []
            elif name == "set":
                _change(found, word)
            else:
                found.append(_option(name, word))
        except (OSError, RecursionError, ValueError) as err:
            unread.append(f"-{name} {word}: {err}")
    return found, unread


def _option(name: str, word: str) -> Option:
    text = f"-{name} {word}".strip() if name else word
    if name in _DISKS:
        return Option("drive", {"file": word, **_DISKS[name]}, text)
    if name in _CHARACTER_DEVICES:
        return Option(name, _character_device(word), text)
    name = "machine" if name == "M" else name
    return Option(name, {"": word} if name in _PLAIN else keys_of(name, word), text)


def keys_of(option: str, word: str) -> dict[str, str]:
    """The keys and values of an option's argument, in either syntax of QEMU. JSON becomes flat, as in a.b.0=; switches are on or off. Pure.

    Raises ValueError for invalid JSON.
    """
    if word.startswith("{"):
        return dict(_flat("", _json(word)))
    keys: dict[str, str] = {}
    if not word:
        return keys
    first = _FIRST.get(option, "")
    for place, part in enumerate(_parts(word)):
        key, equals, value = part.partition("=")
        if not equals and place == 0 and first:
            key, value = first, part
        elif not equals:
            key, value = (key[2:], "off") if key.startswith("no") and key[2:] else (key, "on")
        if key:
            keys[key] = value
    return keys


def _parts(word: str) -> list[str]:
    """The parts between commas. A double comma is one comma in a value."""
    return [part.replace("\0", ",") for part in word.replace(",,", "\0").split(",")]


def _json(text: str) -> object:
    """Read QEMU's JSON. Strings may have single quotes. A key twice, and a constant such as NaN, is an error."""

    def double(match: re.Match[str]) -> str:
        string = match[0]
        inside = re.sub(r"\\'", "'", string[1:-1])
        if string[0] == "'":
            inside = re.sub(r'(\\.)|"', lambda part: part[1] or '\\"', inside, flags=re.DOTALL)
        return f'"{inside}"'

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(found)) < len(found):
            raise ValueError("it has a key twice")
        return dict(found)

    def constant(word: str) -> object:
        raise ValueError(f"{word} is not a value")

    return json.loads(_STRING.sub(double, text), object_pairs_hook=pairs, parse_constant=constant)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif value is not None:
        yield prefix, ("on" if value else "off") if isinstance(value, bool) else str(value)


def _character_device(word: str) -> dict[str, str]:
    """The keys that the short form of a character device, as in ``-serial``, would have in ``-chardev``."""
    kind, colon, rest = word.partition(":")
    if kind == "mon" and colon:
        return _character_device(rest)
    if kind in ("tcp", "telnet", "tn3270", "websocket", "unix") and colon:
        where, *parts = _parts(rest)
        keys = keys_of("", ",".join(part.replace(",", ",,") for part in parts))
        if "delay" not in keys and "nodelay" in parts:
            keys["nodelay"] = "on"
        place = {"path": where} if kind == "unix" else {"host": where.rpartition(":")[0], "port": where.rpartition(":")[2]}
        return {"backend": "socket", **place, **keys}
    if kind in ("file", "pipe") and colon:
        return {"backend": kind, "path": rest}
    if kind == "chardev" and colon:
        return {"chardev": rest}
    if word.startswith("/dev/"):
        return {"backend": "serial", "path": word}
    return {"backend": kind, "": rest}


def _config(path: str) -> list[Option]:
    """Read a ``-readconfig`` file (util/qemu-config.c): groups in brackets with an ID, and keys with values in quotes."""
    with open(_files.open_ordinary(path), encoding="utf-8") as file:
        text = file.read(_LARGEST_CONFIG + 1)
    if len(text) > _LARGEST_CONFIG:
        raise ValueError(f"it is larger than {_LARGEST_CONFIG >> 20} MiB, too large for a file of options")
    lines = text.splitlines()
    found: list[Option] = []
    for line in (line.strip() for line in lines):
        group = re.fullmatch(r'\[\s*([\w-]+)(?:\s+"([^"]*)")?\s*\]', line)
        value = re.fullmatch(r'([\w.-]+)\s*=\s*"([^"]*)"', line)
        if group:
            found.append(
                Option(_CONFIG_GROUPS.get(group[1], group[1]), {"id": group[2]} if group[2] else {}, f"-readconfig {path}: {line}")
            )
        elif value and found:
            found[-1].keys[value[1]] = value[2]
        elif line and not line.startswith("#"):
            raise ValueError(f"this line is not understood: {line}")
    return found


def _change(found: list[Option], word: str) -> None:
    """``-set group.id.key=value``."""
    where, equals, value = word.partition("=")
    names = where.split(".", 2)
    meant = [option for option in found if len(names) == 3 and (option.name, option.get("id")) == (names[0], names[1])]
    if not equals or not meant:
        raise ValueError("no option before it has that group and id")
    meant[-1].keys[names[2]] = value
    meant[-1].text += f" -set {word}"
