# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB on Debian: what its menu boots, and the settings that the menu is made from. PRIVATE to the collection.

Source: GRUB's util/grub-mkconfig.in, util/grub.d/00_header.in and 10_linux.in, grub-core/normal/menu.c and lib/cmdline.c; Debian's
grub.d below /etc/default; systemd's Boot Loader Interface (LoaderInfo); Documentation/arch/x86/boot.rst (type_of_loader).
"""

from __future__ import annotations

import os
import re

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands, _this_boot
from ..kernel import _cmdline

__all__ = (
    "MENU",
    "SETTINGS",
    "UPDATE_GRUB",
    "boots",
    "chosen",
    "default_of",
    "entry_of",
    "environment",
    "line_of",
    "menu",
    "not_in_charge",
    "update",
    "winner",
)

UPDATE_GRUB = "/usr/sbin/update-grub"
MENU = "/boot/grub/grub.cfg"
SETTINGS = "/etc/default/grub.d"
LIMIT_S = _limits.BOOT_LOADER
_PROXMOX = "etc/kernel/proxmox-boot-uuids"
_LOADER_INFO = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_BOOT_PARAMS = "sys/kernel/boot_params/data"
_TYPE_OF_LOADER = 0x210
# Loader types of GRUB itself, and of the kernel's EFI stub, which GRUB and others start.
_BY_GRUB, _BY_KEXEC = (0x7, 0x2), 0xD


def not_in_charge(root: str = "/") -> str:
    """Why this host does not boot with GRUB's menu; empty if it does, or if a kexec hides which boot loader started the host."""
    if os.path.exists(os.path.join(root, _PROXMOX)):
        return f"proxmox-boot-tool boots from copies of the menu or of the kernels on other partitions (/{_PROXMOX})"
    kind = _read(os.path.join(root, _BOOT_PARAMS))[_TYPE_OF_LOADER : _TYPE_OF_LOADER + 1]
    if kind and kind[0] >> 4 not in (*_BY_GRUB, _BY_KEXEC):
        return f"another boot loader started it (type 0x{kind[0]:02x} in /{_BOOT_PARAMS})"
    if _cmdline.value(_this_boot.current_cmdline(root), "BOOT_IMAGE") is not None:
        return ""
    loader = _read(os.path.join(root, _LOADER_INFO))[4:].decode("utf-16-le", "replace").strip("\0 ")
    if loader and not loader.startswith("GRUB"):
        return f"{loader} started it"
    if not kind or kind[0] >> 4 == _BY_KEXEC:
        return ""
    return "its kernel command line has no BOOT_IMAGE=, the parameter that GRUB adds"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def menu() -> str:
    """GRUB's menu."""
    try:
        with open(MENU, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as err:
        raise LiveUpdateError(f"GRUB's menu {MENU}: {err.strerror}; make sure that GRUB is installed on this host") from err


def update() -> None:
    """Write the menu from the settings."""
    _commands.run(UPDATE_GRUB, timeout=LIMIT_S)


def environment() -> dict[str, str]:
    """GRUB's environment, which it keeps from boot to boot (grub-editenv), in the folder of its menu."""
    text = _read(os.path.join(os.path.dirname(MENU), "grubenv")).decode(errors="replace")
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, equals, value in pairs if equals}


def entries(text: str) -> list[dict]:
    """Read the menu: for each entry ``title``, ``id``, ``lines`` (kernel paths with command lines) and its own ``entries``. Pure."""
    top: list[dict] = []
    # The open blocks, from the outside in: entries, and functions, which contain no entries.
    stack: list[dict | None] = []
    for line in map(str.strip, text.splitlines()):
        if line == "}" and stack:
            stack.pop()
            continue
        words = _words(line)
        begun = words[:1] in (["menuentry"], ["submenu"]) and words[-1] == "{" and len(words) > 2
        if begun:
            at = words.index("$menuentry_id_option") + 1 if "$menuentry_id_option" in words else 0
            entry: dict = {"title": words[1], "id": words[at] if at else "", "lines": [], "entries": []}
            above = next((one for one in reversed(stack) if one is not None), None)
            (above["entries"] if above else top).append(entry)
            stack.append(entry)
        elif line.endswith("{"):
            stack.append(None)
        elif words[:1] in (["linux"], ["linux16"], ["linuxefi"]) and stack and stack[-1] is not None:
            stack[-1]["lines"].append(" ".join(_quoted(word) for word in words[1:]))
    return top


def _words(line: str) -> list[str]:
    """Split a line as GRUB's shell does; empty for an incomplete line."""
    import shlex

    try:
        return shlex.split(line)
    except ValueError:
        return []


def _quoted(word: str) -> str:
    """A word with blanks, as GRUB gives it to the kernel."""
    return f'"{word}"' if " " in word else word


def default_of(text: str, remembered: dict[str, str]) -> str:
    """The entry that the menu starts by itself, as GRUB_DEFAULT names it; ``remembered`` is GRUB's environment. Pure."""
    found = re.findall(r"^\s*set default=(['\"]?)(.*)\1\s*$", text, re.MULTILINE)
    # An earlier "set default" is for an entry that was chosen once.
    name = found[-1][1] if found else "0"
    return remembered.get("saved_entry", "") if name == "${saved_entry}" else name


def chosen(text: str, name: str) -> dict:
    """The menu entry that GRUB starts for this name. A name has IDs, titles or numbers, with that of a submenu before ``>``. Pure.

    If GRUB finds no such entry, it starts the first one, and so does this. Empty for a menu without entries.
    """
    found = _chosen(entries(text), name)
    return found or {}


def _chosen(menu_entries: list[dict], name: str) -> dict | None:
    first, _separator, rest = name.partition(">")
    at = (
        int(first)
        if first.isdigit()
        else next((at for at, one in enumerate(menu_entries) if first and first in (one["id"], one["title"])), 0)
    )
    entry = menu_entries[at if at < len(menu_entries) else 0] if menu_entries else None
    return _chosen(entry["entries"], rest) if entry and entry["entries"] else entry


def boots(text: str, remembered: dict[str, str]) -> dict:
    """The entry of the next boot: one that was chosen once (grub-reboot), else the default. Pure."""
    return chosen(text, remembered.get("next_entry") or default_of(text, remembered))


def line_of(entry: dict) -> str:
    """The command line of an entry's kernel, without its path; empty for an entry without a kernel. Pure."""
    return entry["lines"][-1].partition(" ")[2] if entry.get("lines") else ""


def entry_of(text: str, release: str) -> str:
    """A kernel's entry in the menu, as GRUB_DEFAULT names it: the ID of its submenu and its ID; empty if there is none. Pure."""
    return _entry_of(entries(text), release)


def _entry_of(menu_entries: list[dict], release: str) -> str:
    for entry in menu_entries:
        if entry["id"].startswith(f"gnulinux-{release}-advanced-"):
            return str(entry["id"])
        below = _entry_of(entry["entries"], release)
        if below:
            return f"{entry['id']}>{below}"
    return ""


def winner(variable: str, ours: str) -> str:
    """The last file of settings that is read after ``ours`` and overwrites this variable; empty if there is none."""
    found = ""
    for name in sorted(os.listdir(SETTINGS)) if os.path.isdir(SETTINGS) else []:
        path = os.path.join(SETTINGS, name)
        if name.endswith(".cfg") and name > os.path.basename(ours) and _sets(variable, _read(path).decode(errors="replace")):
            found = path
    return found


def _sets(variable: str, text: str) -> bool:
    """Whether a file of settings overwrites a variable, and does not only extend it. Pure."""
    values = re.findall(rf"^\s*(?:export\s+)?{variable}=(.*)$", text, re.MULTILINE)
    return any(not re.search(rf"\${{?{variable}\b", value) for value in values)
