# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A domain with the name 1, beside one with the id 1: virsh takes the word 1 for an id. Each call has to reach the first one."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _command
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import (
    _adopt,
    _agent,
    _away,
    _needs,
    _reasons,
    _rehearsal,
    _save,
    _start,
    _virsh,
)
from ansible_collections.kvm.liveupdate.plugins.modules import domain_memory

THERE = "qemu+ssh://hv2/system"


@pytest.fixture(name="one")
def domain_named_1(libvirt, tmp_path, monkeypatch):
    monkeypatch.setattr(_virsh, "SAVED", str(tmp_path))
    monkeypatch.setattr(_files, "GUESTS_RUN", str(tmp_path / "guests-run"))
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path / "guests-state"))
    monkeypatch.setattr(_away, "_POLL_S", 0.01)
    monkeypatch.setattr(_save, "UNDO_LIMIT_S", 0)
    for folder in (_files.GUESTS_RUN, _files.GUESTS_STATE):
        os.mkdir(folder)
    libvirt.add("other", 1)
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>"
    return libvirt.add("1", 2, dumpxml=f"<domain><devices>{agent}</devices></domain>", qemu_agent_command='{"return": "frozen"}')


def away(one, way):
    known = {"guest": "1", "uuid": one["uuid"], "way": way, "bytes": 1, "was_running": True, "autostart": True}
    return {**known, "destination": THERE, "migrate_uri": None, "back_uri": None}


def becomes(libvirt, verb, said):
    libvirt.domains[1]["says"][verb] = said
    libvirt.keep()


def save(_libvirt_, one):
    with pytest.raises(FileNotFoundError):  # the stub writes no image
        _save.write_image(one, "/nowhere/1.save", running=True)


def resume(libvirt, one):
    becomes(libvirt, "domstate", "paused\n")
    with pytest.raises(LiveUpdateError, match="paused"):  # the stub lets nobody go on
        _save.resume(one, running=True)


def last_look(libvirt, one):
    libvirt.says = {"list --state-paused --uuid": one["uuid"]}
    becomes(libvirt, "query-status", '{"return": {"status": "postmigrate"}}')
    assert _save.still_saved([one]) == []


def look_at_its_definition(_libvirt_, one):
    assert "guest_agent" in _virsh.domain_xml(one)


def see_whether_it_can_leave(_libvirt_, one):
    _away.obstacles(away(one, "save"))


def adopt(_libvirt_, one):
    with pytest.raises(LiveUpdateError):
        _adopt.adopt(one)


def leave_by_save(libvirt, one):
    _away.leave(away(one, "save"), 5)
    becomes(libvirt, "managedsave", "error: no room\n")
    with pytest.raises(LiveUpdateError):
        _away.leave(away(one, "save"), 5)


def leave_by_shutdown(libvirt, one):
    becomes(libvirt, "domstate", "shut off\n")
    _away.leave(away(one, "shutdown"), 5)


def migrate(_libvirt_, one):
    _away.leave(away(one, "migrate"), 5)
    _away.come_back(away(one, "migrate"), 5)


def start_after_a_shutdown(libvirt, one):
    becomes(libvirt, "domstate", "shut off\n")
    with pytest.raises(LiveUpdateError):
        _away.come_back(away(one, "shutdown"), 0.2)


def correct_the_clock(_libvirt_, _one):
    assert _agent.correct_clock("1") == {"clock": "synchronised", "thawed": True}


def restore(_libvirt_, one):
    journal = {"uuid": one["uuid"], "image": "/nowhere/1.save"}
    assert _start._state(journal) == "running"
    _start._start("1", journal)


def discard(_libvirt_, _one):
    _files.write_json(f"{_files.GUESTS_STATE}/1.json", {"provider": "libvirt", "state": "saved"})
    assert _command.main(["discard", "1"]) == 0


def prepare(libvirt, _one):
    becomes(libvirt, "dumpxml", "<domain>\n  <name>1</name>\n  <memory>1</memory>\n</domain>\n")
    params = {"name": "1", "adopt": False}
    assert domain_memory.manage(type("Module", (), {"params": params, "check_mode": False}))["changed"]


def rehearse_disks(_libvirt_, one):
    _rehearsal._make_disks(one, ["vda"], "/nowhere")


@pytest.mark.parametrize(
    "call",
    [
        save,
        resume,
        last_look,
        look_at_its_definition,
        see_whether_it_can_leave,
        adopt,
        leave_by_save,
        leave_by_shutdown,
        migrate,
        start_after_a_shutdown,
        correct_the_clock,
        restore,
        discard,
        prepare,
        rehearse_disks,
    ],
)
def test_the_domain_itself_is_reached(libvirt, one, call, monkeypatch):
    monkeypatch.setattr(_adopt, "refuse", lambda record: None)
    monkeypatch.setattr(_early, "start_early", lambda unit, wanted: None)
    monkeypatch.setattr(_systemd, "fdstore", lambda unit: [])
    call(libvirt, one)
    reached = [line.split(maxsplit=1)[1] for line in libvirt.asked() if not line.startswith("define")]
    assert reached and set(reached) == {"1"}


def test_the_stub_looks_up_as_virsh_does(libvirt, one):
    """Else the tests above prove nothing."""
    _virsh.virsh("suspend", "1")
    _virsh.virsh("start", "1")
    _virsh.virsh("suspend", one["uuid"])
    assert libvirt.asked() == ["suspend other", "start 1", "suspend 1"]


PLUGINS = Path(_virsh.__file__).parents[2]


def test_no_command_for_the_operator_names_a_domain_by_its_name():
    """Virsh might take it for the ID of another domain, except in "start", which takes no ID (tools/virsh-domain.c)."""
    found = []
    for path in PLUGINS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found += [(path.name, *words) for words in re.findall(r"virsh ([a-z-]+)[^\'\"]*? \{([^{}]+)\}", ast.unparse(node))]
    assert ("_guests.py", "qemu-monitor-command", "record['uuid']") in found
    of_domains = [
        (file, verb, what) for file, verb, what in found if not verb.startswith(("net-", "pool-", "{", "--connect")) and verb != "start"
    ]
    assert [entry for entry in of_domains if "uuid" not in entry[2]] == []


def test_what_an_operator_is_told_to_do_reaches_the_domain_itself(one):
    xml = "<domain><devices><disk device='cdrom'><source file='/never/there'/><target dev='sda'/></disk></devices></domain>"
    files = _needs.needs(xml)["files"]
    (gone,) = _needs.reasons(
        {**dict.fromkeys(("networks", "pools", "secrets", "sockets"), ()), "files": files},
        {"networks": {}, "pools": {}, "secrets": {}, "problems": {}},
        {"/never/there": "gone"},
        {},
        one["uuid"],
    )
    assert f"virsh change-media {one['uuid']} sda --eject" in gone["remedy"]
    os.unlink(os.path.join(_virsh.DEFINITIONS, "1.xml"))
    for told in (_away.obstacles(away(one, "shutdown"))[0], _reasons.definition_reasons("1", one["uuid"], False)[0]["remedy"]):
        assert f"virsh dumpxml --inactive --security-info {one['uuid']} > {one['uuid']}.xml && virsh define {one['uuid']}.xml" in told
