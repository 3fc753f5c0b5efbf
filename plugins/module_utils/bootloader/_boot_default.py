# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Set the kernel that a cold boot starts. PRIVATE to the collection.

GRUB on Debian reads ``GRUB_DEFAULT`` from our file below /etc/default/grub.d, so that update-grub of a kernel package does not change it.
Without that file it works as before. On Fedora and RHEL, grubby sets the default, and a record keeps the previous one.
"""

from __future__ import annotations

import os
import re

from .. import _limits
from .._errors import LiveUpdateError
from ..host import _commands, _files
from . import _grub

__all__ = ("change", "kept", "release_of")

GRUBBY = "/usr/sbin/grubby"
SETTING = "/etc/default/grub.d/kvm-liveupdate-default.cfg"
LIMIT_S = _limits.BOOT_LOADER
_SETTING = """# The kernel that a cold boot comes up with, kept by kvm.liveupdate.boot_default
GRUB_DEFAULT="{entry}"
"""
# Without effect on GRUB. Our file has it until the menu is written without our default: if that is cut off, a later run sees it.
_REMOVED = '# GRUB_DEFAULT="{entry}"\n'


def release_of(kernel: str) -> str:
    """The release in the name of an image, as GRUB's 10_linux reads it. Pure."""
    return re.sub(r"^[^0-9]*-", "", os.path.basename(kernel))


def kept() -> str:
    """The default that this module has set, an entry of GRUB's menu or an image; empty if it has not."""
    text = _text()
    return setting_of(text) if text else str(_files.read_json(_files.BOOT_DEFAULT).get("kernel", ""))


def change(kernel: str, check_mode: bool) -> tuple[str, str]:
    """Make the image ``kernel`` the default or, if empty, let the boot loader choose as before.

    Returns our default before, if it was in effect, and our default now.
    """
    for program, way in ((_grub.UPDATE_GRUB, _with_grub), (GRUBBY, _with_grubby)):
        if os.path.exists(program):
            return way(kernel, check_mode)
    raise LiveUpdateError(
        f"neither {_grub.UPDATE_GRUB} nor {GRUBBY} exists on this host; make the running kernel the default with your boot loader's tools"
    )


def setting_of(text: str) -> str:
    """The entry in our file of settings, also one that is being removed. Pure."""
    found = re.search(r'^(?:# )?GRUB_DEFAULT="(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


def _with_grub(kernel: str, check_mode: bool) -> tuple[str, str]:
    before = kept()
    if not kernel:
        if before and not check_mode:
            _set(_REMOVED.format(entry=before))
            _files.remove(SETTING)
        return before, ""
    why = _grub.not_in_charge()
    if why:
        raise LiveUpdateError(
            f"this host does not boot with GRUB's menu {_grub.MENU}: {why}; make the running kernel the default with your boot loader's"
            " tools"
        )
    release = release_of(kernel)
    entry = _grub.entry_of(_grub.menu(), release)
    if not entry and not check_mode:
        _grub.update()  # an image without a package is not in the menu yet
        entry = _grub.entry_of(_grub.menu(), release)
    if not entry and not check_mode:
        raise LiveUpdateError(
            f"{_grub.MENU} has no entry for kernel {release} ({kernel}); install the kernel as /boot/vmlinuz-{release} so that GRUB"
            " finds it"
        )
    in_force = before if before == _default() and _text() == _SETTING.format(entry=before) else ""
    if not check_mode and entry != in_force:
        _set(_SETTING.format(entry=entry), entry)
    return in_force, entry or f"the entry of kernel {release}"


def _default() -> str:
    return _grub.default_of(_grub.menu(), _grub.environment())


def _set(text: str, entry: str = "") -> None:
    """Write our setting and the menu, in which this entry then has to be the default; empty for any.

    A setting without effect is undone, so that a later run does not take it for set.
    """
    before = _text()
    _write(text)
    try:
        _grub.update()
        if entry:
            _refuse_no_effect(entry)
    except LiveUpdateError:
        _write(before)
        raise


def _refuse_no_effect(entry: str) -> None:
    seen = _default()
    if seen == entry and _grub.chosen(_grub.menu(), seen)["id"] == entry.rpartition(">")[2]:
        return
    other = _grub.winner("GRUB_DEFAULT", SETTING)
    why = f"{other} sets GRUB_DEFAULT after it" if other else "another script writes the default into the menu"
    remedy = f"remove GRUB_DEFAULT from {other}" if other else f"search for 'set default' in {_grub.MENU} and below /etc/grub.d"
    raise LiveUpdateError(
        f"a cold boot would start the entry {seen}, not {entry} (GRUB's menu {_grub.MENU}), although {SETTING} sets it: {why};"
        f" {remedy}, and run this again"
    )


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


def _with_grubby(kernel: str, check_mode: bool) -> tuple[str, str]:
    record, now = _files.read_json(_files.BOOT_DEFAULT), _commands.run(GRUBBY, "--default-kernel").strip()
    wanted = kernel or record.get("before", now)
    if not check_mode:
        if kernel:  # before the change, which may be cut off: afterwards nothing else tells the previous default
            _record({"before": record.get("before", now), "kernel": kernel})
        try:
            if wanted != now:
                _set_with_grubby(wanted)
        except LiveUpdateError:
            _record(record)
            raise
        if not kernel:
            _record({})
    return record.get("kernel", "") if now == record.get("kernel") else "", kernel


def _set_with_grubby(kernel: str) -> None:
    _commands.run(GRUBBY, f"--set-default={kernel}", timeout=LIMIT_S)
    seen = _commands.run(GRUBBY, "--default-kernel").strip()
    if seen != kernel:
        raise LiveUpdateError(
            f"a cold boot would start {seen}, although grubby set {kernel} as the default. Look for {kernel} in the output of 'grubby"
            " --info=ALL'. If it has no entry there, install its package again. Otherwise run 'grub2-set-default ID' with the id of its"
            " entry. Then run this again"
        )


def _record(content: dict) -> None:
    if content:
        _files.write_json(_files.BOOT_DEFAULT, content)
    else:
        _files.remove(_files.BOOT_DEFAULT)
