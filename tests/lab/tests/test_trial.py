# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A trial of a host without guests: it passes where all devices come back, and finds a network card that does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kvmlab.machines.host import Host
from kvmlab.machines.machine import segment_mac
from kvmlab.story.controller import GUESTS, Controller, Play
from kvmlab.story.night import boot_of, end_guests, other_kernel, start_guests

pytestmark = pytest.mark.beyond

WEB = GUESTS[0]
# A boot that loses the card on the segment, before anybody can log in: its driver lets go of it. Nothing else starts this unit.
LOSES = """[Unit]
Description=Lose a network card
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/root/lose-card

[Install]
WantedBy=multi-user.target
"""
LOSE = """#!/bin/sh
for card in /sys/class/net/*; do
    if grep -qx {mac} $card/address && [ -e $card/device/driver/unbind ]; then
        basename $(readlink -f $card/device) | tee /root/lost-card >$card/device/driver/unbind
    fi
done
"""


@pytest.fixture(scope="module", params=["hv1", "hv2"], name="host")
def a_drained_host(request: pytest.FixtureRequest, controller: Controller) -> Iterator[Host]:
    """One of each kind: with systemd's fd store that survives a kexec, and with a process that holds the memory."""
    host: Host = request.getfixturevalue(request.param)
    end_guests(host)
    prepared = controller.play("kvm.liveupdate.setup", "--limit", host.name, hypervisor_setup_reboot_ok=True)
    if prepared.code:
        raise RuntimeError(f"the setup playbook failed:\n{prepared.output}")
    yield host
    end_guests(host)


def run(controller: Controller, host: Host, folder: Path, *options: str, within: int = 600) -> tuple[Play, dict[str, Any]]:
    """One trial, to the kernel that the host does not run, and its report. It waits so long for what is missing."""
    report = folder / "trial.json"
    report.unlink(missing_ok=True)
    play = controller.play(
        "kvm.liveupdate.trial",
        "--limit",
        host.name,
        *options,
        hypervisor_update_kernel=f"/boot/vmlinuz-{other_kernel(host)}",
        hypervisor_trial_report=str(report),
        hypervisor_trial_slow=3600,
        hypervisor_trial_within=within,
    )
    found: dict[str, Any] = json.loads(report.read_text()).get(host.name, {})
    return play, found


def nothing_is_left(host: Host) -> None:
    """Of the trial, on the host."""
    left = host.ssh("ls -d /etc/systemd/system/liveupdate-trial* /etc/systemd/system/*/liveupdate-trial* /var/lib/kvm-liveupdate/trial*")
    assert left.stdout == "", left.stdout
    assert "liveupdate-trial" not in json.loads(host.ssh("kvm-liveupdate status").stdout)["guests"]


def the_guest_kept_its_memory(report: dict[str, Any]) -> None:
    guest = report["guest"]
    assert guest["marked"] and guest["goes_on"] and (guest["differ"], guest["wrong"]) == (0, 0), guest
    assert report["pause"] > 0


def test_a_host_with_a_guest_is_refused(controller: Controller, host: Host, tmp_path: Path) -> None:
    start_guests(controller, [host], [WEB])
    before = boot_of(host)
    play, report = run(controller, host, tmp_path)
    assert play.code != 0 and report["outcome"] == "refused", play.output
    assert "a trial needs a host without guests, and web runs here" in play.output
    assert boot_of(host) == before and host.ssh(f"systemctl is-active {WEB.unit}").stdout.strip() == "active"
    nothing_is_left(host)
    host.ssh(f"systemctl stop {WEB.unit}")


def test_check_mode_changes_nothing(controller: Controller, host: Host, tmp_path: Path) -> None:
    before = boot_of(host)
    play, report = run(controller, host, tmp_path, "--check")
    assert play.code == 0 and report["outcome"] == "checked", play.output
    assert boot_of(host) == before
    nothing_is_left(host)


def test_where_all_devices_come_back_nothing_is_found(controller: Controller, host: Host, tmp_path: Path) -> None:
    before, kernel = boot_of(host), other_kernel(host)
    play, report = run(controller, host, tmp_path)
    assert play.code == 0 and (report["outcome"], report["findings"]) == ("passed", []), play.output
    after = boot_of(host)
    assert after.kernel == kernel == report["kernel_after"] and after.boot_id != before.boot_id
    the_guest_kept_its_memory(report)
    times = {time["device"]: time["seconds"] for time in report["times"]}
    links = [device for device in times if device.startswith("link of ")]
    assert len(links) == 2 and all(seconds is not None for seconds in times.values()), times
    nothing_is_left(host)
    print(f"{host.kind}: " + json.dumps({"times": report["times"], "pause": report["pause"]}))


def test_a_network_card_that_does_not_come_back_is_the_only_finding(controller: Controller, host: Host, tmp_path: Path) -> None:
    mac = segment_mac(host.number)
    host.ssh("cat >/root/lose-card && chmod 755 /root/lose-card", stdin=LOSE.format(mac=mac))
    host.ssh("cat >/etc/systemd/system/lose-card.service && systemctl enable lose-card.service", stdin=LOSES)
    (name,) = host.ssh(f"cd /sys/class/net; for card in *; do [ -e $card/device ] && grep -lx {mac} $card/address; done").stdout.split()
    name = name.partition("/")[0]
    try:
        play, report = run(controller, host, tmp_path, within=240)  # until then it waits for the card
    finally:
        host.ssh("systemctl disable lose-card.service; rm /etc/systemd/system/lose-card.service; systemctl daemon-reload")
        host.ssh("cat /root/lost-card >/sys/bus/virtio/drivers/virtio_net/bind; rm /root/lost-card /root/lose-card")
    assert play.code != 0 and report["outcome"] == "findings", play.output
    (finding,) = report["findings"]
    assert finding["code"] == "interface-gone" and finding["message"].startswith(f"network interface {name} ("), finding
    assert f"{host.name}: {finding['message']} - {finding['remedy']}" in play.output
    the_guest_kept_its_memory(report)
    nothing_is_left(host)
