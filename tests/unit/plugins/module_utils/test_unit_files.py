# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why each line of a unit is there. One that is missing may cost a guest at an update, and nothing says so before."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils import _limits, _unit_files
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _early, _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _setup

COMMAND = _files.COMMAND
ITS_FILES = f"RequiresMountsFor={_files.STATE} {COMMAND}"
WEIGHTS = (
    ("Service", "StartupCPUWeight=10000", "while the host boots it has the processors before others, and PID 1 starts it first"),
    ("Service", "StartupIOWeight=10000", "and the disks"),
)
EARLY = ("Unit", "DefaultDependencies=no", "it starts at the beginning of the boot, and not after sysinit.target")
ENDS_WITH_THE_HOST = (
    ("Unit", "Conflicts=shutdown.target", "an ordinary shutdown stops it, as the default dependencies would"),
    ("Unit", "Before=shutdown.target", "and waits for its end"),
)
# A guest of a unit. The throw-away guest of a trial is one.
GUEST = (
    ("Unit", "DefaultDependencies=no", "after the jump it starts at the beginning of the boot"),
    ("Unit", ITS_FILES, "its journal and state are there when it starts"),
    *ENDS_WITH_THE_HOST,
    (
        "Unit",
        f"After={_units.UNCLAIMED_UNIT} systemd-modules-load.service",
        "memory that nobody claims is free before it needs as much, and KVM is there",
    ),
    ("Unit", "IgnoreOnIsolate=yes", "the isolation before the jump does not stop it before it is saved"),
    ("Service", "NotifyAccess=all", "the wrapper, and whoever restores the guest, may hand its session to PID 1"),
    ("Service", f"RestartForceExitStatus={_return.AGAIN}", "a guest that cannot be restored yet is tried again"),
    ("Service", "FileDescriptorStoreMax=4", "PID 1 takes its session: the usual limit is none"),
    ("Service", "FileDescriptorStorePreserve=yes", "and keeps it when the unit stops before the jump"),
    *WEIGHTS,
)
PURPOSES = {
    "JUMP_SERVICE": (
        ("Unit", "DefaultDependencies=no", "the shutdown before the kexec does not stop what carries it out"),
        ("Unit", "IgnoreOnIsolate=yes", "it isolates the host itself, and is not stopped by that"),
        ("Unit", "RefuseManualStop=yes", "nobody stops it while it has guests paused"),
        ("Service", "Type=exec", "that its command cannot be run is a failed start"),
        ("Service", f"ExecStart={COMMAND} jump", "it jumps"),
        ("Service", f"ExecStopPost={COMMAND} recover", "whatever ended it, what it did is undone"),
        ("Service", "TimeoutStopSec=30min", "the undo has the time to resume all guests: systemd's own limit is 90 s"),
        ("Service", "LimitNOFILE=65536", "hundreds of domains are saved at once, each with a virsh"),
        ("Service", "Nice=-10", "guests that still run do not delay the pause of the others"),
    ),
    "HOLD_SERVICE": (
        ("Unit", "DefaultDependencies=no", "it starts at the beginning of the boot, and the shutdown does not stop it"),
        ("Unit", f"{ITS_FILES} /var/lib/libvirt/qemu/save", "the journal, state and saved image of its guest are there when it starts"),
        ("Unit", "After=systemd-remount-fs.service systemd-modules-load.service", "it can write its records, and KVM is there"),
        ("Unit", "Before=libvirtd.service virtqemud.service", "libvirt does not start the domain without its memory (autostart)"),
        ("Unit", "IgnoreOnIsolate=yes", "the isolation before the jump does not close the session"),
        ("Unit", "SurviveFinalKillSignal=yes", "nor does the final kill of the shutdown"),
        ("Unit", "StartLimitIntervalSec=0", "no limit of the host ends the repeated starts, not even DefaultStartLimitBurst=1"),
        ("Service", "Type=notify", "its start ends when the memory is preserved, and not before"),
        ("Service", f"ExecStart=:{COMMAND} hold %I", "it holds the memory of the guest in its name"),
        ("Service", f"RestartForceExitStatus={_return.AGAIN}", "a domain that cannot be restored yet is tried again"),
        ("Service", "RestartSec=5", "after a while: nothing else limits the repeats"),
        ("Service", "Slice=system.slice", "its weights count among all units of the boot"),
        ("Service", f"TimeoutStartSec={_limits.HOLD}", "the kernel needs minutes to preserve terabytes: systemd's own limit is 90 s"),
        ("Service", "FileDescriptorStoreMax=4", "PID 1 takes its session"),
        ("Service", "FileDescriptorStorePreserve=yes", "and keeps it when the unit stops"),
        *WEIGHTS,
    ),
    "REHEARSAL_SERVICE": (
        ("Service", "Type=oneshot", "its start ends when the rehearsal has, so the caller can read what it found"),
        ("Service", "NotifyAccess=main", "what went wrong reaches the caller as its status"),
        ("Service", f"ExecStart=:{COMMAND} rehearse %I", "it rehearses with the guest in its name"),
        ("Service", f"ExecStopPost=:{COMMAND} end-rehearsal %I", "whatever ended it, the guest runs on"),
        (
            "Service",
            f"TimeoutStartSec={_limits.REHEARSAL}",
            "a rehearsal that hangs does not keep its guest paused: a oneshot has no limit",
        ),
        ("Service", f"TimeoutStopSec={_limits.REHEARSAL_END}", "its end has the time for a libvirt that hangs"),
    ),
    "RAM_MOUNT": (
        ("Unit", "DefaultDependencies=no", "the shutdown does not unmount the RAM of domains that are paused for the jump"),
        ("Unit", "Before=libvirtd.service virtqemud.service", "no domain puts its RAM below the mount point"),
        ("Mount", "What=tmpfs", "their RAM is in memory"),
        ("Mount", f"Where={_setup.RAM_DIRECTORY}", "where libvirt is told to put it"),
        ("Mount", "Type=tmpfs", "which the kernel can preserve"),
        (
            "Mount",
            "Options=mode=0755,size=95%%,huge=within_size",
            "nearly all memory, in large pages; systemd makes one of two percent signs",
        ),
        ("Install", "WantedBy=libvirtd.service virtqemud.service", "each start of libvirt has it"),
    ),
    "TARGET": (
        ("Unit", "Requires=sysinit.target", "what is isolated is a working host: its disks stay mounted"),
        ("Unit", "After=sysinit.target", "also in the order of the stop"),
        ("Unit", "AllowIsolate=yes", "systemd refuses to isolate other targets"),
    ),
    "GUESTS_TARGET": (
        EARLY,
        (
            "Unit",
            f"Wants=systemd-journald.socket systemd-modules-load.service systemd-remount-fs.service {_units.REST_UNIT}",
            "guests have the log, KVM and a root file system they can write to; and the rest of the boot follows",
        ),
    ),
    "DAEMONS_TARGET": (EARLY,),
    "REST_SERVICE": (
        EARLY,
        ("Unit", "OnFailure=default.target", "the host boots as usual if the order of the boot fails"),
        (
            "Unit",
            "After=systemd-journald.socket systemd-modules-load.service systemd-remount-fs.service",
            "it reads and writes records on the root file system, and its log is kept",
        ),
        ("Service", "Type=oneshot", "it is a job until the next jobs exist, so PID 1 does not take the boot for complete"),
        ("Service", f"ExecStart={COMMAND} boot", "it starts the rest of the boot"),
        ("Service", f"TimeoutStartSec={2 * _limits.BOOT_WAITS:.0f}", "longer than it waits for guests, so only one that hangs is ended"),
    ),
    "UNCLAIMED_SERVICE": (
        EARLY,
        (
            "Unit",
            f"ConditionPathExistsGlob={_files.GUESTS_STATE}/*.hold",
            "a boot without such memory, as each after a jump, does not wait for it",
        ),
        ("Unit", ITS_FILES, "the records of the holds are there"),
        ("Unit", "After=systemd-remount-fs.service", "it can remove them"),
        ("Unit", "Before=libvirtd.service virtqemud.service", "domains that start find the memory free"),
        ("Service", "Type=oneshot", "who starts after it starts after its end"),
        ("Service", f"ExecStart={COMMAND} give-up-unclaimed", "it releases the memory"),
        ("Service", f"TimeoutStartSec={_limits.UNCLAIMED}", "guests do not wait for it for ever: a oneshot has no limit"),
    ),
    "EVERY_BOOT": (("Unit", f"Wants={_units.UNCLAIMED_UNIT}", "sysinit.target starts it in each boot, also without the guests' target"),),
    "GUEST_DROPIN": GUEST,
    "TRIAL_SERVICE": (
        ("Service", f"ExecStart={COMMAND} run {{name}} -- {{command}}", "the wrapper runs it, as any guest of a unit"),
        *GUEST,
    ),
    "TRIAL_WATCH_SERVICE": (
        ("Unit", "DefaultDependencies=no", "it sees the devices that come at the beginning of the boot"),
        ("Unit", f"ConditionPathExists={_files.TRIAL}", "only the boots of a trial are watched"),
        ("Unit", ITS_FILES, "it has the place for what it sees"),
        *ENDS_WITH_THE_HOST,
        ("Service", "Type=exec", "the boot does not wait for its end"),
        ("Service", f"ExecStart={COMMAND} watch-devices", "it watches"),
        ("Service", "Nice=19", "what the boot does has the processors before it"),
        ("Service", "CPUWeight=1", "also among units"),
        ("Service", "IOWeight=1", "and the disks"),
    ),
}


def settings(name):
    """The settings of a unit or drop-in, each with its section, but for comments and the description."""
    section, found = "", []
    for line in getattr(_unit_files, name).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", "Description=")):
            found.append((section, line))
    return found


@pytest.mark.parametrize(
    ("name", "section", "setting", "purpose"),
    [pytest.param(name, *line, id=f"{name} {line[1]}") for name, lines in PURPOSES.items() for line in lines],
)
def test_each_unit_says_what_the_boot_the_jump_and_its_guests_need(name, section, setting, purpose):
    assert (section, setting) in settings(name), purpose


@pytest.mark.parametrize("name", PURPOSES)
def test_no_line_of_a_unit_is_without_a_purpose(name):
    assert sorted(settings(name)) == sorted(line[:2] for line in PURPOSES[name])
    assert getattr(_unit_files, name).startswith("[Unit]\n")  # systemd ignores what comes before the first section


def test_the_rest_of_the_boot_is_not_ended_while_it_waits_for_guests():
    (limit,) = (line for _section, line in settings("REST_SERVICE") if line.startswith("TimeoutStartSec="))
    assert int(limit.partition("=")[2]) > _early.LIMIT_S


def test_what_guests_wait_for_comes_before_the_rest_of_the_boot_and_after_guests_that_need_not_wait():
    weights = {name: dict(line.split("=") for line in getattr(_unit_files, name).splitlines()) for name in ("AHEAD", "NEXT")}
    for kind in ("StartupCPUWeight", "StartupIOWeight"):
        usual = 100
        assert usual < int(weights["NEXT"][kind]) < int(weights["AHEAD"][kind]) <= 10000  # systemd refuses more


def test_only_services_are_given_weights():
    """A target has no processes, and systemd complains about a section that it does not know."""
    assert all(unit.endswith(".service") for unit in (*_unit_files.BEFORE_GUESTS, *_unit_files.BEFORE_DOMAINS))
    assert {"systemd-networkd.service", "systemd-udevd.service"} <= set(_unit_files.BEFORE_GUESTS)


def test_apparmor_lets_a_confined_qemu_open_its_ram_and_no_more():
    """Through /proc of a process that is not confined, which is a read by ptrace(2)."""
    rules = [line for line in _unit_files.APPARMOR.splitlines() if not line.startswith("#")]
    assert rules == ["ptrace (read) peer=unconfined,"]


def test_the_command_runs_the_library_of_the_host_and_its_end_is_the_librarys(tmp_path):
    """Its exit code tells systemd to try a guest again."""
    package = tmp_path / "kvm_liveupdate"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_command.py").write_text(f"import sys\ndef main():\n    print(sys.argv[1:])\n    return {_return.AGAIN}\n")
    command = tmp_path / "command"
    command.write_text(_unit_files.COMMAND.replace(_files.LIBRARY, str(tmp_path)))
    done = subprocess.run([sys.executable, "-IS", str(command), "run", "web"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (_return.AGAIN, "['run', 'web']\n"), done.stderr


def test_the_command_depends_on_no_environment_and_no_other_package():
    first = _unit_files.COMMAND.splitlines()[0]
    assert first.startswith("#!/usr/bin/python3 -") and set("IS") <= set(first.rpartition("-")[2])
