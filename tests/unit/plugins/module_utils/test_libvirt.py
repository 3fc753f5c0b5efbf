# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _libvirt

SIZE = 128 << 20
PATH = "/run/kvm-liveupdate-ram/libvirt/qemu/1-app/pc.ram"
GOOD = {"qom-type": "memory-backend-file", "id": "pc.ram", "mem-path": PATH, "share": True, "size": SIZE}


def argv(*objects: dict) -> list[str]:
    words = ["/usr/bin/qemu-system-x86_64", "-object", "rng-random,id=r"]
    for one in objects:
        words += ["-object", json.dumps(one)]
    return words


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({}, PATH),
        ({"share": False}, ""),
        ({"discard-data": True}, ""),
        ({"qom-type": "memory-backend-memfd", "mem-path": ""}, ""),
        ({"mem-path": "/dev/hugepages/libvirt/qemu/1-app"}, ""),
    ],
)
def test_only_a_shared_file_that_stays_is_ram_to_keep(change, path):
    (found,) = _libvirt.memory_backends(argv({**GOOD, **change}))
    assert (found["id"], found["size"], found["path"]) == ("pc.ram", SIZE, path)


def test_each_node_has_its_own_file():
    found = _libvirt.memory_backends(argv({**GOOD, "id": "ram-node0"}, {**GOOD, "id": "ram-node1"}))
    assert [backend["id"] for backend in found] == ["ram-node0", "ram-node1"]


@pytest.mark.parametrize(
    ("backends", "found", "codes"),
    [
        ([{"id": "pc.ram", "kind": "memory-backend-file", "size": SIZE, "path": PATH}], True, []),
        ([], False, ["ram-anonymous"]),
        ([{"id": "pc.ram", "kind": "memory-backend-ram", "size": SIZE, "path": ""}], False, ["ram-anonymous"]),
        ([{"id": "pc.ram", "kind": "memory-backend-memfd", "size": SIZE, "path": ""}], False, ["ram-backend"]),
        ([{"id": "pc.ram", "kind": "memory-backend-file", "size": SIZE, "path": PATH}], False, ["ram-gone"]),
    ],
)
def test_reasons_of_the_memory(backends, found, codes):
    assert [reason["code"] for reason in _libvirt.memory_reasons(backends, found)] == codes


@pytest.mark.parametrize(
    ("label", "ruled", "remedies"),
    [
        ("", False, []),
        ("unconfined", False, []),
        ("system_u:system_r:unconfined_t:s0", False, []),
        ("libvirt-6c6ef1d4-0a29-4d3c-9c57-3f0f2d4a7c1e (enforce)", True, []),
        ("libvirt-6c6ef1d4-0a29-4d3c-9c57-3f0f2d4a7c1e (enforce)", False, ["run the setup playbook"]),
        ("system_u:system_r:svirt_t:s0:c1,c2", True, ['security_driver = "none"']),
    ],
)
def test_a_confined_domain_needs_its_rule(label, ruled, remedies):
    reasons = _libvirt.confinement_reasons(label, ruled)
    assert len(reasons) == len(remedies)
    for reason, remedy in zip(reasons, remedies, strict=True):
        assert reason["code"] == "confined" and label in reason["message"] and remedy in reason["remedy"]


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("", None),
        ("<memoryBacking><hugepages/></memoryBacking>", "hugepages"),
        ("<memoryBacking><discard/></memoryBacking>", "discard"),
        ("<devices><hostdev type='pci'/></devices>", "hostdev"),
        ("<devices><filesystem type='mount'/></devices>", "filesystem"),
        ("<devices><interface type='vhostuser'/></devices>", "vhost-user"),
        ("<devices><interface type='bridge'/></devices>", None),
        ("<launchSecurity type='sev'/>", "launch-security"),
        ("<devices><disk><driver cache='unsafe'/><target dev='vda'/></disk></devices>", "cache-unsafe"),
        ("<devices><disk><driver cache='none'/><target dev='vda'/></disk></devices>", None),
    ],
)
def test_reasons_of_the_definition(inside, code):
    found = _libvirt.xml_reasons(f"<domain>{inside}</domain>")
    assert [reason["code"] for reason in found] == ([code] if code else [])
    assert all(reason["message"] and reason["remedy"] for reason in found)
