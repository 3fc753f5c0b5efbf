# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Three hosts. Their controller is killed; it is stopped, and needs a guest on its way to the host; it logs in as a user with sudo."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from kvmlab import cache, limits
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.parts.keys import keys, public
from kvmlab.story.controller import GUESTS, Controller, Guest, Run
from kvmlab.story.night import boot_of, final_verdict, other_kernel, start_guests, wait_until

pytestmark = pytest.mark.beyond

HOSTS = ("forky", "trixie", "forky")
UPDATE = "kvm.liveupdate.update"
DOCS = Path(__file__).parents[3] / "docs/docsite/rst/awx.rst"
WEB, DB = GUESTS
# At this address a guest of hv1 passes on what comes for SSH, to its own host.
RELAY_ADDRESS = "10.77.0.12"
RELAY = Guest(DB.name, DB.port, DB.ram, bridged=True, words=f"address={RELAY_ADDRESS} relay=10.77.0.1")


@pytest.fixture(scope="module", name="lab")
def a_lab_of_its_own() -> Iterator[Lab]:
    keep = bool(os.environ.get("KVM_LIVEUPDATE_KEEP_LAB"))
    lab = Lab(cache.root() / "lab-fleet")
    if not keep:
        lab.down()
    try:
        lab.up(HOSTS)
        yield lab
    finally:
        if not keep:
            lab.down()


@pytest.fixture(scope="module", name="controller")
def controller_of_the_fleet(lab: Lab) -> Controller:
    controller = Controller(lab)
    prepared = controller.play("kvm.liveupdate.setup", hypervisor_setup_reboot_ok=True)
    assert prepared.code == 0, prepared.output
    return controller


@pytest.fixture(scope="module", name="hosts")
def three_hosts(lab: Lab, controller: Controller) -> list[Host]:
    hosts = lab.hosts()
    start_guests(controller, hosts)
    return hosts


def now_on(host: Host) -> int:
    """The time of day of a host."""
    return int(host.ssh("date +%s").stdout)


# On a host: wait until an update that was committed after a moment is in one of these states.
LOOK = """
import json, sys, time
since, states = float(sys.argv[1]), sys.argv[2:]
while True:
    try:
        with open("/var/lib/kvm-liveupdate/update.json") as file:
            update = json.load(file)
    except (OSError, ValueError):
        update = {}
    if update.get("state") in states and update["times"]["committed"] >= since:
        break
    time.sleep(0.3)
"""


# ssh ends with this status if the connection is lost: the host stops its services, or it stood still for a while.
CONNECTION_LOST = 255


def look_for(host: Host, clock: int, states: Iterable[str]) -> subprocess.Popen[bytes]:
    """Begin to wait on a host, from this time of its clock on."""
    command = host.ssh_command("--", f"python3 -c {shlex.quote(LOOK)} {clock} {' '.join(states)}")
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def reach(run: Run, clocks: list[tuple[Host, int]], *states: str) -> None:
    """Return as soon as the update of each host is in one of these states. Each host looks for itself, from this time of its clock on.

    A lost connection is made anew. A host that does not accept it stops its services, so it is on its way to the jump.
    """
    looks = {host: look_for(host, clock, states) for host, clock in clocks}
    since = dict(clocks)
    try:
        while looks:
            assert not run.ended(), run.end().output
            for host in [host for host, look in looks.items() if look.poll() is not None]:
                ended = looks.pop(host).returncode
                assert ended in (0, CONNECTION_LOST), f"the look on {host.name} ended with {ended}"
                if ended and answers(host):
                    looks[host] = look_for(host, since[host], states)
            time.sleep(0.1)
    finally:
        for look in looks.values():
            look.kill()
            look.wait()


def answers(host: Host) -> bool:
    """Whether somebody can log in on a host."""
    try:
        return host.ssh("true", limit_s=limits.LOGIN).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def booted(host: Host) -> None:
    """Wait until a host has finished its boot."""
    look = "systemctl is-system-running"
    wait_until(f"the boot of {host.name}", lambda: ((state := host.ssh(look).stdout.strip()) in ("running", "degraded"), state))


def updates(host: Host) -> list[str]:
    """How the updates ended that a host keeps records of."""
    lines = host.ssh("cat /var/lib/kvm-liveupdate/updates.jsonl").stdout.splitlines()
    return [json.loads(line)["outcome"] for line in lines]


def committed(host: Host) -> float:
    """When the last update of a host was committed, by its clock."""
    update = json.loads(host.ssh("kvm-liveupdate status").stdout)["update"]
    return float(update["times"]["committed"])


def all_kept(hosts: list[Host], guests: tuple[Guest, ...], since: float) -> None:
    """No guest has lost anything since this moment."""
    for host in hosts:
        for guest in guests:
            verdict = final_verdict(host, guest, since)
            assert verdict.survived, f"{host.name}, {guest.name}: {verdict.reason}"


def hook(folder: Path, name: str) -> str:
    """A task file that notes on the controller for which host it runs, and how that host ended."""
    says = f"echo {name} {{{{ inventory_hostname }}}} {{{{ hypervisor_update_result.outcome }}}} >> {folder}/log"
    task = {"name": "Note", "ansible.builtin.shell": says, "delegate_to": "localhost", "become": False, "changed_when": True}
    (folder / f"{name}.yml").write_text(json.dumps([task]))
    return str(folder / f"{name}.yml")


def test_a_night_whose_controller_is_killed_is_continued_by_the_same_command(
    controller: Controller, hosts: list[Host], tmp_path: Path
) -> None:
    """A canary, then the other two together. The controller is killed when both are on their way to the jump."""
    canary, *rest = hosts
    kernel, since, log = other_kernel(canary), time.monotonic(), tmp_path / "log"
    clocks, kept = [(host, now_on(host)) for host in rest], {host.name: len(updates(host)) for host in hosts}
    before = {host.name: boot_of(host) for host in hosts}
    night = {
        "hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}",
        "hypervisor_update_serial": [1, 2],
        "hypervisor_update_before": [hook(tmp_path, "before")],
        "hypervisor_update_after": [hook(tmp_path, "after")],
    }
    run = controller.start(UPDATE, tmp_path / "page.html", **night)
    try:
        reach(run, clocks, "committed", "stopping", "saving", "jumping")
    finally:
        run.kill()
    first = ["before hv1 checked", "after hv1 updated", "before hv2 checked", "before hv3 checked"]
    told = log.read_text().splitlines()
    assert told[:2] == first[:2] and sorted(told[2:]) == first[2:], told
    assert boot_of(canary).kernel == kernel and updates(canary)[kept[canary.name] :] == ["updated"]

    for host in rest:  # each finishes by itself
        host.wait_ssh(not_boot_id=before[host.name].boot_id)
        booted(host)
        assert boot_of(host).kernel == kernel and len(updates(host)) == kept[host.name]
    boots = {host.name: boot_of(host) for host in hosts}

    play = controller.play(UPDATE, **night)
    assert play.code == 0, play.output
    ends = {name: host["outcome"] for name, host in play.report.items()}
    assert ends == {"hv1": "current", "hv2": "updated", "hv3": "updated"}, play.output
    for host in rest:
        assert f"{host.name}: this run takes over the lease of " in play.output, play.output
        guests = play.report[host.name]["guests"]
        assert {name: guest["state"] for name, guest in guests.items()} == {"web": "restored", "db": "restored"}, guests
    assert {host.name: boot_of(host) for host in hosts} == boots  # nobody jumped twice
    assert [updates(host)[kept[host.name] :] for host in hosts] == [["updated"]] * 3
    assert sorted(log.read_text().splitlines()[4:]) == ["after hv1 current", "after hv2 updated", "after hv3 updated"]
    all_kept(hosts, GUESTS, since)


def through(lab: Lab) -> str:
    """The command that connects to hv1 by way of its own guest: hv3 sees the guest's network, and the guest passes on to hv1."""
    return f"ssh -F {shlex.quote(str(lab.folder / 'ssh_config'))} -W {RELAY_ADDRESS}:22 hv3"


def way_is_open(lab: Lab, host: Host) -> bool:
    """Whether somebody can log in on that way."""
    options = ["-o", f"ProxyCommand={through(lab)}"]
    words = ["ssh", "-F", str(lab.folder / "ssh_config"), *options, host.name, "--", "true"]
    try:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limits.LOGIN, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def pause_of(host: Host, guest: Guest, since: float) -> tuple[float, float]:
    """The longest silence of a guest since a moment: its last tick before it, and its first one after it."""
    arrived = [tick.arrived for tick in host.heartbeat(guest.port) if tick.arrived >= since]
    return max(pairwise(arrived), key=lambda two: two[1] - two[0])


def test_nothing_of_the_run_is_needed_between_the_pause_and_the_return(
    lab: Lab, controller: Controller, hosts: list[Host], tmp_path: Path
) -> None:
    """The controller is stopped, and it reaches the host only through a guest of that host. The guest is essential, so the host is last."""
    host, other, _bastion = hosts
    host.ssh(f"systemctl stop {DB.unit}")
    start_guests(controller, [host], [RELAY])
    wait_until("a login through the guest", lambda: (way_is_open(lab, host), "no login"))
    host.ssh(f"systemctl kill --signal=STOP {DB.unit}")
    closed = not way_is_open(lab, host)
    host.ssh(f"systemctl kill --signal=CONT {DB.unit}")
    assert closed, "the way does not lead through the guest"
    wait_until("a login through the guest", lambda: (way_is_open(lab, host), "no login"))

    inventory = tmp_path / "way.yml"
    way = {
        "ansible_host": RELAY_ADDRESS,
        "ansible_port": 22,
        "ansible_ssh_extra_args": f"-o {shlex.quote(f'ProxyCommand={through(lab)}')}",
        "hypervisor_update_essential": [RELAY.name],
    }
    inventory.write_text(json.dumps({"hypervisors": {"hosts": {host.name: way}}}))
    kernel, since, clock = other_kernel(host), time.monotonic(), now_on(host)
    before = boot_of(host)
    # Its wait for the host goes on while the controller is stopped.
    patience = {"hypervisor_update_timeout": int(limits.PLAYBOOK)}
    given = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "hypervisor_update_serial": 2, **patience}
    names = f"{host.name},{other.name}"
    run = controller.start(UPDATE, tmp_path / "page.html", "-i", str(inventory), "--limit", names, **given)
    try:
        # The state after this one is the pause. The host has given the commit's answer seconds before this one.
        reach(run, [(host, clock)], "stopping", "saving", "jumping")
        run.stop()
        stopped = time.monotonic()
        host.wait_ssh(not_boot_id=before.boot_id)
        booted(host)
        all_kept([host], (WEB, RELAY), since)
        status = json.loads(host.ssh("kvm-liveupdate status").stdout)
        assert boot_of(host).kernel == kernel and not status["away"], status
        assert {name: guest["running"] for name, guest in status["guests"].items()} == {"web": True, "db": True}, status
        assert run.states() == {"T"}, "a process of the controller was not stopped"
        for guest in (WEB, RELAY):
            paused, _resumed = pause_of(host, guest, since)
            assert stopped < paused, f"{guest.name} was paused {stopped - paused:.1f} s before the controller was stopped: try again"
        run.go_on()
        play = run.end()
    except BaseException:
        run.kill()
        raise
    assert play.code == 0, play.output
    assert {name: told["outcome"] for name, told in play.report.items()} == {host.name: "updated", other.name: "updated"}, play.output
    assert committed(other) < committed(host)  # the host with the essential guest is last
    assert updates(host)[-1] == "updated"
    all_kept([host], (WEB, RELAY), since)
    all_kept([other], GUESTS, since)


def documented(name: str) -> str:
    """The file of this name that docs/docsite/rst/awx.rst shows, without the comment that names it."""
    block = re.search(rf"^    # {re.escape(name)}.*\n((?:    .+\n)+)", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert block, f"{DOCS} has no file {name}"
    return re.sub(r"^    ", "", block[1], flags=re.MULTILINE)


def test_a_user_with_the_documented_sudo_rule_updates_a_host(controller: Controller, hosts: list[Host]) -> None:
    """Only the address of the controller and the key are others than in the documentation."""
    host = hosts[2]
    rule, login = documented("/etc/sudoers.d/liveupdate"), documented("/home/liveupdate/.ssh/authorized_keys")
    kind, body = public(keys().client).split()[:2]
    allowed = login.replace("192.0.2.10", "10.0.2.2").replace("ssh-ed25519 AAAA...", f"{kind} {body}")
    assert body in allowed and "10.0.2.2" in allowed
    made = host.ssh(
        "echo liveupdate:x:2000:2000::/home/liveupdate:/bin/sh >> /etc/passwd; echo 'liveupdate:*:20000::::::' >> /etc/shadow;"
        f" echo liveupdate:x:2000: >> /etc/group; echo 127.0.1.1 {host.name} >> /etc/hosts; mkdir -p /home/liveupdate/.ssh;"
        " cat > /home/liveupdate/.ssh/authorized_keys; chmod -R go= /home/liveupdate; chown -R 2000:2000 /home/liveupdate",
        stdin=allowed,
    )
    assert made.returncode == 0, made.stderr
    kernel, since, before = other_kernel(host), time.monotonic(), boot_of(host)
    given = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "ansible_user": "liveupdate"}

    refused = controller.play(UPDATE, "--limit", host.name, **given)
    assert refused.code != 0 and boot_of(host) == before, refused.output
    assert refused.report[host.name]["outcome"] == "refused" and "password" in refused.output, refused.output

    written = host.ssh("umask 227; cat > /etc/sudoers.d/liveupdate; visudo -c", stdin=rule)
    assert written.returncode == 0, written.stdout + written.stderr
    play = controller.play(UPDATE, "--limit", host.name, **given)
    assert play.code == 0 and play.report[host.name]["outcome"] == "updated", play.output
    assert boot_of(host).kernel == kernel and updates(host)[-1] == "updated"
    assert "USER=root" in host.ssh("journalctl --boot --no-pager _COMM=sudo").stdout  # after the jump, too
    all_kept([host], GUESTS, since)
