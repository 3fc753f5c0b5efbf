# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role on this machine, with modules that do nothing: they check their arguments, note the call and answer as told."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins import modules

COLLECTION = Path(modules.__path__[0]).parents[1]
MODULES = [path.stem for path in Path(modules.__path__[0]).glob("[a-z]*.py")]
STUB = """#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule(supports_check_mode=True, **json.loads(r'''{spec}'''))
call = ":".join(filter(None, ("{name}", module.params.get("state"))))
with open("{folder}/calls", "a") as file:
    file.write(json.dumps([call, module.params]) + "\\n")
with open("{folder}/answers.json") as file:
    answer = json.load(file).get(call, {{}})
module.fail_json(**answer) if "fails" in answer else module.exit_json(**answer)
"""
INVENTORY = """hv1 ansible_connection=local ansible_become=false ansible_python_interpreter='{{ ansible_playbook_python }}'
"""
PLAYBOOK = """
- hosts: hv1
  gather_facts: false
  roles: [kvm.liveupdate.hypervisor_update]
"""
TWICE = """
- hosts: hv1
  gather_facts: false
  tasks:
    - name: First
      block:
        - ansible.builtin.include_role: {name: kvm.liveupdate.hypervisor_update}
      rescue:
        - ansible.builtin.command: cp second.json answers.json
    - ansible.builtin.include_role: {name: kvm.liveupdate.hypervisor_update}
"""
LAST = {"state": "restored", "update_id": "u1", "times": {"paused": 1.0, "resumed": 2.0}}


def facts(name, **about):
    known = {"name": name, "provider": "libvirt", "memory_mib": 64, "fill_mib": 0, "devices": [], "labels": {}, "ladder": None}
    return {**known, "last_pause": None, "reasons": [], "warnings": [], **about}


def restored(*names):
    return {"guests": [{"name": name, "changed": False, "last_update": {**LAST, "guest": name}} for name in names]}


class Fleet:
    """One host, what its modules answer, and what they were called with."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.leases = folder, []
        self.answers = {
            "kexec_image:staged": {"changed": True},
            "update_lease:present": {"taken_over": ""},
            "kexec": {"changed": True, "outcome": "jumped", "journal": {"id": "u1"}, "kernel_after": "7.3.4", "times": {}},
        }
        copy = folder / "ansible_collections/kvm/liveupdate"
        (copy / "plugins/modules").mkdir(parents=True)
        for path in COLLECTION.iterdir():
            if path.name != "plugins" and not path.name.startswith("."):
                (copy / path.name).symlink_to(path)
        for path in (COLLECTION / "plugins").iterdir():
            if path.name not in ("action", "modules"):
                (copy / "plugins" / path.name).symlink_to(path)
        for name in MODULES:
            module, spec = importlib.import_module(f"{modules.__name__}.{name}"), {}
            monkeypatch.setattr(module, "run_module", lambda _body, spec=spec, **given: spec.update(given))
            module.main()
            (copy / f"plugins/modules/{name}.py").write_text(STUB.format(spec=json.dumps(spec), name=name, folder=folder))

    def update(self, guests, *options, away=(), play=PLAYBOOK, **extra):
        """Run the role; returns how it ended, what it printed, the host's report, and all calls but the looks at the host."""
        target = {"release": "7.3.4", "current": False}
        host = {"guests": guests, "reasons": [], "free": {"memory_mib": 9999, "saves_mib": 9999}, "target": target, "boot_id": "b1"}
        self.answers["hypervisor_info"] = {
            **host,
            "kernel": {"release": "7.2.13"},
            "ready": True,
            "away": [{"guest": name, "way": "save", "state": "away"} for name in away],
        }
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "calls").write_text("")
        (self.folder / "hosts").write_text(INVENTORY)
        (self.folder / "play.yml").write_text(play)
        given = {"hypervisor_update_kernel": "/boot/k", "hypervisor_update_report": str(self.folder / "page.html")}
        given["__hypervisor_update_records"] = str(self.folder / "records")
        done = subprocess.run(
            ["ansible-playbook", "play.yml", "-i", "hosts", "-e", json.dumps({**given, **extra}), *options],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
                "ANSIBLE_HOME": str(self.folder),
                "ANSIBLE_NOCOLOR": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        calls = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        output = done.stdout + done.stderr
        told = self.folder / "page.html.json"
        report = json.loads(told.read_text())["hv1"] if told.exists() else {}
        self.leases = [call for call, _params in calls if call.startswith("update_lease")]
        return (
            done.returncode,
            output,
            report,
            [call for call in calls if call[0].partition(":")[0] not in ("hypervisor_info", "update_lease", "update_record")],
        )


@pytest.fixture(name="fleet")
def a_fleet(tmp_path, monkeypatch):
    return Fleet(tmp_path, monkeypatch)


POLICY = {"db": ["save"], "big": ["shutdown"], "mover": [{"migrate": {"to": "qemu+ssh://hv2/system"}}]}


def test_check_mode_looks_at_the_host_only_and_says_what_would_be_done(fleet):
    code, output, report, calls = fleet.update([facts("web"), facts("db")], "--check")
    assert code == 0 and report["outcome"] == "checked", output
    assert [guest["way"] for guest in report["plan"]["guests"]] == ["preserve", "preserve"]
    assert calls == [] and fleet.leases == [] and "changed=1 " in output
    assert "hv1: can be updated 7.2.13 -> 7.3.4, 2 guests kept, expected pause unknown" in output


def test_who_leaves_goes_and_comes_back_in_one_step_each(fleet):
    fleet.answers["guest:running"] = restored("web", "app", "mail")
    sent = [{"name": "db", "left": "saved", "where": "saved", "msg": "guest db is saved to disk"}]
    fleet.answers["guest_away:away"] = {"changed": True, "guests": sent}
    code, output, report, calls = fleet.update(
        [facts(name) for name in ("web", "db", "app", "big", "mover", "mail")],
        hypervisor_update_guests=POLICY,
        hypervisor_update_rehearsal="canary",
        hypervisor_update_rehearsal_guests={"app": True, "db": True},
        hypervisor_update_migrate_back_uri="tcp://hv1",
        hypervisor_update_shutdown_timeout=600,
    )
    assert code == 0 and report["outcome"] == "updated", output
    assert [call for call, _params in calls] == [
        "kexec_image:staged",
        "guest_rehearsal",
        "guest_away:away",
        "guest:preserved",
        "kexec",
        "guest:running",
        "guest_away:back",
        "boot_default:present",
    ]
    assert fleet.leases == [*["update_lease:present"] * 3, "update_lease:absent"]  # taken, and renewed before each way of the guests
    assert calls[1][1]["names"] == ["web", "app"]
    assert calls[3][1]["names"] == calls[4][1]["guests"] == calls[5][1]["names"] == ["web", "app", "mail"]
    away = calls[2][1]
    assert [(guest["name"], guest["way"], guest["destination"], guest["back"]) for guest in away["guests"]] == [
        ("db", "save", "", True),
        ("big", "shutdown", "", True),
        ("mover", "migrate", "qemu+ssh://hv2/system", True),
    ]
    assert (away["migrate_uri"], away["back_uri"]) == (None, "tcp://hv1")
    assert away["timeouts"] == {"migrate": 0, "shutdown": 600, "save": None}
    back = calls[6][1]
    assert back["names"] is None and back["timeouts"] == {"migrate": 0, "shutdown": None, "save": None}
    states = {name: (guest["state"], guest.get("back")) for name, guest in report["guests"].items()}
    assert states["db"] == ("saved", False) and states["web"] == states["mail"] == ("restored", None)


def test_who_is_away_comes_back_before_the_host_is_planned_for(fleet):
    """And nobody is asked to where nobody is away."""
    code, output, report, calls = fleet.update([facts("web")], "--check", away=["db"])
    assert code == 0 and report["outcome"] == "checked", output
    assert [(call, params["names"]) for call, params in calls] == [("guest_away:back", None)]


def test_a_guest_that_cannot_be_held_undoes_all(fleet):
    fleet.answers["guest:preserved"] = {"fails": True, "msg": "guest web: EBUSY", "guests": []}
    back = [{"name": "db", "left": "saved", "where": "here", "msg": "guest db is back, it was saved"}]
    fleet.answers["guest_away:back"] = {"changed": True, "guests": back}
    code, output, report, calls = fleet.update([facts("web"), facts("app"), facts("db")], hypervisor_update_guests=POLICY)
    assert code != 0 and (report["outcome"], report["why"]) == ("undone", "guest web: EBUSY"), output
    assert [call for call, _params in calls][-4:] == ["guest:preserved", "guest:running", "kexec_image:unloaded", "guest_away:back"]
    assert calls[-3][1]["names"] == ["web", "app"]
    assert report["guests"]["db"]["state"] == "saved" and report["guests"]["db"]["back"] is True


def test_a_second_update_in_the_same_play_knows_nothing_of_the_first(fleet):
    """The first one jumped and failed. If that counted, the second one would take no lease, and would release no RAM."""
    first = {"fails": True, "msg": "guest web: not restored", "guests": []}
    fleet.answers["guest:running"] = first
    fleet.answers["guest_away:away"] = {"guests": [{"name": "db", "left": "saved", "where": "saved", "msg": "guest db is saved"}]}
    host = {"kernel": {"release": "7.2.13"}, "ready": True, "away": [], "reasons": [], "boot_id": "b1", "free": {"memory_mib": 9999}}
    look = {**host, "guests": [facts("web")], "target": {"release": "7.3.4", "current": False}}
    second = {**fleet.answers, "hypervisor_info": look, "guest:preserved": {"fails": True, "msg": "guest web: EBUSY", "guests": []}}
    second["guest:running"] = {"guests": []}
    (fleet.folder / "second.json").write_text(json.dumps(second))
    code, output, report, calls = fleet.update([facts("web"), facts("db")], play=TWICE, hypervisor_update_guests=POLICY)
    assert code != 0 and (report["outcome"], report["why"], report["undo"]) == ("undone", "guest web: EBUSY", ""), output
    assert (report["step"], report["late"], sorted(report["guests"])) == ("Preserve the RAM of the guests", [], ["web"])
    done = [call for call, _params in calls]
    assert "kexec" in done and done[-4:] == ["kexec_image:staged", "guest:preserved", "guest:running", "kexec_image:unloaded"]
    # Each takes a lease, and renews it before guests leave and before its undo. The first one lets it expire, the second one gives it back.
    assert fleet.leases == [*["update_lease:present"] * 6, "update_lease:absent"]


def test_a_guest_that_runs_on_other_memory_is_not_taken_for_restored(fleet):
    """Its memory was lost, it never was in an update, or in an earlier one only."""
    names = ["web", "lost", "new", "old"]
    fleet.answers["guest:running"] = restored(*names)
    _web, lost, new, old = fleet.answers["guest:running"]["guests"]
    lost["last_update"].update(state="lost", why="a power cut")
    new["last_update"] = {}
    old["last_update"]["update_id"] = "u0"
    code, output, report, calls = fleet.update([facts(name) for name in names])
    assert code != 0 and report["outcome"] == "failed", output
    assert report["why"] == (
        "guest lost runs without its memory: a power cut. guest new runs without its memory: this update did not restore it."
        " guest old runs without its memory: this update did not restore it."
        " Each of them started again. Check its file systems and services. The host stays on the new kernel"
    )
    assert "guest:running" in calls[-1][0] and "kexec_image:unloaded" not in [call for call, _params in calls]
