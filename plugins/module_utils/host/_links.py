# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Network interfaces of the host that no boot sets up, as far as its configuration tells. PRIVATE to the collection.

Source: systemd.netdev(5), interfaces(5), netplan(5), nm-settings-keyfile(5), ifcfg(5), libvirt's formatnetwork.html.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re

__all__ = ("by_hand",)

# What may set an interface up at a boot: files in which its name stands as a word. Not below /run: that is made from these.
_FILES = (
    *("etc/systemd/network/*", "etc/systemd/network/*.d/*", "usr/lib/systemd/network/*", "usr/local/lib/systemd/network/*"),
    *("etc/network/interfaces", "etc/network/interfaces.d/*", "etc/netplan/*", "usr/lib/netplan/*"),
    *("etc/NetworkManager/system-connections/*", "usr/lib/NetworkManager/system-connections/*"),
    *("etc/sysconfig/network/ifcfg-*", "etc/sysconfig/network-scripts/ifcfg-*"),
    *("etc/libvirt/qemu/networks/*.xml", "etc/libvirt/hooks/*", "etc/libvirt/hooks/*.d/*"),
    *("etc/systemd/system/*.service", "etc/systemd/system/*.service.d/*", "etc/rc.local", "proc/cmdline"),
)
_LARGEST = 1 << 20  # bytes; such files have some lines
# Such a file only uses an interface: the unit of a guest, and a libvirt network on a bridge of the host.
_USES = re.compile(r"kvm-liveupdate |qemu-system-|<forward [^>]*mode='(?:bridge|passthrough|private|vepa)'")


def by_hand(names: list[str], root: str = "/") -> list[str]:
    """Those of these interfaces that are no hardware and that no file of the host's configuration names: a boot may not set them up."""
    virtual = [name for name in dict.fromkeys(names) if not os.path.exists(os.path.join(root, "sys/class/net", name, "device"))]
    words = _words(root) if virtual else set()
    patterns = [word for word in words if re.search(r"[*?\[]", word) and word.strip("*?")]
    return [name for name in virtual if name not in words and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _words(root: str) -> set[str]:
    found = set()
    for path in (path for pattern in _FILES for path in glob.glob(os.path.join(root, pattern))):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(_LARGEST)
        except OSError:
            continue
        if _USES.search(text):
            continue
        found.add(os.path.basename(path).partition("ifcfg-")[2])
        for line in text.splitlines():
            if not line.lstrip().startswith(("#", ";")):
                found.update(re.split(r"[\s=:,;|&()<>{}\"'/]+", line))
    return found - {""}
