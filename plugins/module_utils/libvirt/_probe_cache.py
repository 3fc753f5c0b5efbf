# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Save libvirt the probe of QEMU after a jump, if the new kernel cannot change its result. PRIVATE to the collection.

Libvirt starts QEMU to find out what it can do, and keeps the answers in a cache. With another kernel it asks again, because KVM may
offer something else: at each jump, while the domains wait. If KVM gives the same answers before and after the jump (kernel/_kvm.py), this
writes the version of the new kernel into the cache. All else that the answers depend on, libvirt compares itself: the QEMU program and its
modules, its own version, the processor, its microcode, nested virtualisation and secure guests.

Source: libvirt, src/qemu/qemu_capabilities.c, virQEMUCapsIsValid.
"""

from __future__ import annotations

import contextlib
import os
import stat

from .._errors import LiveUpdateError
from ..host import _files, _systemd, _this_boot
from ..kernel import _kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t  # not at run time: slow to import

__all__ = ("carry_over", "forget")

CACHE = "/var/cache/libvirt/qemu/capabilities"
# In this boot, the names of the files in the cache that were changed.
CARRIED = _files.RUN + "/probe-cache.json"
_MARK = "<kernelVersion>{release} {version}</kernelVersion>"


def carry_over() -> None:
    """Before libvirt's daemon starts: make the cache valid for this kernel, if it is proved that it is right. Never raises."""
    try:
        update = _files.read_json(_files.UPDATE)
        if not update.get("kvm"):
            return
        _files.make_directory(_files.RUN)
        with open(CARRIED, "x", encoding="utf-8") as file:
            file.write("{}")
        now = _kvm.answers()
        if now == update["kvm"]:
            with _cache() as folder:
                names = _change(folder, _mark(update["kernel"]), _mark(_this_boot.kernel()))
            _files.write_json(CARRIED, {"names": names})
            _systemd.log("libvirt does not probe QEMU again: KVM answers as before the jump")
        else:
            _systemd.log(f"libvirt probes QEMU again: KVM {'answers differently than before the jump' if now else 'gives no full answer'}")
    except FileExistsError:
        pass  # the units of all domains start at the same time, and one of them does this
    except (LiveUpdateError, OSError, KeyError, ValueError) as err:
        _systemd.log(f"libvirt probes QEMU again: {err!r}")


def _mark(kernel: dict) -> str:
    return _MARK.format(release=kernel["release"], version=kernel["version"])


@contextlib.contextmanager
def _cache() -> t.Iterator[str]:
    """The folder of the cache, by a path that leads to this folder and no other: QEMU's user owns the folder above, and can rename it."""
    handle = os.open(CACHE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.fstat(handle)
        if seen.st_uid != 0 or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LiveUpdateError(f"{CACHE} can be written by others than root")
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _change(folder: str, old: str, new: str) -> list[str]:
    """Replace the kernel in the files that were valid under the old one; returns their names."""
    changed = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            text, mode = file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if name.endswith(".xml") and text.count(old) == 1:
            _files.write_text(path, text.replace(old, new), mode)
            changed.append(name)
    return changed


def forget() -> None:
    """Once a guest is back: remove what was changed, so that the next start of libvirt's daemon probes QEMU again. Never raises."""
    try:
        names = _files.read_json(CARRIED).get("names")
        if names:
            with _cache() as folder:
                for name in names:
                    _files.remove(os.path.join(folder, name))
            _files.write_json(CARRIED, {})
    except (LiveUpdateError, OSError) as err:
        remedy = f"Remove the files in {CACHE} and restart the daemon"
        _systemd.log(f"libvirt's daemon will keep the old answers about QEMU. {remedy}: {err}")
