# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Again and again: the updates of many nights, without a loss."""

from __future__ import annotations

import json
import os

import pytest
from kvmlab.machines.host import Host
from kvmlab.story.controller import GUESTS, Controller
from kvmlab.story.night import start_guests, update, wait_alive
from kvmlab.watch.report import all_survived

pytestmark = pytest.mark.beyond

# The other tests make five updates of hosts. 20 of guests take about half an hour on two cores.
GUEST_UPDATES = int(os.environ.get("KVM_LIVEUPDATE_GUEST_UPDATES", "0"))


@pytest.mark.skipif(not GUEST_UPDATES, reason="KVM_LIVEUPDATE_GUEST_UPDATES says how many guest updates it is to make")
def test_guest_updates_in_a_row(controller: Controller, hv1: Host, hv2: Host, kernels: tuple[str, str]) -> None:
    hosts = [hv1, hv2]
    start_guests(controller, hosts)
    done = 0
    while done < GUEST_UPDATES:
        running = hv1.ssh("uname -r").stdout.strip()
        target = kernels[0] if running == kernels[1] else kernels[1]
        for host in hosts:
            for guest in GUESTS:
                wait_alive(host, guest)
        play, report = update(controller, hosts, target)
        assert play.code == 0, f"after {done} guest updates: {play.output}"
        jumped = [host for host in report.values() if host["jumped"]]
        assert all_survived({name: host for name, host in report.items() if host["jumped"]}), json.dumps(report, indent=1)
        done += len(jumped) * len(GUESTS)
