# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One night's maintenance, from bare hosts to the new kernel, in the order in which it happens."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from kvmlab import limits
from kvmlab.machines.host import Host
from kvmlab.story import memory_fault
from kvmlab.story.controller import GUESTS, Controller, Play
from kvmlab.story.night import boot_of, final_verdict, start_guests, update, wait_alive, wait_until
from kvmlab.watch.heartbeat import Verdict
from kvmlab.watch.report import all_survived

WEB, DB = GUESTS
MODULES = "kvm.liveupdate"


def ticking(host: Host, since: float) -> dict[str, Verdict]:
    """The verdict on every guest of a host since a moment in which nothing should have happened to them."""
    return {guest.name: final_verdict(host, guest, since) for guest in GUESTS}


def sessions(host: Host) -> dict[str, list[int]]:
    """Which processes hold a session, by its name."""
    listing = host.ssh("find /proc/[0-9]*/fd -lname '*luo_session*' -printf '%p %l\\n' 2>/dev/null").stdout
    found: dict[str, list[int]] = {}
    for line in listing.splitlines():
        path, _link, name = line.split()
        found.setdefault(name, []).append(int(path.split("/")[2]))
    return found


@pytest.mark.beyond
def test_a_host_without_the_options_is_told_what_is_missing(controller: Controller, hv2: Host) -> None:
    """hv2 arrives as a host that nobody has prepared: without kho=on and liveupdate=on on its command line."""
    hv2.ssh("sed -i 's/ kho=on//; s/ liveupdate=on//' /etc/default/grub /etc/default/grub.d/*.cfg; update-grub; systemctl reboot")
    before = boot_of_after_reboot(hv2, without="kho=on")
    reasons = controller.ask("hv2", "hypervisor_info")["reasons"]
    (reason,) = [reason for reason in reasons if reason["code"] == "cmdline"]
    assert "lacks kho=on and liveupdate=on" in reason["message"]
    assert "kvm.liveupdate.setup" in reason["remedy"] and "hypervisor_setup_reboot_ok: true" in reason["remedy"]
    play = controller.play(f"{MODULES}.setup", "--limit", "hv2")
    assert play.code != 0
    assert "hypervisor_setup_reboot_ok" in play.output
    assert boot_of(hv2) == before


def boot_of_after_reboot(host: Host, without: str):
    """The host's boot once its command line lacks a word."""

    def look() -> tuple[bool, str]:
        done = host.ssh("cat /proc/cmdline", limit_s=limits.LOGIN)
        return done.returncode == 0 and without not in done.stdout, done.stdout + done.stderr

    time.sleep(5)
    wait_until(f"{host.name} without {without}", look)
    return boot_of(host)


def test_setup_predicts_then_makes_the_hosts_capable(controller: Controller, hv1: Host) -> None:
    predicted = controller.play(f"{MODULES}.setup", "--check", "--limit", "hv1")
    assert predicted.code == 0, predicted.output
    assert predicted.recap["hv1"]["changed"] == 3  # the runtime, libvirt's configuration, its daemon
    assert hv1.ssh("ls /usr/local/sbin/kvm-liveupdate").returncode != 0
    play = controller.play(f"{MODULES}.setup", hypervisor_setup_reboot_ok=True)
    assert play.code == 0, play.output
    assert play.recap["hv1"]["changed"] == 3
    again = controller.play(f"{MODULES}.setup")
    assert again.code == 0, again.output
    assert all(counts["changed"] == 0 for counts in again.recap.values())


def test_the_guests_start(controller: Controller, hv1: Host, hv2: Host) -> None:
    start_guests(controller, [hv1, hv2])
    guests = {guest["name"]: guest for guest in controller.ask("hv1", "hypervisor_info")["guests"]}
    assert {name: (guest["memory_mib"], guest["reasons"]) for name, guest in guests.items()} == {
        guest.name: (guest.ram, []) for guest in GUESTS
    }


@pytest.fixture(scope="module", name="shown")
def shown_plan(controller: Controller, kernels: tuple[str, str]) -> Play:
    """The update of hv1, only shown, when its guests run for the first time."""
    asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernels[1]}"}
    return controller.play(f"{MODULES}.update", "--check", "--diff", "--limit", "hv1", **asked)


def test_check_mode_says_what_would_happen_and_changes_nothing(request: pytest.FixtureRequest, hv1: Host) -> None:
    since, before = time.monotonic(), boot_of(hv1)
    play: Play = request.getfixturevalue("shown")
    assert play.code == 0, play.output
    plan = play.report["hv1"]["plan"]
    assert (plan["verdict"], {guest["name"]: guest["way"] for guest in plan["guests"]}) == ("go", dict.fromkeys(("db", "web"), "preserve"))
    for line in plan["table"]:
        assert line in play.output
    assert play.recap["hv1"]["changed"] == 1
    assert boot_of(hv1) == before
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"
    assert not sessions(hv1)
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


@pytest.mark.beyond
@pytest.mark.parametrize(
    ("make", "says"),
    [
        ("rm -f /root/k", "No such file or directory"),
        ("head -c 100000 /dev/urandom > /root/k", "not an x86 bzImage"),
        ("head -c 1000000 /boot/vmlinuz-$(uname -r) > /root/k", "cut off"),
    ],
)
def test_what_is_no_kernel_is_refused(controller: Controller, hv1: Host, make: str, says: str) -> None:
    hv1.ssh(make)
    result = controller.ask("hv1", "kexec_image", kernel="/root/k")
    assert result["failed"] and says in result["msg"] and "/root/k" in result["msg"]
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"


@pytest.mark.beyond
def test_a_command_line_that_would_lose_the_memory_is_refused(controller: Controller, kernels: tuple[str, str]) -> None:
    result = controller.ask("hv1", "kexec_image", kernel=f"/boot/vmlinuz-{kernels[1]}", cmdline="root=/dev/vda1 rw kho=on")
    assert result["failed"] and "lacks liveupdate=on" in result["msg"]


def test_staging_is_idempotent_predicted_and_undone(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    kernel = f"/boot/vmlinuz-{kernels[1]}"
    predicted = controller.ask("hv1", "kexec_image", "--check", kernel=kernel)
    staged = controller.ask("hv1", "kexec_image", kernel=kernel)
    assert predicted["changed"] and staged["changed"] and predicted["image"] == staged["image"]
    assert staged["image"]["release"] == kernels[1]
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"  # else somebody's reboot would be a jump
    assert not controller.ask("hv1", "kexec_image", kernel=kernel)["changed"]
    assert controller.ask("hv1", "kexec_image", state="unloaded")["changed"]
    assert not controller.ask("hv1", "kexec_image", state="unloaded")["changed"]
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"


@pytest.mark.beyond
def test_an_unknown_guest_is_refused_with_the_known_ones(controller: Controller) -> None:
    result = controller.ask("hv1", "guest", names=["mail"], state="preserved")
    assert result["failed"] and "'mail'" in result["msg"] and "db, web" in result["msg"]


@pytest.mark.beyond
def test_who_is_not_root_is_refused(controller: Controller, hv1: Host) -> None:
    """Somebody logs in as himself and forgets become."""
    hv1.ssh(
        "echo joe:x:1000:1000::/home/joe:/bin/sh >> /etc/passwd; echo 'joe:*:20000::::::' >> /etc/shadow;"
        "mkdir -m 755 /home/joe; cp -r /root/.ssh /home/joe; chown -R 1000:1000 /home/joe"
    )
    result = controller.ask("hv1", "guest", "-e", "ansible_user=joe", names=["web"], state="preserved")
    assert result["failed"] and "needs root" in result["msg"] and "become: true" in result["msg"]


@pytest.mark.beyond
def test_a_host_without_the_device_is_refused(controller: Controller, hv1: Host) -> None:
    hv1.ssh("mv /dev/liveupdate /dev/liveupdate.away")
    try:
        (reason,) = controller.ask("hv1", "hypervisor_info")["reasons"]
        held = controller.ask("hv1", "guest", names=["web"], state="preserved")
    finally:
        hv1.ssh("mv /dev/liveupdate.away /dev/liveupdate")
    assert reason["code"] == "no-device" and "CONFIG_LIVEUPDATE=y" in reason["remedy"]
    assert held["failed"] and "no live update device" in held["msg"]
    assert not sessions(hv1)


STRANGER = "qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 64 -nodefaults -display none"


HUGE_STRANGER = f"{STRANGER} -object memory-backend-memfd,id=m,size=64M,hugetlb=on -machine memory-backend=m"
# Under the wrapper a guest starts as its owner wants it; only the update is refused.
ON_HUGE_PAGES = f"/usr/local/sbin/kvm-liveupdate run big -- {STRANGER} -mem-path /dev/hugepages"


@pytest.mark.beyond
def test_machines_that_would_be_lost_stop_the_update(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    """Somebody runs QEMU by hand, or a guest on huge pages: the jump would end it."""
    commands = {"stranger": STRANGER, "huge": HUGE_STRANGER, "big": ON_HUGE_PAGES}
    hv1.ssh("echo 80 > /proc/sys/vm/nr_hugepages")
    for name, command in commands.items():
        started = hv1.ssh(f"systemd-run --unit {name} {command}")
        assert started.returncode == 0, started.stderr
    running = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c kvm-vm"
    try:
        wait_until("all machines", lambda: ((seen := hv1.ssh(running).stdout.strip()) == str(len(GUESTS) + len(commands)), seen))
        held = controller.ask("hv1", "guest", names=["big"], state="preserved")
        play = controller.play(f"{MODULES}.update", "--limit", "hv1", hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[1]}")
    finally:
        hv1.ssh(f"systemctl stop {' '.join(commands)}; echo 0 > /proc/sys/vm/nr_hugepages")
    assert held["failed"] and "huge pages" in held["msg"]
    assert play.code != 0 and play.report["hv1"]["outcome"] == "refused"
    planned = {guest["name"]: guest for guest in play.report["hv1"]["plan"]["guests"]}
    for name, says in {"stranger": "anonymous memory", "huge": "huge pages", "big": "huge pages"}.items():
        assert planned[name]["way"] == "refuse" and says in planned[name]["why"]
        assert f"guest {name} stops the update. Not preserved: " in play.output
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"


@pytest.mark.beyond
def test_a_guest_whose_qemu_was_upgraded_is_refused(controller: Controller, hv1: Host) -> None:
    """The package manager has put another file in the place of the one that runs."""
    hv1.ssh("cd /usr/bin; ln qemu-system-x86_64 runs; cp runs new; mv new qemu-system-x86_64")
    try:
        result = controller.ask("hv1", "guest", names=["web"], state="preserved")
    finally:
        hv1.ssh("cd /usr/bin; mv runs qemu-system-x86_64")
    assert result["failed"] and "qemu-system-x86_64 was replaced" in result["msg"] and "restart the guest" in result["msg"]
    assert not sessions(hv1)


@pytest.mark.beyond
def test_the_jump_is_refused_when_anything_is_missing(controller: Controller, hv1: Host) -> None:
    since = time.monotonic()
    result = controller.ask("hv1", "kexec", guests=["web"])
    assert result["failed"]
    for problem in ("no kernel is staged", "guest web: its RAM is not preserved", "guest db runs but is not part of this update"):
        assert problem in result["msg"]
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


def test_a_hold_is_predicted_idempotent_and_undone(controller: Controller, hv1: Host) -> None:
    since = time.monotonic()
    assert controller.ask("hv1", "guest", "--check", names=["web"], state="preserved")["changed"]
    assert not sessions(hv1)
    held = controller.ask("hv1", "guest", names=["web"], state="preserved")
    assert held["changed"]
    assert sessions(hv1) == {held["guests"][0]["session"]: [1]}  # nobody but PID 1
    assert not controller.ask("hv1", "guest", names=["web"], state="preserved")["changed"]
    assert controller.ask("hv1", "guest", names=["web"], state="running")["changed"]
    assert not sessions(hv1)
    assert not controller.ask("hv1", "guest", names=["web"], state="running")["changed"]
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


@pytest.mark.beyond
def test_a_rehearsal_loads_the_state_elsewhere_and_leaves_the_guest_as_it_was(controller: Controller, hv1: Host) -> None:
    since = time.monotonic()
    predicted = controller.ask("hv1", "guest_rehearsal", "--check", names=["web"])
    done = controller.ask("hv1", "guest_rehearsal", names=["web"])
    (would,), (guest,) = predicted["guests"], done["guests"]
    assert not would["rehearsed"] and guest["rehearsed"] and guest["paused_s"] > 0, done
    assert not hv1.ssh("ls /run/kvm-liveupdate/guests | grep -E 'stand-in|rehearsal'; pgrep -f share=off").stdout
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


ANOTHER_MACHINE = """#!/bin/sh
for word; do
    shift
    case $word in q35,*) word=pc,${word#q35,} ;; esac
    set -- "$@" "$word"
done
exec /usr/bin/runs "$@"
"""


@pytest.mark.beyond
def test_a_rehearsal_finds_what_would_not_come_back(controller: Controller, hv1: Host) -> None:
    """The QEMU that is there after the jump makes another machine of it."""
    since = time.monotonic()
    hv1.ssh("mv /usr/bin/qemu-system-x86_64 /usr/bin/runs; install -m 755 /dev/stdin /usr/bin/qemu-system-x86_64", stdin=ANOTHER_MACHINE)
    try:
        result = controller.ask("hv1", "guest_rehearsal", names=["web"])
    finally:
        hv1.ssh("mv /usr/bin/runs /usr/bin/qemu-system-x86_64")
    assert result["failed"] and "guest web: its saved state does not load" in result["msg"], result
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


@pytest.mark.beyond
def test_a_killed_holder_is_noticed(controller: Controller, hv2: Host) -> None:
    """Where systemd cannot hold a session a process does. Without it the memory is no longer preserved, and the jump is refused."""
    since = time.monotonic()
    held = controller.ask("hv2", "guest", names=["web"], state="preserved")
    (holder,) = sessions(hv2)[held["guests"][0]["session"]]
    assert holder != 1
    assert not controller.ask("hv2", "guest", names=["web"], state="preserved")["changed"]
    hv2.ssh(f"kill -9 {holder}")
    assert not sessions(hv2)
    refused = controller.ask("hv2", "kexec", guests=["web", "db"])
    assert refused["failed"] and "guest web: its RAM is not preserved" in refused["msg"]
    assert controller.ask("hv2", "guest", names=["web"], state="preserved")["changed"]
    assert controller.ask("hv2", "guest", names=["web"], state="running")["changed"]
    assert not sessions(hv2)
    assert all(verdict.survived for verdict in ticking(hv2, since).values())


def test_a_guest_that_cannot_be_saved_undoes_the_update(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    """The last step before the jump fails for one guest: all run on, and the host is as it was found."""
    since, before = time.monotonic(), boot_of(hv1)
    hv1.ssh("mkdir -p /var/lib/kvm-liveupdate/guests/web.state/obstacle; systemctl start systemd-tmpfiles-clean.timer")
    running = active_units(hv1)
    try:
        play = controller.play(f"{MODULES}.update", "--limit", "hv1", hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[1]}")
    finally:
        hv1.ssh("rm -r /var/lib/kvm-liveupdate/guests/web.state")
    assert play.code != 0
    assert "undone before the jump" in play.output and "guest web cannot be saved" in play.output
    assert boot_of(hv1) == before
    assert all(verdict.survived for verdict in ticking(hv1, since).values())
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"
    assert not sessions(hv1)
    assert not hv1.ssh("ls /var/lib/kvm-liveupdate/guests; ls /etc/systemd/system/sysinit.target.wants/{web,db}.service").stdout
    wait_until("the stopped services", lambda: (running <= active_units(hv1), f"without {running - active_units(hv1)}"))


def active_units(host: Host) -> set[str]:
    """What runs there, but for the sessions of those who look."""
    listing = host.ssh("systemctl list-units --plain --no-legend --state=active --type=service,socket,timer,target").stdout
    return {line.split()[0] for line in listing.splitlines() if "user" not in line.split()[0]}


@pytest.mark.beyond
def test_killing_what_carries_out_the_update_loses_nothing(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    """kill -9 between the commit and the pause: the sessions are PID 1's, the guests run on, and the host undoes the rest."""
    since, before = time.monotonic(), boot_of(hv1)
    controller.ask("hv1", "kexec_image", kernel=f"/boot/vmlinuz-{kernels[1]}")
    held = {controller.ask("hv1", "guest", names=[guest.name], state="preserved")["guests"][0]["session"]: [1] for guest in GUESTS}
    assert sessions(hv1) == held
    killer = "until systemctl is-active kvm-liveupdate-jump; do sleep 0.1; done; systemctl kill --signal=KILL kvm-liveupdate-jump"
    hv1.ssh(f"systemd-run --unit killer sh -c '{killer}'")
    result = controller.ask("hv1", "kexec", guests=[guest.name for guest in GUESTS])
    assert result["failed"] and "undone before the jump" in result["msg"] and "ended in the step 'committed'" in result["msg"]
    assert boot_of(hv1) == before
    assert not sessions(hv1)
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"
    assert all(verdict.survived for verdict in ticking(hv1, since).values())


@pytest.mark.beyond
def test_one_host_that_is_refused_stops_the_run_before_any_is_touched_or_is_left_out(
    controller: Controller, hv1: Host, hv2: Host, kernels: tuple[str, str]
) -> None:
    """hv2 comes after hv1, and is examined before it is updated."""
    before = boot_of(hv1)
    asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernels[1]}"}
    hv2.ssh("mv /dev/liveupdate /dev/liveupdate.away")
    try:
        stopped = controller.play(f"{MODULES}.update", **asked)
        left_out = controller.play(f"{MODULES}.update", "--check", hypervisor_update_leave_out=True, **asked)
    finally:
        hv2.ssh("mv /dev/liveupdate.away /dev/liveupdate")
    assert stopped.code != 0 and "No host was touched" in stopped.output
    assert {name: host["outcome"] for name, host in stopped.report.items()} == {"hv1": "checked", "hv2": "refused"}
    assert boot_of(hv1) == before and all(counts["changed"] == 0 for counts in stopped.recap.values())
    assert left_out.code == 0, left_out.output
    assert {name: host["outcome"] for name, host in left_out.report.items()} == {"hv1": "checked", "hv2": "left_out"}


def moved(host: dict[str, Any], kernels: tuple[str, str]) -> None:
    """The host runs the new kernel, and its guests came over unharmed; the clocks that saw their pause agree."""
    assert all_survived({"the host": host}), json.dumps(host, indent=1)
    assert (host["kernel_before"], host["kernel_after"]) == kernels
    assert host["boot_id_before"] != host["boot_id_after"]
    for guest in host["guests"].values():
        assert guest["same_boot_id"] and guest["ticks_contiguous"] and guest["blackout_s"] > 0
        assert guest["checksum_before"] == guest["checksum_after"]
        assert guest["clocks_agree"] or guest["clocks_explained"], guest["clocks"]


def first_in_the_boot(host: Host) -> bool:
    """Whether the guest that needs nothing else ran again before the ordinary boot began, and the one on a bridge once that was there."""
    resumed = "[os.stat(f'/run/kvm-liveupdate/guests/{name}.resumed').st_mtime - time.time() + time.monotonic() for name in ('web', 'db')]"
    begun = "systemctl show --property InactiveExitTimestampMonotonic --value sysinit.target systemd-networkd.service"
    done = host.ssh(f'python3 -c "import os, time; print(*{resumed})"; {begun}')
    web, db, boot, network = (float(word) for word in done.stdout.split())
    return 0 < web < boot / 1e6 and db > network / 1e6


def test_a_host_over_budget_is_updated_and_stops_the_rollout(
    controller: Controller, hv1: Host, hv2: Host, kernels: tuple[str, str], shown: Play
) -> None:
    before = boot_of(hv2)
    # As dracut leaves it at a shutdown. systemd-shutdown would run it instead of the kexec.
    exitrd = "/run/initramfs/shutdown"
    hv1.ssh(f"mkdir -p /run/initramfs; printf '#!/bin/sh\\nexec sleep 1000\\n' > {exitrd}; chmod 755 {exitrd}")
    assert hv1.ssh(f"test -x {exitrd}").returncode == 0
    play, hosts = update(controller, [hv1, hv2], kernels[1], hypervisor_update_blackout_max=0.5, hypervisor_update_metrics="/run")
    assert play.code != 0
    assert "guests paused longer than hypervisor_update_blackout_max allows (0.5 s)" in play.output, play.output
    moved(hosts["hv1"], kernels)
    assert hv1.ssh(f"ls {exitrd}*").stdout == ""
    assert first_in_the_boot(hv1)
    assert hosts["hv1"]["update_id"] == play.report["hv1"]["update_id"]
    assert play.report["hv1"]["outcome"] == "updated" and play.report["hv1"]["over_budget"] == play.report["hv1"]["why"]
    assert boot_of(hv2) == before and play.report["hv2"]["outcome"] == "checked"
    assert decided(play.report["hv1"]) == decided(shown.report["hv1"])  # what was shown is what is done
    metrics = hv1.ssh("cat /run/kvm_liveupdate.prom").stdout
    assert 'kvm_liveupdate_last_update_outcome{outcome="updated"} 1.000' in metrics
    for guest in GUESTS:
        assert f'kvm_liveupdate_guest_restored{{guest="{guest.name}"}} 1.000' in metrics


@pytest.mark.beyond
def test_a_host_whose_guests_would_be_paused_for_too_long_is_refused(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    """By what they had in the update before."""
    play = controller.play(
        f"{MODULES}.update",
        "--limit",
        "hv1",
        hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[0]}",
        hypervisor_update_blackout_max=0.5,
    )
    assert play.code != 0 and "expected pause: " in play.output
    assert play.report["hv1"]["outcome"] == "refused"
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"


def decided(host: dict[str, Any]) -> dict[str, Any]:
    """The plan, without what a host has free and which other services it runs at the moment."""
    steps = [re.sub(r"(stop other services) \(.*?\)", r"\1", step) for step in host["plan"]["steps"]]
    return {**{key: host["plan"][key] for key in ("verdict", "refusals", "guests", "expected_pause")}, "steps": steps}


def test_a_second_run_changes_nothing(controller: Controller, hv1: Host, kernels: tuple[str, str]) -> None:
    before = boot_of(hv1)
    play = controller.play(f"{MODULES}.update", "--limit", "hv1", hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[1]}")
    assert play.code == 0, play.output
    assert all(counts["changed"] == 0 for counts in play.recap.values())
    assert boot_of(hv1) == before
    assert f"The host runs Linux {kernels[1]} already." in play.output


def test_nothing_is_left_of_the_update(hv1: Host) -> None:
    assert not sessions(hv1)
    assert hv1.ssh("cat /sys/kernel/kexec_loaded").stdout.strip() == "0"
    assert "state" not in [name.rpartition(".")[2] for name in hv1.ssh("ls /var/lib/kvm-liveupdate/guests").stdout.split()]
    assert hv1.ssh("systemctl show -P NFileDescriptorStore web.service").stdout.strip() == "0"


def test_a_restarted_guest_is_not_taken_for_a_survivor(hv1: Host) -> None:
    """The judge itself on trial: a guest that started afresh must not pass."""
    since = time.monotonic()
    hv1.ssh("systemctl restart web.service")
    wait_alive(hv1, WEB)
    verdict = final_verdict(hv1, WEB, since)
    assert not verdict.survived
    assert len(verdict.boot_ids) == 2, verdict.reason


@pytest.mark.beyond
def test_a_restore_that_fails_is_tried_again(controller: Controller, hv2: Host, kernels: tuple[str, str]) -> None:
    """The other host moves, and QEMU cannot be run there after the jump. The memory waits until an operator has mended that."""
    since = time.monotonic()
    hv2.ssh("chmod -x /usr/bin/qemu-system-x86_64")
    play = controller.play(
        f"{MODULES}.update",
        "--limit",
        "hv2",
        hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[1]}",
        hypervisor_update_restore_timeout=5,
    )
    assert play.code != 0
    assert "not restored within 5 s: its QEMU does not run" in play.output and "To try again" in play.output
    assert boot_of(hv2).kernel == kernels[1]
    play = controller.play(f"{MODULES}.update", "--limit", "hv2", hypervisor_update_kernel=f"/boot/vmlinuz-{kernels[1]}")
    assert play.code != 0 and "an update saved guest web and has not restored it" in play.output
    hv2.ssh("chmod +x /usr/bin/qemu-system-x86_64; systemctl start web.service db.service")
    assert all(verdict.survived for verdict in ticking(hv2, since).values())
    for guest in GUESTS:
        assert not controller.ask("hv2", "guest", names=[guest.name], state="running")["changed"]
    assert not sessions(hv2)


@pytest.mark.beyond
def test_a_bit_that_changed_on_the_way_keeps_the_guest_from_running(controller: Controller, hv2: Host, kernels: tuple[str, str]) -> None:
    """on_loss is start, and yet the guest does not start, until an operator discards its memory. The other guest goes on."""
    since, boot_before = time.monotonic(), hv2.heartbeat(WEB.port)[-1].boot_id
    memory_fault.arrange(hv2, WEB.name)
    asked = {
        "hypervisor_update_kernel": f"/boot/vmlinuz-{kernels[0]}",
        "hypervisor_update_verify_memory": "full",
        "hypervisor_update_restore_timeout": 60,
    }
    play = controller.play(f"{MODULES}.update", "--limit", "hv2", **asked)
    assert play.code != 0
    assert (
        "guest web: not restored within" in play.output and "its preserved memory is not the same as before the jump: 1 of " in play.output
    )
    assert f"file 1 at offset {memory_fault.OFFSET >> 20 << 20:#x} (1048576 bytes)" in play.output
    assert boot_of(hv2).kernel == kernels[0]
    guests = play.report["hv2"]["guests"]
    assert (guests["db"]["state"], guests["db"]["memory_verified"], guests["web"]["state"]) == ("restored", "full", "saved")
    assert final_verdict(hv2, DB, since).survived
    assert hv2.ssh("systemctl start web.service; sleep 2; systemctl is-active web.service").stdout.strip() == "failed"
    assert hv2.heartbeat(WEB.port)[-1].boot_id == boot_before
    again = controller.play(f"{MODULES}.update", "--limit", "hv2", **asked)
    assert again.code != 0 and "guest web is not restored, because its preserved memory is not the same" in again.output
    assert hv2.ssh("kvm-liveupdate discard web && systemctl start web.service").returncode == 0  # as the runbook says
    wait_until("the guest's clean start", lambda: (hv2.heartbeat(WEB.port)[-1].boot_id != boot_before, "its old boot id"))
    last = controller.play(f"{MODULES}.update", "--limit", "hv2", **asked)
    assert last.code == 0, last.output
    assert not sessions(hv2)


@pytest.mark.beyond
def test_a_full_check_finds_nothing_where_nothing_changed(controller: Controller, hv2: Host, kernels: tuple[str, str]) -> None:
    """On the way to the kernel that the next tests expect. Nothing may write to the memory between the save and the jump."""
    since = time.monotonic()
    asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernels[1]}", "hypervisor_update_verify_memory": "full"}
    play = controller.play(f"{MODULES}.update", "--limit", "hv2", **asked)
    assert play.code == 0, play.output
    assert "The full check of the memory alone takes about" in play.output or "the full check of the memory takes about" in play.output
    assert {guest["memory_verified"] for guest in play.report["hv2"]["guests"].values()} == {"full"}
    assert all(verdict.survived for verdict in ticking(hv2, since).values())


SAVE = """
import sys; sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.guests import _hold, _providers
from kvm_liveupdate.handover import _early
from kvm_liveupdate.host import _this_boot
from kvm_liveupdate.update import _jump
for name, on_loss in {"web": "start", "db": "stop"}.items():
    record = _providers.find(name)
    holds = {name: _hold.hold(record)}
    _early.start_early(record["unit"], True)
    _jump._save(record, {"id": "power-cut", "boot_id": _this_boot.boot_id(), "on_loss": on_loss, "running": [name], "holds": holds})
"""


@pytest.mark.beyond
def test_a_power_cut_after_the_save_never_resumes_stale_state(hv2: Host) -> None:
    """The worst moment: the guests are saved, the memory is gone. Each does what its update asked for, and says so."""
    done = hv2.ssh("python3 -", stdin=SAVE)
    assert done.returncode == 0, done.stderr
    assert hv2.ssh("ls /var/lib/kvm-liveupdate/guests/{web,db}.state").returncode == 0
    boot_before = hv2.heartbeat(WEB.port)[-1].boot_id
    hv2.reboot_hard()
    wait_until("the guest's clean start", lambda: (hv2.heartbeat(WEB.port)[-1].boot_id != boot_before, "its old boot id"))
    journal = json.loads(hv2.ssh("cat /var/lib/kvm-liveupdate/guests/web.json").stdout)
    assert journal["state"] == "lost" and "did not survive" in journal["why"]
    assert hv2.ssh("ls /var/lib/kvm-liveupdate/guests/web.state").returncode != 0
    assert "web: cold: its memory did not survive the reboot; it starts from its disks" in hv2.ssh("journalctl -b -u web.service").stdout
    assert hv2.ssh("systemctl is-active db.service").stdout.strip() == "failed"
    assert "it stays off, as on_loss=stop says" in hv2.ssh("journalctl -b -u db.service").stdout
    assert hv2.ssh("kvm-liveupdate discard db && systemctl start db.service").returncode == 0
    wait_alive(hv2, DB)
