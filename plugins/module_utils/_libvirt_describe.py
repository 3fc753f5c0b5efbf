# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a domain's XML says of it that a policy may match on, and what its owner wants for it. Pure. PRIVATE to the collection.

The owner says so in the domain's metadata, in one element of our name space::

    <metadata>
      <kvm:liveupdate xmlns:kvm="https://galaxy.ansible.com/kvm/liveupdate"
                      ladder="migrate save refuse" to="qemu+ssh://hv2/system" tier="gold"/>
    </metadata>

``ladder`` are the ways that the domain may take in an update, ``to`` and ``back`` (yes, no) belong to ``migrate``; the rest are labels.

Source: https://libvirt.org/formatdomain.html, sections General metadata and Devices.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ("NAMESPACE", "describe")

NAMESPACE = "https://galaxy.ansible.com/kvm/liveupdate"
# What tells disks from disks and cards from cards; of the rest the tag says enough.
_KINDS = {"disk": ("target", "bus"), "interface": (".", "type")}
_NO_DEVICE = ("emulator",)
_YES_NO = {"yes": True, "no": False}


def describe(xml: str) -> dict:
    """A running domain's ``devices``, ``labels`` and ``ladder`` (None when it has none), from what ``virsh dumpxml`` prints."""
    from xml.etree import ElementTree  # slow to import

    domain = ElementTree.fromstring(xml)
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
