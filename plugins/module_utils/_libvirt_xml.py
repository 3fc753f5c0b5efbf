# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definition of a libvirt domain, changed so that its RAM can be preserved. Pure. PRIVATE to the collection.

The text is edited, not rewritten from a tree: what other tools keep in it (name spaces, metadata) stays as it is.

Source: https://libvirt.org/formatdomain.html, section Memory Backing.
"""

from __future__ import annotations

import re

from ._errors import LiveUpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ("with_shared_file",)

_WANTED = (("source", "type", "file"), ("access", "mode", "shared"))
# As libvirt writes it: the children of <domain> are two blanks in.
_BACKING = re.compile(r"^  <memoryBacking(?:/>|>.*?^  </memoryBacking>)\n", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r"^  <(?:currentMemory|memory)[ >].*\n(?!  <currentMemory)", re.MULTILINE)


def with_shared_file(xml: str) -> str:
    """The definition (what ``virsh dumpxml --inactive`` prints) with its RAM in a shared file; the same text when it has that already.

    Raises for what contradicts it and is the operator's to decide: huge pages, discard, NUMA cells with private memory.
    """
    from xml.etree import ElementTree  # slow to import

    domain = ElementTree.fromstring(xml)
    name = domain.findtext("name", "")
    for path, what in (
        ("memoryBacking/hugepages", "<hugepages/>: the kernel cannot preserve huge pages yet"),
        ("memoryBacking/discard", "<discard/>: its RAM would be thrown away when QEMU ends"),
        ("cpu/numa/cell[@memAccess='private']", "a NUMA cell with memAccess='private'"),
    ):
        if domain.find(path) is not None:
            raise LiveUpdateError(f"domain {name}: its definition has {what}; remove it with 'virsh edit {name}', then run this again")
    backing = domain.find("memoryBacking")
    if backing is None:
        backing = ElementTree.Element("memoryBacking")
    elif all(_value(backing, tag, key) == value for tag, key, value in _WANTED):
        return xml
    for tag, key, value in _WANTED:
        child = backing.find(tag)
        if child is None:
            child = ElementTree.SubElement(backing, tag)
        child.set(key, value)
    block = "  <memoryBacking>\n" + "".join(f"    {_line(child)}\n" for child in backing) + "  </memoryBacking>\n"
    changed, count = _BACKING.subn(lambda _found: block, xml, count=1)
    if not count:
        changed, count = _MEMORY.subn(lambda found: found.group() + block, xml, count=1)
    if not count:
        raise LiveUpdateError(f"domain {name}: no <memory> where libvirt writes it; add the following with 'virsh edit {name}':\n{block}")
    return changed


def _value(backing: Element, tag: str, key: str) -> str | None:
    child = backing.find(tag)
    return None if child is None else child.get(key)


def _line(child: Element) -> str:
    from xml.etree import ElementTree

    child.tail = None
    return ElementTree.tostring(child, encoding="unicode").replace(" />", "/>")
