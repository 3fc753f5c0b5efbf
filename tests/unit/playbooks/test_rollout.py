# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks over several hosts: which are touched, and what is told of them.

Playbooks, role, filters and action plugins are the real ones. The modules are stubs, and ssh is a script that runs here what it is to run
on a host, until that host is lost.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.kvm.liveupdate.plugins.plugin_utils import _result

COLLECTION = Path(_result.__file__).parents[2]

SSH = """#!/bin/sh
# ssh OPTION... HOST COMMAND; a host with a file HOST.down does not answer, also when it goes down in the middle of a command. With a file
# HOST.flap only the answer of this command is lost.
case " $* " in *" -O "*) exit 255 ;; esac
for word; do HOST=$COMMAND COMMAND=$word; done
export HOST
[ ! -e "$STAGE/$HOST.down" ] || { echo "ssh: connect to host $HOST port 22: Connection refused" >&2; exit 255; }
# A boot loader started this machine: a look at it must not say so.
case $COMMAND in *" bootloader_type;"*) COMMAND=$(printf %s "$COMMAND" | sed 's/ bootloader_type;/;/') ;; esac
sh -c "$COMMAND"
code=$?
[ ! -e "$STAGE/$HOST.down" ] || { echo "Connection to $HOST closed by remote host." >&2; exit 255; }
! rm "$STAGE/$HOST.flap" 2>/dev/null || { echo "Connection to $HOST closed by remote host." >&2; exit 255; }
exit $code
"""

MODULE = '''#!/usr/bin/python
"""A stub of all modules: it logs its call, and does as the stage says: fail, lose its host, or take long.

A lease lasts until something takes long: there is a line in HOST.long for each time. What is done without a valid lease is logged.
"""
import json, os
from ansible.module_utils.basic import AnsibleModule

WORDS = ("accept_unknown", "back", "back_uri", "by", "cmdline", "crash_since", "destination", "ended", "guests", "initrd", "keep_units",
         "kernel", "migrate_uri", "name", "names", "on_loss", "only_kept", "path", "qemu", "record", "reuse_probe", "run", "seconds",
         "slow", "state", "timeout", "timeouts", "to_be_installed", "until", "verify_memory", "way", "within")
module = AnsibleModule({word: {"type": "raw"} for word in WORDS}, supports_check_mode=True)
name, host, stage = "@NAME@", os.environ["HOST"], os.environ["STAGE"]
call = " ".join(word for word in (name, str(module.params["state"] or "")) if word)

def read(file):
    return open(f"{stage}/{file}").read() if os.path.exists(f"{stage}/{file}") else ""

def add(file, text, mode="a"):
    with open(f"{stage}/{file}", mode) as to:
        to.write(text)

looks = read("log").count(f"{host} {name}\\n")
add("log", f"{host} {call}\\n")
acts = json.loads(read("acts")).get(host, {})
act = acts.get(f"{call} {read('log').splitlines().count(f'{host} {call}')}", acts.get(call, ""))
if call in ("update_lease", "kexec") and act != "fail":
    add(f"{host}.lease", f"taken {read(f'{host}.long')}", "w")
elif name in ("guest", "guest_away", "kexec_image") and read(f"{host}.lease") != f"taken {read(f'{host}.long')}":
    add("log", f"{host} {call} without a lease\\n")
if act == "long":
    add(f"{host}.long", "x\\n")
if act == "lose":
    open(f"{stage}/{host}.down", "w").close()
if act == "fail":
    module.fail_json(msg=f"{host}: {call} does not work")
missing = act == "missing" and not os.path.exists(f"{stage}/{host}.installed")
if missing and module.params["kernel"] and str(module.params["to_be_installed"]) != "True":
    module.fail_json(msg=f"kernel {module.params['kernel']}: No such file or directory; use the path of a kernel image on the host")
if name == "update_record":
    with open(os.path.expandvars(module.params["path"]), "a") as records:
        records.write(json.dumps(module.params["record"]) + "\\n")
guests = [{"name": "web", "provider": "qemu", "memory_mib": 1, "reasons": [], "warnings": []}]
returned = f"{host} guest_away back\\n" in read("log")
if act == "gain" and looks or act == "away" and returned:
    guests.append({**guests[0], "name": "db"})
kernel = {"release": "7.2.13", "version": "#1", "cmdline": ""}
update = {"id": "u1", "boot_id": "b1", "kernel": kernel, "image": {"release": os.uname().release, "version": os.uname().version}}
last = {"guest": "web", "state": "restored", "update_id": "u1", "times": {"paused": 2.0, "resumed": 10.6}}
other = {"run": "x/1/2", "by": "bob on ctl2", "begun": 1, "since": 1, "seconds": 60, "left": 50.0, "until": "soon"}
if act == "forget":
    last["state"] = "lost"
answers = {
    "hypervisor_info": {
        "ready": True, "reasons": [], "away": [{"guest": "db"}] * (act == "away" and not returned), "boot_id": "b1", "kernel": kernel,
        "free": {"memory_mib": 9, "saves_mib": 9},
        "target": {"current": act == "current", "release": None if missing else "7.3.4", "initrd": None, "installed": not missing,
                   "path": module.params["kernel"]},
        "guests": guests,
        "lease": other if act == "leased" else {},
    },
    "kexec": {"journal": update},
    "update_lease": {"taken_over": "bob on ctl; its process has ended" if act == "take over" else ""},
    "guest": {"last_update": last, "guests": [{"name": "web", "changed": False, "failed": False, "msg": "", "last_update": last}]},
}
module.exit_json(changed=name not in ("hypervisor_info", "boot_default"), **answers.get(name, {}))
'''


SETUP = """- name: Touch the host
  ansible.builtin.command: sh -c 'echo $HOST finish >>{log}; ! test $HOST = hv2 || {act}'
  changed_when: true
"""


class Stage:
    """A fleet of hosts hv1, hv2 and so on.

    ``acts`` says what a call does there, or the call with this number: fail, lose (the host), long (take longer than a lease lasts),
    forget (the memory of the guest), current (the host runs the kernel), leased (another run updates the host), missing (the kernel is
    not installed, until there is a file HOST.installed), gain (a guest "db" is there from the second look on), away (a guest "db" is not
    there until it is brought back), or take over (a lease). ``also`` is what each module does besides.
    """

    def __init__(self, path: Path, hosts: int, acts: dict[str, dict[str, str]], also: str = "") -> None:
        self.path = path
        self.names = [f"hv{number}" for number in range(1, hosts + 1)]
        root = path / "ansible_collections/kvm/liveupdate"
        (root / "plugins/modules").mkdir(parents=True)
        for part in ("galaxy.yml", "meta", "playbooks", "roles"):
            (root / part).symlink_to(COLLECTION / part)
        for part in ("action", "doc_fragments", "filter", "module_utils", "plugin_utils"):
            (root / "plugins" / part).symlink_to(COLLECTION / "plugins" / part)
        for module in (COLLECTION / "plugins/modules").glob("[a-z]*.py"):
            text = MODULE.replace("@NAME@", module.stem).replace("module.exit_json(changed=", f"{also}module.exit_json(changed=")
            (root / "plugins/modules" / module.name).write_text(text)
        (path / "ssh").write_text(SSH)
        (path / "ssh").chmod(0o755)
        (path / "acts").write_text(json.dumps(acts))
        (path / "log").touch()
        settings = {
            "ansible_ssh_executable": f"{path}/ssh",
            "ansible_ssh_args": "",
            "ansible_pipelining": "true",
            "ansible_become": "false",
        }
        settings |= {"ansible_remote_tmp": f"{path}/tmp", "ansible_python_interpreter": "'{{ ansible_playbook_python }}'"}
        lines = ["[hypervisors]", *self.names, "[hypervisors:vars]", "hypervisor_update_kernel=/boot/vmlinuz-7.3.4"]
        (path / "hosts").write_text("\n".join([*lines, *(f"{name}={value}" for name, value in settings.items())]) + "\n")

    def play(self, playbook: str, *options: str, **extra: object) -> tuple[int, str]:
        """Run a playbook of the collection; its exit code and what it printed."""
        environment = {**os.environ, "STAGE": str(self.path), "ANSIBLE_COLLECTIONS_PATH": str(self.path), "PYTHONPATH": ""}
        paths = {"hypervisor_update_report": f"{self.path}/page.html", "__hypervisor_update_records": f"{self.path}/$HOST.records"}
        extra = {**paths, **extra}
        environment |= {"ANSIBLE_HOME": str(self.path), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_SHOW_CUSTOM_STATS": "1"}
        done = subprocess.run(
            ["ansible-playbook", "-i", f"{self.path}/hosts", "-e", json.dumps(extra), playbook, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def setup(self, prepare: str, act: str) -> None:
        """Another role hypervisor_setup, of which ``act`` is what the end of it does to hv2."""
        roles = self.path / "ansible_collections/kvm/liveupdate/roles"
        roles.unlink()
        (roles / "hypervisor_setup/tasks").mkdir(parents=True)
        (roles / "hypervisor_setup/tasks/prepare.yml").write_text(prepare)
        (roles / "hypervisor_setup/tasks/finish.yml").write_text(SETUP.format(log=self.path / "log", act=act))

    def report(self) -> dict[str, dict[str, object]]:
        """The data of the page."""
        return json.loads((self.path / "page.html.json").read_text())

    def hook(self, name: str, *more: str) -> str:
        """A task file that logs its name, where it runs and how the host ended; ``more`` are lines of more tasks."""
        says = f"${{HOST:-controller}} {{{{ inventory_hostname }}}} {name} {{{{ hypervisor_update_result.outcome }}}}"
        lines = ["- name: Log", f"  ansible.builtin.shell: echo {says} >>{self.path}/log", "  changed_when: true"]
        (self.path / f"{name}.yml").write_text("\n".join([*lines, *more]) + "\n")
        return str(self.path / f"{name}.yml")

    def calls(self, call: str) -> list[str]:
        """The hosts that were called so, in order."""
        return [line.split()[0] for line in (self.path / "log").read_text().splitlines() if line.endswith(f" {call}")]


def said(output: str) -> list[str]:
    """The lines at the end, one a host."""
    return re.findall(r'^        "(hv\d: .*?)",?$', output.rpartition("Show the result of each host")[2], re.MULTILINE)


def artifact(output: str) -> dict[str, object]:
    """What AWX gets."""
    return json.loads(re.search(r"RUN: (\{.*\})", output)[1])["liveupdate_summary"]


def outcomes(stage: Stage) -> dict[str, str]:
    """How each host ended."""
    return {name: host["outcome"] for name, host in stage.report().items()}


def test_every_host_is_updated_and_examined_once_where_that_is_fresh(tmp_path):
    stage = Stage(tmp_path, 2, {})
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/hv2.yml").write_text("hypervisor_update_fresh: 0\n")
    code, output = stage.play("kvm.liveupdate.update")
    assert code == 0 and "[WARNING]" not in output, output
    assert sorted(stage.calls("hypervisor_info")) == ["hv1", "hv2", "hv2"]
    assert stage.calls("kexec") == ["hv1", "hv2"]
    kernels = f"7.2.13 -> {os.uname().release}"
    assert said(output) == [f"hv{number}: updated {kernels}, 1 guest kept, longest pause 8.6 s" for number in (1, 2)]
    assert outcomes(stage) == {"hv1": "updated", "hv2": "updated"}
    assert artifact(output) == {
        "outcome": "updated",
        "why": "",
        "hosts": {"updated": 2},
        "kernels": [os.uname().release],
        "longest_pause": pytest.approx(8.6),
        "failed": [],
    }
    first, _second = output.split("PLAY [Update")[1:]
    assert first.count("\nTASK [") <= 32, first


@pytest.mark.parametrize(
    ("serial", "act", "touched"),
    [(1, "lose", ["hv1"]), (2, "lose", ["hv1", "hv2"]), ([1, 2], "fail", ["hv1"])],
    ids=["one at a time", "two at a time", "first one, then two"],
)
def test_no_further_host_is_touched_after_one_that_fails_or_is_lost(tmp_path, serial, act, touched):
    stage = Stage(tmp_path, 3, {"hv1": {"guest preserved": act}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=serial)
    assert code != 0 and sorted(stage.calls("kexec_image")) == touched, output
    assert stage.calls("kexec") == touched[1:], output  # who has begun beside it goes on
    report, lines = stage.report(), said(output)
    stopped = {"fail": "hosts that were undone before the jump: hv1. hypervisor_update_undone_max allows 0", "lose": "hv1 was lost"}[act]
    assert len(lines) == 3 and lines[2] == f"hv3: not touched, the run stopped before this host: {stopped}"
    assert artifact(output)["outcome"] == "failed" and artifact(output)["failed"] == ["hv1"]
    assert (report["hv1"]["outcome"], report["hv3"]["outcome"]) == ({"fail": "undone", "lose": "lost"}[act], "checked")
    assert report["hv1"]["step"] == "Preserve the RAM of the guests"
    end = {"fail": "undone before the jump", "lose": "lost during the update"}[act]
    assert lines[0].startswith(f'hv1: {end} at \\"Preserve the RAM of the guests\\": '), lines


def test_a_host_that_is_lost_at_the_commit_says_where_its_guests_may_be(tmp_path):
    stage, hint = Stage(tmp_path, 1, {"hv1": {"kexec": "lose"}}), "may be paused, or may run on the new kernel already"
    code, output = stage.play("kvm.liveupdate.update")
    host = stage.report()["hv1"]
    assert code != 0 and host["outcome"] == "lost", output
    assert hint in host["why"] and "kvm-liveupdate status" in host["why"] and "unknown" in host["guests"]["web"]["why"]
    assert "lost during the update" in (tmp_path / "page.html").read_text() and hint in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("missing", "serial"), [("report", 1), ("report", 2), ("metrics", 1), ("metrics", 2)])
def test_a_file_that_cannot_be_written_changes_nothing_else_and_fails_the_run_at_its_end(tmp_path, missing, serial):
    stage, nowhere = Stage(tmp_path, 2, {}), f"{tmp_path}/none"
    given = {"hypervisor_update_report": f"{nowhere}/page.html"} if missing == "report" else {"hypervisor_update_metrics": nowhere}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=serial, **given)
    told = "The page is not written after this batch: " if missing == "report" else '"msg": "The metrics of hv'
    assert code != 0 and output.count(told) == (2 // serial if missing == "report" else 2), output
    for name in ("hv1", "hv2"):
        assert json.loads((tmp_path / f"{name}.records").read_text())["outcome"] == "updated"
    assert sorted(stage.calls("update_lease absent")) == ["hv1", "hv2"]
    assert artifact(output)["hosts"] == {"updated": 2}
    assert [line.partition(" 7")[0] for line in said(output)] == ["hv1: updated", "hv2: updated"], output


def test_a_host_that_is_left_out_takes_no_place_in_a_batch(tmp_path):
    stage = Stage(tmp_path, 3, {"hv1": {"hypervisor_info": "lose"}, "hv2": {"guest preserved": "fail"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_leave_out=True, hypervisor_update_serial=[1, 2])
    assert code != 0 and stage.calls("kexec_image") == ["hv2"], output
    assert outcomes(stage) == {"hv1": "left_out", "hv2": "undone", "hv3": "checked"}


def test_each_host_keeps_records_of_its_updates_and_a_playbook_collects_them(tmp_path):
    acts = {"hv1": {"guest preserved": "fail"}, "hv2": {"update_lease": "take over"}, "hv3": {"hypervisor_info": "current"}}
    stage = Stage(tmp_path, 3, acts)
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_undone_max=1, awx_user_name="alice", awx_job_id=7)
    assert code != 0, output
    assert (tmp_path / "page.html").read_text().count("This run took over the lease of bob on ctl; its process has ended.") == 1
    assert json.loads((tmp_path / "hv1.records").read_text())["outcome"] == "undone"
    (tmp_path / "hv1.down").touch()
    code, output = stage.play("kvm.liveupdate.records", hypervisor_update_records=f"{tmp_path}/all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    assert code != 0 and f"the records of hv1 are not in {tmp_path}/all.json. These hosts did not answer" in output, output
    assert {name: some and [one["outcome"] for one in some] for name, some in found.items()} == {"hv1": None, "hv2": ["updated"], "hv3": []}
    (one,) = found["hv2"]
    assert (one["by"]["awx_user"], one["by"]["awx_job"], one["update_id"]) == ("alice", "7", "u1")
    assert one["taken_over"] == "bob on ctl; its process has ended" and one["image_before"]["release"] == "7.2.13"
    assert one["image"]["release"] == os.uname().release and one["guests"]["web"]["way"] == "preserve"
    assert one["guests"]["web"]["pause"] == pytest.approx(8.6)


def batches(output: str) -> list[list[str]]:
    """The hosts that began together, from the task that each of them has."""
    staged = [play.partition(" : Stage the kernel]")[2].partition("TASK [")[0] for play in output.split("PLAY [Update hypervisors]")[1:]]
    return [sorted(re.findall(r"^changed: \[(hv\d)\]", lines, re.MULTILINE)) for lines in staged]


def test_a_canary_comes_first_and_nobody_shares_a_batch_with_its_own_rack(tmp_path):
    stage = Stage(tmp_path, 5, {})
    (tmp_path / "host_vars").mkdir()
    for name, rack in (("hv1", "a"), ("hv2", "a"), ("hv3", "b"), ("hv4", "a"), ("hv5", "c")):
        (tmp_path / f"host_vars/{name}.yml").write_text(f"rack: {rack}\nhypervisor_update_apart: '{{{{ rack }}}}'\n")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=[1, "60%"])
    assert code == 0 and batches(output) == [["hv1"], ["hv2", "hv3", "hv5"], ["hv4"]], output


def test_one_undone_host_may_be_tolerated_and_the_run_fails_at_its_end(tmp_path):
    stage = Stage(tmp_path, 3, {"hv1": {"guest preserved": "fail"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_undone_max=1)
    assert code != 0 and stage.calls("kexec") == ["hv2", "hv3"], output
    assert outcomes(stage) == {"hv1": "undone", "hv2": "updated", "hv3": "updated"}
    (tmp_path / "acts").write_text(json.dumps({name: {"hypervisor_info": "current"} for name in ("hv2", "hv3")}))
    code, output = stage.play("kvm.liveupdate.update")
    assert code == 0 and stage.calls("kexec") == ["hv2", "hv3", "hv1"], output


@pytest.mark.parametrize(
    ("acts", "jumped", "ended"),
    [
        ({"guest preserved": "fail", "guest_away back": "fail"}, [], "failed"),
        ({"guest preserved": "fail", "guest_away back": "lose"}, [], "lost"),
        ({"guest preserved": "fail", "guest running": "fail", "guest_away back": "fail"}, [], "failed"),
        ({"guest running": "forget", "guest_away back": "fail"}, ["hv1"], "failed"),
    ],
    ids=["not back", "host lost", "nothing undone", "after the jump"],
)
def test_no_host_is_updated_after_one_whose_guests_are_not_brought_back(tmp_path, acts, jumped, ended):
    """They are off, or on another host: a host that was merely undone, or whose guests lost their memory, may be tolerated."""
    stage = Stage(tmp_path, 2, {"hv1": {"hypervisor_info": "gain", **acts}})
    most = {"hypervisor_update_undone_max": 9, "hypervisor_update_lost_max": 9}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_fresh=0, hypervisor_update_guests={"db": ["shutdown"]}, **most)
    assert code != 0 and stage.calls("kexec") == jumped and outcomes(stage)["hv1"] == ended, output
    assert stage.calls("guest_away back") == ["hv1"] and stage.calls("kexec_image unloaded") == ([] if jumped else ["hv1"])
    told = said(output)[0]
    assert "not everything was undone: " in told and (ended == "lost" or "hv1: guest_away back does not work" in told), told
    assert ("hv1: guest running does not work" in told) is (acts.get("guest running") == "fail")


def test_an_undo_does_not_go_on_after_it_has_lost_the_host(tmp_path):
    """Each further step would wait for the host in vain."""
    stage = Stage(tmp_path, 1, {"hv1": {"hypervisor_info": "gain", "guest preserved": "fail", "guest running": "lose"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_fresh=0, hypervisor_update_guests={"db": ["shutdown"]})
    assert code != 0 and outcomes(stage) == {"hv1": "lost"}, output
    assert "not everything was undone: hv1 cannot be reached" in said(output)[0], output
    assert ": Release the RAM]" in output and ": Unload the kernel]" not in output and ": Bring back the guests" not in output, output


def test_a_host_waits_for_one_of_its_batch_whose_guests_come_back_first(tmp_path):
    """They belong together with its own: if it did not look again, both would pause at once."""
    stage = Stage(tmp_path, 2, {"hv1": {"hypervisor_info": "away"}})
    (tmp_path / "host_vars").mkdir()
    for name, guest in (("hv1", "db"), ("hv2", "web")):
        (tmp_path / f"host_vars/{name}.yml").write_text(f"hypervisor_update_labels: {{{guest}: {{cluster: s}}}}\n")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=2, hypervisor_update_paused_max={"cluster": 1})
    assert code != 0 and sorted(outcomes(stage).values()) == ["refused", "updated"] and len(stage.calls("kexec")) == 1, output
    assert any("refused, not touched: guests have moved" in line for line in said(output)), output


# A run jumped, and its controller was lost. Guests that it sent away come back only when there is a file "mended".
CUT_OFF = """
if name == "hypervisor_info":
    told = answers[name]
    told["target"]["current"] = True
    told["lease"] = {} if f"{host} update_lease absent\\n" in read("log") else {**other, "left": 0.0, "ended": True}
    told["last_update"] = {
        "id": "u1", "outcome": "jumped", "guests": ["web"], "times": {"committed": 5.0}, "kernel": kernel, "boot_id": "b0"
    }
    told["away"] = [] if os.path.exists(f"{stage}/mended") else [{"guest": "db"}]
if name == "guest_away" and not os.path.exists(f"{stage}/mended"):
    module.fail_json(msg="guest db does not start")
"""


def test_guests_that_nobody_has_verified_are_verified_by_the_next_run(tmp_path):
    """A run that ends before it does so must not make the host look like one whose update is finished."""
    stage = Stage(tmp_path, 1, {"hv1": {"guest running": "forget"}}, CUT_OFF)
    code, output = stage.play("kvm.liveupdate.update")
    assert code != 0 and "guest db does not start" in said(output)[0] and stage.calls("guest running") == [], output
    assert stage.calls("update_lease absent") == []
    (tmp_path / "mended").touch()
    code, output = stage.play("kvm.liveupdate.update")
    assert code != 0 and "runs without its memory" in said(output)[0] and stage.calls("guest running") == ["hv1"], output
    assert stage.calls("update_lease absent") == ["hv1"]


def test_nothing_begins_after_the_window_or_a_request(tmp_path):
    stage = Stage(tmp_path, 2, {})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_until="2020-01-01T00:00Z")
    assert code != 0 and stage.calls("kexec_image") == [] and outcomes(stage) == {"hv1": "left_out", "hv2": "left_out"}, output
    assert said(output)[0] == "hv1: skipped, not touched: the time of hypervisor_update_until has passed. The run updated no host"
    touch = f"  ansible.builtin.file: {{path: {tmp_path}/stop, state: touch}}"
    stop = stage.hook("stop", "- name: Ask to stop", touch, "  delegate_to: localhost", "  become: false")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_after=[stop], hypervisor_update_stop_file=f"{tmp_path}/stop")
    assert code == 0 and stage.calls("kexec") == ["hv1"] and outcomes(stage) == {"hv1": "updated", "hv2": "left_out"}, output
    assert said(output)[1].startswith(f"hv2: skipped, not touched: the file {tmp_path}/stop on localhost exists. Remove it")
    assert artifact(output)["outcome"] == "stopped"


def test_a_mistake_in_an_option_of_the_rollout_shows_before_any_host_is_touched(tmp_path):
    stage = Stage(tmp_path, 2, {})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_until="tomorrow")
    assert code != 0 and "write a date and a time with the offset from UTC" in output and stage.calls("kexec_image") == [], output
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_timeout=0)
    assert code != 0 and "hypervisor_update_timeout is 0; write a number" in output and stage.calls("kexec_image") == [], output
    for path in ("/nowhere/drain.yml", os.path.relpath(stage.hook("drain"))):  # a role looks for a relative path elsewhere
        code, output = stage.play("kvm.liveupdate.update", hypervisor_update_before=[path])
        assert code != 0 and f"the controller has no file {path}, or" in output and stage.calls("kexec_image") == [], output


@pytest.mark.parametrize("package", ["", "linux-image-7.3.4"])
def test_check_mode_takes_a_kernel_that_its_package_installs_later_and_no_other(tmp_path, package):
    stage = Stage(tmp_path, 2, {"hv1": {"hypervisor_info": "missing"}})
    code, output = stage.play("kvm.liveupdate.update", "--check", hypervisor_kernel_package=package)
    line = said(output)[0]
    if package:
        assert code == 0 and outcomes(stage) == {"hv1": "checked", "hv2": "checked"}, output
        assert line.startswith("hv1: can be updated 7.2.13 -> /boot/vmlinuz-7.3.4, 1 guest kept"), output
        assert line.endswith("WARNING: the new kernel is not installed yet. Whether it can take over is known when it is installed")
        assert said(output)[1].startswith("hv2: can be updated 7.2.13 -> 7.3.4, 1 guest kept") and "WARNING" not in said(output)[1]
    else:
        assert code != 0 and line.startswith("hv1: refused, not touched: kernel /boot/vmlinuz-7.3.4: No such file"), output


def test_an_update_takes_no_kernel_that_is_missing(tmp_path):
    stage = Stage(tmp_path, 1, {"hv1": {"hypervisor_info": "missing"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_kernel_package="linux-image-7.3.4")
    assert code != 0 and outcomes(stage) == {"hv1": "refused"} and "No such file" in said(output)[0], output


def test_guests_that_belong_apart_and_essential_guests(tmp_path):
    """Every host runs a guest "web"; that of hv1 is essential, those of hv2 and hv3 are of one cluster."""
    stage = Stage(tmp_path, 4, {})
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/hv1.yml").write_text("hypervisor_update_essential: ['w*']\n")
    for name in ("hv2", "hv3"):
        (tmp_path / f"host_vars/{name}.yml").write_text("hypervisor_update_labels: {web: {cluster: sales}}\n")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=3, hypervisor_update_paused_max={"cluster": 1})
    assert code == 0 and batches(output) == [["hv2", "hv4"], ["hv3"], ["hv1"]], output
    assert "WARNING: no host" not in output


@pytest.mark.parametrize(
    ("about", "refused"),
    [
        ({"hypervisor_update_paused_max": {"cluster": 1}}, "it cannot be updated together with hv1 any more"),
        ({"hypervisor_update_essential": ["db"]}, "it runs db of hypervisor_update_essential now, so it has to be updated last, alone"),
    ],
    ids=["guests that belong apart", "an essential guest"],
)
def test_a_batch_is_checked_again_after_a_guest_has_moved(tmp_path, about, refused):
    """The guest "db" comes to hv2 after the batches were made. It belongs apart from "web", of which each host has one."""
    stage = Stage(tmp_path, 3, {"hv2": {"hypervisor_info": "gain"}})
    (tmp_path / "host_vars").mkdir()
    for name, guest in (("hv1", "web"), ("hv2", "db")):
        (tmp_path / f"host_vars/{name}.yml").write_text(f"hypervisor_update_labels: {{{guest}: {{cluster: sales}}}}\n")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=[2, 1], hypervisor_update_fresh=0, **about)
    assert code != 0 and stage.calls("kexec") == ["hv1"] and stage.calls("kexec_image") == ["hv1"], output
    assert outcomes(stage) == {"hv1": "updated", "hv2": "refused", "hv3": "checked"}, output
    assert said(output)[1].startswith("hv2: refused, not touched: guests have moved since the batches were made: ") and refused in output
    assert said(output)[2].endswith("the run stopped before this host: hv2 was refused")


def test_a_pause_over_the_budget_stops_the_next_batch(tmp_path):
    stage = Stage(tmp_path, 2, {})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_blackout_max=5)
    over = "guests paused longer than hypervisor_update_blackout_max allows (5 s): web 8.6 s"
    assert code != 0 and stage.calls("kexec") == ["hv1"] and outcomes(stage) == {"hv1": "updated", "hv2": "checked"}, output
    assert said(output)[0].endswith(over) and said(output)[1] == f"hv2: not touched, the run stopped before this host: hv1: {over}"


def test_an_essential_guest_that_no_host_has_is_told_before_any_host_is_touched(tmp_path):
    stage = Stage(tmp_path, 2, {})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_essential=["dsn1", "w*"])
    assert code == 0 and output.count("no host that this run can update runs dsn1 of hypervisor_update_essential") == 1, output
    assert output.index("WARNING: no host") < output.index("TASK [kvm.liveupdate.hypervisor_update : Stage")


def test_the_tasks_after_an_update_run_whatever_became_of_the_host(tmp_path):
    stage = Stage(tmp_path, 3, {"hv1": {"guest preserved": "fail"}, "hv3": {"kexec": "lose"}})
    hooks = {f"hypervisor_update_{when}": [stage.hook(when)] for when in ("before", "after")}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_undone_max=1, **hooks)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if " after" in line or " before" in line]
    assert code != 0 and lines == [
        *("hv1 hv1 before checked", "hv1 hv1 after undone", "hv2 hv2 before checked", "hv2 hv2 after updated"),
        *("hv3 hv3 before checked", "controller hv3 after lost"),
    ], output
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("hv2 ")]
    assert calls.index("hv2 hv2 before checked") < calls.index("hv2 kexec_image"), calls
    assert calls.index("hv2 kexec") < calls.index("hv2 hv2 after updated"), calls


def test_a_task_before_the_update_that_fails_stops_the_host_and_what_it_began_is_ended(tmp_path):
    stage = Stage(tmp_path, 2, {})
    before = stage.hook("before", "- name: Drain", "  ansible.builtin.fail: {msg: it does not drain}")
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_before=[before], hypervisor_update_after=[stage.hook("after")])
    assert code != 0 and stage.calls("kexec_image") == [] and stage.calls("hv1 after undone") == ["hv1"], output
    assert said(output)[0] == 'hv1: undone before the jump at \\"Drain\\": it does not drain'


@pytest.mark.parametrize("check", ["before", "after"])
def test_a_host_whose_health_is_bad_stops_the_rollout(tmp_path, check):
    stage, then = Stage(tmp_path, 2, {}), {"before": "|| exit 3", "after": "&& exit 3 || true"}[check]
    bad = f"sh -c 'grep -qx \"$HOST kexec\" {tmp_path}/log {then}'"
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_check_commands=["true", bad], hypervisor_update_undone_max=9)
    assert code != 0 and stage.calls("kexec") == {"before": [], "after": ["hv1"]}[check], output
    assert outcomes(stage) == {"hv1": "failed", "hv2": "checked"} and "failed with the exit code 3" in said(output)[0]


@pytest.mark.parametrize("check", ["before", "after"])
def test_a_check_of_the_health_that_finds_its_host_unreachable_fails_the_host_and_nothing_is_left_behind(tmp_path, check):
    stage, then = Stage(tmp_path, 2, {}), {"before": "||", "after": "&&"}[check]
    cut_off = f"sh -c 'grep -qx \"$HOST kexec\" {tmp_path}/log {then} touch {tmp_path}/hv1.flap; true'"
    hooks = {f"hypervisor_update_{when}": [stage.hook(when)] for when in ("before", "after")}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_check_commands=[cut_off, "true"], **hooks)
    assert code != 0 and stage.calls("kexec") == {"before": [], "after": ["hv1"]}[check], output
    assert "of hypervisor_update_check_commands could not run: " in said(output)[0] and "hv1 failed" in said(output)[1], output
    assert artifact(output)["outcome"] == "failed" and outcomes(stage) == {"hv1": "failed", "hv2": "checked"}
    assert stage.calls("update_lease absent") == ["hv1"] and (tmp_path / "hv1.records").exists(), output
    assert stage.calls("hv1 after updated") == stage.calls("kexec"), output


def test_a_run_goes_on_after_a_tolerated_loss_only_if_nothing_else_fails(tmp_path):
    stage = Stage(tmp_path, 3, {"hv1": {"guest running": "forget"}, "hv2": {"guest running": "forget"}})
    bad = ["- name: Fill it again", "  ansible.builtin.fail: {msg: it stays empty}", "  when: inventory_hostname == 'hv2'"]
    health = f"sh -c 'echo $HOST health >>{tmp_path}/log'"
    given = {"hypervisor_update_after": [stage.hook("after", *bad)], "hypervisor_update_check_commands": [health]}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_lost_max=9, **given)
    assert code != 0 and stage.calls("kexec") == ["hv1", "hv2"], output
    assert stage.calls("health") == ["hv1", "hv1", "hv2", "hv2"], output  # before and after
    assert outcomes(stage) == {"hv1": "failed", "hv2": "failed", "hv3": "checked"}
    lines = said(output)
    assert "guest web runs without its memory" in lines[0] and "then this failed too" not in lines[0], lines
    assert "guest web runs without its memory" in lines[1] and lines[1].endswith("; then this failed too: it stays empty"), lines
    assert "not everything was undone" not in output and lines[2].endswith("the run stopped before this host: hv2 failed")


def test_the_health_of_a_host_that_was_undone_is_checked_too(tmp_path):
    stage = Stage(tmp_path, 2, {"hv1": {"guest preserved": "fail"}})
    bad = f"sh -c '! grep -qx \"$HOST guest preserved\" {tmp_path}/log'"
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_check_commands=[bad], hypervisor_update_undone_max=9)
    assert code != 0 and stage.calls("kexec") == [] and outcomes(stage) == {"hv1": "failed", "hv2": "checked"}, output
    assert "guest preserved does not work; then this failed too: the check " in said(output)[0], output


def test_each_file_after_the_update_has_its_turn_and_sees_how_the_update_ended(tmp_path):
    stage = Stage(tmp_path, 1, {})
    bad = "  ansible.builtin.fail: {msg: '%s does not work'}"
    files = [stage.hook(name, "- name: Bad", bad % name) for name in ("one", "two")] + [stage.hook("three")]
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_after=files)
    assert code != 0 and [stage.calls(f"hv1 {name} updated") for name in ("one", "two", "three")] == [["hv1"]] * 3, output
    assert said(output) == ['hv1: failed at \\"Bad\\": one does not work; then this failed too: two does not work']


def test_a_host_that_a_task_of_yours_finds_unreachable_is_told(tmp_path):
    """Ansible runs no other task for it. If it is alone in its batch, Ansible ends the run, also the report."""
    stage = Stage(tmp_path, 3, {})
    cut_off = [
        "- name: Drain",
        f"  ansible.builtin.file: {{path: {tmp_path}/hv1.flap, state: touch}}",
        "  when: inventory_hostname == 'hv1'",
    ]
    hooks = {"hypervisor_update_before": [stage.hook("before", *cut_off)], "hypervisor_update_after": [stage.hook("after")]}
    due = "hv1: from now on, its tasks of hypervisor_update_after are due. If this run ends without them, repeat the command"
    code, output = stage.play("kvm.liveupdate.update", **hooks)
    assert code != 0 and due in output and said(output) == [] and stage.calls("hv2 before checked") == [], output
    assert artifact(output) == {
        "outcome": "failed",
        "why": "the run ended during the update of hv1. Its output says why",
        "hosts": {},
        "kernels": [],
        "longest_pause": None,
        "failed": ["hv1"],
    }

    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_serial=2, **hooks)
    assert code != 0 and due in output and stage.calls("kexec") == ["hv2"], output
    assert said(output)[0].startswith("hv1: failed: a task could not reach this host, or the host that it is delegated to. "), output
    assert said(output)[2] == "hv3: not touched, the run stopped before this host: hv1 did not finish its update"
    assert (artifact(output)["outcome"], artifact(output)["failed"]) == ("failed", ["hv1"])
    assert outcomes(stage) == {"hv1": "failed", "hv2": "updated", "hv3": "checked"}


def test_a_host_to_ask_for_a_stop_that_does_not_answer_stops_the_run(tmp_path):
    stage = Stage(tmp_path, 2, {})
    with (tmp_path / "hosts").open("a") as inventory:
        inventory.write(f"[others]\nbastion ansible_ssh_executable={tmp_path}/ssh ansible_ssh_args='' ansible_become=false\n")
    (tmp_path / "bastion.down").touch()
    given = {"hypervisor_update_stop_file": "/run/stop-the-update", "hypervisor_update_stop_host": "bastion"}
    code, output = stage.play("kvm.liveupdate.update", **given)
    assert code != 0 and stage.calls("kexec_image") == [] and outcomes(stage) == {"hv1": "left_out", "hv2": "left_out"}, output
    assert said(output)[0].startswith(
        "hv1: skipped, not touched: it is unknown whether the file /run/stop-the-update on bastion exists, because that host does not"
    )


def test_a_host_of_another_run_stops_this_one_also_if_hosts_may_be_skipped(tmp_path):
    stage = Stage(tmp_path, 3, {"hv1": {"hypervisor_info": "leased"}, "hv2": {"hypervisor_info": "lose"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_leave_out=True)
    assert code != 0 and stage.calls("update_lease") == [], output
    assert outcomes(stage) == {"hv1": "refused", "hv2": "left_out", "hv3": "checked"}
    assert said(output)[0].startswith("hv1: refused, not touched: another run updates this host: bob on ctl2 - "), output
    assert "hypervisor_update_leave_out" not in said(output)[0]


def test_the_lease_is_renewed_around_what_may_take_longer_than_it_lasts(tmp_path):
    """The tasks before the update, the check of the guests, and the way of guests to another place and back."""
    stage = Stage(tmp_path, 2, {"hv1": {"guest running": "long"}, "hv2": {"guest_away away": "long", "kexec": "long"}})
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/hv2.yml").write_text("hypervisor_update_guests: {web: [shutdown]}\n")
    file = f"{tmp_path}/{{{{ inventory_hostname }}}}"
    before = stage.hook("before", "- name: Wait for hours", f"  ansible.builtin.shell: echo x >>{file}.long", "  changed_when: true")
    valid = f'  ansible.builtin.shell: test "$(cat {file}.lease)" = "taken $(cat {file}.long)"'
    after = stage.hook("after", "- name: Look at the lease", valid, "  changed_when: false")
    hooks = {"hypervisor_update_before": [before], "hypervisor_update_after": [after]}
    code, output = stage.play("kvm.liveupdate.update", **hooks)
    assert "without a lease" not in (tmp_path / "log").read_text() and "without a lease" not in output, output
    assert code == 0 and stage.calls("guest_away away") == stage.calls("guest_away back") == ["hv2"], output
    assert stage.calls("kexec") == ["hv1", "hv2"] and outcomes(stage) == {"hv1": "updated", "hv2": "updated"}, output


@pytest.mark.parametrize("renewed", [True, False])
def test_an_undo_renews_the_lease_first_and_goes_on_without_it(tmp_path, renewed):
    """The step that failed may have taken longer than the lease lasts, and guests come back."""
    stage = Stage(tmp_path, 1, {"hv1": {"guest_away away": "long", "kexec": "fail", **({} if renewed else {"update_lease 3": "fail"})}})
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/hv1.yml").write_text("hypervisor_update_guests: {web: [shutdown]}\n")
    code, output = stage.play("kvm.liveupdate.update")
    log = (tmp_path / "log").read_text()
    assert code != 0 and stage.calls("kexec") == stage.calls("guest_away back") == ["hv1"], output
    assert ("guest_away back without a lease" in log) is not renewed, output
    assert outcomes(stage) == {"hv1": "undone" if renewed else "failed"}, output
    assert renewed or "hv1: update_lease does not work" in said(output)[0], output


def test_a_run_whose_lease_was_taken_over_during_its_tasks_does_not_begin_the_update(tmp_path):
    stage = Stage(tmp_path, 2, {"hv1": {"update_lease 2": "fail", "update_lease 3": "fail"}})
    hooks = {f"hypervisor_update_{when}": [stage.hook(when)] for when in ("before", "after")}
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_undone_max=9, **hooks)
    assert code != 0 and stage.calls("kexec_image") == [] and stage.calls("hv2 before checked") == [], output
    assert said(output)[0] == 'hv1: failed at \\"Renew the lease of the host\\": hv1: update_lease does not work', output


def test_a_host_that_does_not_answer_before_the_tasks_after_its_update_is_lost(tmp_path):
    stage = Stage(tmp_path, 2, {"hv1": {"update_lease 3": "lose"}})
    code, output = stage.play("kvm.liveupdate.update", hypervisor_update_after=[stage.hook("one"), stage.hook("two")])
    lines = (tmp_path / "log").read_text().splitlines()
    assert code != 0 and lines[-2:] == ["controller hv1 one lost", "controller hv1 two lost"], output
    assert (
        outcomes(stage) == {"hv1": "lost", "hv2": "checked"}
        and "the guests that stayed in memory come back by themselves" in said(output)[0]
    ), output


def test_setup_stops_at_a_host_that_is_lost(tmp_path):
    stage = Stage(tmp_path, 3, {})
    stage.setup(prepare="[]\n", act=f"touch {tmp_path}/hv2.down")
    code, output = stage.play("kvm.liveupdate.setup")
    assert code != 0 and stage.calls("finish") == ["hv1", "hv2"], output


PREPARE = """- name: First
  ansible.builtin.command: sh -c 'echo $HOST first >>{log}; test $HOST != hv2 || {{ {act}; }}'
  changed_when: true

- name: Second
  ansible.builtin.command: sh -c 'echo $HOST second >>{log}'
  changed_when: true
"""


@pytest.mark.parametrize("act", ["touch {path}/hv2.down", "exit 3"], ids=["lost", "failed"])
def test_setup_changes_no_host_any_more_after_one_that_is_lost_or_fails(tmp_path, act):
    """All hosts are prepared together: what went wrong on one goes wrong on the others in the next tasks."""
    stage = Stage(tmp_path, 3, {})
    stage.setup(prepare=PREPARE.format(log=tmp_path / "log", act=act.format(path=tmp_path)), act="true")
    code, output = stage.play("kvm.liveupdate.setup")
    assert code != 0 and sorted(stage.calls("first")) == ["hv1", "hv2", "hv3"], output
    assert stage.calls("second") == stage.calls("finish") == [], output


def test_setup_reboots_nobody_after_a_host_that_was_lost_while_all_were_prepared(tmp_path):
    stage = Stage(tmp_path, 2, {})
    stage.setup(prepare="- name: Reach it\n  ansible.builtin.ping:\n", act="true")
    (tmp_path / "hv1.down").touch()
    code, output = stage.play("kvm.liveupdate.setup")
    assert code != 0 and stage.calls("finish") == [], output
