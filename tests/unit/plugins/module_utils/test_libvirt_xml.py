# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils._libvirt_xml import with_shared_file

HEAD = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <metadata>
    <app:memory xmlns:app="urn:app">text with <app:b/> in it</app:memory>
  </metadata>
  <memory unit='KiB'>131072</memory>
  <currentMemory unit='KiB'>131072</currentMemory>
"""
TAIL = """  <vcpu placement='static'>1</vcpu>
  <cpu mode='host-model'>
    <numa>
      <cell id='0' cpus='0' memory='131072' unit='KiB'/>
    </numa>
  </cpu>
  <qemu:commandline>
    <qemu:arg value='-no-hpet'/>
  </qemu:commandline>
</domain>
"""
SHARED = """  <memoryBacking>
    <source type='file'/>
    <access mode='shared'/>
  </memoryBacking>
"""


def same(one: str, other: str) -> bool:
    return one.replace('"', "'") == other.replace('"', "'")


@pytest.mark.parametrize(
    "before",
    [
        "",
        "  <memoryBacking/>\n",
        "  <memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>\n",
        "  <memoryBacking>\n    <source type='file'/>\n  </memoryBacking>\n",
        "  <memoryBacking>\n    <source type='anonymous'/>\n    <access mode='private'/>\n  </memoryBacking>\n",
    ],
)
def test_the_ram_becomes_a_shared_file_and_nothing_else_changes(before):
    changed = with_shared_file(HEAD + before + TAIL)
    assert same(changed, HEAD + SHARED + TAIL)
    assert changed.startswith(HEAD) and changed.endswith(TAIL)
    assert with_shared_file(changed) == changed


def test_what_else_the_backing_has_is_kept():
    locked = "  <memoryBacking>\n    <nosharepages/>\n    <locked/>\n  </memoryBacking>\n"
    changed = with_shared_file(HEAD + locked + TAIL)
    assert "    <nosharepages/>\n    <locked/>\n    <source type" in changed
    assert with_shared_file(changed) == changed


def test_a_definition_without_current_memory_is_understood():
    head = HEAD.replace("  <currentMemory unit='KiB'>131072</currentMemory>\n", "")
    assert same(with_shared_file(head + TAIL), head + SHARED + TAIL)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "  <memoryBacking>\n    <hugepages/>\n  </memoryBacking>\n", "huge pages"),
        ("", "  <memoryBacking>\n    <discard/>\n  </memoryBacking>\n", "<discard/>"),
        ("memory='131072' unit='KiB'/>", "memory='131072' unit='KiB' memAccess='private'/>", "memAccess='private'"),
    ],
)
def test_what_contradicts_it_is_the_operators_to_decide(old, new, said):
    xml = HEAD + TAIL.replace(old, new, 1) if old else HEAD + new + TAIL
    with pytest.raises(LiveUpdateError, match="domain web") as caught:
        with_shared_file(xml)
    assert said in caught.value.message and "virsh edit web" in caught.value.message


def test_a_text_that_libvirt_did_not_write_is_not_guessed_at():
    with pytest.raises(LiveUpdateError, match="virsh edit"):
        with_shared_file("<domain><name>web</name><memory>1</memory></domain>")
