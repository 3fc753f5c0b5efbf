# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One night on each kind of host with an initial RAM disk: LVM, modules, and dracut's own shutdown where dracut made it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from kvmlab import cache
from kvmlab.lab import Lab
from kvmlab.machines.host import Host
from kvmlab.parts.kinds import DRACUT, KINDS
from kvmlab.story.controller import GUESTS, Controller
from kvmlab.story.domains import DISK, define_domains, records, shut_down, start_domains
from kvmlab.story.night import boot_of, final_verdict, other_kernel, start_guests, update, wait_alive, wait_until
from kvmlab.watch.report import all_survived

pytestmark = pytest.mark.beyond

WEB, DB = GUESTS
ALL = (WEB, DB, DISK)
EXITRD = "/run/initramfs/shutdown"


@pytest.fixture(scope="module", params=[name for name, kind in KINDS.items() if kind.initrd], name="host")
def the_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host of this kind, alone in a lab of its own."""
    keep = bool(os.environ.get("KVM_LIVEUPDATE_KEEP_LAB"))
    lab = Lab(cache.root() / f"lab-{request.param}")
    if not keep:
        lab.down()
    try:
        (host,) = lab.up([request.param])
        yield host
    finally:
        if not keep:
            lab.down()


@pytest.fixture(scope="module", name="controller")
def its_controller(host: Host) -> Controller:
    return Controller(Lab(host.folder.parent))


def survived(host: Host, since: float) -> dict[str, str]:
    """The guests that did not survive since then, and why."""
    verdicts = {guest.name: final_verdict(host, guest, since) for guest in ALL}
    return {name: verdict.reason for name, verdict in verdicts.items() if not verdict.survived}


def test_the_host_is_what_its_kind_says(host: Host) -> None:
    kind = KINDS[host.kind]
    root = host.ssh("findmnt --noheadings --output SOURCE /").stdout.strip()
    assert root == ("/dev/mapper/lab-root" if kind.lvm else "/dev/vda1")
    assert host.ssh("uname -r; lsmod").stdout.splitlines()[0].endswith("-modular")
    assert host.ssh("ls /sys/module/{kvm_amd,virtio_blk,ext4}/initstate").returncode == 0
    in_initrd = host.ssh("systemctl show --value --property InitRDTimestampMonotonic").stdout.strip()
    assert (in_initrd not in ("", "0")) == (kind.initrd == DRACUT)


def test_the_host_is_prepared_and_its_guests_start(controller: Controller, host: Host) -> None:
    define_domains(controller, [host], [DISK])
    play = controller.play("kvm.liveupdate.setup", hypervisor_setup_reboot_ok=True, hypervisor_setup_domains=[DISK.name])
    assert play.code == 0, play.output
    start_guests(controller, [host])
    start_domains([host], [DISK])


def test_check_mode_changes_nothing(controller: Controller, host: Host) -> None:
    since, before = time.monotonic(), boot_of(host)
    play = controller.play("kvm.liveupdate.update", "--check", hypervisor_update_kernel=f"/boot/vmlinuz-{other_kernel(host)}")
    assert play.code == 0, play.output
    plan = play.report[host.name]["plan"]
    assert {guest["name"]: guest["way"] for guest in plan["guests"]} == dict.fromkeys((guest.name for guest in ALL), "preserve")
    assert boot_of(host) == before and survived(host, since) == {}


def test_an_initial_ram_disk_of_another_kernel_is_refused(controller: Controller, host: Host) -> None:
    running, other = boot_of(host).kernel, other_kernel(host)
    result = controller.ask(host.name, "kexec_image", kernel=f"/boot/vmlinuz-{other}", initrd=f"/boot/initrd.img-{running}")
    assert result["failed"] and f"has modules of {running} only" in result["msg"], result
    assert host.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"


def test_an_update_that_is_undone_leaves_all_as_it_was(controller: Controller, host: Host) -> None:
    since, before = time.monotonic(), boot_of(host)
    unpack(host)
    host.ssh("mkdir -p /var/lib/kvm-liveupdate/guests/web.state/obstacle")
    try:
        play = controller.play("kvm.liveupdate.update", hypervisor_update_kernel=f"/boot/vmlinuz-{other_kernel(host)}")
    finally:
        host.ssh("rm -r /var/lib/kvm-liveupdate/guests/web.state")
    assert play.code != 0 and "undone before the jump" in play.output, play.output
    assert boot_of(host) == before and survived(host, since) == {}
    if KINDS[host.kind].initrd == DRACUT:
        assert host.ssh(f"test -x {EXITRD}").returncode == 0


def unpack(host: Host) -> None:
    """Unpack dracut's shutdown, as a stop of dracut-shutdown.service does where LVM asked for it."""
    if KINDS[host.kind].initrd == DRACUT:
        assert host.ssh("systemctl is-active dracut-shutdown.service").stdout.strip() == "active"
        # Where 3cpio is installed, dracut's own script fails: it leaves its mark in the folder, and 3cpio wants an empty one.
        restored = "/usr/lib/dracut/dracut-initramfs-restore || 3cpio --extract --force /boot/initrd.img-$(uname -r)"
        done = host.ssh(f"cd /run/initramfs && touch .need_shutdown; {restored}; test -x {EXITRD}")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("direction", ["there", "back"])
def test_all_guests_come_over(controller: Controller, host: Host, direction: str) -> None:
    """Also where dracut's shutdown is unpacked: systemd-shutdown would change root into it, and leave the sessions behind."""
    unpack(host)
    target = other_kernel(host)
    play, reports = update(controller, [host], target, guests=ALL)
    assert play.code == 0, play.output
    told = reports[host.name]
    assert all_survived(reports), json.dumps(reports, indent=1)
    assert told["kernel_after"] == target
    assert ("initrd" in play.report[host.name]["times"]) == (KINDS[host.kind].initrd == DRACUT)
    # The root file system was written and read-only before the kexec: the new kernel did not need its journal.
    mounts = host.ssh("journalctl --boot --dmesg --no-pager --output cat --grep EXT4-fs").stdout
    assert "mounted filesystem" in mounts and "recover" not in mounts, mounts
    print(f"{host.kind} {direction}: " + json.dumps({"times": play.report[host.name]["times"], "guests": told["guests"]}, indent=1))


def test_nothing_is_lost_on_the_disk_of_a_guest(controller: Controller, host: Host) -> None:
    said = host.heartbeat(DISK.port)[-1]
    shut_down(host, DISK)
    found = records(host, DISK)
    assert found.fault is None and found.count >= (said.synced or 0) > 0, found
    start_domains([host], [DISK])


def test_after_a_power_cut_the_host_and_its_guests_start(host: Host) -> None:
    """Cold, through GRUB and the initial RAM disk."""
    before = host.heartbeat(WEB.port)[-1].boot_id
    host.ssh("systemctl enable web.service; sync")
    host.reboot_hard()
    wait_until("the guest's clean start", lambda: (host.heartbeat(WEB.port)[-1].boot_id != before, "its old boot id"))
    wait_alive(host, WEB)
