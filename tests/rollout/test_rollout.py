# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rollouts over SSH: what becomes of each host when something goes wrong, and what the same command does afterwards.

Playbooks, roles, filters, action plugins and the modules kexec, update_lease and update_record are the real ones. The other modules are
stubs, and so is the jump: a host dies and comes back with another kernel release (host/).
"""

from __future__ import annotations

import json
import re

import pytest

from .conftest import NEW, OLD, batches, until, users

KEPT = f"updated {OLD} -> {NEW}, 1 guest kept, longest pause 8.6 s"


def said(output: str) -> list[str]:
    """The lines at the end, one a host."""
    return re.findall(r'^        "(hv\d: .*?)",?$', output.rpartition("Show the result of each host")[2], re.MULTILINE)


def logged(fleet, *words: str) -> list[str]:
    """The lines of the log with one of these words, in order."""
    return [line for line in (fleet.path / "log").read_text().splitlines() if any(f" {word}" in line for word in words)]


def test_a_host_reads_no_start_files_of_a_shell_of_this_machine():
    assert users("root:x:0:0:root:/root:/bin/bash\nbin:x:2:2:bin:/bin:/bin/bash\n").splitlines() == [
        "root:x:0:0:root:/root:/bin/sh", "bin:x:2:2:bin:/bin:/bin/bash", "sshd:x:499:65534::/run/sshd:/usr/sbin/nologin",
    ]  # fmt: skip


def test_one_fails_one_is_lost_and_the_same_command_finishes(fleet):
    fleet = fleet(3)
    first, second, _third = fleet.hosts
    hooks = {f"hypervisor_update_{when}": [fleet.hook(when)] for when in ("before", "after")}
    first.plan({"guest preserved": "fail"})
    second.comes_back = False
    code, output = fleet.play(hypervisor_update_undone_max=1, hypervisor_update_timeout=20, **hooks)
    assert code != 0 and fleet.outcomes() == {"hv1": "undone", "hv2": "lost", "hv3": "checked"}, output
    assert said(output)[2] == "hv3: not touched, the run stopped before this host: hv2 was lost", output
    hooked = [*("hv1 hv1 before checked", "hv1 hv1 after undone"), *("hv2 hv2 before checked", "controller hv2 after lost")]
    assert logged(fleet, "before", "after") == hooked, output

    first.plan({})
    second.boot(NEW)
    second.comes_back = True
    code, output = fleet.play(hypervisor_update_serial=[1, 2], **hooks)
    assert code == 0 and said(output) == [f"hv{number}: {KEPT}" for number in (1, 2, 3)], output
    assert "hv2: this run takes over the lease of " in output, output  # it has expired, or the process of the first run has ended
    assert batches(output) == [["hv1"], ["hv3"]] and fleet.calls("kexec") == ["hv2", "hv1", "hv3"], output  # hv2 jumped once
    hooked = logged(fleet, "before", "after")[4:]
    assert hooked[:2] == ["hv1 hv1 before checked", "hv1 hv1 after updated"], output
    assert sorted(hooked[2:]) == ["hv2 hv2 after updated", "hv3 hv3 after updated", "hv3 hv3 before checked"], output


def test_a_host_whose_answer_is_lost_is_told_to_jump_once_whatever_ssh_retries(fleet):
    """A second try would be refused, and this looks like an update that was undone."""
    fleet = fleet(2)
    fleet.hosts[0].plan({"kexec": "cut"})
    code, output = fleet.play(ansible_ssh_retries=3, hypervisor_update_undone_max=1)
    assert code != 0 and fleet.outcomes() == {"hv1": "lost", "hv2": "checked"} and fleet.calls("kexec") == ["hv1"], output
    assert "the connection broke while the host was told to jump" in said(output)[0], output
    until("hv1 is up", fleet.hosts[0].is_up)
    code, output = fleet.play()
    assert code == 0 and said(output) == [f"hv{number}: {KEPT}" for number in (1, 2)], output


@pytest.mark.beyond
def test_a_canary_that_loses_a_guest_stops_the_rest(fleet):
    fleet = fleet(2)
    fleet.hosts[0].plan({"guest running": "lose"})
    code, output = fleet.play(hypervisor_update_serial=[1, 2])
    assert code != 0 and fleet.outcomes() == {"hv1": "failed", "hv2": "checked"}, output
    assert "hv2: not touched, the run stopped before this host: guests that lost their memory: 1" in said(output)[1], output


def test_a_window_closes(fleet):
    """While the first host prepares its update. Its own clock refuses the commit."""
    fleet = fleet(2)
    end = fleet.path / "until"
    end.write_text("2999-01-01T00:00Z")
    close = [f"  ansible.builtin.copy: {{dest: {end}, content: '2020-01-01T00:00Z'}}", "  delegate_to: localhost", "  become: false"]
    before = fleet.hook("before", "- name: Close the window", *close)
    code, output = fleet.play(
        hypervisor_update_until=f"{{{{ lookup('ansible.builtin.file', '{end}') }}}}", hypervisor_update_before=[before]
    )
    assert code != 0 and fleet.outcomes() == {"hv1": "undone", "hv2": "left_out"} and fleet.calls("kexec") == [], output
    assert fleet.calls("kexec_image") == ["hv1"] and fleet.calls("kexec_image unloaded") == ["hv1"], output
    assert "the time of hypervisor_update_until" in said(output)[0] and "The clock of this host shows" in said(output)[0]
    assert said(output)[1].startswith("hv2: skipped, not touched: the time of hypervisor_update_until has passed")


def test_guests_that_belong_apart_and_an_essential_guest_last_and_alone(fleet):
    """Every host runs a guest "web": that of hv1 is essential, those of hv2 and hv3 are of one cluster."""
    fleet = fleet(3)
    (fleet.path / "host_vars/hv1.yml").write_text("hypervisor_update_essential: ['w*']\n")
    for name in ("hv2", "hv3"):
        (fleet.path / f"host_vars/{name}.yml").write_text("hypervisor_update_labels: {web: {cluster: sales}}\n")
    code, output = fleet.play(hypervisor_update_serial=3, hypervisor_update_paused_max={"cluster": 1})
    assert code == 0 and batches(output) == [["hv2"], ["hv3"], ["hv1"]], output


@pytest.mark.parametrize(
    "place",
    [
        "kexec",
        *(pytest.param(place, marks=pytest.mark.beyond) for place in ("update_lease", "kexec_image", "guest preserved", "guest running")),
    ],
)
def test_a_killed_run_is_continued_by_the_same_command(fleet, place):
    """All that it started is killed with it, in the middle of a step. Nothing of it is left on the controller."""
    fleet = fleet(1)
    (host,) = fleet.hosts
    hooks = {f"hypervisor_update_{when}": [fleet.hook(when)] for when in ("before", "after")}
    if place == "update_lease":  # after it: in the tasks before the update
        wait = f"  ansible.builtin.wait_for: {{timeout: 900, path: {fleet.path}/there}}"
        hooks["hypervisor_update_before"] = [fleet.hook("before", "- name: Wait", wait)]
    host.plan({place: "wait"})
    run = fleet.start(**hooks)
    reached = {"update_lease": lambda: fleet.calls("hv1 before checked"), "kexec": lambda: fleet.calls("kexec")}.get(place, host.waits)
    until(f"the run is at {place}", reached)
    run.kill()
    (fleet.path / "there").touch()
    if host.waits():
        host.go_on()
    until("hv1 is up", host.is_up)

    code, output = fleet.play(**hooks)
    assert code == 0 and said(output) == [f"hv1: {KEPT}"], output
    assert "hv1: this run takes over the lease of " in output and fleet.calls("kexec") == ["hv1"], output
    assert logged(fleet, "after") == ["hv1 hv1 after updated"] and not (host.folder / "lib/lease.json").exists(), output


def records(host) -> list[dict]:
    """What a host recorded of its updates."""
    return [json.loads(line) for line in (host.folder / "lib/updates.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("first", ["killed", pytest.param("lost the host", marks=pytest.mark.beyond)])
def test_guests_that_a_cold_boot_of_the_old_kernel_lost_are_told(fleet, first):
    """The first run does not see the boot. The next one reports it and stops, and the one after it updates both hosts."""
    fleet = fleet(2)
    host = fleet.hosts[0]
    host.comes_back = False
    if first == "killed":
        run = fleet.start()
        until("hv1 is on its way", lambda: fleet.calls("kexec"))
        run.kill()
    else:
        code, output = fleet.play(hypervisor_update_timeout=20)
        assert code != 0 and fleet.outcomes() == {"hv1": "lost", "hv2": "checked"}, output
    until("hv1 is down", lambda: not (host.folder / "jump").exists() and not host.is_up())
    host.boot(OLD)
    host.comes_back = True
    host.plan({"guest running": "lose"})

    code, output = fleet.play(hypervisor_update_lost_max=9)
    report = json.loads((fleet.path / "page.html.json").read_text())["hv1"]
    assert code != 0 and fleet.outcomes() == {"hv1": "failed", "hv2": "checked"} and fleet.calls("kexec") == ["hv1"], output
    assert (report["guests_lost"], report["kernel_after"], report["guests"]["web"]["state"]) == (["web"], OLD, "lost"), output
    assert f"runs kernel {OLD} now. Its console" in report["why"] and report["why"].endswith("Guests that lost their memory: web")
    assert said(output)[1] == "hv2: not touched, the run stopped before this host: hv1 failed"
    (one,) = records(host)
    assert (one["outcome"], one["guests_lost"], one["update_id"]) == ("failed", ["web"], report["update_id"]) and "pstore" in one

    host.plan({})
    code, output = fleet.play()
    assert code == 0 and said(output) == [f"hv{number}: {KEPT}" for number in (1, 2)], output
    assert [one["outcome"] for one in records(host)] == ["failed", "updated"], output


def test_two_runs_at_once(fleet):
    fleet = fleet(1)
    (host,) = fleet.hosts
    host.plan({"guest preserved": "wait"})
    run = fleet.start()
    until("the first run is at work", host.waits)
    code, output = fleet.play(hypervisor_update_report=f"{fleet.path}/other.html")
    assert code != 0 and "hv1: refused, not touched: another run updates this host: " in output, output
    assert fleet.calls("kexec_image") == ["hv1"], output
    host.go_on()
    code, output = run.end()
    assert code == 0 and said(output) == [f"hv1: {KEPT}"], output


@pytest.mark.beyond
def test_guests_that_are_away_come_back_under_the_lease(fleet):
    """Another run that sends guests away at this moment must not get them back."""
    fleet = fleet(1)
    (host,) = fleet.hosts
    host.plan({"hypervisor_info": "away", "guest_away back": "wait"})
    run = fleet.start()
    until("the run brings the guest back", host.waits)
    code, output = fleet.play(hypervisor_update_report=f"{fleet.path}/other.html")
    assert code != 0 and "hv1: refused, not touched: another run updates this host: " in output, output
    host.go_on()
    code, output = run.end()
    assert code == 0 and said(output) == [f"hv1: {KEPT}"] and fleet.calls("guest_away back") == ["hv1"], output


@pytest.mark.beyond
def test_a_run_of_another_controller_waits_until_the_lease_expires(fleet):
    """A controller in a container has process ids of its own. So nobody else can know whether its run still exists."""
    fleet = fleet(1)
    (host,) = fleet.hosts
    host.plan({"guest running": "wait"})
    run = fleet.start("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
    until("the run is after the jump", host.waits)
    run.kill()
    host.go_on()
    code, output = fleet.play()
    assert code != 0 and "hv1: refused, not touched: another run updates this host: " in output, output
    lease = host.folder / "lib/lease.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "seconds": 1}))
    code, output = fleet.play()
    assert code == 0 and said(output) == [f"hv1: {KEPT}"], output
    assert re.search("hv1: this run takes over the lease of .*; it expired at ", output), output
