# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kernel a cold boot comes up with. PRIVATE to the collection.

GRUB as Debian sets it up takes ``GRUB_DEFAULT`` from a file of our own below /etc/default/grub.d, so that no update-grub of a kernel's
package changes it; without that file it does again what it did before. Where grubby is (Fedora, RHEL), that sets the default, and what it
was before is on record.
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


def release_of(kernel: str) -> str:
    """The release in an image's name, as GRUB's 10_linux reads it. Pure."""
    return re.sub(r"^[^0-9]*-", "", os.path.basename(kernel))


def kept() -> str:
    """What this module has made the default, an entry of GRUB's menu or an image; empty where it did not."""
    try:
        with open(SETTING, encoding="utf-8") as file:
            return setting_of(file.read())
    except FileNotFoundError:
        return str(_files.read_json(_files.BOOT_DEFAULT).get("kernel", ""))


def change(kernel: str, check_mode: bool) -> tuple[str, str]:
    """Make the image ``kernel`` the default, or, when empty, let the boot loader choose as it did.

    Returns what was kept before, if it was in force, and what is kept now.
    """
    for program, way in ((_grub.UPDATE_GRUB, _with_grub), (GRUBBY, _with_grubby)):
        if os.path.exists(program):
            return way(kernel, check_mode)
    raise LiveUpdateError(
        f"neither {_grub.UPDATE_GRUB} nor {GRUBBY} is on this host: keep the kernel that runs the default by your boot loader's own means"
    )


def setting_of(text: str) -> str:
    """The entry that a file with our setting names. Pure."""
    found = re.search(r'^GRUB_DEFAULT="(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


def _with_grub(kernel: str, check_mode: bool) -> tuple[str, str]:
    before = kept()
    if not kernel:
        if before and not check_mode:
            _set("", before)
        return before, ""
    why = _grub.not_in_charge()
    if why:
        raise LiveUpdateError(
            f"this host does not boot by GRUB's menu {_grub.MENU}: {why}; keep the kernel that runs the default by your boot loader's own"
            " means"
        )
    release = release_of(kernel)
    entry = _grub.entry_of(_grub.menu(), release)
    if not entry and not check_mode:
        _grub.update()  # an image that no package has brought is not in the menu yet
        entry = _grub.entry_of(_grub.menu(), release)
    if not entry and not check_mode:
        raise LiveUpdateError(
            f"{_grub.MENU} has no entry for kernel {release}: {kernel} has to be /boot/vmlinuz-{release} for a cold boot to find it"
        )
    in_force = before if before == _default() else ""
    if not check_mode and entry != in_force:
        _set(entry, before)
    return in_force, entry or f"the entry of kernel {release}"


def _default() -> str:
    return _grub.default_of(_grub.menu(), _grub.environment())


def _set(entry: str, before: str) -> None:
    """Make an entry the default, or with an empty one take our setting away.

    What has no effect is as it was before: a later run has to see that.
    """
    _write(entry)
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
    why = f"{other} sets GRUB_DEFAULT after it" if other else "something else writes the default into the menu"
    remedy = f"take GRUB_DEFAULT out of {other}" if other else f"look for 'set default' in {_grub.MENU} and below /etc/grub.d"
    raise LiveUpdateError(
        f"a cold boot would start the entry {seen}, not {entry} (GRUB's menu {_grub.MENU}), although {SETTING} asks for it: {why};"
        f" {remedy}, and run this again"
    )


def _write(entry: str) -> None:
    if entry:
        os.makedirs(os.path.dirname(SETTING), exist_ok=True)
        _files.write_text(SETTING, _SETTING.format(entry=entry), 0o644)
    else:
        _files.remove(SETTING)


def _with_grubby(kernel: str, check_mode: bool) -> tuple[str, str]:
    record, now = _files.read_json(_files.BOOT_DEFAULT), _commands.run(GRUBBY, "--default-kernel").strip()
    wanted = kernel or record.get("before", now)
    if not check_mode:
        if wanted != now:
            _commands.run(GRUBBY, f"--set-default={wanted}", timeout=LIMIT_S)
            seen = _commands.run(GRUBBY, "--default-kernel").strip()
            if seen != wanted:
                raise LiveUpdateError(
                    f"a cold boot would start {seen}, although grubby was asked for {wanted}; see what 'grubby --info=ALL' says of both"
                )
        if kernel:
            _files.write_json(_files.BOOT_DEFAULT, {"before": record.get("before", now), "kernel": kernel})
        else:
            _files.remove(_files.BOOT_DEFAULT)
    return record.get("kernel", "") if now == record.get("kernel") else "", kernel
