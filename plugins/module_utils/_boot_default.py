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

from . import _paths, _systemd
from ._errors import LiveUpdateError

__all__ = ("change", "kept", "release_of")

UPDATE_GRUB = "/usr/sbin/update-grub"
GRUBBY = "/usr/sbin/grubby"
SETTING = "/etc/default/grub.d/kvm-liveupdate-default.cfg"
MENU = "/boot/grub/grub.cfg"
LIMIT_S = 300.0
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
        return str(_paths.read_json(_paths.BOOT_DEFAULT).get("kernel", ""))


def change(kernel: str, check_mode: bool) -> tuple[str, str]:
    """Make the image ``kernel`` the default, or, when empty, let the boot loader choose as it did.

    Returns what was kept before and what is now.
    """
    for program, way in ((UPDATE_GRUB, _with_grub), (GRUBBY, _with_grubby)):
        if os.path.exists(program):
            return way(kernel, check_mode)
    raise LiveUpdateError(
        f"neither {UPDATE_GRUB} nor {GRUBBY} is on this host: keep the kernel that runs the default by your boot loader's own means"
    )


def setting_of(text: str) -> str:
    """The entry that a file with our setting names. Pure."""
    found = re.search(r'^GRUB_DEFAULT="(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


def entry_of(menu: str, release: str) -> str:
    """A kernel's entry in grub.cfg, as GRUB_DEFAULT names it: its id, behind that of its submenu; empty when there is none. Pure."""
    above: list[str] = []
    for line in menu.splitlines():
        begun = re.match(r"\s*(menuentry|submenu)\s.*\$menuentry_id_option '([^']+)'.*\{\s*$", line)
        if begun and re.match(rf"gnulinux-{re.escape(release)}-advanced-", begun[2]):
            return ">".join([*above, begun[2]])
        if begun and begun[1] == "submenu":
            above.append(begun[2])
        elif above and line == "}":
            above.pop()
    return ""


def _with_grub(kernel: str, check_mode: bool) -> tuple[str, str]:
    before = kept()
    if not kernel:
        if before and not check_mode:
            _paths.remove(SETTING)
            try:
                _systemd.run(UPDATE_GRUB, timeout=LIMIT_S)
            except LiveUpdateError:
                _write(before)
                raise
        return before, ""
    release = release_of(kernel)
    entry = entry_of(_menu(), release)
    if not entry and not check_mode:
        _systemd.run(UPDATE_GRUB, timeout=LIMIT_S)  # an image that no package has brought is not in the menu yet
        entry = entry_of(_menu(), release)
    if not entry and not check_mode:
        raise LiveUpdateError(
            f"{MENU} has no entry for kernel {release}: {kernel} has to be /boot/vmlinuz-{release} for a cold boot to find it"
        )
    entry = entry or f"the entry of kernel {release}"
    if entry != before and not check_mode:
        _write(entry)
        try:
            _systemd.run(UPDATE_GRUB, timeout=LIMIT_S)
        except LiveUpdateError:
            if before:
                _write(before)
            else:
                _paths.remove(SETTING)
            raise
    return before, entry


def _write(entry: str) -> None:
    os.makedirs(os.path.dirname(SETTING), exist_ok=True)
    with open(SETTING, "w", encoding="utf-8") as file:
        file.write(_SETTING.format(entry=entry))


def _menu() -> str:
    try:
        with open(MENU, encoding="utf-8") as file:
            return file.read()
    except OSError as err:
        raise LiveUpdateError(f"GRUB's menu {MENU}: {err.strerror}; see that GRUB is installed on this host") from err


def _with_grubby(kernel: str, check_mode: bool) -> tuple[str, str]:
    record, now = _paths.read_json(_paths.BOOT_DEFAULT), _systemd.run(GRUBBY, "--default-kernel").strip()
    wanted = kernel or record.get("before", now)
    if not check_mode:
        if wanted != now:
            _systemd.run(GRUBBY, f"--set-default={wanted}", timeout=LIMIT_S)
        if kernel:
            _paths.write_json(_paths.BOOT_DEFAULT, {"before": record.get("before", now), "kernel": kernel})
        else:
            _paths.remove(_paths.BOOT_DEFAULT)
    return record.get("kernel", "") if now == record.get("kernel") else "", kernel
