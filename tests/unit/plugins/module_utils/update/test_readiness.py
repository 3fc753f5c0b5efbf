# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _module
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError, told
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _processes, _systemd
from ansible_collections.kvm.liveupdate.plugins.module_utils.update import _readiness

CAPABLE = {
    "dev/liveupdate": "",
    "proc/cmdline": "root=/dev/vda kho=on liveupdate=on",
    "proc/sys/kernel/kexec_load_disabled": "0\n",
    "sys/kernel/kexec_loaded": "0\n",
}


@pytest.fixture(name="host")
def host_tree(tmp_path):
    def build(**changes):
        for path, content in {**CAPABLE, **changes}.items():
            if content is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(content)
        return str(tmp_path)

    return build


def test_a_capable_host_has_no_reasons(host):
    assert _readiness.reasons(host(), 262, True) == []


REBOOT = "run the playbook kvm.liveupdate.setup, which adds this and reboots the host (hypervisor_setup_reboot_ok: true)"


@pytest.mark.parametrize(
    ("changes", "systemd", "runtime", "code", "says"),
    [
        (
            {"dev/liveupdate": None},
            262,
            True,
            "no-device",
            "/dev/liveupdate does not exist, although the kernel command line has kho=on and liveupdate=on -> run kernel 7.2 or later with"
            " CONFIG_LIVEUPDATE=y and CONFIG_KEXEC_HANDOVER=y; 'dmesg | grep -iE \"kho|luo\"' may show more",
        ),
        (
            {"dev/liveupdate": None, "proc/cmdline": "liveupdate=on"},
            262,
            True,
            "cmdline",
            f"/dev/liveupdate does not exist, because the kernel command line lacks kho=on -> {REBOOT}",
        ),
        (
            {"dev/liveupdate": None, "proc/cmdline": "kho=on"},
            262,
            True,
            "cmdline",
            f"/dev/liveupdate does not exist, because the kernel command line lacks liveupdate=on -> {REBOOT}",
        ),
        (
            {"dev/liveupdate": None, "proc/cmdline": ""},
            262,
            True,
            "cmdline",
            f"/dev/liveupdate does not exist, because the kernel command line lacks kho=on and liveupdate=on -> {REBOOT}",
        ),
        (
            {"sys/kernel/kexec_loaded": None},
            262,
            True,
            "no-kexec",
            "the running kernel has no kexec -> run a kernel with CONFIG_KEXEC_FILE=y",
        ),
        (
            {"proc/sys/kernel/kexec_load_disabled": "1\n"},
            262,
            True,
            "kexec-disabled",
            "the sysctl kernel.kexec_load_disabled is 1, which only a reboot resets -> remove that sysctl setting and reboot",
        ),
        ({}, 254, True, "systemd", "systemd 254 cannot carry sessions through a shutdown -> install systemd 255 or later"),
        (
            {},
            262,
            False,
            "runtime",
            "the host runtime is not installed, or it is of another version than this collection -> run the playbook kvm.liveupdate.setup",
        ),
    ],
)
def test_each_reason_says_what_and_the_remedy(host, changes, systemd, runtime, code, says):
    (found,) = _readiness.reasons(host(**changes), systemd, runtime)
    assert (found["code"], f"{found['message']} -> {found['remedy']}") == (code, says)


def test_a_systemd_that_keeps_a_holder_alive_is_enough(host):
    assert _readiness.reasons(host(), 255, True) == []


DOG = {"name": "watchdog0", "identity": "iTCO_wdt", "nowayout": "0", "active": True, "fed_by": ["PID 1"]}


@pytest.mark.parametrize(
    ("changes", "kexec", "says"),
    [
        ({}, "0", ""),
        ({"active": False, "nowayout": "1", "fed_by": []}, "0", ""),
        (
            {"active": False, "fed_by": []},
            "2min",
            "watchdog /dev/watchdog0 (iTCO_wdt) for each kexec (KExecWatchdogSec=2min)",
        ),
        ({}, "infinity", "KExecWatchdogSec=infinity"),  # with the time that the device has
        ({"fed_by": ["watchdog.service"]}, "0", ""),  # the update stops it, and looks then
        ({"nowayout": "1", "fed_by": ["watchdog.service"]}, "0", "nothing can stop it (nowayout=1)"),
        ({"nowayout": "1"}, "0", "nothing can stop it (nowayout=1)"),
        ({"fed_by": []}, "0", "no program feeds it"),
        (
            {"fed_by": ["process 8 in libpod-1.scope"]},
            "0",
            "process 8 in libpod-1.scope feeds the watchdog /dev/watchdog0 (iTCO_wdt); the update",
        ),
        (
            {"fed_by": ["sbd.service", "sbd2.service"]},
            "0",
            "sbd.service feeds the watchdog /dev/watchdog0 (iTCO_wdt), and hypervisor_update_keep",
        ),
        ({"fed_by": ["wdmd.service"]}, "0", "wdmd.service feeds the watchdog /dev/watchdog0 (iTCO_wdt) until the jump"),
    ],
)
def test_a_watchdog_that_may_reset_the_host_in_the_update_is_a_reason(changes, kexec, says):
    found = _readiness.watchdog_reasons([{**DOG, **changes}], kexec, ["sbd.service"])
    assert [why["code"] for why in found] == ["watchdog"] * bool(says)
    assert not says or (says in found[0]["message"] and "all guests are lost" in found[0]["message"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"active": False, "fed_by": []}, ""),
        (
            {"fed_by": []},
            "and no program feeds it. It may reset the host at any moment - make sure that the program that fed it runs again",
        ),
        (
            {"fed_by": ["wd_keepalive.service"]},
            "; wd_keepalive.service feeds it. It may reset the host during the pause - before the update",
        ),
        ({"fed_by": ["PID 1", "process 7"]}, "; PID 1 and process 7 feeds it. It may"),
    ],
)
def test_when_the_services_have_stopped_only_pid_1_feeds_a_watchdog(changes, says):
    found = _readiness.armed([{**DOG, **changes}])
    assert [why["code"] for why in found] == ["watchdog"] * bool(says) and (not says or says in told(found[0]))


def test_the_watchdogs_of_a_host_are_asked_for_only_if_it_has_some(host, monkeypatch):
    asked = []
    monkeypatch.setattr(_systemd, "kexec_watchdog", lambda: asked.append(1) or "30s")
    assert _readiness.reasons(host(), 262, True) == [] and not asked
    root = host(**{"sys/class/watchdog/watchdog0/identity": "iTCO_wdt\n", "proc/1/comm": "systemd\n"})
    (found,) = _readiness.reasons(root, 262, True)
    assert found["code"] == "watchdog" and "iTCO_wdt" in found["message"] and "KExecWatchdogSec=30s" in found["message"]


def test_not_root_is_said_first(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LiveUpdateError, match=r"uid 1000.*become"):
        _module.require_root()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/web1.service\n", "web1.service"),
        ("0::/system.slice/system-guest.slice/guest@a.service/sub\n", "guest@a.service"),
        ("0::/machine.slice/machine-qemu.scope/libvirt\n", "machine-qemu.scope"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/\n", None),
        ("1:cpu:/x\n", None),
    ],
)
def test_unit_of(tmp_path, cgroup, unit):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(cgroup)
    assert _processes.unit_of(7, str(tmp_path)) == unit
