# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A libvirt domain beside the QEMU guests of both kinds of hosts: held, undone, updated, and libvirt's own all the time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kvmlab.controller import GUESTS, Controller, Guest
from kvmlab.host import Host
from kvmlab.lab import Lab
from kvmlab.night import boot_of, final_verdict, start_guests, update, wait_alive
from kvmlab.report import all_survived

APP = Guest("app", 3, 128)
XML = (Path(__file__).parent.parent / "domain.xml").read_text()
UNIT = "kvm-liveupdate-hold@app.service"


@pytest.fixture(scope="module", name="host", params=["hv1", "hv2"])
def host_with_domain(request: pytest.FixtureRequest, lab: Lab, controller: Controller) -> Host:
    """A host whose domain runs beside its other guests, with autostart."""
    host = lab.host(request.param)
    if controller.play("kvm.liveupdate.setup", "--limit", host.name, hypervisor_setup_reboot_ok=True).code:
        raise RuntimeError(f"{host.name}: the setup playbook failed")
    start_guests(controller, [host])
    host.ssh("cat > /root/app.xml", stdin=XML)
    done = host.ssh("virsh define /root/app.xml && virsh autostart app && (virsh domstate app | grep -q running || virsh start app)")
    assert done.returncode == 0, done.stderr
    wait_alive(host, APP)
    return host


def left_behind(host: Host) -> str:
    """What an update leaves in the folders of libvirt and the runtime; nothing when all is well."""
    look = (
        "ls /var/lib/libvirt/qemu/save /var/lib/kvm-liveupdate/guests | grep -E '[.](save|state)$';"
        "ls /run/kvm-liveupdate/guests | grep -E '[.](offer|held)$';"
        f" systemctl is-active {UNIT} | grep -v inactive; ls /etc/systemd/system/sysinit.target.wants/{UNIT}"
    )
    return host.ssh(look).stdout


def managed(host: Host) -> dict[str, str]:
    """What libvirt says about the domain."""
    lines = (line.partition(":") for line in host.ssh("virsh dominfo app").stdout.splitlines())
    facts = {name.strip(): value.strip() for name, _colon, value in lines}
    return {name: facts[name] for name in ("State", "Persistent", "Autostart", "Managed save", "UUID")}


def capability(host: Host) -> str:
    """Whether the domain's QEMU would leave out its RAM when it is saved."""
    answer = host.ssh("""virsh qemu-monitor-command app --hmp 'info migrate_capabilities' | grep x-ignore-shared""").stdout
    return answer.partition(":")[2].strip()


def test_a_domain_on_anonymous_memory_is_refused(controller: Controller, host: Host) -> None:
    plain = XML.replace("<name>app<", "<name>other<").replace("000003</uuid>", "000004</uuid>").replace("/dev/ttyS3", "/dev/null")
    begin, end = plain.index("  <memoryBacking>"), plain.index("  <vcpu>")
    host.ssh("cat > /root/other.xml", stdin=plain[:begin] + plain[end:])
    started = host.ssh("virsh create /root/other.xml")
    try:
        refused = controller.ask(host.name, "guest", name="other", state="preserved")
    finally:
        host.ssh("virsh destroy other")
    assert started.returncode == 0, started.stderr
    assert refused["failed"] and "anonymous memory" in refused["msg"] and "<source type='file'/>" in refused["msg"]


def test_a_hold_is_idempotent_and_undone(controller: Controller, host: Host) -> None:
    since = time.monotonic()
    assert controller.ask(host.name, "guest", name="app", state="preserved")["changed"]
    assert not controller.ask(host.name, "guest", name="app", state="preserved")["changed"]
    assert controller.ask(host.name, "guest", name="app", state="running")["changed"]
    assert not controller.ask(host.name, "guest", name="app", state="running")["changed"]
    assert not left_behind(host)
    assert final_verdict(host, APP, since).survived


def test_a_saved_domain_comes_back_when_the_update_is_undone(controller: Controller, host: Host) -> None:
    """Another guest cannot be saved. The domain may be saved already: it goes on from the memory in its holder."""
    since, before, kernel = time.monotonic(), boot_of(host), other_kernel(host)
    host.ssh("mkdir -p /var/lib/kvm-liveupdate/guests/web.state/obstacle")
    try:
        play = controller.play("kvm.liveupdate.update", "--limit", host.name, hypervisor_update_kernel=f"/boot/vmlinuz-{kernel}")
    finally:
        host.ssh("rm -r /var/lib/kvm-liveupdate/guests/web.state")
    assert play.code != 0 and "guest web: save" in play.output
    assert "not undone" not in play.output
    assert boot_of(host) == before
    for guest in (*GUESTS, APP):
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    assert not left_behind(host)
    assert capability(host) == "off"


def test_the_host_moves_under_the_domain(controller: Controller, host: Host) -> None:
    since, before = time.monotonic(), managed(host)
    play, report = update(controller, [host], other_kernel(host))
    assert play.code == 0, play.output
    assert all_survived(report)
    verdict = final_verdict(host, APP, since)
    assert verdict.survived, verdict.reason
    assert managed(host) == before
    assert not left_behind(host)
    assert capability(host) == "off"
    assert play.report[host.name]["guests"]["app"]["state"] == "restored"


def test_the_domain_is_still_libvirts_own(host: Host) -> None:
    """An ordinary managed save has the RAM in it again, and a start from it goes on."""
    since = time.monotonic()
    done = host.ssh("virsh managedsave app && virsh start app", limit_s=300)
    assert done.returncode == 0, done.stderr
    verdict = final_verdict(host, APP, since)
    assert verdict.survived, verdict.reason


def test_a_saved_domain_without_its_memory_is_never_started(host: Host) -> None:
    """Somebody starts the domain by hand while its state waits for memory that is not there."""
    host.ssh('virsh shutdown app --mode acpi; virsh destroy app; echo \'{"hold": "gone"}\' > /var/lib/kvm-liveupdate/guests/app.state')
    refused = host.ssh("virsh start app")
    assert refused.returncode != 0 and "memory that is not here" in refused.stderr
    host.ssh("rm /var/lib/kvm-liveupdate/guests/app.state")
    assert host.ssh("virsh start app").returncode == 0
    wait_alive(host, APP)


def other_kernel(host: Host) -> str:
    """The kernel that the host does not run."""
    found = host.ssh("ls /boot").stdout.split()
    releases = [name.removeprefix("vmlinuz-") for name in found if name.startswith("vmlinuz-")]
    (other,) = [release for release in releases if release != boot_of(host).kernel]
    return other
