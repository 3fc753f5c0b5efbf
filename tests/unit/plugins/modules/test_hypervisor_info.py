# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _digests, _session
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _processes, _this_boot
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _cmdline, _image, _proof
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _ram, _setup, _virsh
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _monitor
from ansible_collections.kvm.liveupdate.plugins.modules import hypervisor_info

PARAMS = {"kernel": None, "initrd": None, "cmdline": None, "accept_unknown": [], "verify_memory": "none", "to_be_installed": False}
SHOWN = {
    "MainPID": str(os.getpid()),
    "FragmentPath": "/etc/systemd/system/web.service",
    "FileDescriptorStoreMax": "4",
    "FileDescriptorStorePreserve": "yes",
    "NotifyAccess": "all",
    "IgnoreOnIsolate": "yes",
    "Slice": "guests-web.slice",
    "MemoryMax": "infinity",
    "NFileDescriptorStore": "1",
}


class Monitor:
    """A guest without anything that speaks against it."""

    def __init__(self, path, answer_s=0.0):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def status(self):
        return "running"

    def query(self, _command):
        return {}

    def execute(self, command, **_arguments):
        return {"human-monitor-command": "", "query-cpus-fast": [{}]}.get(command, [])


@pytest.fixture(name="host")
def a_host(tmp_path, monkeypatch):
    """Guests in units, all of them this process, and the programs that are started to look at them."""
    programs = []

    def run(*words, **_limit):
        programs.append(words[0])
        units = words[words.index("--") + 1 :] if "--" in words else []
        if words[0] == "systemd-analyze":
            return f'[{{"fdname": "{_session.FDNAME}"}}]\n' * len(units)
        if words[1] == "list-units":
            return "cron.service loaded active running Cron\n"
        asked = words[2].removeprefix("--property=").split(",")
        if asked == ["Version"]:
            return "262\n"
        return "\n".join("".join(f"{key}={SHOWN[key]}\n" for key in asked if key in SHOWN) + f"Id={unit}\n" for unit in units)

    for name in ("RUN", "GUESTS_RUN", "GUESTS_STATE", "AWAY", "UPDATE", "LEASE"):
        monkeypatch.setattr(_files, name, str(tmp_path / name))
    (tmp_path / "GUESTS_RUN").mkdir()
    monkeypatch.setattr(_virsh, "PIDS", str(tmp_path / "no libvirt"))
    monkeypatch.setattr(_monitor, "Monitor", Monitor)
    monkeypatch.setattr(_commands, "run", run)
    monkeypatch.setattr(_processes, "pids", list)

    def add(count, held):
        with open(tmp_path / "ram", "wb") as ram:
            seen = os.fstat(ram.fileno())
            fd = os.dup(ram.fileno())
        process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
        for number in range(count):
            name = f"web{number}"
            record = {
                "name": name,
                "provider": "qemu",
                "uuid": "u",
                "unit": f"{name}.service",
                "argv": ["qemu", "-nodefaults"],
                "monitor": "/m",
                **process,
            }
            _files.write_json(_files.run_path(name), {**record, "ram": [{"fd": fd, "size": 0}]})
            if held:
                _files.write_json(_files.run_path(name, "held"), {**process, "files": [[seen.st_dev, seen.st_ino]]})
        programs.clear()
        return fd

    return SimpleNamespace(add=add, programs=programs)


@pytest.mark.parametrize(("held", "programs"), [(False, ["systemctl"] * 4), (True, ["systemctl"] * 6 + ["systemd-analyze"])])
@pytest.mark.parametrize("count", [1, 40])
def test_no_guest_costs_the_host_another_program(host, count, held, programs):
    fd = host.add(count, held)
    try:
        found = hypervisor_info.examine(SimpleNamespace(params=PARAMS, check_mode=False))
    finally:
        os.close(fd)
    assert [guest["held"] for guest in found["guests"]] == [held] * count
    codes = {reason["code"] for guest in found["guests"] for reason in guest["reasons"]}
    # A file with a name; and what pytest has open of files that are gone, or in a memory file system.
    assert codes - {"file-gone", "file-volatile"} == {"ram-gone"}
    assert sorted(host.programs) == programs
    assert found["services_to_stop"] == ["cron.service"]


def test_an_empty_path_of_the_kernel_is_an_error_and_not_an_examination_without_a_kernel(host):
    with pytest.raises(LiveUpdateError, match=r"kernel is empty; write the path .*hypervisor_update_kernel"):
        hypervisor_info.examine(SimpleNamespace(params={**PARAMS, "kernel": ""}, check_mode=True))
    assert host.programs == []


def test_the_speed_of_a_full_check_is_measured_only_where_it_is_asked_for(host, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    monkeypatch.setattr(_digests, "speed", lambda: 1e9)
    found = {
        how: hypervisor_info.examine(SimpleNamespace(params={**PARAMS, "verify_memory": how}, check_mode=True)).get("memory_speed")
        for how in ("none", "sample", "full")
    }
    assert found == {"none": None, "sample": None, "full": {"bytes_per_second": 1e9, "at_once": 2}}


def test_a_kernel_that_is_installed_later_may_be_missing_and_all_else_is_examined(host, tmp_path):
    missing = {**PARAMS, "kernel": str(tmp_path / "vmlinuz-7.3.4")}
    os.close(host.add(1, False))
    with pytest.raises(LiveUpdateError, match="No such file or directory"):
        hypervisor_info.examine(SimpleNamespace(params=missing, check_mode=True))
    found = hypervisor_info.examine(SimpleNamespace(params={**missing, "to_be_installed": True}, check_mode=True))
    known = {key: value for key, value in found["target"].items() if value is not None}
    assert known == {"path": missing["kernel"], "installed": False, "current": False} and "proof" not in found
    assert {"release", "abi", "initrd"} < set(found["target"])
    assert [guest["name"] for guest in found["guests"]] == ["web0"] and found["reasons"]


def test_a_kernel_that_exists_is_read_also_if_it_may_be_missing(host, tmp_path):
    (tmp_path / "vmlinuz").write_text("no kernel")
    with pytest.raises(LiveUpdateError, match="vmlinuz"):
        hypervisor_info.examine(
            SimpleNamespace(params={**PARAMS, "kernel": str(tmp_path / "vmlinuz"), "to_be_installed": True}, check_mode=True)
        )


@pytest.mark.parametrize(
    ("asked", "initrd", "cmdline"),
    [
        ({}, "initrd.img-7.3.4", "root=/dev/vda1 kho=on liveupdate=on"),
        ({"initrd": "none"}, None, "root=/dev/vda1 kho=on liveupdate=on"),
        ({"cmdline": "root=/dev/sda2 initrd=x"}, "initrd.img-7.3.4", "root=/dev/sda2 initrd=x"),
    ],
)
def test_a_kernel_is_proven_with_what_it_will_be_staged_with(host, tmp_path, monkeypatch, asked, initrd, cmdline):
    """Its own initial RAM disk, and no words of the last boot loader or of the last jump."""
    for name in ("vmlinuz-7.3.4", "initrd.img-7.3.4"):
        (tmp_path / name).write_text(name)
    image = {**dict.fromkeys(hypervisor_info.TARGET), "path": str(tmp_path / "vmlinuz-7.3.4"), "release": "7.3.4", "version": "#1"}
    running = f"BOOT_IMAGE=/vmlinuz root=/dev/vda1 kho=on initrd=old liveupdate=on {_cmdline.GUESTS_FIRST} {_cmdline.MOUNTS}"
    proven = []

    def prove(*what, **how):
        proven.append((what, how))
        return {"there": {"verdict": "proven", "reasons": []}}

    monkeypatch.setattr(_image, "read", lambda path, **_keep: image)
    monkeypatch.setattr(_proof, "prove", prove)
    monkeypatch.setattr(_this_boot, "kernel", lambda: {"release": "7.2.13", "version": "#1", "cmdline": running})
    found = hypervisor_info.examine(SimpleNamespace(params={**PARAMS, "kernel": image["path"], **asked}, check_mode=True))
    path = initrd and str(tmp_path / initrd)
    assert found["target"]["initrd"] == path and proven == [((image, cmdline, path), {"without": "initrd" in asked})]


def test_who_runs_is_looked_up_once(host, monkeypatch):
    looked = []
    monkeypatch.setattr(_providers, "all_of_them", lambda: (SimpleNamespace(known=lambda: looked.append(1) or [], survey=len, kept=()),))
    hypervisor_info.examine(SimpleNamespace(params=PARAMS, check_mode=False))
    assert looked == [1]


def test_what_was_asked_at_once_is_what_each_would_ask(host, monkeypatch):
    fd = host.add(2, False)
    try:
        surveyed, alone = _providers.known()["web1"], _providers.known()["web1"]
        _reasons.survey([_providers.known()["web0"], surveyed])
        asked = len(host.programs)
        assert _reasons.inspect(surveyed) == _reasons.inspect(alone) and len(host.programs) == asked + 2
        assert json.dumps(surveyed, sort_keys=True) == json.dumps(alone, sort_keys=True)
    finally:
        os.close(fd)


def test_what_serves_a_guest_is_not_stopped(host, monkeypatch):
    os.close(host.add(1, held=False))
    monkeypatch.setattr(_reasons, "inspect", lambda record: record.update(servers=["cron.service"]) or [])
    found = hypervisor_info.examine(SimpleNamespace(params=PARAMS, check_mode=False))
    assert found["services_to_stop"] == []


@pytest.mark.parametrize(
    ("paths", "mounted", "is_reason"),
    [
        (["ours/libvirt/qemu/1-db/pc.ram"], False, True),
        (["", "ours/libvirt/qemu/1-db/dimm0"], False, True),
        (["ours/libvirt/qemu/1-db/pc.ram"], True, False),
        (["other/libvirt/qemu/1-db/pc.ram"], False, False),
        ([""], False, False),  # no RAM file, or one that QEMU's command line does not tell
    ],
)
def test_no_update_starts_while_the_ram_of_domains_is_in_run(tmp_path, monkeypatch, paths, mounted, is_reason):
    """An earlier setup may have ended before it mounted the tmpfs: guests die by SIGBUS when /run is full."""
    monkeypatch.setattr(_setup, "RAM_DIRECTORY", str(tmp_path / "ours"))
    monkeypatch.setattr(os.path, "ismount", lambda path: mounted and path == str(tmp_path / "ours"))
    backends = [{"path": path and f"{tmp_path}/{path}"} for path in paths]
    found = hypervisor_info.mount_reasons([{"name": "web"}, {"name": "db", "backends": backends}])
    assert [why["code"] for why in found] == ["runtime"] * is_reason
    if is_reason:
        assert found[0]["message"].startswith(f"no tmpfs is mounted on {tmp_path}/ours, so the RAM of domains is in /run")
        assert found[0]["message"].endswith(": db") and found[0]["remedy"].startswith("shut down or migrate these domains first")


@pytest.mark.parametrize(("place", "lacks"), [("ours", True), ("ours/", True), ("other", False)])
def test_where_libvirt_will_put_ram_is_read_from_its_configuration(tmp_path, monkeypatch, place, lacks):
    (tmp_path / "qemu.conf").write_text(f'memory_backing_dir = "{tmp_path}/{place}"\n')
    monkeypatch.setattr(_ram, "_CONFIGURATION", str(tmp_path / "qemu.conf"))
    monkeypatch.setattr(_setup, "RAM_DIRECTORY", str(tmp_path / "ours"))
    assert _setup.lacks_mount() is lacks
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path / "ours"))
    assert not _setup.lacks_mount()


def test_what_speaks_against_the_mount_refuses_the_host(host, monkeypatch):
    monkeypatch.setattr(hypervisor_info, "mount_reasons", lambda records: [{"code": "runtime", "message": "m", "remedy": "r"}])
    assert "m - r" in hypervisor_info.examine(SimpleNamespace(params=PARAMS, check_mode=True))["refusals"]
