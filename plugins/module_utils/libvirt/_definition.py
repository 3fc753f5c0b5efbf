# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A domain's XML: read the facts for a policy, and set its RAM to a shared file. Pure. PRIVATE to the collection."""

from __future__ import annotations

import re

from .._errors import LiveUpdateError, typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ("NAMESPACE", "Span", "describe", "disk_targets", "parsed", "spans", "with_shared_file", "without")

NAMESPACE = "https://galaxy.ansible.com/kvm/liveupdate"
# The attributes that distinguish kinds of disks and network cards. For other devices the tag is enough.
_KINDS = {"disk": ("target", "bus"), "interface": (".", "type")}
_NO_DEVICE = ("emulator",)
_YES_NO = {"yes": True, "no": False}


def parsed(xml: str | bytes) -> Element:
    """The domain's XML as a tree. Raises if it is not XML: else that would be a SyntaxError, of which a caller does not think."""
    from xml.etree import ElementTree  # slow to import

    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as err:
        raise LiveUpdateError(f"what libvirt prints as its definition is not XML: {err}; look at it with 'virsh dumpxml'") from err


def describe(xml: str) -> dict:
    """A running domain's ``devices``, ``labels`` and ``ladder`` (None when it has none), from what ``virsh dumpxml`` prints."""
    domain = parsed(xml)
    devices = {_word(device) for device in domain.findall("devices/*") if device.tag not in _NO_DEVICE}
    ours = domain.find(f"metadata/{{{NAMESPACE}}}liveupdate")
    said = dict(ours.attrib) if ours is not None else {}
    words, to, back = said.pop("ladder", None), said.pop("to", ""), said.pop("back", "yes")
    migrate = {"migrate": {"to": to, "back": _YES_NO.get(back, back)}}
    ladder = None if words is None else [migrate if word == "migrate" else word for word in words.split()]
    return {"devices": sorted(devices), "labels": said, "ladder": ladder}


def _word(device: Element) -> str:
    """A device in a word, such as ``disk:virtio``, ``interface:bridge``, ``hostdev`` or ``tpm``."""
    path, key = _KINDS.get(device.tag, ("", ""))
    found = device.find(path) if path else None
    kind = found.get(key) if found is not None else None
    return f"{device.tag}:{kind}" if kind else device.tag


_WANTED = (("source", "type", "file"), ("access", "mode", "shared"))
_TAG = re.compile(rb"""<[^\s/>]+(?:[^>"']|"[^"]*"|'[^']*')*>""")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class Span:  # pylint: disable=too-few-public-methods
    """The position of an element in the text, in bytes: its start tag from ``start`` to ``inner``, all of it to ``end``. ``path`` has the
    tags from the root down to the element."""

    def __init__(self, path: tuple[str, ...], attributes: dict[str, str], start: int, inner: int) -> None:
        self.path, self.attributes, self.start, self.inner, self.end = path, attributes, start, inner, inner


def spans(data: bytes) -> list[Span]:
    """Every element, in the order of their start tags."""
    from xml.parsers import expat  # slow to import

    found: list[Span] = []
    open_now: list[Span] = []
    parser = expat.ParserCreate()

    def begin(tag: str, attributes: dict[str, str]) -> None:
        start = parser.CurrentByteIndex
        whole = _TAG.match(data, start)
        if not whole:
            raise LiveUpdateError(
                f"domain XML: the XML parser reports a tag at byte {start}, but none is there; please report this as a bug of"
                " kvm.liveupdate"
            )
        above = open_now[-1].path if open_now else ()
        open_now.append(Span((*above, tag), attributes, start, whole.end()))
        found.append(open_now[-1])

    def end(_tag: str) -> None:
        element = open_now.pop()
        if not data[: element.inner].endswith(b"/>"):
            element.end = data.index(b">", parser.CurrentByteIndex) + 1

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.Parse(data, True)
    return found


def without(xml: str, elements: list[Span]) -> str:
    """The text without these elements, and without the lines that they leave empty."""
    data = xml.encode("utf-8", "surrogateescape")
    for element in reversed(elements):
        start, end = element.start, element.end
        line = data.rfind(b"\n", 0, start) + 1
        if not data[line:start].strip() and data[end : end + 1] == b"\n":
            start, end = line, end + 1
        data = data[:start] + data[end:]
    return data.decode("utf-8", "surrogateescape")


def with_shared_file(xml: str) -> str:
    """The definition (what ``virsh dumpxml --inactive`` prints) with its RAM in a shared file; the same text when it has that already.

    Raises for settings that contradict it, because the operator must decide: huge pages, discard, NUMA cells with private memory.
    """
    data = xml.encode("utf-8", "surrogateescape")
    domain = parsed(data)
    name = domain.findtext("name", "")
    edit = f"virsh edit {typed(domain.findtext('uuid', name))}"  # virsh might confuse the name with the ID of another domain
    for path, what in (
        ("memoryBacking/hugepages", "<hugepages/>: the kernel cannot preserve huge pages yet"),
        ("memoryBacking/discard", "<discard/>: its RAM would be discarded when QEMU ends"),
        ("cpu/numa/cell[@memAccess='private']", "a NUMA cell with memAccess='private'"),
    ):
        if domain.find(path) is not None:
            raise LiveUpdateError(f"domain {name}: its definition has {what}; remove it with '{edit}', then run this again")
    elements = spans(data)
    backing = _first(elements, "memoryBacking")
    if backing is None or data[: backing.inner].endswith(b"/>"):
        changed = _with_backing(data, (name, edit), elements, backing)
    else:
        changed = _with_wanted(data, elements, backing)
    return changed.decode("utf-8", "surrogateescape")


def _first(elements: list[Span], *path: str) -> Span | None:
    return next((element for element in elements if element.path == ("domain", *path)), None)


def _with_backing(data: bytes, told: tuple[str, str], elements: list[Span], empty: Span | None) -> bytes:
    """Add a <memoryBacking> to a definition that has none, or an empty one. ``told`` are its name and the command that edits it."""
    block = b"<memoryBacking>" + b"".join(map(_line, _WANTED)) + b"\n  </memoryBacking>"
    if empty:
        return data[: empty.start] + block + data[empty.end :]
    before = _first(elements, "currentMemory") or _first(elements, "memory")
    if before is None:
        raise LiveUpdateError(f"domain {told[0]}: its definition has no <memory>; add the following with '{told[1]}':\n{block.decode()}")
    return data[: before.end] + b"\n  " + block + data[before.end :]


def _with_wanted(data: bytes, elements: list[Span], backing: Span) -> bytes:
    """Set what is wanted in an existing <memoryBacking>; the rest of it stays."""
    inside = [element for element in elements if element.path[:-1] == backing.path and backing.start < element.start < backing.end]
    at = inside[-1].end if inside else backing.inner
    missing = [wanted for wanted in _WANTED if wanted[0] not in {element.path[-1] for element in inside}]
    data = data[:at] + b"".join(map(_line, missing)) + data[at:]
    for element in reversed(inside):
        for tag, key, value in _WANTED:
            if element.path[-1] == tag and element.attributes.get(key) != value:
                changed = _with_attribute(data[element.start : element.inner], key.encode(), value.encode())
                data = data[: element.start] + changed + data[element.inner :]
    return data


def _line(wanted: tuple[str, str, str]) -> bytes:
    tag, key, value = wanted
    return f"\n    <{tag} {key}='{value}'/>".encode()


def _with_attribute(tag: bytes, key: bytes, value: bytes) -> bytes:
    """A start tag with this value of an attribute."""
    for found in _ATTRIBUTE.finditer(tag):
        if found.group(1) == key:
            return tag[: found.start(2)] + b"'" + value + b"'" + tag[found.end(2) :]
    name = re.match(rb"<[^\s/>]+", tag)
    at = name.end() if name else 0
    return tag[:at] + b" " + key + b"='" + value + b"'" + tag[at:]


def disk_targets(xml: str) -> list[str]:
    """The names of the domain's disks (``vda``). Pure."""
    return [target.get("dev", "") for target in parsed(xml).findall("devices/disk/target")]
