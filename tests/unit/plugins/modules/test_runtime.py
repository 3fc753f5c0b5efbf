# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import types

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _runtime
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _providers
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _journal
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _commands, _files, _this_boot, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup
from ansible_collections.kvm.liveupdate.plugins.modules import runtime


@pytest.fixture(name="host")
def host_that_gets_a_runtime(tmp_path, monkeypatch):
    """Two files are wanted; systemd and the disk tell what is done in which order."""
    steps, fsync = [], os.fsync
    library, unit = str(tmp_path / "lib/kvm_liveupdate/_cli.py"), str(tmp_path / "units/x.service")
    wanted = {unit: ("[Unit]", 0o644), library: ("A = 1\n", 0o644)}
    monkeypatch.setattr(_files, "LIBRARY", str(tmp_path / "lib"))
    monkeypatch.setattr(_units, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(_runtime, "DIRECTORIES", (str(tmp_path / "state"),))
    monkeypatch.setattr(_runtime, "files", lambda *_given: wanted)
    monkeypatch.setattr(_runtime, "outdated", lambda wanted: [path for path in wanted if not os.path.exists(path)])
    monkeypatch.setattr(
        _runtime, "stale", lambda *_given: [path for path in [str(tmp_path / "lib/kvm_liveupdate/_old.py")] if os.path.exists(path)]
    )
    monkeypatch.setattr(_commands, "run", lambda *command: steps.append(command[-1]))
    monkeypatch.setattr(_providers, "known", dict)
    monkeypatch.setattr(_journal, "of_guests", dict)
    monkeypatch.setattr(_this_boot, "current_cmdline", lambda: "root=/dev/vda1 quiet")
    monkeypatch.setattr(_files, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(_files, "LOCK", str(tmp_path / "run/lock"))
    monkeypatch.setattr(_files, "UNFINISHED", str(tmp_path / "run/unfinished"))
    monkeypatch.setattr(
        os, "fsync", lambda fd: steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition(".")[0]) or fsync(fd)
    )
    return types.SimpleNamespace(steps=steps, library=library, unit=unit, folder=tmp_path)


def run(check=False, state="present", size=""):
    return runtime.manage(types.SimpleNamespace(params={"state": state, "guest_units": [], "ram_size": size}, check_mode=check))


def test_every_file_is_durable_before_systemd_reads_its_units(host):
    planned = run(check=True)
    assert not host.steps
    assert run() == planned and planned["changed"]
    assert host.steps.index("_cli") < host.steps.index("x") < host.steps.index("status") < host.steps.index("daemon-reload")
    assert host.steps.count("_cli") == 2  # what is compiled from it as well: Python trusts what it finds
    assert os.stat(host.folder / "state").st_mode & 0o777 == 0o700
    assert run()["changed"] is False


def test_what_is_not_wanted_any_more_is_removed_with_what_was_compiled(host):
    run()
    old = host.folder / "lib/kvm_liveupdate/_old.py"
    old.write_text("")
    runtime.compile_durably(str(old))
    planned = run(check=True)
    assert planned["files"] == [str(old)] and "_old.py: absent" in planned["diff"]["after"]
    assert run() == planned
    assert not list(old.parent.rglob("_old*")) and os.path.exists(host.library)


def test_a_runtime_that_a_guest_needs_to_come_back_is_not_removed(host, monkeypatch):
    run()
    saved = {"web": {"state": "saved", "unit": "web.service"}}
    monkeypatch.setattr(_journal, "of_guests", lambda: saved)
    with pytest.raises(LiveUpdateError, match=r"an update saved guest web .* 'kvm-liveupdate discard web'"):
        run(state="absent")
    monkeypatch.setattr(_journal, "of_guests", dict)
    assert run(state="absent")["changed"] and not os.path.exists(host.unit)


class Systemd:
    """The mount of the domains' RAM on this host, and what fails."""

    def __init__(self, monkeypatch, folder):
        self.steps, self.failing, self.shown = [], "", {"ActiveState": "inactive", "UnitFileState": ""}
        self.ram, self.wanted, self.drop_in = 0, 0, str(folder / "size.conf")
        self.ram_directory = folder / "ram"
        monkeypatch.setattr(_setup, "RAM_SIZE", self.drop_in)
        monkeypatch.setattr(_setup, "RAM_DIRECTORY", str(self.ram_directory))
        monkeypatch.setattr(_commands, "run", self.run)
        monkeypatch.setattr(os, "statvfs", lambda _path: types.SimpleNamespace(f_blocks=self.ram >> 12, f_frsize=4096))

    def run(self, *command):
        if "show" in command:
            return "".join(f"{key}={value}\n" for key, value in self.shown.items())
        if self.failing == command[1]:
            raise LiveUpdateError(f"{' '.join(command)}: exit code 1")
        self.steps.append(command[1])
        if "enable" in command:
            self.shown = {"ActiveState": "active", "UnitFileState": "enabled"}
        if "reload" in command:
            self.ram = self.wanted
        return ""


@pytest.fixture(name="systemd")
def a_host_with_libvirt(host, monkeypatch):
    """The unit of the mount and its size are wanted too."""
    systemd = Systemd(monkeypatch, host.folder)
    usual = {**_runtime.files([], ""), f"{_units.FOLDER}/{_setup.RAM_MOUNT}": ("[Mount]\n", 0o644)}
    monkeypatch.setattr(_runtime, "files", lambda _guests, size: {**usual, **({systemd.drop_in: (size, 0o644)} if size else {})})
    return systemd


@pytest.mark.parametrize("failing", ["status", "daemon-reload", "enable", "reload"])
def test_a_second_run_does_what_the_first_could_not(systemd, failing):
    systemd.failing, systemd.wanted = failing, 1 << 30
    with pytest.raises(LiveUpdateError, match=f"{failing}.*exit code 1"):
        run(size="1g")
    systemd.failing, systemd.steps = "", []
    planned = run(check=True, size="1g")
    assert planned["changed"] and planned["files"] == [] and not systemd.steps
    assert "an earlier call of this module: not finished" in planned["diff"]["before"]
    assert run(size="1g") == planned
    assert systemd.steps == ["status", "daemon-reload", "enable", "reload"] and systemd.ram == 1 << 30
    assert run(size="1g")["changed"] is run(size="1g", check=True)["changed"] is False


@pytest.mark.parametrize("lacks", [{"ActiveState": "inactive"}, {"UnitFileState": "disabled"}])
def test_the_mount_of_the_domains_ram_is_judged_by_the_host(systemd, lacks):
    """Libvirt would put the RAM of domains into /run, which is small: guests die by SIGBUS."""
    run()
    systemd.shown.update(lacks)
    planned = run(check=True)
    assert planned["changed"] and "not enabled and active" in planned["diff"]["before"]
    assert run() == planned and systemd.shown == {"ActiveState": "active", "UnitFileState": "enabled"}
    assert run()["changed"] is False


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_the_tmpfs_is_not_mounted_over_the_ram_of_domains(systemd, monkeypatch, check, known):
    """Libvirt could not remove the hidden files when the domains end, and their memory would stay in use until the next boot."""
    ram = systemd.ram_directory / "libvirt/qemu/1-db/pc.ram"
    ram.parent.mkdir(parents=True)
    run(check=True)  # the directories alone are no obstacle
    ram.touch()
    record = {"name": "db", "unit": "db.service", "backends": [{"path": str(ram)}]}
    monkeypatch.setattr(_providers, "known", lambda: {"db": record, "web": {"name": "web", "unit": "web.service"}} if known else {})
    remedy = "Shut down or migrate these domains first: db. Then" if known else f"then remove the files that are left: {ram}. Then"
    with pytest.raises(LiveUpdateError, match=f"no tmpfs is mounted on {systemd.ram_directory}, and RAM files .*{remedy}"):
        run(check=check)
    assert not systemd.steps
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(systemd.ram_directory))
    assert run(check=check)["changed"]  # they are on the tmpfs


def test_the_mount_has_the_size_that_is_wanted(systemd, monkeypatch):
    pages = {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.get)
    for size, wanted in {"80%": (4 << 30) * 80 // 100, "3G": 3 << 30, "500m": 500 << 20, "8192k": 8 << 20, "1048576": 1 << 20}.items():
        systemd.wanted, systemd.ram = wanted, wanted // 2
        run(size=size)
        assert systemd.ram == wanted and run(size=size)["changed"] is False
        systemd.ram = wanted // 2
        assert run(size=size, check=True)["changed"] and run(size=size)["changed"] and systemd.ram == wanted
    systemd.ram = 1 << 12
    assert run()["changed"] is False  # no size is wanted: it keeps the one that it has


def test_a_removal_that_ended_early_is_finished_by_the_next(systemd):
    run()
    systemd.failing = "daemon-reload"
    with pytest.raises(LiveUpdateError, match="daemon-reload"):
        run(state="absent")
    systemd.failing, systemd.steps = "", []
    assert run(state="absent")["changed"] and systemd.steps == ["daemon-reload"]
    assert run(state="absent")["changed"] is False


@pytest.mark.parametrize("check", [True, False])
def test_the_runtime_is_not_removed_in_a_boot_that_a_jump_started(host, monkeypatch, check):
    """kexec --reuse-cmdline would start a kernel whose systemd.unit= is gone: rescue mode."""
    run()
    monkeypatch.setattr(_this_boot, "current_cmdline", lambda: "root=/dev/vda1 systemd.unit=kvm-liveupdate-guests.target quiet")
    host.steps.clear()
    with pytest.raises(
        LiveUpdateError,
        match=r"contains systemd\.unit=kvm-liveupdate-guests\.target, .* ends in rescue mode\. Do an ordinary reboot, then run this again",
    ):
        run(check, state="absent")
    assert os.path.exists(host.unit) and os.path.exists(host.library) and not host.steps
    monkeypatch.setattr(_this_boot, "current_cmdline", lambda: "root=/dev/vda1 systemd.unit=kvm-liveupdate-guests.target systemd.unit=x")
    assert run(check, state="absent")["changed"]
