# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _definition, _guests

DEVICES = """
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='hostdev'/>
    <hostdev mode='subsystem' type='pci'/>
    <hostdev mode='subsystem' type='usb'/>
    <tpm model='tpm-crb'/>
"""


def described(said="", devices=""):
    metadata = f"<metadata><other:thing xmlns:other='http://other' tier='none'/>{said}</metadata>"
    return _definition.describe(f"<domain type='kvm' id='1'><name>web</name>{metadata}<devices>{devices}</devices></domain>")


def ours(words):
    return f"<kvm:liveupdate xmlns:kvm='{_definition.NAMESPACE}' {words}/>"


def test_devices_are_words():
    assert described(devices=DEVICES)["devices"] == ["disk:sata", "disk:virtio", "hostdev", "interface:bridge", "interface:hostdev", "tpm"]


@pytest.mark.parametrize(
    ("said", "ladder", "labels"),
    [
        ("", None, {}),
        (ours("tier='gold' owner='me'"), None, {"tier": "gold", "owner": "me"}),
        (ours("ladder='save refuse' tier='gold'"), ["save", "refuse"], {"tier": "gold"}),
        (
            ours("ladder='migrate save' to='qemu+ssh://hv2/system'"),
            [{"migrate": {"to": "qemu+ssh://hv2/system", "back": True}}, "save"],
            {},
        ),
        (ours("ladder='migrate' to='u' back='no'"), [{"migrate": {"to": "u", "back": False}}], {}),
        (ours("ladder='migrate' back='perhaps'"), [{"migrate": {"to": "", "back": "perhaps"}}], {}),  # the planner names it
        (ours("ladder=''"), [], {}),
        ("<liveupdate ladder='save'/>", None, {}),
        ("<kvm:liveupdate xmlns:kvm='https://example.org' ladder='save'/>", None, {}),
    ],
)
def test_what_the_owner_says_in_the_metadata(said, ladder, labels):
    found = described(said)
    assert (found["ladder"], found["labels"]) == (ladder, labels)


def test_a_libvirt_that_does_not_answer_leaves_what_the_process_tells(libvirt):
    memory = {"backends": [{"size": 3 << 20}, {"size": 1 << 20}]}
    silent = {**libvirt.add("web", 1, dumpxml="error: no answer"), **memory}
    assert _guests.describe(silent) == {"memory_mib": 4, "devices": [], "labels": {}, "ladder": None, "paused": False}
    answers = {**libvirt.add("app", 2, dumpxml="<domain><devices><tpm/></devices></domain>", domstate="paused\n"), **memory}
    assert _guests.describe(answers) == {"memory_mib": 4, "devices": ["tpm"], "labels": {}, "ladder": None, "paused": True}
