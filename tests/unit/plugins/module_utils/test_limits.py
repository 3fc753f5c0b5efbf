# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No step fails while guests run, or while they come back, because a host is slow.

A machine may be five times slower than the emulated lab. So each limit of such a step is at least five times what the step takes there, or
its table says why that is no measure.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.kvm.liveupdate.plugins.module_utils import _limits

REPO = Path(_limits.__file__).parents[2]
SLOWER = 5
# Only here a limit may end what is slow: an undo lets the guests go on.
SHORT = ("The pause, and the undo that ends it.",)

# What a whole run of a module takes at most on a host with domains: dozens of commands and answers. It was seen on a machine that is three
# times slower than that of docs/docsite/rst/bench.rst: 60 s.
A_RUN = (20, "a whole run of a module with dozens of such answers")
# bench.rst, the longest of its measurements, or the sum of the parts of one.
RETRIEVE = (0.27, "bench.rst: RETRIEVE of four guests")
QEMU = (2.16, "bench.rst: start QEMU, four at once")
LOAD = (0.25, "bench.rst: load the state, four at once")
LIBVIRT = (11.87, "bench.rst: wait for libvirt")
DOMAIN = (12.11, "bench.rst: start QEMU, load the state and resume a domain")
PAUSE_OF_A_DOMAIN = (39.74, "bench.rst: all of the pause of a domain, with the boot, which this has not")

# Seconds that a step takes in the lab, and from where that is known. "at most" is what a longer step takes of which it is a part.
TAKES = {
    "AGENT_CALL": (1.02, "bench.rst: save the state of a domain, some calls of virsh"),
    "BACK": PAUSE_OF_A_DOMAIN,
    "CLOCK": (1.02 * 3, "three calls of virsh"),
    "COMMAND": A_RUN,
    "DEVICE_BUSY": RETRIEVE,
    "HOLD": (100, "four guests in 300 s on a machine that is three times slower"),
    "HOST_READY": (3.26, "bench.rst: systemd until the restore; the network of a domain is there then"),
    "LEAVE_LEAST": (34.19, "bench.rst: managed save, reboot and restore"),
    "LIBVIRT_ANSWER": A_RUN,
    "LIBVIRT_ANSWERS": (100, "four guests in 300 s on a machine that is three times slower"),
    "LIBVIRT_SOCKET": LIBVIRT,
    "LIBVIRT_START": DOMAIN,
    "LOCK": PAUSE_OF_A_DOMAIN,
    "MIGRATION_CANCELLED": (1.02, "bench.rst: save the state of a domain, which is an answer of libvirt and QEMU too"),
    "OTHER_VM": (1.08, "bench.rst: start QEMU"),
    "PATHS_LONGEST": A_RUN,
    "PID_1": A_RUN,
    "QEMU_LOAD": LOAD,
    "QEMU_LOOK": A_RUN,
    "QEMU_START": QEMU,
    "REHEARSAL": PAUSE_OF_A_DOMAIN,
    "REHEARSAL_END": PAUSE_OF_A_DOMAIN,
    "REHEARSAL_LOAD": DOMAIN,
    "REHEARSAL_LOOK": (1.02, "bench.rst: save the state of a domain, some calls of virsh"),
    "SOCKETS": LIBVIRT,
    "SYSTEM_BUS": (25, "a part of the boot of a host of the lab until SSH answers, 25 to 70 s"),
    "TRIAL_TICKS": (2, "a tick a second"),
    "UNCLAIMED": (25 + RETRIEVE[0], "the wait for D-Bus, and the release"),
    "WATCHDOGS": (2.3, "the stop of all services"),
}
# Where the time of the lab is no measure.
NO_MEASURE = {
    "AGENT_ANSWER": "nothing waits for the clock of a guest that is back, and the report says that it was not set",
    "AGENT_CONNECT": "the same",
    "BACK_SETTLE": "the time between two tries, not a limit",
    "BOOT_LOADER": "it looks for other systems on all disks, and a host of the lab has one disk; half an hour",
    "BOOT_WAITS": "at its end the rest of the boot starts beside the guests, and nothing fails",
    "COLD_START": "the guest is off already, and somebody may start it on another host meanwhile",
    "COMMIT_ANSWER": "a delay, not a limit",
    "DISK_LOCKS": "a server keeps locks for this time by its own clock",
    "GUEST_OFF": "the guest decides how long it takes; the operator may raise it, and a guest that is later is waited for all the same",
    "GUEST_OFF_LATE": "the same",
    "LIBVIRT_STUCK": "it begins again with everything that happens",
    "PATHS": "the time in which the look waits for a processor does not count",
    "REHEARSAL_QUIT": "the guest is paused until then",
    "SESSIONS": "what has not ended then is killed, and the update goes on",
    "TRIAL_GUEST": "the host has no other guests, and a trial can be repeated",
    "TRIAL_WATCH": "how long the boot looks at devices, not a limit",
    "UNIT_STOP": "systemd ends the processes of a unit after 90 s by itself (DefaultTimeoutStopSec=)",
    "UPDATE": "it is the role's default, see there",
}

# The defaults of the roles: what the host does within one, in seconds.
DEFAULTS = {
    "hypervisor_setup_reboot_timeout": (70, "the boot of a host of the lab until SSH answers takes 25 to 70 s"),
    "hypervisor_update_restore_timeout": (LIBVIRT[0] + DOMAIN[0], "bench.rst: wait for libvirt, and start a domain"),
    # Until half of it is over, the guests must be paused.
    "hypervisor_update_timeout": (
        2 * (3 * A_RUN[0] + 2.3),
        "three looks at all guests (commit, gate, services), and the stop of all services",
    ),
}
NO_DEFAULT = {
    "build_kernel_timeout": "no guest waits for a build",
    "hypervisor_update_migrate_timeout": "0 is the limit of the module, which grows with the RAM",
    "hypervisor_update_shutdown_timeout": "0 is the limit of the module, GUEST_OFF",
}


def sections():
    """The limits by the headings of their file: lines that are a comment of their own, between empty lines."""
    found, heading = {}, ""
    for block in Path(_limits.__file__).read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip().splitlines()
        if len(lines) == 1 and lines[0].startswith("# "):
            heading = lines[0][2:]
        found.setdefault(heading, []).extend(re.findall(r"^([A-Z][A-Z0-9_]*) = ", block, re.MULTILINE))
    return {heading: names for heading, names in found.items() if names}


def test_each_limit_outside_of_the_pause_is_in_one_of_the_tables():
    """Also a new one."""
    found = sections()
    assert set(SHORT) < set(found) and len(found) == 4
    named = [name for heading, names in found.items() if heading not in SHORT for name in names]
    assert sorted(named) == sorted([*TAKES, *NO_MEASURE])


@pytest.mark.parametrize("name", TAKES)
def test_a_limit_bears_a_machine_that_is_five_times_slower(name):
    seconds, why = TAKES[name]
    assert getattr(_limits, name) >= SLOWER * seconds, why


def test_the_defaults_of_the_roles_do_so_too():
    defaults = {}
    for path in sorted((REPO / "roles").glob("*/defaults/main.yml")):
        defaults.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    limits = {name: value for name, value in defaults.items() if name.endswith("_timeout")}
    assert sorted(limits) == sorted([*DEFAULTS, *NO_DEFAULT])
    assert {name: limits[name] for name, (seconds, _why) in DEFAULTS.items() if limits[name] < SLOWER * seconds} == {}
    assert limits["hypervisor_update_timeout"] == _limits.UPDATE
