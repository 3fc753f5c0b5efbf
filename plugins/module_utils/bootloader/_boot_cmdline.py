# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Add words to the command line of every kernel that a cold boot starts. PRIVATE to the collection.

GRUB on Debian adds them from our file below /etc/default/grub.d. Only GRUB's menu shows whether this has an effect: another file may
override it, and another boot loader may start the host.
"""

from __future__ import annotations

import os
import re

from .._errors import LiveUpdateError
from ..host import _files
from ..kernel import _cmdline
from . import _grub

__all__ = ("change", "missing", "words_of")

SETTING = "/etc/default/grub.d/kvm-liveupdate.cfg"
_SETTING = """# Let the kernel carry the guests' memory through a kexec (module kvm.liveupdate.boot_cmdline)
GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {words}"
"""
# The last line of our file until the menu is written: if that is cut off, a later run sees that the menu may have other words.
_UNFINISHED = "# update-grub has not written the menu from this file yet\n"


def words_of(text: str) -> list[str]:
    """The words that our file of settings adds. Pure."""
    found = re.search(r'^GRUB_CMDLINE_LINUX="\$GRUB_CMDLINE_LINUX (.*)"$', text, re.MULTILINE)
    return found[1].split() if found else []


def missing(words: list[str]) -> list[str]:
    """The words that the kernel of the next boot would not get, according to GRUB's menu."""
    line = _grub.line_of(_grub.boots(_grub.menu(), _grub.environment()))
    return [word for word in words if not _cmdline.is_in(line, word)]


def change(words: list[str], check_mode: bool) -> tuple[list[str], list[str], bool]:
    """Make the kernel of the next boot get these words, or remove our setting if there are none.

    Returns the words of our setting before and after, and whether the setting or the menu had to be written. Raises if they have no
    effect.
    """
    if words:
        _refuse_other_loader(words)
    text = _text()
    wanted = _SETTING.format(words=" ".join(words)) if words else ""
    changed = text != wanted or bool(words and missing(words))
    if changed and not check_mode:
        _write(_SETTING.format(words=" ".join(words)) + _UNFINISHED)
        try:
            _grub.update()
        except LiveUpdateError:
            _write(text)
            raise
        _write(wanted)
        _refuse_no_effect(words)
    return words_of(text), words, changed


def _text() -> str:
    try:
        with open(SETTING, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(text: str) -> None:
    if text:
        os.makedirs(os.path.dirname(SETTING), exist_ok=True)
        _files.write_text(SETTING, text, 0o644)
    else:
        _files.remove(SETTING)


def _refuse_other_loader(words: list[str]) -> None:
    by_hand = f'add "{" ".join(words)}" to the kernel command line with the tools of your boot loader, and reboot'
    if not os.path.exists(_grub.UPDATE_GRUB):
        raise LiveUpdateError(f"{_grub.UPDATE_GRUB} does not exist on this host; {by_hand}")
    why = _grub.not_in_charge()
    if why:
        raise LiveUpdateError(f"this host does not boot with GRUB's menu {_grub.MENU}: {why}; {by_hand}")


def _refuse_no_effect(words: list[str]) -> None:
    lacking = missing(words)
    if not lacking:
        return
    entry = _grub.boots(_grub.menu(), _grub.environment())
    other = _grub.winner("GRUB_CMDLINE_LINUX", SETTING)
    why = f"{other} overwrites GRUB_CMDLINE_LINUX after {SETTING}" if other else f"{SETTING} does not affect this entry"
    remedy = (
        f'write GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ..." in {other}'
        if other
        else "choose an entry that update-grub makes, or add the kernel parameters to this entry"
    )
    raise LiveUpdateError(
        f'the next boot would start "{entry.get("title", "")}" without {" ".join(lacking)} (GRUB\'s menu {_grub.MENU}): {why}; {remedy},'
        " and run this again"
    )
