# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _definition

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
    changed = _definition.with_shared_file(HEAD + before + TAIL)
    assert same(changed, HEAD + SHARED + TAIL)
    assert changed.startswith(HEAD) and changed.endswith(TAIL)
    assert _definition.with_shared_file(changed) == changed


def test_what_else_the_backing_has_is_kept():
    locked = "  <memoryBacking>\n    <nosharepages/>\n    <locked/>\n  </memoryBacking>\n"
    changed = _definition.with_shared_file(HEAD + locked + TAIL)
    assert "    <nosharepages/>\n    <locked/>\n    <source type" in changed
    assert _definition.with_shared_file(changed) == changed


def test_a_definition_without_current_memory_is_understood():
    head = HEAD.replace("  <currentMemory unit='KiB'>131072</currentMemory>\n", "")
    assert same(_definition.with_shared_file(head + TAIL), head + SHARED + TAIL)


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
        _definition.with_shared_file(xml)
    assert said in caught.value.message and "virsh edit web" in caught.value.message


def test_a_definition_that_another_tool_wrote_is_understood():
    xml = "<domain><name>web</name><memory>1</memory></domain>"
    changed = _definition.with_shared_file(xml)
    assert changed == xml.replace("</memory>", f"</memory>\n{SHARED.rstrip()}")
    assert _definition.with_shared_file(changed) == changed


def test_a_definition_without_memory_is_not_guessed_at():
    """The command names the domain by what virsh cannot take for the ID of another one."""
    with pytest.raises(LiveUpdateError, match=r"domain 1: .*'virsh edit the-uuid'"):
        _definition.with_shared_file("<domain><name>1</name><uuid>the-uuid</uuid></domain>")
    with pytest.raises(LiveUpdateError, match=r"domain 1: .*'virsh edit the-uuid'"):
        _definition.with_shared_file("<domain><name>1</name><uuid>the-uuid</uuid><memoryBacking><discard/></memoryBacking></domain>")


TEMPLATE = """
<domain type='kvm'>
  <name>template</name>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1</currentMemory>
  <memoryBacking>
    <nosharepages/>
  </memoryBacking>
</domain>
"""


@pytest.mark.parametrize(
    "owners",
    [
        f"<![CDATA[{TEMPLATE}]]>",
        f"<!--{TEMPLATE}-->",
        f"<t:x xmlns:t='urn:t'>{TEMPLATE}</t:x>",
        f"<x a='{TEMPLATE}'/>".replace("='kvm'", "").replace("='KiB'", "").replace("<", "&lt;").replace("&lt;x", "<x"),
    ],
)
@pytest.mark.parametrize("before", ["", "  <memoryBacking/>\n", "  <memoryBacking>\n    <locked/>\n  </memoryBacking>\n"])
def test_text_of_the_owner_that_looks_like_a_definition_stays(owners, before):
    head = HEAD.replace('<app:memory xmlns:app="urn:app">text with <app:b/> in it</app:memory>', owners)
    assert owners in head
    changed = _definition.with_shared_file(head + before + TAIL)
    locked = "    <locked/>\n" if "locked" in before else ""
    assert changed == head + SHARED.replace("    <source", f"{locked}    <source") + TAIL
    assert _definition.with_shared_file(changed) == changed


def test_what_else_stands_in_the_backing_is_kept_byte_for_byte():
    inside = """<!-- <source type='x'/> -->
    <source other = "a > b"  type="memfd" more='1'></source><allocation mode="immediate"   threads='8'/>
    <access/>"""
    changed = _definition.with_shared_file(f"{HEAD}  <memoryBacking>\n    {inside}\n  </memoryBacking>\n{TAIL}")
    wanted = inside.replace('type="memfd"', "type='file'").replace("<access/>", "<access mode='shared'/>")
    assert changed == f"{HEAD}  <memoryBacking>\n    {wanted}\n  </memoryBacking>\n{TAIL}"


def test_a_definition_in_any_language_goes_back_byte_for_byte():
    """Libvirt writes UTF-8; a place in it is counted in bytes."""
    head = HEAD.replace("  <memory unit", "  <title>Büro \U0001f5a5 &amp; Ωμέγα</title>\n  <memory unit")
    assert _definition.with_shared_file(head + TAIL) == head + SHARED + TAIL


@pytest.mark.parametrize("read", [_definition.describe, _definition.disk_targets, _definition.with_shared_file])
def test_a_definition_that_is_no_xml_is_an_error_of_ours(read):
    with pytest.raises(LiveUpdateError, match=r"is not XML: .*virsh dumpxml"):
        read("<domain><name>app</domain>")
