# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types
from pathlib import Path

from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _guests, _virsh
from ansible_collections.kvm.liveupdate.plugins.modules import domain_memory

TEMPLATE = """<![CDATA[
<domain>
  <memory unit='KiB'>1</memory>
  <memoryBacking>
    <nosharepages/>
  </memoryBacking>
</domain>
]]>"""
SHARED = "  <memoryBacking>\n    <source type='file'/>\n    <access mode='shared'/>\n  </memoryBacking>\n"


class Libvirt:
    """A libvirt with one domain, whose definition is bytes."""

    def __init__(self, definition: bytes):
        self.definition = definition

    def virsh(self, verb, what, *_words):
        if verb == "define":
            self.definition = Path(what).read_bytes()
        return self.definition.decode("utf-8", "surrogateescape")


def test_a_definition_goes_back_byte_for_byte_and_a_second_run_changes_nothing(monkeypatch):
    head = f"<domain>\n  <name>app</name>\n  <title>Büro</title>\n  <metadata>{TEMPLATE}</metadata>\n  <memory unit='KiB'>2</memory>\n"
    host = Libvirt(f"{head}</domain>\n".encode())
    monkeypatch.setattr(_virsh, "virsh", host.virsh)
    monkeypatch.setattr(_virsh, "uuid_of", lambda name: name)
    monkeypatch.setattr(_guests, "known", list)
    module = types.SimpleNamespace(params={"name": "app", "adopt": False}, check_mode=True)
    assert domain_memory.manage(module)["changed"] and host.definition == f"{head}</domain>\n".encode()
    module.check_mode = False
    assert domain_memory.manage(module)["changed"] and host.definition == f"{head}{SHARED}</domain>\n".encode()
    assert not domain_memory.manage(module)["changed"]
