# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Words on the command line of every kernel that a cold boot starts. PRIVATE to the collection.

GRUB as Debian sets it up adds them from a file of our own below /etc/default/grub.d. Whether that has an effect shows in its menu alone:
another file may win, and another boot loader may start the host.
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


def words_of(text: str) -> list[str]:
    """The words that a file with our setting adds. Pure."""
    found = re.search(r'^GRUB_CMDLINE_LINUX="\$GRUB_CMDLINE_LINUX (.*)"$', text, re.MULTILINE)
    return found[1].split() if found else []


def missing(words: list[str]) -> list[str]:
    """Which of the words the kernel of the next boot would not read, by GRUB's menu."""
    line = _grub.line_of(_grub.boots(_grub.menu(), _grub.environment()))
    return [word for word in words if not _cmdline.is_in(line, word)]


def change(words: list[str], check_mode: bool) -> tuple[list[str], list[str], bool]:
    """Have the next boot's kernel read these words, or, when there are none, add none of ours.

    Returns the words of our setting before and after, and whether the setting or the menu had to be written. Raises where they have
    no effect.
    """
    if words:
        _refuse_other_loader(words)
    text = _text()
    wanted = _SETTING.format(words=" ".join(words)) if words else ""
    changed = text != wanted or bool(words and missing(words))
    if changed and not check_mode:
        _write(wanted)
        _grub.update()
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
    by_hand = f'add "{" ".join(words)}" to the kernel command line by your boot loader\'s own means, and reboot'
    if not os.path.exists(_grub.UPDATE_GRUB):
        raise LiveUpdateError(f"there is no {_grub.UPDATE_GRUB} on this host: {by_hand}")
    why = _grub.not_in_charge()
    if why:
        raise LiveUpdateError(f"this host does not boot by GRUB's menu {_grub.MENU}: {why}; {by_hand}")


def _refuse_no_effect(words: list[str]) -> None:
    lacking = missing(words)
    if not lacking:
        return
    entry = _grub.boots(_grub.menu(), _grub.environment())
    other = _grub.winner("GRUB_CMDLINE_LINUX", SETTING)
    why = f"{other} sets GRUB_CMDLINE_LINUX anew after {SETTING}" if other else f"{SETTING} has no effect on it"
    remedy = (
        f'write GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ..." in {other}'
        if other
        else "choose an entry that update-grub makes, or add them to it"
    )
    raise LiveUpdateError(
        f'the next boot starts "{entry.get("title", "")}" without {" ".join(lacking)} (GRUB\'s menu {_grub.MENU}): {why}; {remedy}, and run'
        " this again"
    )
