# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _libvirt, _paths
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError

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


class Virsh:
    """What virsh would print for a domain that can be preserved, and what it was asked."""

    def __init__(self):
        self.asked = []
        self.says = {
            "dumpxml": "<domain><genid>g1</genid></domain>",
            "domjobinfo": "Job type:         None        \n",
            "domstate": "running\n",
            "query-migrate": {},
            "query-block-jobs": [],
        }

    def __call__(self, *words, **_limit):
        what = json.loads(words[2])["execute"] if words[0] == "qemu-monitor-command" else words[0]
        self.asked.append(what)
        said = self.says[what]
        if isinstance(said, LiveUpdateError):
            raise said
        return said if isinstance(said, str) else json.dumps({"return": said})


@pytest.fixture
def virsh(monkeypatch):
    fake = Virsh()
    monkeypatch.setattr(_libvirt, "virsh", fake)
    monkeypatch.setattr(_libvirt, "is_defined", lambda name: name == "app")
    monkeypatch.setattr(_libvirt, "confinement", lambda _pid: "")
    return fake


@pytest.fixture
def record():
    fd = os.memfd_create("ram")
    yield {"name": "app", "pid": os.getpid(), "backends": _libvirt.memory_backends(argv(GOOD)), "ram": [{"fd": fd, "size": SIZE}]}
    os.close(fd)


def codes(reasons):
    return [reason["code"] for reason in reasons]


def test_a_domain_that_can_be_preserved_is_read_once(virsh, record):
    assert _libvirt.inspect(record) == []
    assert codes(_libvirt.warn(record)) == ["genid"]
    assert sorted(virsh.asked) == sorted(virsh.says)
    json.dumps(record)


@pytest.mark.parametrize(
    ("what", "said", "code", "message"),
    [
        ("dumpxml", "<domain><devices><hostdev type='pci'/></devices></domain>", "hostdev", "<hostdev type='pci'>"),
        ("domstate", "crashed\n", "run-state", "crashed"),
        ("query-migrate", {"blocked-reasons": ["invtsc"]}, "qemu-blocker", "invtsc"),
        ("query-block-jobs", [{"device": "vda"}], "block-job", "block job"),
        ("dumpxml", LiveUpdateError("virsh: no answer"), "monitor", "virsh: no answer"),
        ("domjobinfo", LiveUpdateError("virsh: no answer"), "monitor", "virsh: no answer"),
        ("query-migrate", LiveUpdateError("virsh: no answer"), "monitor", "virsh: no answer"),
    ],
)
def test_what_libvirt_and_qemu_say_is_a_reason(virsh, record, what, said, code, message):
    virsh.says[what] = said
    (reason,) = _libvirt.inspect(record)
    assert reason["code"] == code and message in reason["message"] and reason["remedy"]


def test_a_domain_without_definition_is_refused(virsh, record):
    assert codes(_libvirt.inspect({**record, "name": "other"})) == ["not-persistent"]


def test_the_monitor_is_not_asked_during_a_job(virsh, record):
    """It would not answer before the job is done."""
    virsh.says["domjobinfo"] = "Job type:         Unbounded\nOperation:        Save\n"
    assert codes(_libvirt.inspect(record)) == ["libvirt-job"]
    assert virsh.asked == ["dumpxml", "domjobinfo"]


def test_a_domain_whose_definition_cannot_be_read_has_no_warnings(virsh, record):
    virsh.says["dumpxml"] = LiveUpdateError("virsh: no answer")
    assert _libvirt.warn(record) == []


@pytest.fixture(name="saved")
def domain_to_save(tmp_path, monkeypatch, record):
    """What virsh was asked, in order, while a held domain was saved; its snapshot is ``image``, or fails."""

    class Saved:
        def __init__(self):
            self.asked, self.image = [], b""
            self.path = tmp_path / "app.save"

        def virsh(self, verb, _name, *words, **_limit):
            self.asked.append(verb if verb != "qemu-monitor-command" else json.loads(words[0])["arguments"]["capabilities"][0]["state"])
            if verb == "domstate":
                return "paused\n" if "suspend" in self.asked else "running\n"
            if verb == "dumpxml":
                return "<domain><devices><disk><target dev='vda'/></disk><disk><target dev='sda'/></disk></devices></domain>"
            if verb == "snapshot-create-as":
                assert words[1:] == ("--no-metadata", "--memspec", f"{self.path},snapshot=external", *self.disks)
                if not self.image:
                    raise LiveUpdateError("no space left")
                self.path.write_bytes(self.image)
            return '{"return": {}}'

        disks = ("--diskspec", "vda,snapshot=no", "--diskspec", "sda,snapshot=no")

    made = Saved()
    monkeypatch.setattr(_libvirt, "virsh", made.virsh)
    monkeypatch.setattr(_libvirt, "SAVED", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_RUN", str(tmp_path))
    monkeypatch.setattr(_paths, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_libvirt._libvirt_image, "loadable", lambda image, running: image + bytes([running]))
    _paths.write_json(str(tmp_path / "app.held"), {"hold": "h"})
    record.update(provider="libvirt", uid=64055, gid=64055)
    return made


def test_a_domain_is_saved_without_its_end_and_goes_on_when_that_is_undone(saved, record, tmp_path):
    saved.image = b"image"
    state = str(tmp_path / "app.state")
    journal = _libvirt.save(record, state, running=True)
    assert saved.asked == ["dumpxml", True, "suspend", "snapshot-create-as"]
    assert saved.path.read_bytes() == b"image\1"
    assert journal["times"]["paused"] <= journal["times"]["saved"] and journal["image"] == str(saved.path)
    assert _paths.read_json(state) == {"hold": "h", "directory": os.path.dirname(os.path.dirname(PATH)), "files": ["pc.ram"]}
    _libvirt.resume(record, running=True)
    assert saved.asked[4:] == ["domstate", "domjobabort", False, "resume"] and not saved.path.exists()


def test_a_save_that_fails_says_so_and_is_undone(saved, record, tmp_path):
    with pytest.raises(LiveUpdateError, match="guest app: save: no space left"):
        _libvirt.save(record, str(tmp_path / "app.state"), running=False)
    assert saved.asked[-1] == "domjobabort"
    _libvirt.resume(record, running=False)
    assert saved.asked[-1] is False


def test_a_domain_that_was_not_suspended_yet_runs_on(saved, record):
    _libvirt.resume(record, running=True)
    assert saved.asked == ["domstate", False]


def test_a_domain_runs_on_although_a_setting_cannot_be_taken_back(saved, record, monkeypatch, tmp_path):
    saved.asked = ["suspend"]

    def refuse(_name, _state):
        raise LiveUpdateError("a migration is in progress")

    monkeypatch.setattr(_libvirt, "ignore_shared", refuse)
    monkeypatch.setattr(_libvirt, "UNDO_LIMIT_S", -1)
    (tmp_path / "app.state").touch()
    saved.path.touch()
    with pytest.raises(LiveUpdateError, match="in progress"):
        _libvirt.resume(record, running=True)
    assert saved.asked[-1] == "resume" and not saved.path.exists()


def test_a_job_that_was_told_to_end_may_need_a_moment(saved, record, monkeypatch):
    saved.asked, answers = ["suspend"], [LiveUpdateError("a migration is in progress")]

    def refuse_once(_name, _state):
        if answers:
            raise answers.pop()

    monkeypatch.setattr(_libvirt, "ignore_shared", refuse_once)
    _libvirt.resume(record, running=True)
    assert not answers and saved.asked[-1] == "resume"


def test_a_hold_that_is_undone_leaves_a_managed_save_alone(saved, record):
    saved.path.write_bytes(b"of the operator")
    _libvirt.resume(record, running=False)
    assert saved.path.exists()


def test_the_last_look_at_all_domains_is_one_virsh(monkeypatch):
    asked = []
    monkeypatch.setattr(_libvirt, "virsh", lambda *words: asked.append(words) or "u-1\nu-3\n")
    records = [{"name": name, "uuid": uuid} for name, uuid in (("app", "u-1"), ("db", "u-2"), ("web", "u-3"))]
    (problem,) = _libvirt.still_saved(records)
    assert problem.startswith("guest db was saved and is not paused any more") and asked == [("list", "--state-paused", "--uuid")]
    assert _libvirt.still_saved([records[0], records[2]]) == []
