# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt domains on both kinds of hosts: held, updated there and back, and libvirt's own all the time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kvmlab.controller import GUESTS, Controller
from kvmlab.domains import (
    DISK,
    DOMAINS,
    PLAIN,
    Connection,
    clock_lag,
    define_domains,
    records,
    shut_down,
    start_domains,
    wait_for_clock,
)
from kvmlab.host import Host
from kvmlab.lab import Lab
from kvmlab.night import boot_of, final_verdict, update, wait_alive
from kvmlab.report import all_survived

# The whole story on one kind of host; on the other what differs there: who holds the memory through the jump, and takes it back.
HV1 = pytest.mark.parametrize("host", ["hv1"], indirect=True)


@pytest.fixture(scope="module", name="host")
def host_with_domains(request: pytest.FixtureRequest, lab: Lab, controller: Controller) -> Iterator[Host]:
    """A host that runs nothing but domains: more guests would be too slow there. One starts with the host."""
    host = lab.host(request.param)
    host.ssh(f"systemctl stop {' '.join(guest.unit for guest in GUESTS)}")
    define_domains(controller, [host])
    host.ssh(f"virsh autostart {PLAIN.name}")
    names = [domain.name for domain in DOMAINS]
    prepared = controller.play(
        "kvm.liveupdate.setup", "--limit", host.name, hypervisor_setup_reboot_ok=True, hypervisor_setup_domains=names
    )
    if prepared.code:
        raise RuntimeError(f"{host.name}: the setup playbook failed:\n{prepared.output}")
    start_domains(controller, [host])
    yield host
    host.ssh(f"virsh autostart --disable {PLAIN.name}; for name in {' '.join(names)}; do virsh destroy $name; done")


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


@HV1
def test_a_domain_on_anonymous_memory_is_refused_and_prepared(controller: Controller, host: Host) -> None:
    other = host.ssh(
        f"sed 's,<name>plain<,<name>other<,; s,<uuid>.*</uuid>,,; s,/dev/ttyS3,/dev/null,' /var/lib/lab-guest/{PLAIN.name}.xml"
    )
    started = host.ssh("cat > /root/other.xml && virsh define /root/other.xml && virsh start other", stdin=other.stdout)
    try:
        assert started.returncode == 0, started.stderr
        refused = controller.ask(host.name, "guest", name="other", state="preserved")
        predicted = controller.ask(host.name, "domain_memory", "--check", name="other")
        prepared = controller.ask(host.name, "domain_memory", name="other")
        again = controller.ask(host.name, "domain_memory", name="other")
    finally:
        host.ssh("virsh destroy other; virsh undefine other")
    assert refused["failed"] and "anonymous memory" in refused["msg"] and "<source type='file'/>" in refused["msg"]
    for seen in (predicted, prepared):
        assert seen["changed"] and seen["restart_needed"]
    assert not again["changed"] and again["restart_needed"]


@HV1
def test_a_hold_is_idempotent_and_undone(controller: Controller, host: Host) -> None:
    since = time.monotonic()
    assert controller.ask(host.name, "guest", name=PLAIN.name, state="preserved")["changed"]
    assert not controller.ask(host.name, "guest", name=PLAIN.name, state="preserved")["changed"]
    assert controller.ask(host.name, "guest", name=PLAIN.name, state="running")["changed"]
    assert not controller.ask(host.name, "guest", name=PLAIN.name, state="running")["changed"]
    assert not left_behind(host)
    assert final_verdict(host, PLAIN, since).survived


@HV1
def test_saved_domains_come_back_when_the_update_is_undone(controller: Controller, host: Host) -> None:
    """One of them cannot be saved. The others may be saved already: they go on from the memory in their holders."""
    since, before, kernel = time.monotonic(), boot_of(host), other_kernel(host)
    obstacle = f"/var/lib/libvirt/qemu/save/{PLAIN.name}.save"
    host.ssh(f"mkdir -p {obstacle}")
    try:
        play = controller.play("kvm.liveupdate.update", "--limit", host.name, hypervisor_update_kernel=f"/boot/vmlinuz-{kernel}")
    finally:
        host.ssh(f"rmdir {obstacle}")
    assert play.code != 0 and f"guest {PLAIN.name}: save" in play.output
    assert "not undone" not in play.output
    assert boot_of(host) == before
    for guest in DOMAINS:
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    assert not left_behind(host)
    assert not leaves_out_ram(host)


@pytest.mark.parametrize(("host", "way"), [("hv1", "there"), ("hv1", "back"), ("hv2", "there")], indirect=["host"])
def test_the_host_moves_under_its_domains(lab: Lab, controller: Controller, host: Host, way: str) -> None:
    """A machine beside it talks to one of them all the time."""
    before = managed(host)
    (beside,) = [other for other in lab.hosts() if other.name != host.name]
    connection = Connection(beside, host, DISK)
    connection.open()
    echoes = connection.echoes().count
    play, report = update(controller, [host], other_kernel(host), guests=DOMAINS)
    assert play.code == 0, f"{way}: {play.output}"
    assert all_survived(report), report
    seen = connection.echoes()
    connection.close()
    assert seen.held and seen.count > echoes, seen.reason
    assert managed(host) == before
    wait_for_clock(host, PLAIN)  # its holder's unit ends after that
    assert not left_behind(host)
    assert not leaves_out_ram(host)
    for domain in DOMAINS:
        assert play.report[host.name]["guests"][domain.name]["state"] == "restored"


@pytest.mark.parametrize("host", ["hv1", "hv2"], indirect=True)
def test_a_domain_with_an_agent_has_the_right_time_again(host: Host) -> None:
    """Its clocks stood still for the whole blackout, about 10 s or more."""
    wait_for_clock(host, PLAIN)
    assert abs(clock_lag(host, PLAIN)) < 5


@pytest.mark.parametrize("host", ["hv1", "hv2"], indirect=True)
def test_no_acknowledged_write_is_lost(controller: Controller, host: Host) -> None:
    """The domain is shut down by its power button. One boot of it wrote all records that it ever told of."""
    told = host.heartbeat(DISK.port)[-1]
    shut_down(host, DISK)
    found = records(host, DISK)
    assert found.fault is None, found.fault
    assert told.synced and found.count >= told.synced
    assert found.boot_ids == (told.boot_id,)
    start_domains(controller, [host], [DISK])


@HV1
def test_a_domain_is_still_libvirts_own(host: Host) -> None:
    """An ordinary managed save has the RAM in it again, and a start from it goes on. A reset is a reset."""
    since = time.monotonic()
    done = host.ssh(f"virsh managedsave {PLAIN.name} && virsh start {PLAIN.name}", limit_s=300)
    assert done.returncode == 0, done.stderr
    verdict = final_verdict(host, PLAIN, since)
    assert verdict.survived, verdict.reason
    assert host.ssh(f"virsh reset {PLAIN.name}").returncode == 0
    time.sleep(5)  # what was still on its way is not a sign of life
    wait_alive(host, PLAIN)
    assert len(host.verdict(PLAIN.port, since).boot_ids) == 2


@HV1
def test_a_saved_domain_without_its_memory_is_never_started(host: Host) -> None:
    """Somebody starts the domain by hand while its state waits for memory that is not there."""
    state = f"/var/lib/kvm-liveupdate/guests/{PLAIN.name}.state"
    host.ssh(f'virsh destroy {PLAIN.name}; echo \'{{"hold": "gone"}}\' > {state}')
    refused = host.ssh(f"virsh start {PLAIN.name}")
    host.ssh(f"rm {state}")
    assert refused.returncode != 0 and "memory that is not here" in refused.stderr
    assert host.ssh(f"virsh start {PLAIN.name}").returncode == 0
    wait_alive(host, PLAIN)


def other_kernel(host: Host) -> str:
    """The kernel that the host does not run."""
    found = host.ssh("ls /boot").stdout.split()
    releases = [name.removeprefix("vmlinuz-") for name in found if name.startswith("vmlinuz-")]
    (other,) = [release for release in releases if release != boot_of(host).kernel]
    return other
