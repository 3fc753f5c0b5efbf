# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to guests when somebody else acts on them, or on their host. The fault suite (tests/faults) has more of this.

The host runs a QEMU unit and two libvirt domains.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kvmlab.machines.host import Host
from kvmlab.story.controller import GUESTS, Controller, Play
from kvmlab.story.domains import DISK, PLAIN, Domain, define_domains, records, shut_down, start_domains
from kvmlab.story.night import boot_of, end_guests, final_verdict, other_kernel, start_guests, update, wait_until
from kvmlab.watch.report import all_survived

pytestmark = pytest.mark.beyond

WEB = GUESTS[0]
# A number is a name, too. libvirt gives the first domain that it starts the id 1.
NUMBERED = Domain("1", PLAIN.port, PLAIN.ram)
DOMAINS = (NUMBERED, DISK)
EVERYBODY = (WEB, *DOMAINS)


@pytest.fixture(scope="module", name="host")
def host_with_a_unit_and_domains(controller: Controller, hv1: Host, hv2: Host) -> Iterator[Host]:
    for each in (hv1, hv2):
        end_guests(each)
    define_domains(controller, [hv1], DOMAINS)
    for each, domains in ((hv1, DOMAINS), (hv2, ())):
        asked: dict[str, Any] = {"hypervisor_setup_domains": [domain.name for domain in domains]}
        prepared = controller.play("kvm.liveupdate.setup", "--limit", each.name, hypervisor_setup_reboot_ok=True, **asked)
        assert prepared.code == 0, prepared.output
    hv1.ssh("systemctl restart libvirtd")  # so that ids begin at 1
    start_domains([hv1], [DISK])
    start_domains([hv1], [NUMBERED])
    start_guests(controller, [hv1], [WEB])
    yield hv1
    end_guests(hv1)
    hv1.ssh(f"virsh undefine {NUMBERED.name}")


def test_a_domain_that_is_a_number_moves_with_its_neighbours_after_a_live_snapshot(controller: Controller, host: Host) -> None:
    """The disk has a new image since its snapshot. After the jump the domain goes on with that one."""
    snapshot = f"virsh snapshot-create-as {DISK.name} later --disk-only --no-metadata"
    assert host.ssh(snapshot).returncode == 0
    time.sleep(5)
    play, report = update(controller, [host], other_kernel(host), guests=EVERYBODY)
    assert play.code == 0, play.output
    assert all_survived(report), report
    told = host.heartbeat(DISK.port)[-1]
    assert ".later" in host.ssh(f"virsh domblklist {DISK.name}").stdout
    assert host.ssh(f"virsh blockcommit {DISK.name} vda --active --pivot --wait", limit_s=600).returncode == 0
    shut_down(host, DISK)
    found = records(host, DISK)
    assert found.fault is None, found.fault
    assert told.synced and found.count >= told.synced and found.boot_ids == (told.boot_id,)
    start_domains([host], [DISK])


# A kexec as an operator makes it, or a host on which every reboot is one (kexec-tools, LOAD_KEXEC). The runtime's Python does the call.
FOREIGN_KEXEC = """
import os, subprocess, sys
sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.kernel import _kexec
kernel = os.open(sys.argv[1], os.O_RDONLY)
_kexec._kexec_file_load(kernel, -1, open("/proc/cmdline").read().strip().encode() + b"\\0", 4)  # without an initial RAM disk
subprocess.run(["systemctl", "kexec"], check=True)
"""
# What the kernel says of a session that is not there (include/uapi/linux/liveupdate.h).
SESSIONS = """
import json, sys
sys.path.insert(0, "/usr/local/lib/kvm-liveupdate")
from kvm_liveupdate.kernel import _luo
found = {}
for name in sys.argv[1:]:
    try:
        _luo.retrieve_session(name)
        found[name] = "kept"
    except Exception as err:
        found[name] = "gone" if _luo.is_gone(err) else str(err)
print(json.dumps(found))
"""


def kexec_by_somebody(host: Host, kernel: str) -> None:
    """Bring a host onto this kernel without its guests, as an operator does who knows nothing of live updates."""
    before = boot_of(host)
    host.ssh("cat > /root/kexec.py", stdin=FOREIGN_KEXEC)
    host.ssh(f"systemd-run --collect python3 /root/kexec.py /boot/vmlinuz-{kernel}")
    host.wait_ssh(not_boot_id=before.boot_id)
    wait_until("the boot", lambda: ((state := host.ssh("systemctl is-system-running").stdout.strip()) in ("running", "degraded"), state))


@pytest.mark.parametrize("which", ["hv1", "hv2"])
def test_somebody_elses_kexec_leaves_no_memory_reserved(controller: Controller, host: Host, hv2: Host, which: str) -> None:
    """On hv1 PID 1 carries the sessions over, on hv2 nobody takes them."""
    at, guests = (host, EVERYBODY) if which == "hv1" else (hv2, (WEB,))
    start_guests(controller, [at], [WEB])
    held = controller.ask(which, "guest", names=[guest.name for guest in guests], state="preserved")
    assert held["changed"], held
    notes = "/var/lib/kvm-liveupdate/guests/*.hold"
    sessions = at.ssh(f"cat {notes} | grep -oE 'kvm-[0-9a-f]{{32}}' | sort -u").stdout.split()
    assert len(sessions) == len(guests)
    kexec_by_somebody(at, boot_of(at).kernel)
    said = at.ssh("journalctl --boot --no-pager --unit kvm-liveupdate-unclaimed").stdout
    for guest in guests:
        assert f"{guest.name}: the host was rebooted by a kexec that was not a live update" in said, said
    assert not at.ssh(f"ls {notes}").stdout
    at.ssh("cat > /root/sessions.py", stdin=SESSIONS)
    assert json.loads(at.ssh(f"python3 /root/sessions.py {' '.join(sessions)}").stdout) == dict.fromkeys(sessions, "gone")
    if at is host:
        start_domains([host], [DISK])
        start_domains([host], [NUMBERED])
    start_guests(controller, [at], [WEB])


def test_a_lost_host_stops_the_rollout_and_finishes_by_itself(controller: Controller, host: Host, hv2: Host) -> None:
    """Its processor stands still from the moment in which it stops its services. Later it goes on as if nothing had been."""
    if boot_of(hv2).kernel != boot_of(host).kernel:  # it is to have an update before it
        kexec_by_somebody(hv2, boot_of(host).kernel)
    since, kernel, neighbour = time.monotonic(), other_kernel(host), boot_of(hv2)
    assert hv2.ssh(f"ls /boot/vmlinuz-{kernel}").returncode == 0
    hosts = f"{host.name},{hv2.name}"
    played: list[Play] = []

    def run() -> None:
        asked = {"hypervisor_update_kernel": f"/boot/vmlinuz-{kernel}", "hypervisor_update_timeout": 900}
        played.append(controller.play("kvm.liveupdate.update", "--limit", hosts, **asked))

    rollout = threading.Thread(target=run)
    rollout.start()
    try:
        look = 'grep -qE \'"state": "(stopping|saving|jumping)"\' /var/lib/kvm-liveupdate/update.json'
        fresh = f'test "$(stat -c %Y /var/lib/kvm-liveupdate/update.json)" -gt "$(($(date +%s) - 60))" && {look}'
        wait_until("the host stops its services", lambda: (host.ssh(fresh).returncode == 0, "not yet"))
        host.freeze()
        rollout.join()
    finally:
        host.thaw()
        rollout.join()
    (play,) = played
    assert play.code != 0, play.output
    assert boot_of(hv2) == neighbour and play.report[hv2.name]["outcome"] in ("checked", "left_out", "not_begun"), play.output
    assert play.report[host.name]["outcome"] == "lost", play.report[host.name]
    wait_until("the host on its new kernel", lambda: ((seen := host.ssh("uname -r").stdout.strip()) == kernel, seen))
    for guest in EVERYBODY:
        verdict = final_verdict(host, guest, since)
        assert verdict.survived, f"{guest.name}: {verdict.reason}"
