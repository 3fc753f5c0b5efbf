# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests of one host that take different ways through one update: in memory, to disk, to the other host, shut down and started again.

The kernel is staged ahead of it and becomes the boot default after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kvmlab.machines.host import Host
from kvmlab.machines.repository import packaged
from kvmlab.parts.keys import keys
from kvmlab.story.controller import GUESTS, Controller, Play
from kvmlab.story.domains import DISK, PLAIN, TPM, Domain, define_domains, start_domains
from kvmlab.story.night import boot_of, end_guests, final_verdict, start_guests, wait_alive, wait_until
from kvmlab.watch.report import Boot

pytestmark = pytest.mark.beyond

WEB = GUESTS[0]
# Without a virtio device, so that a newer QEMU takes it over and gives it back. Only one host knows it.
MOVER = Domain("mover", 6, 128, virtio=False)
STAY = (PLAIN, TPM)
LOCAL = (*STAY, DISK, MOVER)


@pytest.fixture(scope="module", name="host")
def the_host_to_be_updated(controller: Controller, hv1: Host, hv2: Host) -> Iterator[Host]:
    """The one with the older QEMU and libvirt. The other one only takes in a guest, and runs nothing of its own."""
    for each in (hv1, hv2):
        end_guests(each)
    define_domains(controller, [hv2], LOCAL)
    prepared = controller.play(
        "kvm.liveupdate.setup",
        "--limit",
        hv2.name,
        hypervisor_setup_reboot_ok=True,
        hypervisor_setup_domains=[domain.name for domain in STAY],
    )
    if prepared.code:
        raise RuntimeError(f"the setup playbook failed:\n{prepared.output}")
    start_guests(controller, [hv2], [WEB])
    start_domains([hv2], LOCAL)
    hv2.ssh("umask 77; cat > /root/migration", stdin=keys().client.read_text())
    yield hv2
    end_guests(hv2)


def run(controller: Controller, host: Host, kernel: str, ladders: dict[str, list[Any]], **extra: Any) -> Play:
    """One update in which these guests take ways of their own; the others stay in memory."""
    given = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "hypervisor_update_guests": ladders, **extra}
    return controller.play("kvm.liveupdate.update", "--limit", host.name, **given)


def ladders_to(peer: Host) -> dict[str, list[Any]]:
    """A way of its own for each guest that does not stay; the peer takes in the one that migrates."""
    there = f"qemu+ssh://root@{peer.address}/system?keyfile=/root/migration&no_verify=1"
    return {DISK.name: ["save"], WEB.name: ["shutdown"], MOVER.name: [{"migrate": {"to": there, "back": True}}]}


def boot_default(host: Host) -> str:
    """What GRUB's menu says that a cold boot comes up with."""
    return host.ssh("grep -o 'set default=\"gnulinux.*\"' /boot/grub/grub.cfg").stdout


def other_kernel(host: Host, kernels: tuple[str, str]) -> str:
    """The kernel that the host does not run."""
    return next(release for release in kernels if release != boot_of(host).kernel)


def test_a_kernel_is_installed_while_the_running_one_stays_the_default(
    controller: Controller, host: Host, kernels: tuple[str, str]
) -> None:
    """By its package, which is removed once in between."""
    running, kernel = boot_of(host), other_kernel(host, kernels)
    asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "hypervisor_kernel_package": packaged(host, kernel)}

    def kernel_play(*options: str, **extra: str) -> Play:
        play = controller.play("kvm.liveupdate.kernel", "--limit", host.name, *options, **asked, **extra)
        assert play.code == 0, play.output
        return play

    assert f"Linux {kernel} is installed and can take over from {running.kernel}" in kernel_play().output
    assert f">gnulinux-{running.kernel}-advanced-" in boot_default(host)
    assert kernel_play("--check").recap[host.name]["changed"] == 0
    kernel_play(hypervisor_kernel_state="absent")
    assert host.ssh("ls /boot/vmlinuz-*").stdout.split() == [f"/boot/vmlinuz-{running.kernel}"]
    assert not boot_default(host)
    assert kernel_play("--check").recap[host.name]["changed"] > 0
    kernel_play()
    assert f">gnulinux-{running.kernel}-advanced-" in boot_default(host)


def test_an_update_that_is_undone_brings_back_who_left(controller: Controller, host: Host, kernels: tuple[str, str]) -> None:
    """One of them was sent away by an earlier run, that never came to its end."""
    before = boot_of(host)
    since = host.heartbeat(PLAIN.port)[-1].arrived
    sent = controller.ask(host.name, "guest_away", state="away", guests=[{"name": PLAIN.name, "way": "save"}])
    assert sent["changed"] and sent["guests"][0]["where"] == "saved"
    assert host.ssh(f"virsh domstate {PLAIN.name}").stdout.strip() == "shut off"
    nowhere = {"migrate": {"to": "qemu+ssh://root@10.77.0.99/system"}}
    play = run(controller, host, other_kernel(host, kernels), {DISK.name: ["save"], MOVER.name: [nowhere]})
    report = play.report[host.name]
    assert play.code != 0 and report["outcome"] == "undone" and "10.77.0.99" in report["why"]
    assert report["guests"][DISK.name]["back"] and report["guests"][DISK.name]["state"] == "saved"
    assert boot_of(host) == before
    for guest in LOCAL:
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    assert controller.ask(host.name, "hypervisor_info")["away"] == []


def test_a_host_that_undoes_its_update_gets_back_who_left(controller: Controller, host: Host, kernels: tuple[str, str]) -> None:
    """The save of one that stays fails at the last moment, after the others were sent away."""
    before = boot_of(host)
    since = host.heartbeat(PLAIN.port)[-1].arrived
    obstacle = f"/var/lib/libvirt/qemu/save/{PLAIN.name}.save"
    host.ssh(f"mkdir -p {obstacle}")
    try:
        play = run(controller, host, other_kernel(host, kernels), {DISK.name: ["save"], WEB.name: ["shutdown"], MOVER.name: ["save"]})
    finally:
        host.ssh(f"rmdir {obstacle}")
    report = play.report[host.name]
    assert play.code != 0 and report["outcome"] == "undone" and f"guest {PLAIN.name} cannot be saved" in report["why"], play.output
    assert all(report["guests"][guest.name]["back"] for guest in (DISK, WEB, MOVER))
    assert boot_of(host) == before
    for guest in LOCAL:
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    wait_alive(host, WEB)


def test_a_guest_that_refuses_its_host_keeps_all_of_them_where_they_are(
    controller: Controller, host: Host, hv1: Host, kernels: tuple[str, str]
) -> None:
    """All five ways in one plan: its table says where each would have gone, and nobody goes."""
    before, since = boot_of(host), time.monotonic()
    play = run(controller, host, other_kernel(host, kernels), {**ladders_to(hv1), TPM.name: ["refuse"]})
    report = play.report[host.name]
    assert play.code != 0 and report["outcome"] == "refused" and TPM.name in report["why"], play.output
    ways = {guest["name"]: guest["way"] for guest in report["plan"]["guests"]}
    assert ways == {PLAIN.name: "preserve", DISK.name: "save", WEB.name: "shutdown", MOVER.name: "migrate", TPM.name: "refuse"}
    assert boot_of(host) == before and controller.ask(host.name, "hypervisor_info")["away"] == []
    for guest in (WEB, *LOCAL):
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"


def test_each_guest_takes_its_own_way(controller: Controller, host: Host, hv1: Host, kernels: tuple[str, str]) -> None:
    before, kernel = boot_of(host), other_kernel(host, kernels)
    left = {guest.name: host.heartbeat(guest.port)[-1] for guest in (WEB, *LOCAL)}
    since = min(tick.arrived for tick in left.values())
    uris = {"hypervisor_update_migrate_uri": f"tcp://{hv1.address}", "hypervisor_update_migrate_back_uri": f"tcp://{host.address}"}
    play = run(controller, host, kernel, ladders_to(hv1), **uris)
    assert play.code == 0, play.output
    after = boot_of(host)
    assert after == Boot(after.boot_id, kernel) and after.boot_id != before.boot_id
    told = {name: (guest["state"], guest.get("back")) for name, guest in play.report[host.name]["guests"].items()}
    assert told == {
        **{domain.name: ("restored", None) for domain in STAY},
        DISK.name: ("saved", True),
        WEB.name: ("shut down", True),
        MOVER.name: ("migrated", True),
    }
    for guest in (*STAY, DISK):
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
    wait_alive(host, WEB)
    assert host.heartbeat(WEB.port)[-1].boot_id != left[WEB.name].boot_id
    moved_and_came_back(host, hv1, left[MOVER.name])
    assert controller.ask(host.name, "hypervisor_info")["away"] == []
    assert f">gnulinux-{kernel}-advanced-" in boot_default(host)


def moved_and_came_back(host: Host, peer: Host, left: Any) -> None:
    """It ticked on the other host meanwhile and goes on here, on the memory that it had."""
    visit = [tick for tick in peer.heartbeat(MOVER.port) if tick.arrived > left.arrived]
    assert visit and {tick.boot_id for tick in visit} == {left.boot_id}

    def look() -> tuple[bool, str]:
        last = host.heartbeat(MOVER.port)[-1]
        return last.number > visit[-1].number and last.turn >= visit[-1].turn + 2, str(last)

    wait_until("two passes over the memory after the way back", look)
    last = host.heartbeat(MOVER.port)[-1]
    assert (last.boot_id, last.checksum) == (left.boot_id, left.checksum)
    assert peer.ssh(f"virsh domstate {MOVER.name}").returncode != 0  # its definition came back as well
