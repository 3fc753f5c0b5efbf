# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt domains on both kinds of hosts: held, updated there and back, and libvirt's own all the time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.parts.keys import keys
from kvmlab.story import memory_fault
from kvmlab.story.controller import Controller
from kvmlab.story.domains import (
    DISK,
    DOMAINS,
    PLAIN,
    TPM,
    Connection,
    Probe,
    clock_lag,
    define_domains,
    records,
    shut_down,
    start_domains,
    wait_for_clock,
)
from kvmlab.story.night import boot_of, end_guests, final_verdict, update, wait_alive, wait_until
from kvmlab.watch.report import all_survived

# How much the domains of a host may have together.
RAM_MIB = 1500


@pytest.fixture(scope="module", name="hosts")
def hosts_with_domains(lab: Lab, controller: Controller) -> Iterator[list[Host]]:
    """A host of each kind that runs nothing but domains: more guests would be too slow there. One domain starts with its host."""
    hosts = lab.hosts()
    names = [domain.name for domain in DOMAINS]
    for host in hosts:
        end_guests(host)
    define_domains(controller, hosts)
    prepared = controller.play(
        "kvm.liveupdate.setup", hypervisor_setup_reboot_ok=True, hypervisor_setup_domains=names, hypervisor_setup_ram_size=f"{RAM_MIB}m"
    )
    if prepared.code:
        raise RuntimeError(f"the setup playbook failed:\n{prepared.output}")
    for host in hosts:
        host.ssh(f"virsh autostart {PLAIN.name}")
    start_domains(hosts)
    yield hosts
    for host in hosts:
        host.ssh(f"virsh autostart --disable {PLAIN.name}; for name in {' '.join(names)}; do virsh destroy $name; done")


@pytest.fixture(scope="module", name="host")
def forky(hosts: list[Host]) -> Host:
    """The host for what is the same on both: its systemd carries sessions itself, and AppArmor confines its domains."""
    return hosts[0]


def left_behind(host: Host) -> str:
    """What an update leaves in the folders of libvirt and the runtime; nothing when all is well."""
    look = (
        "ls /var/lib/libvirt/qemu/save /var/lib/kvm-liveupdate/guests | grep -E '[.](save|state)$';"
        "ls /run/kvm-liveupdate/guests | grep -E '[.](offer|held)$';"
        "systemctl list-units --plain --no-legend 'kvm-liveupdate-hold@*';"
        "ls /etc/systemd/system/sysinit.target.wants | grep kvm-liveupdate"
    )
    return host.ssh(look).stdout


def managed(host: Host) -> dict[str, str]:
    """What libvirt says about the domains, and their definitions."""
    facts = {}
    for domain in DOMAINS:
        kept = "^(State|Persistent|Autostart|Managed save|UUID):"
        facts[domain.name] = host.ssh(f"virsh dominfo {domain.name} | grep -E '{kept}'; virsh dumpxml --inactive {domain.name}").stdout
    return facts


def leaves_out_ram(host: Host) -> list[str]:
    """The domains whose QEMU would leave out its RAM when it is saved or migrated."""
    look = "virsh qemu-monitor-command {} --hmp 'info migrate_capabilities' | grep 'x-ignore-shared: off'"
    return [domain.name for domain in DOMAINS if host.ssh(look.format(domain.name)).returncode]


@pytest.mark.beyond
def test_the_domains_have_the_room_that_was_asked_for(hosts: list[Host]) -> None:
    for host in hosts:
        assert host.ssh("df --output=size,fstype -m /run/kvm-liveupdate-ram").stdout.split()[-2:] == [str(RAM_MIB), "tmpfs"]


# What domains run on before anybody thinks of live updates: anonymous memory, or a memfd.
OTHER_MEMORY = {PLAIN: "/<memoryBacking>/,/memoryBacking>$/d", TPM: 's/<source type=.file.\\/>/<source type="memfd"\\/>/'}


@pytest.mark.beyond
def test_running_domains_are_moved_onto_memory_that_can_be_preserved(controller: Controller, host: Host) -> None:
    """They are not restarted for it."""
    for domain, change in OTHER_MEMORY.items():
        other = f"virsh dumpxml --inactive {domain.name} | sed '{change}' > /root/other-memory.xml"
        started = host.ssh(f"virsh destroy {domain.name}; {other}; virsh define /root/other-memory.xml && virsh start {domain.name}")
        assert started.returncode == 0, started.stderr
    time.sleep(5)  # what was still on its way is not a sign of life
    for domain in OTHER_MEMORY:
        wait_alive(host, domain)
    since = time.monotonic()
    without = controller.ask(host.name, "domain_memory", "--check", name=PLAIN.name)
    predicted = controller.ask(host.name, "domain_memory", "--check", name=PLAIN.name, adopt=True)
    adopted = controller.ask(host.name, "domain_memory", name=PLAIN.name, adopt=True)
    of_memfd = controller.ask(host.name, "domain_memory", name=TPM.name, adopt=True)
    again = controller.ask(host.name, "domain_memory", name=PLAIN.name, adopt=True)
    assert without["restart_needed"]
    for seen in (predicted, adopted, of_memfd):
        assert seen["changed"] and not seen["restart_needed"], seen
    assert not again["changed"] and not again["restart_needed"]
    for domain in OTHER_MEMORY:
        verdict = final_verdict(host, domain, since)
        assert verdict.survived, f"{domain.name}: {verdict.reason}"
    assert not left_behind(host)


# What a domain may have that keeps it from being preserved, or does not come over as it was.
FAULTS = (
    "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>"
    "<sound model='virtio'/>"
    "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/>"
    "<source file='/var/lib/libvirt/images/other.raw'/><target dev='vdb' bus='virtio'/></disk>"
)


@pytest.mark.beyond
def test_a_domain_that_cannot_be_preserved_is_refused_and_its_memory_prepared(controller: Controller, host: Host) -> None:
    changes = (
        f"s,<name>plain<,<name>other<,; s,<uuid>.*</uuid>,,; s,{PLAIN.tty},/dev/null,; s,/plain.console,/other.console,;"
        f"s,<memory ,<genid/>&,; s#</devices>#{FAULTS}&#"
    )
    other = host.ssh(f'sed "{changes}" /var/lib/lab-guest/{PLAIN.name}.xml')
    define = (
        "cat > /root/other.xml && truncate -s 16M /var/lib/libvirt/images/other.raw && virsh define /root/other.xml && virsh start other"
    )
    started = host.ssh(define, stdin=other.stdout)
    try:
        assert started.returncode == 0, started.stderr
        guests = {guest["name"]: guest for guest in controller.ask(host.name, "hypervisor_info")["guests"]}
        refused = controller.ask(host.name, "guest", names=["other"], state="preserved")
        predicted = controller.ask(host.name, "domain_memory", "--check", name="other")
        prepared = controller.ask(host.name, "domain_memory", name="other")
        again = controller.ask(host.name, "domain_memory", name="other")
    finally:
        host.ssh("virsh destroy other; virsh undefine other")
    reasons = {reason["code"]: reason["message"] for reason in guests["other"]["reasons"]}
    assert set(reasons) == {"ram-anonymous", "filesystem", "cache-unsafe", "qemu-blocker"}
    assert "virtio-sound" in reasons["qemu-blocker"] and "vdb" in reasons["cache-unsafe"] and "srv" in reasons["filesystem"]
    assert {warning["code"] for warning in guests["other"]["warnings"]} == {"genid", "cpu-host"}
    assert not guests[PLAIN.name]["reasons"]
    assert refused["failed"] and "anonymous memory" in refused["msg"] and "<source type='file'/>" in refused["msg"]
    for seen in (predicted, prepared):
        assert seen["changed"] and seen["restart_needed"]
    assert not again["changed"] and again["restart_needed"]


@pytest.mark.beyond
def test_a_domain_is_rehearsed_and_left_as_it_was(controller: Controller, host: Host) -> None:
    """AppArmor confines the stand-in too. Another one is rehearsed when it moves again, on memory that came over a jump."""
    since, before = time.monotonic(), managed(host)
    done = controller.ask(host.name, "guest_rehearsal", names=[TPM.name])
    assert done["guests"][0]["rehearsed"] and done["guests"][0]["paused_s"] > 0, done
    for domain in DOMAINS:
        verdict = final_verdict(host, domain, since)
        assert verdict.survived, f"{domain.name}: {verdict.reason}"
    assert managed(host) == before
    assert not host.ssh("virsh list --all --name | grep rehearsal; ls /var/lib/libvirt /var/lib/libvirt/qemu | grep rehearsal").stdout
    assert not left_behind(host)
    assert not leaves_out_ram(host)


@pytest.mark.beyond
def test_a_hold_is_idempotent_and_undone(controller: Controller, host: Host) -> None:
    since = time.monotonic()
    assert controller.ask(host.name, "guest", names=[PLAIN.name], state="preserved")["changed"]
    assert not controller.ask(host.name, "guest", names=[PLAIN.name], state="preserved")["changed"]
    assert controller.ask(host.name, "guest", names=[PLAIN.name], state="running")["changed"]
    assert not controller.ask(host.name, "guest", names=[PLAIN.name], state="running")["changed"]
    nameless = controller.ask(host.name, "guest_rehearsal", names=[PLAIN.name])
    assert nameless["failed"] and "its RAM file has no name" in nameless["msg"], nameless
    assert not left_behind(host)
    assert final_verdict(host, PLAIN, since).survived


@pytest.mark.beyond
def test_saved_domains_come_back_when_the_update_is_undone(controller: Controller, host: Host) -> None:
    """One of them cannot be saved. The others may be saved already: they go on from the memory in their holders."""
    since, before, kernel = time.monotonic(), boot_of(host), other_kernel(host)
    obstacle = f"/var/lib/libvirt/qemu/save/{PLAIN.name}.save"
    host.ssh(f"mkdir -p {obstacle}")
    try:
        play = controller.play("kvm.liveupdate.update", "--limit", host.name, hypervisor_update_kernel=f"/boot/vmlinuz-{kernel}")
    finally:
        host.ssh(f"rmdir {obstacle}")
    assert play.code != 0 and f"guest {PLAIN.name} cannot be saved" in play.output
    assert "the undo could not" not in play.output
    assert boot_of(host) == before
    for guest in DOMAINS:
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    assert not left_behind(host)
    assert not leaves_out_ram(host)


def moves_under_its_domains(controller: Controller, host: Host, beside: Host, **options: Any) -> None:
    """A machine beside it talks to one of them all the time."""
    before = managed(host)
    connection = Connection(beside, host, DISK)
    connection.open()
    echoes = connection.echoes().count
    probe = Probe(beside, host, DISK)
    probe.open()
    play, report = update(controller, [host], other_kernel(host), guests=DOMAINS, probes=[probe], **options)
    assert play.code == 0, play.output
    assert all_survived(report), report
    seen = connection.echoes()
    connection.close()
    probe.close()
    assert seen.held and seen.count > echoes, seen.reason
    assert managed(host) == before
    wait_for_clock(host, PLAIN)  # its holder's unit ends after that
    assert abs(clock_lag(host, PLAIN)) < 5  # its clocks stood still for the whole blackout, 10 s and more
    assert not left_behind(host)
    assert not leaves_out_ram(host)
    watched = report[host.name]["guests"][DISK.name]
    assert set(watched["blackouts_s"]) == {"host", "guest", "outside"}
    assert watched["clocks_agree"] or watched["clocks_explained"], watched["clocks"]
    for domain in DOMAINS:
        assert play.report[host.name]["guests"][domain.name]["state"] == "restored"


def begun(host: Host, unit: str) -> int:
    """When the unit began to start, in microseconds of this boot."""
    return int(host.ssh(f"systemctl show --property InactiveExitTimestampMonotonic --value {unit}").stdout)


@pytest.mark.beyond
def test_a_host_moves_under_its_domains(controller: Controller, hosts: list[Host]) -> None:
    """PID 1 holds their memory. Where a process has to, the domains of test_ways.py move. An ordinary boot starts sshd before libvirt."""
    moves_under_its_domains(controller, hosts[0], beside=hosts[1])
    assert 0 < begun(hosts[0], "libvirtd.service") < begun(hosts[0], "ssh.service")


@pytest.mark.beyond
def test_domains_on_memory_that_came_over_a_jump_move_again(controller: Controller, hosts: list[Host]) -> None:
    """The way back. Their RAM is no file of the tmpfs any more. One of them is rehearsed before."""
    moves_under_its_domains(controller, hosts[0], beside=hosts[1], hypervisor_update_rehearsal="canary")


@pytest.mark.beyond
def test_no_acknowledged_write_is_lost(controller: Controller, hosts: list[Host]) -> None:
    """The domains are shut down by their power buttons. One boot of each wrote all records that it ever told of."""
    for host in hosts:
        told = host.heartbeat(DISK.port)[-1]
        shut_down(host, DISK)
        found = records(host, DISK)
        assert found.fault is None, found.fault
        assert told.synced and found.count >= told.synced
        assert found.boot_ids == (told.boot_id,)
    start_domains(hosts, [DISK])


@pytest.mark.beyond
def test_a_domain_is_still_libvirts_own(host: Host) -> None:
    """An ordinary managed save has the RAM in it again, and a start from it goes on. A reset is a reset."""
    since = time.monotonic()
    done = host.ssh(f"virsh managedsave {PLAIN.name} && virsh start {PLAIN.name}")
    assert done.returncode == 0, done.stderr
    verdict = final_verdict(host, PLAIN, since)
    assert verdict.survived, verdict.reason
    assert host.ssh(f"virsh reset {PLAIN.name}").returncode == 0
    time.sleep(5)  # what was still on its way is not a sign of life
    wait_alive(host, PLAIN)
    assert len(host.verdict(PLAIN.port, since).boot_ids) == 2


@pytest.mark.beyond
def test_a_domain_moves_to_another_host_afterwards(hosts: list[Host]) -> None:
    """A live migration, towards the newer QEMU, takes the RAM along: what left it out of the save is off."""
    to, away = hosts
    to.ssh(f"virsh destroy {TPM.name}")  # its heartbeat's line is needed
    away.ssh("umask 77; cat > /root/migration", stdin=keys().client.read_text())
    left = away.heartbeat(TPM.port)[-1]
    target = f"'qemu+ssh://root@{to.address}/system?keyfile=/root/migration&no_verify=1'"
    moved = away.ssh(f"virsh migrate --live --dname moved --migrateuri tcp://{to.address} {TPM.name} {target}")
    assert moved.returncode == 0, moved.stderr

    def look() -> tuple[bool, str]:
        last = to.heartbeat(TPM.port)[-1]
        return last.boot_id == left.boot_id and last.turn >= left.turn + 2, str(last)

    wait_until("two passes over the memory on the other host", look)
    arrived = to.heartbeat(TPM.port)[-1]
    to.ssh("virsh destroy moved")
    assert arrived.number > left.number and arrived.checksum == left.checksum


@pytest.mark.beyond
def test_a_domain_with_a_bit_that_changed_on_the_way_is_started_by_nobody(controller: Controller, hosts: list[Host]) -> None:
    """Neither by its hold unit nor by its autostart or an operator, until its memory is discarded."""
    host = hosts[1]
    boot_before = host.heartbeat(PLAIN.port)[-1].boot_id
    memory_fault.arrange(host, PLAIN.name)
    asked = {
        "hypervisor_update_kernel": f"/boot/vmlinuz-{other_kernel(host)}",
        "hypervisor_update_verify_memory": "full",
        "hypervisor_update_restore_timeout": 240,  # the other domain must be back by then
    }
    play = controller.play("kvm.liveupdate.update", "--limit", host.name, **asked)
    assert play.code != 0 and f"guest {PLAIN.name}: not restored within" in play.output
    assert "its preserved memory is not the same as before the jump: 1 of " in play.output
    fates = play.report[host.name]["guests"]
    assert fates[PLAIN.name]["state"] == "saved" and fates[DISK.name]["memory_verified"] == "full"
    refused = host.ssh(f"virsh start {PLAIN.name}")
    assert refused.returncode != 0 and "its preserved memory is not available now" in refused.stderr
    assert host.heartbeat(PLAIN.port)[-1].boot_id == boot_before
    assert host.ssh(f"kvm-liveupdate discard {PLAIN.name} && virsh start {PLAIN.name}").returncode == 0  # as the runbook says
    wait_until("the clean start", lambda: (host.heartbeat(PLAIN.port)[-1].boot_id != boot_before, "its old boot id"))
    last = controller.play("kvm.liveupdate.update", "--limit", host.name, **asked)
    assert last.code == 0, last.output
    assert not left_behind(host)


SAVE = """
import os, sys; sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.guests import _hold, _providers
from kvm_liveupdate.handover import _early
from kvm_liveupdate.host import _files, _this_boot
from kvm_liveupdate.update import _jump
for name, on_loss in {"plain": "start", "disk": "stop"}.items():
    record = _providers.find(name)
    holds = {name: _hold.hold(record)}
    _early.start_early(record["unit"], True)
    _jump._save(record, {"id": "power-cut", "boot_id": _this_boot.boot_id(), "on_loss": on_loss, "running": [name], "holds": holds})
os.unlink(_files.journal_path("plain"))
"""


@pytest.mark.beyond
def test_a_power_cut_after_the_save_never_starts_a_domain_on_other_memory(hosts: list[Host]) -> None:
    """The memory of both is gone. One starts clean, although its save had not got as far as its journal. The other stays down until it is
    given up."""
    host = hosts[1]
    done = host.ssh("python3 -", stdin=SAVE)
    assert done.returncode == 0, done.stderr
    boot_before = host.heartbeat(PLAIN.port)[-1].boot_id
    host.reboot_hard()
    wait_until("the clean start", lambda: (host.heartbeat(PLAIN.port)[-1].boot_id != boot_before, "its old boot id"))
    journal = json.loads(host.ssh(f"cat /var/lib/kvm-liveupdate/guests/{PLAIN.name}.json").stdout)
    assert journal["state"] == "lost" and "did not survive" in journal["why"]
    refused = host.ssh(f"virsh start {DISK.name}")
    assert refused.returncode != 0 and "its preserved memory is not available now" in refused.stderr
    assert host.ssh(f"kvm-liveupdate discard {DISK.name} && virsh start {DISK.name}").returncode == 0
    assert not left_behind(host)
    wait_alive(host, PLAIN)
    wait_alive(host, DISK)


def other_kernel(host: Host) -> str:
    """The kernel that the host does not run."""
    found = host.ssh("ls /boot").stdout.split()
    releases = [name.removeprefix("vmlinuz-") for name in found if name.startswith("vmlinuz-")]
    (other,) = [release for release in releases if release != boot_of(host).kernel]
    return other
