# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _host, _processes
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError

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
    assert _host.reasons(host(), 262, True) == []


@pytest.mark.parametrize(
    ("changes", "systemd", "runtime", "code", "says"),
    [
        ({"dev/liveupdate": None}, 262, True, "no-device", "CONFIG_LIVEUPDATE=y"),
        ({"dev/liveupdate": None, "proc/cmdline": "liveupdate=on"}, 262, True, "cmdline", "lacks kho=on:"),
        ({"dev/liveupdate": None, "proc/cmdline": "kho=on"}, 262, True, "cmdline", "lacks liveupdate=on:"),
        ({"dev/liveupdate": None, "proc/cmdline": ""}, 262, True, "cmdline", "lacks kho=on and liveupdate=on:"),
        ({"sys/kernel/kexec_loaded": None}, 262, True, "no-kexec", "CONFIG_KEXEC_FILE"),
        ({"proc/sys/kernel/kexec_load_disabled": "1\n"}, 262, True, "kexec-disabled", "sysctl"),
        ({}, 254, True, "systemd", "systemd 254 keeps nothing alive"),
        ({}, 262, False, "runtime", "kvm.liveupdate.setup"),
    ],
)
def test_each_reason_says_what_and_the_remedy(host, changes, systemd, runtime, code, says):
    found = _host.reasons(host(**changes), systemd, runtime)
    assert [reason["code"] for reason in found] == [code]
    assert says.rstrip(":") in found[0]["message"] + " - " + found[0]["remedy"]


def test_a_systemd_that_keeps_a_holder_alive_is_enough(host):
    assert _host.reasons(host(), 255, True) == []


def test_missing_options_name_the_price_of_the_remedy(host):
    found = _host.reasons(host(**{"dev/liveupdate": None, "proc/cmdline": ""}), 262, True)
    assert "one ordinary reboot" in found[0]["remedy"] and "hypervisor_setup" in found[0]["remedy"]


def test_not_root_is_said_first(monkeypatch):
    monkeypatch.setattr(_host.os, "geteuid", lambda: 1000)
    with pytest.raises(LiveUpdateError, match=r"uid 1000.*become"):
        _host.require_root()


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


def test_what_is_free(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  4096000 kB\nMemFree: 1024 kB\nMemAvailable:    2048000 kB\nSwapTotal: 0 kB\n")
    assert _host.free("/saves", str(tmp_path)) == {"memory_mib": 2000, "saves_mib": None}
    (tmp_path / "saves").mkdir()
    assert _host.free("/saves", str(tmp_path))["saves_mib"] > 0
