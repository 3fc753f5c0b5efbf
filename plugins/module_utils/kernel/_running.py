# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known about the running kernel. PRIVATE to the collection."""

from __future__ import annotations

import os

from .._errors import LiveUpdateError
from ..host import _files, _memory, _this_boot
from . import _image, _scratch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("image_of", "read")

_DEBUGFS = "sys/kernel/debug/kho"
_BLOB_LIMIT = 1 << 20
_FDT_MAGIC = b"\xd0\x0d\xfe\xed"


def read(root: str = "/", image: str | None = None) -> dict:
    """The running kernel, as :func:`_proof.compare` expects it, read from debugfs, /proc and its own image.

    ``image`` is the file of the running kernel, if the caller knows it; else this looks where distributions put it. An image counts only
    if it is exactly this build. What cannot be read raises no error: ``unread`` says why.
    """
    kernel = _this_boot.kernel(root)
    found, why = _own_image(root, kernel, image, _notes(root))
    side: dict = {
        "path": None,
        "kind": None,
        "above_4g": None,
        "init_size": None,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "abi": dict.fromkeys(_image.ABI),
        "config": None,
        "config_source": None,
        **found,
        **kernel,
        "arch": _arch(root),
        "build_id": next(iter(_notes(root)), None),
        "lockdown": _lockdown(root),
        "memory": _memory.total(root),
        "scratch": _scratch.areas(root),
        "unread": dict(found.get("unread") or {}),
    }
    if not found:
        side["unread"].update(dict.fromkeys(("image", "config", *_image.ABI), why))
    _add_debugfs(side, _debugfs(root), bool(found))
    _add_own_config(side, root)
    return side


def _arch(root: str) -> str:
    try:
        with open(os.path.join(root, "proc/sys/kernel/arch"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().machine  # kernels before 6.1


def image_of(kernel: dict[str, str], root: str = "/") -> dict:
    """The facts of the image of a kernel that may not run any more, by its ``release`` and ``version``. Empty if it is not found."""
    return _own_image(root, kernel, None, [])[0]


def _own_image(root: str, kernel: dict[str, str], given: str | None, notes: list[str]) -> tuple[dict, str]:
    """The facts of a kernel's image; or none, and why. ``notes`` are the build ids of the kernel, none if they are unknown."""
    release = kernel["release"]
    places = (
        [given] if given else [os.path.join(root, "boot", f"vmlinuz-{release}"), os.path.join(root, "usr/lib/modules", release, "vmlinuz")]
    )
    why = []
    for place in places:
        if not os.path.exists(place):
            why.append(f"{place} does not exist")
            continue
        try:
            found = _image.read(place, root=root, keep=_files.IMAGES if root == "/" else "")
        except LiveUpdateError as err:
            why.append(err.message)
            continue
        # Two builds can have the same release and version, when the time of the build is fixed; not the same build id.
        for what, running, its in (
            ("release", {release}, {found["release"]}),
            ("version", {kernel["version"]}, {found["version"]}),
            ("build id", set(notes), set(found["build_ids"])),
        ):
            if running and not running & its:
                ours, theirs = " or ".join(sorted(running)), " or ".join(sorted(its)) or "none"
                why.append(f"kernel {place} is another build than the running kernel: its {what} is {theirs}, not {ours}")
                break
        else:
            return found, ""
    return {}, "; ".join(why)


def _notes(root: str) -> list[str]:
    return _image.build_ids(_blob(os.path.join(root, "sys/kernel/notes")))


def _lockdown(root: str) -> str | None:
    """The marked state in a text like "none [integrity] confidentiality"; None if the kernel has no lockdown."""
    text = _blob(os.path.join(root, "sys/kernel/security/lockdown")).decode("ascii", "replace")
    return text.partition("[")[2].partition("]")[0] or None


def _blob(path: str) -> bytes:
    """A file that the kernel makes; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_BLOB_LIMIT)
    except OSError:
        return b""


def _debugfs(root: str) -> dict[str, str]:
    """The running kernel's strings in debugfs, if debugfs is mounted and readable."""
    found = {}
    # After a jump there is no out/fdt. Then in/fdt exists only if this kernel accepted it.
    for name, files in (("kho", ("out/fdt", "in/fdt")), ("luo", ("out/sub_fdts/LUO",))):
        for file in files:
            text = _compatible(_blob(os.path.join(root, _DEBUGFS, file)), f"{name}-v".encode())
            if text:
                found[name] = text
                break
    return found


def _compatible(blob: bytes, beginning: bytes) -> str:
    """The string with this beginning: a property of the root node if the blob is a device tree, else the start of the blob."""
    values = _root_values(blob) if blob.startswith(_FDT_MAGIC) else [blob[:64]]
    return next((value.split(b"\0", 1)[0].decode("ascii", "replace") for value in values if value.startswith(beginning)), "")


def _root_values(blob: bytes) -> Iterator[bytes]:
    """The values of the root node's properties in a flattened device tree.

    Not their names: these are at the end of the tree, and debugfs shows the tree at an earlier, smaller size.
    """

    def cell(at: int) -> int:
        return int.from_bytes(blob[at : at + 4], "big")

    at = cell(8)
    while at + 4 <= len(blob):
        token = cell(at)
        at += 4
        if token == 1 and blob[at : at + 4] == bytes(4):  # the root node begins; it has no name
            at += 4
        elif token == 3:  # a property: length, name, value
            length = cell(at)
            yield blob[at + 8 : at + 8 + length]
            at += 8 + (length + 3 & ~3)
        elif token != 4:  # anything but padding ends the root node's own properties
            return


def _add_debugfs(side: dict, strings: dict[str, str], has_image: bool) -> None:
    for name, text in strings.items():
        own = side["abi"][name]
        if not _image.is_abi(name, text):
            side["abi"][name] = None
            side["unread"][name] = f"debugfs shows {text}, which this version of the collection does not know"
        elif has_image and own != text:
            side["abi"][name] = None
            side["unread"][name] = f"debugfs shows {text}, but the image {side['path']} has {own or 'no such string'}"
        else:
            side["abi"][name] = text
            side["unread"].pop(name, None)


def _add_own_config(side: dict, root: str) -> None:
    path = os.path.join(root, "proc/config.gz")
    if not os.path.exists(path):
        return
    try:
        side.update(config=_image.config_from_file(path), config_source=path)
        side["unread"].pop("config", None)
    except LiveUpdateError as err:
        side["unread"].setdefault("config", err.message)
