# Copyright: kvm.liveupdate contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import threading
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from ansible_collections.kvm.liveupdate.plugins.module_utils._errors import LiveUpdateError
from ansible_collections.kvm.liveupdate.plugins.module_utils.guests import _hold, _providers, _reasons
from ansible_collections.kvm.liveupdate.plugins.module_utils.handover import _return
from ansible_collections.kvm.liveupdate.plugins.module_utils.host import _files, _links, _processes, _slow_paths, _systemd, _units
from ansible_collections.kvm.liveupdate.plugins.module_utils.kernel import _luo
from ansible_collections.kvm.liveupdate.plugins.module_utils.libvirt import _start
from ansible_collections.kvm.liveupdate.plugins.module_utils.qemu import _unit
from ansible_collections.kvm.liveupdate.plugins.module_utils.vmm import _block, _reopened
from ansible_collections.kvm.liveupdate.plugins.modules import hypervisor_info


def test_a_guest_has_the_warnings_of_its_provider(monkeypatch):
    record = {
        "name": "web",
        "provider": "qemu",
        "unit": "web.service",
        "uuid": "u",
        "pid": 7,
        "ram": [],
        "argv": ["qemu", "-nodefaults", "-M", "q35"],
    }
    monkeypatch.setattr(_reasons, "inspect", lambda _record: [])
    monkeypatch.setattr(_systemd, "show_each", lambda units, *_asked: {unit: {} for unit in units})
    facts = hypervisor_info.guest_facts(record, held=False)
    assert [warning["code"] for warning in facts["warnings"]] == ["machine-version"]
    assert hypervisor_info.refusals([], [facts]) == []


def test_a_stranger_has_a_reason_and_no_warnings(monkeypatch):
    reason = {"code": "not-managed", "message": "no", "remedy": "yes"}
    monkeypatch.setattr(_providers, "records", list)
    monkeypatch.setattr(_processes, "pids", lambda: [7])
    monkeypatch.setattr(_processes, "fd_links", lambda _pid: {3: _processes.VM_LINK})
    monkeypatch.setattr(_processes, "unit_of", lambda _pid: None)
    monkeypatch.setattr(_providers._qemu_guests, "foreign_reason", lambda _pid: reason)
    assert _providers.strangers() == [{"name": "pid-7", "unit": "", "pid": 7, "reasons": [reason], "warnings": []}]


@pytest.mark.parametrize(
    ("provider", "state", "cut"), [("libvirt", True, True), ("libvirt", False, False), ("qemu", True, False), (None, True, False)]
)
def test_a_domain_whose_host_went_down_before_its_journal_was_written_is_lost(tmp_path, monkeypatch, provider, state, cut):
    monkeypatch.setattr(_files, "GUESTS_STATE", str(tmp_path))
    monkeypatch.setattr(_files, "UPDATE", str(tmp_path / "update"))
    records = {"app": {"provider": provider, "unit": "hold.service", "uuid": "a-b"}} if provider else {}
    _files.write_json(_files.UPDATE, {"boot_id": "before", "on_loss": "start", "guests": ["app"], "records": records})
    if state:
        (tmp_path / "app.state").write_text('{"hold": "h"}')
    journal = _start.awaited("app")
    assert bool(journal) is cut
    if cut:
        assert (journal["boot_id"], journal["unit"], journal["session"]) == ("before", "hold.service", "kvm-ab")
        for note in (None, {"hold": "h"}, {}):  # whatever came over, it may have run on
            assert _return.decide(journal, note, False)[0] == "cold"
            assert _return.decide({**journal, "on_loss": "stop"}, note, False)[0] == "refuse"


WEB = {"name": "web", "provider": "qemu", "unit": "web.service", "uuid": "u", "pid": 7, "started": 1, "ram": [], "argv": ["qemu"]}
DESCRIBED = {"memory_mib": 1, "devices": [], "labels": {}, "ladder": None, "paused": False}
SHOWN = {
    "MainPID": "7",
    "FragmentPath": "/etc/systemd/system/web.service",
    "NeedDaemonReload": "no",
    "FileDescriptorStoreMax": "4",
    "FileDescriptorStorePreserve": "yes",
    "NotifyAccess": "all",
    "IgnoreOnIsolate": "yes",
    "ExecStart": "{ path=/usr/local/sbin/kvm-liveupdate ; argv[]=/usr/local/sbin/kvm-liveupdate run web -- qemu ; ignore_errors=no }",
}


class Shown(dict):
    """What systemctl shows of a unit: nobody may count on a property that was not asked for."""

    def __init__(self, asked):
        super().__init__({key: SHOWN[key] for key in asked if key in SHOWN})
        self.asked = asked

    def get(self, key, default=None):
        assert key in self.asked, f"{key} is never asked for"
        return super().get(key, default)


PROVIDER = SimpleNamespace(
    inspect=lambda _record: [],
    warn=lambda _record: [],
    unit_properties=_unit.PROPERTIES,
    unit_reasons=_unit.reasons,
    unit_warnings=_unit.warnings,
    describe=lambda _record: {**DESCRIBED},
)


@pytest.fixture(name="looked")
def examination(monkeypatch):
    """A guest against which nothing speaks; what is asked about it can be changed."""
    monkeypatch.setattr(_systemd, "show_each", lambda units, *asked: {unit: Shown(asked) for unit in units})
    monkeypatch.setattr(_systemd, "version", lambda: 257)
    monkeypatch.setattr(_providers, "of", lambda _record: PROVIDER)
    monkeypatch.setattr(_processes, "replaced_program", lambda _pid: "")
    monkeypatch.setattr(_processes, "user_of", lambda _pid: 0)
    monkeypatch.setattr(_files, "GUESTS_STATE", "/never/made")
    return monkeypatch


def codes(record):
    return [reason["code"] for reason in _reasons.inspect(record)]


def test_a_save_of_an_update_that_is_under_way_is_no_reason(looked):
    """It leaves the guest's RAM out, and its undo switches that off."""
    looked.setattr(PROVIDER, "inspect", lambda _record: [{"code": "ignore-shared"}])
    looked.setattr(_hold, "held", lambda _record: {"hold": "h"})
    assert codes(dict(WEB)) == []
    looked.setattr(_hold, "held", lambda _record: {})
    assert codes(dict(WEB)) == ["ignore-shared"]


def test_a_guest_that_an_update_left_paused_is_not_preserved_without_a_word(looked, tmp_path):
    """Its owner did not pause it, and after the jump it would stay paused."""
    process = {"pid": os.getpid(), "started": _processes.start_time(os.getpid())}
    for name in ("GUESTS_RUN", "UPDATE", "OUTCOME"):
        looked.setattr(_files, name, str(tmp_path / name))
    looked.setattr(PROVIDER, "status", lambda _record: "paused", raising=False)
    looked.setattr(PROVIDER, "unit_reasons", lambda _record, _shown: [])
    record = {**WEB, **process}
    assert codes(dict(record)) == []  # paused by its owner
    _files.write_json(_files.run_path("web", "paused"), process)
    assert codes(dict(record)) == ["left-paused"]
    # Its QEMU cannot save it again. The remedy for a guest that its owner paused would leave it paused for good.
    looked.setattr(PROVIDER, "inspect", lambda _record: [{"code": "run-state"}])
    assert codes(dict(record)) == ["left-paused"]
    os.unlink(_files.run_path("web", "paused"))
    assert codes(dict(record)) == ["run-state"]


def test_a_guest_has_the_reasons_of_its_program_its_rights_and_its_files(looked):
    assert codes(dict(WEB)) == []
    looked.setattr(_processes, "replaced_program", lambda _pid: "/usr/bin/qemu-system-x86_64")
    assert codes(dict(WEB)) == ["qemu-replaced"]
    looked.setattr(_processes, "replaced_program", lambda _pid: "")
    looked.setattr(_processes, "user_of", lambda _pid: 64055)
    assert codes(dict(WEB)) == ["unit"]
    looked.setattr(_processes, "user_of", lambda _pid: 0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        looked.setitem(SHOWN, "MainPID", str(process.pid))
        assert codes({**WEB, "pid": process.pid, "argv": ["qemu", "-kernel", "/never/made"]}) == ["file-gone"]
        process.stdin.close()


MOUNTS = [
    ("/srv/web", "/", "xfs", "rw", "/dev/mapper/vg-web"),
    ("/srv", "/", "xfs", "rw", "/dev/mapper/vg-srv"),
    ("/net", "/", "nfs4", "rw", "server:/net"),
    ("/usr", "/", "ext4", "rw", "/dev/mapper/vg-usr"),
    ("/run", "/", "tmpfs", "rw", "tmpfs"),
    ("/", "/", "ext4", "rw", "/dev/vda1"),
]


def test_what_identifies_its_disks_is_in_the_record_of_a_guest_that_can_be_preserved(looked, tmp_path):
    """So nothing is looked up once guests are paused."""
    image = tmp_path / "web1.qcow2"
    image.touch()
    looked.setattr(_reopened, "_EMPTIED", "/never/")
    looked.setattr(_reopened, "mounts", lambda _pid: MOUNTS)
    with open(image, "r+b") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as process:
        looked.setitem(SHOWN, "MainPID", str(process.pid))
        record = {**WEB, "pid": process.pid, "argv": ["qemu", "-drive", f"file={image}"]}
        assert codes(record) == []
        assert record["disks"][str(image)]["inode"] == os.stat(image).st_ino and record["servers"] == []
        looked.setattr(_reopened, "servers", lambda argv: ["nbd.service"] if argv == record["argv"] else [])
        assert codes(record) == [] and record["servers"] == ["nbd.service"]  # which an update keeps running
        silent = _slow_paths.Silent("/srv/a", "/srv/a does not answer within 30 s")

        def does_not_answer(*_words):
            raise silent

        looked.setattr(_reopened, "disks", does_not_answer)
        assert codes(record) == ["file-silent"]
        looked.setitem(SHOWN, "ExecStartPre", program("/usr/bin/seed"))
        again = []
        looked.setattr(_reopened, "disks", lambda *words: again.append(words[3]) or {})
        assert codes({**record, "shown": SHOWN}) == [] and again == [True]
        process.stdin.close()


def test_what_its_restore_needs_is_in_the_record_of_a_guest_that_can_be_preserved(looked, tmp_path):
    """A path that does not answer is a reason. In the pause it would keep all guests paused."""
    looked.setattr(_reopened, "reasons", lambda *_words: [])
    looked.setattr(_processes, "interfaces", lambda _pid: ["tap0"])
    looked.setattr(_block, "identity", lambda path: [f"wwid {path}"])
    argv = ["qemu", "-drive", "file=/dev/null", "-drive", "file=/srv/web.qcow2", "-qmp", "unix:/run/web/q,server=on,wait=off"]
    argv += ["-serial", "tcp:127.0.0.1:4555", "-serial", "tcp:192.0.2.9:4556"]
    record = {**WEB, "argv": argv}
    assert codes(record) == []
    assert record["needs"] == {
        "interfaces": ["tap0"],
        "paths": ["/dev/null", "/srv/web.qcow2", "/run/web"],
        "ports": [4555],
        "devices": {"/dev/null": ["wwid /dev/null"]},
    }
    looked.setattr(_slow_paths, "PATH_LIMIT_S", 0.5)
    looked.setattr(_block, "identity", lambda path: threading.Event().wait(20))
    (why,) = _reasons.inspect({**WEB, "argv": argv})
    assert why["code"] == "file-silent" and "/dev/null does not answer within" in why["message"]


@pytest.mark.parametrize(
    ("path", "after", "point"),
    [
        ("/srv/web1.qcow2", "system.slice -.mount", "/srv"),
        ("/srv/web1.qcow2", "srv.mount", ""),
        ("/srv/web/1.qcow2", "srv.mount", "/srv/web"),
        ("/srv/web/1.qcow2", "srv-web.mount", ""),
        ("/srv/web1.qcow2", "local-fs.target", ""),
        ("/srv/web1.qcow2", "remote-fs.target", ""),
        ("/net/web1.qcow2", "local-fs.target", "/net"),
        ("/net/web1.qcow2", "remote-fs.target", ""),
        ("/var/lib/web1.qcow2", "", ""),
        ("/usr/share/firmware.fd", "", ""),
        ("/run/web.iso", "", ""),
        ("/dev/vg/web", "", ""),
    ],
)
def test_a_disk_on_a_mount_that_its_unit_does_not_wait_for_is_a_warning(looked, path, after, point):
    """After a jump the guest waits for its own disk, so it is no reason."""
    looked.setattr(_reopened, "mounts", lambda _pid: MOUNTS)
    looked.setitem(SHOWN, "After", after)
    record = {**WEB, "argv": ["qemu", "-M", "pc-q35-10.0", "-nodefaults", "-drive", f"file={path}", "-drive", f"file={path}.2"]}
    found = _reasons.warn(record)
    assert [warning["code"] for warning in found] == (["mount-unordered"] if point else [])
    assert all(path in warning["message"] and f"RequiresMountsFor={point} " in warning["remedy"] for warning in found)


def test_what_qemu_has_open_counts_as_well(looked):
    """A disk below another one is not on the command line; a log is no disk."""
    looked.setattr(_reopened, "mounts", lambda _pid: MOUNTS)
    opened = {9: ("/srv/base.qcow2", os.O_RDONLY), 10: ("/net/web.log", os.O_WRONLY | os.O_APPEND)}
    looked.setattr(_processes, "open_paths", lambda _pid: opened)
    (warning,) = _reasons.warn(dict(WEB))
    assert "/srv/base.qcow2" in warning["message"]


def unit_needs(looked, **shown):
    """The reasons against a guest whose unit has these properties, as code and the beginning of the remedy."""
    looked.setattr(_processes, "fd_links", lambda _pid, *_root: {})
    looked.setattr(_reopened, "mounts", lambda _pid: MOUNTS)
    with looked.context() as changed:
        for key, value in shown.items():
            changed.setitem(SHOWN, key, value)
        found = _reasons.inspect(dict(WEB))
    assert all("=/" in reason["message"] and "web.service" in reason["message"] for reason in found)
    return [(reason["code"], reason["remedy"].partition(" ")[0]) for reason in found]


GONE, EARLY, LATER = [("file-volatile", "name")], [("unit-early", "add")], [("unit-early", "remove")]


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [
        ("EnvironmentFiles", "/run/web.env (ignore_errors=no)", GONE),
        ("EnvironmentFiles", "/etc/a (ignore_errors=no) /run/web.env (ignore_errors=no) /etc/b (ignore_errors=yes)", GONE),
        ("EnvironmentFiles", "/run/web.env (ignore_errors=yes)", []),
        ("EnvironmentFiles", "/etc/web.env (ignore_errors=no)", []),
        ("EnvironmentFiles", "/srv/web.env (ignore_errors=no)", EARLY),
        ("WorkingDirectory", "/run/web", GONE),
        ("WorkingDirectory", "!/run/web", []),
        ("WorkingDirectory", "/run", []),
        ("WorkingDirectory", "~", []),
        ("WorkingDirectory", "/srv/web/1", []),  # systemd itself waits for the mount
    ],
)
def test_what_a_unit_needs_at_its_start_is_there_after_a_boot(looked, setting, value, found):
    """Made by hand, it is not, and systemd would not start the guest."""
    assert unit_needs(looked, **{setting: value}) == found
    for maker in ("web-env.service", "sysinit.target"):
        assert unit_needs(looked, **{setting: value, "After": maker}) == ([] if found == GONE or maker == "sysinit.target" else found)
    for none in ("network-online.target", "system.slice", "kvm-liveupdate-unclaimed.service", "systemd-modules-load.service"):
        assert unit_needs(looked, **{setting: value, "After": none}) == found


def test_a_folder_that_systemd_makes_for_the_unit_is_there(looked):
    assert unit_needs(looked, WorkingDirectory="/run/web/a", RuntimeDirectory="web web/a:web/b") == []
    assert unit_needs(looked, WorkingDirectory="/run/web/c", RuntimeDirectory="web web/a") == GONE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ConditionPathExists=/run/web.ready", GONE),
        ("ConditionPathExists = %t/web.ready", GONE),
        ("AssertFileNotEmpty=/run/web.ready", GONE),
        ("ConditionDirectoryNotEmpty=/run/web", GONE),
        ("ConditionPathExists=!/run/web.stopped", []),
        ("ConditionPathExists=|/run/web.ready", []),
        ("ConditionPathExists=/run/systemd/system", []),
        ("ConditionPathExists=/etc/web", []),
        ("ConditionHost=/run/web", []),
        ("# ConditionPathExists=/run/web.ready", []),
        ("ConditionPathExists=/run/web.ready\nConditionPathExists=", []),
        ("ConditionPathExists=\nConditionPathExists=/run/web.ready", GONE),
        ("ConditionPathExists=/srv/web1.qcow2", EARLY),
        ("ConditionPathExists=/dev/disk/by-id/a", LATER),
        ("ConditionPathExists=/dev/kvm", []),
    ],
)
def test_a_condition_that_a_boot_does_not_meet_is_a_reason(looked, tmp_path, text, found):
    """systemctl shows no conditions, so the unit's files are read."""
    (tmp_path / "web.service").write_text(f"[Unit]\n{text}\n[Service]\nExecStart=/bin/a\n")
    (tmp_path / "empty.conf").touch()
    shown = {"FragmentPath": f"{tmp_path}/web.service", "DropInPaths": f"{tmp_path}/empty.conf {tmp_path}/gone.conf"}
    assert unit_needs(looked, **shown) == found
    assert unit_needs(looked, **{**shown, "After": "sysinit.target"}) == []
    (tmp_path / "empty.conf").write_text(f"[Unit]\nConditionPathExists=\n{text}\n")
    assert unit_needs(looked, **shown) == found


def test_a_qemu_that_does_not_see_where_its_state_goes_is_refused(looked, tmp_path):
    looked.setattr(_files, "GUESTS_STATE", str(tmp_path))
    assert _unit.rights_reasons("web.service", os.getpid()) == []
    (reason,) = _unit.rights_reasons("web.service", 1 << 30)  # of a process that is gone nothing is seen
    assert reason["code"] == "unit" and f"cannot see {tmp_path}" in reason["message"] and "RootDirectory=" in reason["message"]
    looked.setattr(_files, "GUESTS_STATE", "/sys/kernel")
    looked.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY))
    (reason,) = _unit.rights_reasons("web.service", os.getpid())
    assert "cannot write to /sys/kernel" in reason["message"]
    looked.setattr(_files, "GUESTS_STATE", "/never/made")
    looked.setattr(_luo, "DEVICE", str(tmp_path))
    (reason,) = _unit.rights_reasons("web.service", 1 << 30)
    assert f"cannot see {tmp_path} (PrivateDevices=" in reason["message"]


def test_a_qemu_that_does_not_see_which_boot_it_is_is_refused(looked):
    """ProcSubset=pid leaves only the processes in /proc. Its restore would fail."""
    assert os.path.exists(_unit._BOOT_ID) and _unit.rights_reasons("web.service", os.getpid()) == []
    looked.setattr(_unit, "_BOOT_ID", "/proc/sys/kernel/random/never")
    (reason,) = _unit.rights_reasons("web.service", os.getpid())
    assert reason["code"] == "unit" and "cannot see /proc/sys/kernel/random/never (ProcSubset=)" in reason["message"]


def program(path, *words):
    return f"{{ path={path} ; argv[]={' '.join((path, *words))} ; ignore_errors=no ; start_time=[n/a] }}"


def test_what_a_unit_runs_beside_qemu_is_a_warning_that_names_it(looked):
    assert _reasons.warn(dict(WEB)) == []
    both = " ".join((program("/usr/bin/qemu-img", "create", "/srv/a"), program("/usr/bin/cp", "VARS.fd", "/srv")))
    (warning,) = _unit.start_warnings("web.service", {**SHOWN, "ExecStartPre": both})
    assert warning["code"] == "start-runs-again"
    assert "ExecStartPre=/usr/bin/qemu-img create /srv/a; ExecStartPre=/usr/bin/cp VARS.fd /srv" in warning["message"]
    (warning,) = _unit.start_warnings("web.service", {"ExecStart": program("/usr/local/bin/start-web", "-v")})
    assert "ExecStart=/usr/local/bin/start-web -v" in warning["message"]
    looked.setitem(SHOWN, "ExecStartPost", program("/usr/bin/logger", "up"))
    assert [warning["code"] for warning in _reasons.warn(dict(WEB))] == ["start-runs-again"]


def services(looked, **shown):
    """What systemctl shows of each service; the guest's unit is web.service."""
    asked_for = []
    known = {f"{name}.service": {"Type": "simple", **properties} for name, properties in shown.items()}
    known["web.service"] = {**SHOWN, **known.get("web.service", {})}
    looked.setattr(_systemd, "show_each", lambda units, *_asked: asked_for.append(units) or {unit: known.get(unit, {}) for unit in units})
    return asked_for


def test_what_a_service_runs_that_starts_with_the_guest_is_a_warning_too(looked):
    create = program("/usr/bin/qemu-img", "create", "/srv/a")
    asked_for = services(
        looked,
        web={"Requires": "disk.service sysinit.target systemd-x.service", "Wants": "swtpm.service kvm-liveupdate-x.service"},
        disk={"Type": "oneshot", "ExecStart": create, "BindsTo": "deeper.service web.service"},
        deeper={"Type": "oneshot", "ExecStartPre": program("/usr/bin/mkdir", "/srv/b"), "Requires": "disk.service"},
        swtpm={"ExecStart": program("/usr/bin/swtpm", "socket"), "ExecStartPost": program("/usr/bin/chmod", "/run/tpm")},
        other={"Type": "oneshot", "ExecStart": program("/usr/bin/other")},
    )
    (warning,) = _reasons.warn(dict(WEB))
    assert warning["code"] == "start-runs-again" and warning["message"].endswith(
        ": disk.service ExecStart=/usr/bin/qemu-img create /srv/a; swtpm.service ExecStartPost=/usr/bin/chmod /run/tpm;"
        " deeper.service ExecStartPre=/usr/bin/mkdir /srv/b"
    )
    asked_for = [units for units in asked_for if units != ["-.slice"]]
    assert asked_for == [["web.service"], ["disk.service", "swtpm.service"], ["deeper.service"]]


def test_the_services_of_many_guests_are_asked_for_together(looked):
    guests = {f"web{number}": {"Requires": "a.service"} for number in range(50)}
    asked_for = services(looked, **guests, a={"Requires": "b.service"})
    records = [{**WEB, "name": name, "unit": f"{name}.service"} for name in guests]
    _reasons._ask_systemd(records)
    assert [len(units) for units in asked_for if units != ["-.slice"]] == [50, 1, 1]
    assert all(list(record["brought"]) == ["a.service", "b.service"] for record in records)


@pytest.mark.parametrize(
    ("unit", "service", "refused"),
    [
        ({}, {}, True),
        ({"RuntimeDirectory": "other qemu"}, {}, False),
        ({"ExecStartPre": "{ path=/bin/mkdir ; argv[]=/bin/mkdir /run/qemu ; ignore_errors=no }"}, {}, False),
        ({}, {"RuntimeDirectory": "qemu"}, False),
        ({}, {"Type": "oneshot"}, False),  # it may make any
    ],
)
def test_a_folder_that_the_unit_or_its_services_make_is_there_again(looked, unit, service, refused):
    services(looked, web={"Requires": "a.service", **unit}, a=service)
    given = []
    looked.setattr(_reopened, "reasons", lambda *arguments: given.append(arguments) or [])
    assert codes(dict(WEB)) == []
    (arguments,) = given
    makes = arguments[5]
    assert (makes is not None and "/run/qemu" not in makes) is refused


@pytest.mark.parametrize(
    ("unit", "made_again"),
    [
        ({}, False),
        ({"ExecStartPre": program("/usr/bin/make-seed")}, True),
        ({"ExecStart": program("/usr/local/bin/start-web", "-v")}, True),  # a script that runs our command at its end
    ],
)
def test_what_the_unit_runs_before_qemu_may_make_files_again_and_what_it_brings_in_serves_it(looked, unit, made_again):
    wants = {"Requires": "disk.service", "Wants": "tpm.service", "BindsTo": "b.service", "Requisite": "r.service", "After": "x.service"}
    services(looked, web={**wants, **unit})
    given = []
    looked.setattr(_reopened, "reasons", lambda *arguments: given.append(arguments) or [])
    assert codes(dict(WEB)) == []
    ((_pid, _argv, _ram, again, brought, _makes),) = given
    assert again is made_again
    assert brought == {"web.service", "disk.service", "tpm.service", "b.service", "r.service"}


def test_a_network_that_nothing_sets_up_is_a_warning(looked):
    looked.setattr(_links, "by_hand", lambda names, _root: [name for name in names if name != "br1"])
    record = {**WEB, "argv": ["qemu", "-netdev", "tap,id=n,ifname=tap7,script=no", "-netdev", "bridge,id=m,br=br1", "-nic", "tap,br=br2"]}
    found = _reasons.warn({**record})
    assert [warning["code"] for warning in found] == ["network-by-hand"] * 2
    assert "the network interface tap7" in found[0]["message"] and "the network interface br2" in found[1]["message"]
    looked.setitem(SHOWN, "ExecStartPre", program("/usr/local/sbin/make-taps"))
    assert [warning["code"] for warning in _reasons.warn(record)] == ["start-runs-again"]


@pytest.mark.parametrize(
    ("burst", "interval", "warned"),
    [
        ("5", "10s", False),  # systemd's default
        ("3", "2min 59s", False),
        ("3", "3min", True),
        ("3", "10min", True),
        ("1", "infinity", True),
        ("3", "1h 1ms", True),
        ("3", "0", False),
        ("0", "10min", False),
    ],
)
def test_a_start_limit_that_a_repeated_restore_reaches_is_a_warning(looked, burst, interval, warned):
    """Each try waits for the host, a minute at most."""
    looked.setitem(SHOWN, "StartLimitBurst", burst)
    looked.setitem(SHOWN, "StartLimitIntervalUSec", interval)
    found = _reasons.warn(dict(WEB))
    assert [warning["code"] for warning in found] == ["start-limit"] * warned
    assert not warned or f"only {burst} times in {interval}." in found[0]["message"]
    assert not warned or f"below {60 * int(burst)} s" in found[0]["remedy"]


def test_a_drop_in_that_a_boot_does_not_find_is_a_warning(looked):
    lasting = [
        "/etc/systemd/system/web.service.d/override.conf",
        "/run/systemd/generator/web.service.d/50-fstab.conf",
        "/run/systemd/system/web.service.d/40-kvm-liveupdate.conf",
        "/run/systemd/system.control/web.service.d/50-StartupCPUWeight.conf",
        "/run/systemd/system.control/web.service.d/50-StartupIOWeight.conf",
    ]
    looked.setitem(SHOWN, "DropInPaths", " ".join(lasting))
    assert _reasons.warn(dict(WEB)) == []
    gone = ["/run/systemd/system/web.service.d/override.conf", "/run/systemd/system.control/web.service.d/50-MemoryMax.conf"]
    looked.setitem(SHOWN, "DropInPaths", " ".join([*lasting, *gone]))
    assert [(warning["code"], warning["message"]) for warning in _reasons.warn(dict(WEB))] == [
        ("unit-runtime", f"its unit web.service has the drop-in {path}, which does not exist after the jump") for path in gone
    ]
    looked.setattr(_processes, "fd_links", lambda _pid, *_root: {})
    assert codes(dict(WEB)) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"FragmentPath": "/run/systemd/generator/web.service"}, ""),
        ({"FragmentPath": "/usr/lib/systemd/system/web@.service"}, ""),
        (
            {"FragmentPath": "/run/systemd/transient/web.service"},
            "does not exist after a boot: its file is /run/systemd/transient/web.service",
        ),
        ({"FragmentPath": "/run/systemd/system/web.service"}, "does not exist after a boot"),
        ({"FragmentPath": ""}, "does not exist after a boot: its file is missing"),
        (
            {"ExecStart": program("/usr/local/sbin/kvm-liveupdate", "run", "other", "--", "qemu")},
            "'kvm-liveupdate run other', not 'run web'",
        ),
        ({"ExecStart": program("/usr/local/sbin/kvm-liveupdate", "run", "$GUEST", "--", "qemu")}, ""),
        ({"ExecStart": program("/usr/bin/qemu-system-x86_64", "-m", "4G")}, "starts QEMU without the wrapper"),
        ({"ExecStart": program("/usr/local/bin/start-web")}, ""),  # which is a warning
    ],
)
def test_the_unit_is_looked_at_as_the_boot_will_find_it(looked, changed, told):
    for key, value in changed.items():
        looked.setitem(SHOWN, key, value)
    found = _unit.file_reasons("web.service", "web", SHOWN)
    code = "unit-gone" if "does not exist after a boot" in told else "unit-other"
    assert [reason["code"] for reason in found] == ([code] if told else [])
    assert all(told in reason["message"] and reason["remedy"] for reason in found)
    looked.setattr(_processes, "fd_links", lambda _pid, *_root: {})
    assert codes(dict(WEB)) == ([code] if told else [])


def test_a_unit_that_was_changed_since_systemd_read_it_is_a_reason(looked, tmp_path):
    """set-property puts its drop-in behind those of a later name, and systemd takes that for a change."""
    for name in ("web.service", "40-kvm-liveupdate.conf", "override.conf"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100, 100))
    looked.setattr(_processes, "fd_links", lambda _pid, *_root: {})
    looked.setattr(_processes, "started_at", lambda _pid: 200.0)
    looked.setitem(SHOWN, "FragmentPath", f"{tmp_path}/web.service")
    looked.setitem(SHOWN, "NeedDaemonReload", "yes")
    files = f"{tmp_path}/40-kvm-liveupdate.conf {tmp_path}/override.conf"
    looked.setitem(SHOWN, "DropInPaths", files)
    assert codes(dict(WEB)) == ["unit"]
    looked.setitem(SHOWN, "DropInPaths", f"{files} /run/systemd/system.control/web.service.d/50-StartupCPUWeight.conf")
    assert codes(dict(WEB)) == []
    os.utime(tmp_path / "override.conf", (300, 300))
    assert codes(dict(WEB)) == ["unit"]
    (tmp_path / "override.conf").unlink()
    assert codes(dict(WEB)) == ["unit"]


def test_systemd_is_asked_for_each_property_that_is_read(looked):
    """See Shown: what is missing would be taken for empty."""
    looked.setattr(_processes, "fd_links", lambda _pid, *_root: {})
    looked.setitem(SHOWN, "NeedDaemonReload", "yes")
    looked.setitem(SHOWN, "DropInPaths", "/run/systemd/system/web.service.d/override.conf")
    looked.setitem(SHOWN, "ExecStartPre", program("/usr/bin/true"))
    record = dict(WEB)
    assert codes(record) == ["unit"] and _reasons.warn(record)
    with pytest.raises(AssertionError, match="Never is never asked for"):
        record["shown"].get("Never")


def test_systemd_is_asked_for_no_guest_without_a_unit(looked):
    """A damaged record names none, and systemctl would answer for nobody."""
    asked = []
    looked.setattr(_systemd, "show_each", lambda units, *_asked: asked.extend(units) or {unit: dict(SHOWN) for unit in units})
    looked.setattr(_providers, "all_of_them", lambda: [SimpleNamespace(survey=lambda _records: None)])
    damaged = {**WEB, "name": "db", "unit": "", "pid": 0}
    _reasons.survey([dict(WEB), damaged])
    assert set(asked) == {"web.service", "-.slice"}
    looked.setattr(PROVIDER, "inspect", lambda _record: [{"code": "record-damaged"}])
    assert codes(damaged) == ["record-damaged"] and _reasons.warn(damaged) == []
    looked.setattr(PROVIDER, "inspect", lambda _record: [])
    assert codes(damaged) == ["unit-gone"]
    looked.setattr(PROVIDER, "inspect", lambda _record: [{"code": "ram-backend"}])
    assert codes({**damaged, "pid": 7}) == ["ram-backend", "unit-gone"]
    assert set(asked) == {"web.service", "-.slice"}


@pytest.mark.parametrize(
    ("name", "long"), [("\u0432" * 28, True), ("\u0432" * 27, False), ("a-" * 30, False), ("a" * 250, True), ("web", False)]
)
def test_a_name_too_long_for_a_unit_is_a_reason_against_this_guest_only(looked, name, long):
    record = {**WEB, "name": name}
    assert [reason["code"] for reason in _reasons.name_reasons(record)] == (["name-long"] if long else [])
    looked.setattr(_systemd, "version", lambda: 261)  # holds the memory of a unit's guest itself, and rehearses it in a unit nevertheless
    assert bool(_reasons.name_reasons(record)) is long
    units = [unit.replace("@", f"@{_units.escape(name)}") for unit in (_units.REHEARSAL, _units.HOLD)]
    assert (max(map(len, units)) > 255) is long
    assert bool(_reasons.name_reasons({**record, "provider": "libvirt"})) is long


def test_each_provider_surveys_its_own_guests_and_no_name_that_systemd_would_refuse(looked):
    """systemctl would fail for all of them."""
    seen, asked = {}, []

    def provider(name, properties):
        return SimpleNamespace(
            survey=lambda records: seen.update({name: [record["name"] for record in records]}), unit_properties=properties
        )

    providers = {"qemu": provider("qemu", ("Type",)), "libvirt": provider("libvirt", ())}
    looked.setattr(_providers, "all_of_them", lambda: list(providers.values()))
    looked.setattr(_providers, "of", lambda record: providers[record["provider"]])
    looked.setattr(_systemd, "show_each", lambda units, *names: asked.append(units) or {unit: {"Wants": "a.service"} for unit in units})
    guests = [{**WEB, "name": name, "unit": f"{name}.service", "provider": kind} for name, kind in (("web", "qemu"), ("db", "libvirt"))]
    _reasons.survey([*guests, {**WEB, "name": "x" * 300, "unit": "long.service"}])
    assert seen == {"qemu": ["web"], "libvirt": ["db"]}
    assert asked[0] == ["db.service", "web.service"] and asked[-1] == ["a.service"]
    assert [list(record["brought"]) for record in guests] == [["a.service"], []]  # only units run what a boot has to find


def test_services_that_start_each_other_are_told_once(looked):
    asked_for = services(looked, web={"Wants": "a.service"}, a={"Requires": "b.service"}, b={"BindsTo": "a.service web.service"})
    record = {**WEB}
    _reasons._ask_systemd([record])
    assert list(record["brought"]) == ["a.service", "b.service"] and len(asked_for) < 10


@pytest.mark.parametrize("kept", [{"shown": SHOWN}, {"limits": {}}, {}])
def test_a_record_without_all_answers_is_asked_for_again(looked, kept):
    record = {**WEB, **kept}
    asked = []
    looked.setattr(_reasons, "_ask_systemd", asked.extend)
    _reasons._asked(record)
    assert asked == [record]
    _reasons._asked({**WEB, "shown": {}, "limits": {}})
    assert len(asked) == 1


def test_a_guest_of_a_long_name_gets_no_warnings_of_its_unit(looked):
    looked.setattr(PROVIDER, "unit_warnings", lambda record, shown: 1 // 0)
    assert _reasons.warn({**WEB, "name": "a" * 300}) == _reasons.warn({**WEB, "unit": ""})


def test_two_guests_of_one_name_are_both_refused(looked):
    domain = {**WEB, "provider": "libvirt", "unit": "kvm-liveupdate-hold@web.service", "pid": 8}
    providers = [SimpleNamespace(known=lambda: [dict(WEB), {**WEB, "name": "db"}]), SimpleNamespace(known=lambda: [domain])]
    looked.setattr(_providers, "all_of_them", lambda: providers)
    looked.setitem(SHOWN, "ExecStart", program("/usr/local/bin/start-any"))
    web, db, other = _providers.records()
    assert codes(web) == codes(other) == ["name-twice"] and codes(db) == []
    assert "web.service" in _reasons.inspect(other)[0]["message"]
    looked.setattr(_processes, "pids", lambda: [7, 8])
    looked.setattr(_processes, "fd_links", lambda _pid: {3: _processes.VM_LINK})
    assert _providers.strangers() == []


def test_a_guest_whose_examination_fails_has_a_reason_and_the_others_are_examined(looked):
    def inspect(record):
        if record["name"] == "db":
            raise LiveUpdateError("systemctl show: invalid argument")
        if record["name"] == "app":
            raise ElementTree.ParseError("no element found")  # a SyntaxError
        return []

    looked.setattr(_reasons, "inspect", inspect)
    web, db, long, app = (hypervisor_info.guest_facts({**WEB, "name": name}, held=False) for name in ("web", "db", "\u0432" * 30, "app"))
    assert [reason["code"] for reason in app["reasons"]] == ["not-examined"] and "no element found" in app["reasons"][0]["message"]
    assert web["reasons"] == []
    assert [reason["code"] for reason in db["reasons"]] == ["not-examined"] and "invalid argument" in db["reasons"][0]["message"]
    assert [reason["code"] for reason in long["reasons"]] == ["name-long"]
    assert set(web) == set(db) == set(long)


def test_a_name_of_any_bytes_makes_a_unit_name():
    assert _units.escape("B\udcfcro") == r"B\xfcro" and _reasons.name_reasons({**WEB, "name": "B\udcfcro"}) == []


GOOD = {"FileDescriptorStorePreserve": "yes", "NotifyAccess": "all", "IgnoreOnIsolate": "yes", "FileDescriptorStoreMax": "4"}


def test_a_unit_with_all_it_needs_is_a_holder():
    assert _reasons.unit_reasons("web1.service", GOOD) == []


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_a_unit_lacks_is_named(key):
    (reason,) = _reasons.unit_reasons("web1.service", {**GOOD, key: "no" if key != "FileDescriptorStoreMax" else "0"})
    assert f"{key}=" in reason["message"]
    assert "hypervisor_setup_guest_units" in reason["remedy"]


@pytest.mark.parametrize(("most", "enough"), [("", False), ("0", False), ("1", True), ("2", True), (None, False)])
def test_a_unit_needs_room_for_one_descriptor(most, enough):
    properties = {key: value for key, value in {**GOOD, "FileDescriptorStoreMax": most}.items() if value is not None}
    assert (_reasons.unit_reasons("web1.service", properties) == []) is enough


@pytest.mark.parametrize("setting", ["FailureAction", "StartLimitAction"])
def test_a_unit_that_would_end_the_host_is_refused(setting):
    (reason,) = _reasons.unit_reasons("web1.service", {**GOOD, setting: "reboot-force"})
    assert reason["code"] == "unit-action" and f"{setting}=reboot-force" in reason["message"]
    assert _reasons.unit_reasons("web1.service", {**GOOD, setting: "none"}) == []
